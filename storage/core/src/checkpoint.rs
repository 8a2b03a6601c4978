//! Checkpoints: from changes in memory to a durable root.
//!
//! Steps, and what recovery finds after a crash behind each:
//! 1. Cut off the changes so far, note the log's position P. The old root; replays from its own P.
//!    Snapshots have done the same before. For each of what was cut off, oldest first:
//! 2. Merge it into the tree: new nodes go into the log, the old tree stays whole. As 1.
//! 3. Append the usage table and the root to the log. As 1.
//! 4. Flush the log: all that the new root points to is durable. As 1.
//! 5. If a snapshot ends here, write the root into its anchor. As 1; the snapshot has its tree.
//! 6. Write the root into the anchor's other slot, sync it. Torn: the old root; whole: the new one.
//! 7. Readers change over to the new tree; the changes' memory is freed.
//!
//! Then:
//! 8. Segments that nothing refers to are removed, or their files used for new ones. They come from before P,
//!    and the durable root does not need them; a removal undone by a power loss leaves a file that the next
//!    recovery ignores.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hashbrown::{HashMap, HashSet};

use crate::batch::Batch;
use crate::disk::Disk;
use crate::disk_map::{Cut, Frozen};
use crate::error::Result;
use crate::format::record::RECORD_HEADER_LEN;
use crate::format::{Kind, Root, SegmentHeader, node};
use crate::holds::held_by;
use crate::log::{LogGuard, Position};
use crate::map::{NodeStore, TreeRoot, UsageSink, merge};
use crate::segment_reader::{file_len, read_header, read_trailer};
use crate::throttle::Limits;
use crate::units::{BlockIndex, DiskId, Location, SegmentId};
use crate::usage::UsageTable;

/// What a merge changes in the usage table: applied when the checkpoint is durable, not before.
#[derive(Default)]
struct UsageChanges(HashMap<SegmentId, i64>);

impl UsageSink for UsageChanges {
    fn added(&mut self, at: Location) {
        *self.0.entry(at.segment()).or_default() += 1;
    }

    fn removed(&mut self, at: Location) {
        *self.0.entry(at.segment()).or_default() -= 1;
    }
}

impl UsageChanges {
    fn apply_to(&self, table: &mut UsageTable) {
        for (segment, change) in &self.0 {
            table.change_live(*segment, *change);
        }
    }
}

impl NodeStore for Disk {
    fn load(&self, at: Location, level: u8, first: BlockIndex) -> Result<Arc<node::Node>> {
        self.fetcher.node(at, level, first)
    }

    fn append(&self, node: &node::Node, level: u8, first: BlockIndex) -> Result<Location> {
        let mut batch = Batch::default();
        batch.push_node(self.id, first, level, node);
        let len = RECORD_HEADER_LEN + batch.drafts()[0].header.stored_len as usize;
        let (segment, offset) = self.append_metadata(&mut batch)?;
        let location = Location::new(segment, offset, len, 0);
        self.fetcher.nodes.insert(location, Arc::new(*node));
        Ok(location)
    }
}

impl Disk {
    /// Makes the map durable as of now, so that recovery has little to replay, and frees segments that
    /// hold nothing any more. Concurrent I/O goes on.
    pub fn checkpoint(&self) -> Result<()> {
        let outcome = self.checkpoint_as(false);
        self.budget.checkpoint_ended(&outcome);
        outcome
    }

    fn checkpoint_as(&self, is_clean: bool) -> Result<()> {
        let _one = self.checkpointing.lock();
        let mut root = self.anchor.root();
        // What was cut off before, by snapshots or a checkpoint that failed, so that they do not add up.
        let merged = self.merge_frozen(false)?;
        root = merged.unwrap_or(root);
        if self.map.has_active_changes() || (is_clean && !root.clean) {
            self.cut_off(&self.log.lock(), None);
            root = self.merge_frozen(is_clean)?.unwrap_or(root);
        }
        self.free_garbage(&root)?;
        self.budget.note_spares();
        self.request_cleaning();
        Ok(())
    }

    /// Step 1: the changes up to the moment of the call, which may be those of a snapshot.
    pub(crate) fn cut_off(&self, log: &LogGuard, snapshot: Option<DiskId>) -> Position {
        let replay = log.position();
        self.map.freeze(Cut { replay, snapshot, appended_bytes: self.log.appended_bytes() });
        replay
    }

    /// Steps 2 to 7 for all that is cut off, by the end of it; the last root made durable.
    fn merge_frozen(&self, is_clean: bool) -> Result<Option<Root>> {
        let mut root = None;
        while let Some((frozen, tree)) = self.map.oldest() {
            root = Some(self.merge_one(&frozen, tree, is_clean)?);
        }
        Ok(root)
    }

    /// Steps 2 to 7 of what was cut off first.
    fn merge_one(&self, frozen: &Frozen, tree: TreeRoot, is_clean: bool) -> Result<Root> {
        let cut = &frozen.cut;
        let old = self.anchor.root();
        let mut changes = UsageChanges::default();
        let merged = merge(tree, &frozen.delta, self, &mut changes)?;
        let next = Root {
            epoch: old.epoch,
            tree: merged.root.location,
            levels: merged.root.levels,
            disk: self.id,
            replay_log_index: cut.replay.log_index,
            replay_segment: cut.replay.segment,
            replay_offset: cut.replay.offset as u32,
            replay_lsn: cut.replay.lsn,
            mapped_blocks: old.mapped_blocks.saturating_add_signed(merged.mapped_delta),
            // Changes that came after the cut are not in this root.
            clean: is_clean && !self.map.has_changes_after_oldest(),
            shares: !self.held.lock().is_empty(),
            ..Root::default()
        };
        let root = self.commit(next, &changes, cut.snapshot)?;
        changes.apply_to(&mut self.usage.lock());
        self.map.publish_tree(merged.root);
        self.budget.account(self, self.map.delta_bytes());
        self.checkpointed_bytes.store(cut.appended_bytes, Ordering::Relaxed);
        Ok(root)
    }

    /// Steps 3 to 6.
    fn commit(
        &self,
        mut root: Root,
        changes: &UsageChanges,
        snapshot: Option<DiskId>,
    ) -> Result<Root> {
        let mut usage = self.usage.lock().clone();
        changes.apply_to(&mut usage);
        let mut batch = Batch::default();
        batch.push_metadata(self.id, Kind::Usage, 0, &usage.encode());
        let (segment, offset) = self.append_metadata(&mut batch)?;
        (root.usage_segment, root.usage_offset) = (segment, offset as u32);
        root.segment_high = self.fetcher.segments.highest();
        let durable = self.anchor.root();
        (root.seq, root.drives) = (durable.seq + 1, durable.drives);
        batch.clear();
        batch.push_metadata(self.id, Kind::Root, 0, &root.encode());
        self.append_metadata(&mut batch)?;
        self.log.flush()?;
        if let Some(snapshot) = snapshot {
            // Before this disk's own root: nothing may be freed that only the older one led to.
            self.pending.settle(snapshot, &root, &self.fetcher)?;
        }
        self.anchor.commit(root)
    }

    fn append_metadata(&self, batch: &mut Batch) -> Result<(SegmentId, usize)> {
        let mut log = self.log.lock();
        let appended = log.append(batch, true)?;
        self.note_appended(batch, &appended, &log);
        Ok((appended.segment.id, appended.offset))
    }

    /// Removes segments that neither this disk nor another needs any more, and lets go of those of other
    /// disks.
    fn free_garbage(&self, root: &Root) -> Result<()> {
        self.let_go(root)?;
        let dead = self.fetcher.dead_segments(root, &self.usage.lock());
        for id in dead {
            // What is kept stays listed: after a crash the next checkpoint finds it there again.
            if !self.give_up(id)? {
                self.usage.lock().remove(id);
            }
        }
        Ok(())
    }

    /// Removes a segment; true if its file is kept for another one.
    fn give_up(&self, id: SegmentId) -> Result<bool> {
        let segments = &self.fetcher.segments;
        if segments.is_spare(id) || !segments.contains(id) {
            return Ok(segments.is_spare(id));
        }
        let segment = segments.get(id, self.id)?;
        // Sealed: nobody will write to it any more. Its own: a power loss may have left a file that was
        // used again under its old name too.
        let is_own = |h: SegmentHeader| h.segment == id && h.disk == self.id;
        let is_sealed = read_trailer(&segment)?.is_some();
        if is_sealed && read_header(&segment)?.is_some_and(is_own) {
            return segments.recycle(id, file_len(&segment)? as u64);
        }
        segments.remove(id).map(|()| false)
    }

    fn let_go(&self, root: &Root) -> Result<()> {
        let mut held = self.held.lock();
        if held.is_empty() {
            return Ok(());
        }
        let released: HashSet<_> = {
            let mut usage = self.usage.lock();
            let needed = held_by(root, &usage, &self.fetcher.segments);
            usage.retain(|id, u| u.live > 0 || self.fetcher.is_own(id));
            let released = held.difference(&needed).copied().collect();
            *held = needed;
            released
        };
        drop(held);
        let freed = self.fetcher.holds.release(&released);
        self.budget.give_back(&self.fetcher, &freed)
    }

    pub(crate) fn bytes_since_checkpoint(&self) -> u64 {
        self.log.appended_bytes() - self.checkpointed_bytes.load(Ordering::Relaxed)
    }

    /// Writes the summaries of retired segments, oldest first.
    pub(crate) fn seal_retired(&self) -> Result<()> {
        // One at a time, since a trailer vouches for earlier segments too.
        let _one = self.sealing.lock();
        for retired in self.log.take_retired() {
            self.log.seal(&retired)?;
        }
        Ok(())
    }

    /// Ends the disk's service in order: everything durable, nothing to replay. Later calls fail.
    pub fn close(&self) -> Result<()> {
        if self.is_closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let checkpointed = self.checkpoint_as(true);
        if checkpointed.is_err() {
            // Recovery will replay what the checkpoint could not take along.
            self.log.flush()?;
        }
        self.log.retire()?;
        self.seal_retired()?;
        self.budget.unregister(self);
        checkpointed
    }

    /// Ends service at once, for a disk that is being deleted: nothing more is appended.
    pub(crate) fn abandon(&self) {
        if !self.is_closed.swap(true, Ordering::AcqRel) {
            self.log.fail("the disk is being deleted");
            self.throttle.set(Limits::default());
            // Whoever still writes nodes or summaries finds out now.
            let _checkpoint = self.checkpointing.lock();
            let _seal = self.sealing.lock();
            self.budget.unregister(self);
        }
    }
}
