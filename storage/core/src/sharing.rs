//! Disks that share segments: snapshots, clones, rollback, and deletion in any order.
//!
//! A snapshot is a disk that nobody writes to and whose tree is the one of another disk's checkpoint; a
//! clone is the same, but written to. Neither copies anything, and no tree leads through another disk's:
//! reading costs what it costs on any disk, however many snapshots there are.
//!
//! Lock order: `sharing`, then the disks' `checkpointing` by id, then the logs by id.

use std::sync::Arc;

use hashbrown::HashSet;

use crate::anchor_file::{self, AnchorFile};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::Root;
use crate::holds::held_by;
use crate::pool::Pool;
use crate::recovery::load_usage;
use crate::units::{DiskId, SegmentId};

impl Pool {
    /// Freezes disks in service, all at one instant, as new disks: pairs of disk and snapshot. Writes wait
    /// while the instant is fixed, not while the snapshots are made durable. All of them are on return,
    /// or none is there.
    ///
    /// Time: what a checkpoint of the changes since the last one takes; the disks' sizes do not matter.
    pub fn snapshot(&self, pairs: &[(DiskId, DiskId)]) -> Result<()> {
        self.check_open()?;
        let _sharing = self.sharing.lock();
        let mut pairs = pairs.to_vec();
        pairs.sort_unstable();
        if pairs.windows(2).any(|two| two[0].0 == two[1].0) {
            return Err(Error::InvalidRequest("a disk is named twice".into()));
        }
        let disks: Vec<Arc<Disk>> = {
            let open = self.disks.lock();
            let find = |id: DiskId| open.get(&id).cloned().ok_or(Error::DiskNotFound(id));
            pairs.iter().map(|(disk, _)| find(*disk)).collect::<Result<_>>()?
        };
        let outcome = self.snapshot_open(&disks, &pairs);
        disks.iter().for_each(|_| self.budget.checkpoint_ended(&outcome));
        if outcome.is_err() {
            for (_, snapshot) in &pairs {
                self.remove_disk(*snapshot)?;
            }
        }
        outcome
    }

    fn snapshot_open(&self, disks: &[Arc<Disk>], pairs: &[(DiskId, DiskId)]) -> Result<()> {
        let _checkpoints: Vec<_> = disks.iter().map(|disk| disk.checkpointing.lock()).collect();
        for disk in disks {
            disk.check_open()?;
            disk.finish_interrupted()?;
        }
        let cuts: Vec<_> = {
            let logs: Vec<_> = disks.iter().map(|disk| disk.log.lock()).collect();
            disks.iter().zip(&logs).map(|(disk, log)| disk.cut_off(log)).collect()
        };
        for ((disk, cut), (_, snapshot)) in disks.iter().zip(cuts).zip(pairs) {
            let root = disk.commit_cut(cut, false)?;
            self.create_from(&root, *snapshot, true)?;
        }
        Ok(())
    }

    /// Makes a disk that begins as a snapshot; durable on return.
    pub fn clone_disk(&self, snapshot: DiskId, clone: DiskId) -> Result<()> {
        self.check_open()?;
        let _sharing = self.sharing.lock();
        self.create_from(&self.snapshot_root(snapshot)?, clone, false)
    }

    /// Makes the contents of a disk those of a snapshot of it, with one write of its anchor. Nobody may
    /// use the disk; it is out of service afterwards.
    pub fn rollback_disk(&self, disk: DiskId, size_bytes: u64, snapshot: DiskId) -> Result<()> {
        self.open_disk(disk, size_bytes)?.close()?;
        let _sharing = self.sharing.lock();
        let origin = self.snapshot_root(snapshot)?;
        let anchor = AnchorFile::open(&self.anchors, self.options.pool_uuid, disk)?;
        let old = anchor.root();
        if !old.clean {
            return Err(Error::InvalidRequest("the disk is being written to".into()));
        }
        let mut root = Root {
            tree: origin.tree,
            levels: origin.levels,
            mapped_blocks: origin.mapped_blocks,
            usage_segment: origin.usage_segment,
            usage_offset: origin.usage_offset,
            drives: old.drives | origin.drives,
            segment_high: self.segments.highest(),
            shares: true,
            ..old
        };
        let (held, needed) = (self.held_at_rest(&old)?, self.held_at_rest(&root)?);
        root.shares = !needed.is_empty();
        self.holds.take(&needed);
        // If this fails, which of the two roots is durable is not known: what either needs stays held.
        anchor.commit(root)?;
        let freed = self.holds.release(&held);
        self.free_released(&freed)
    }

    /// Removes a disk, snapshot or clone, durably, and gives back the space that no other one needs. I/O
    /// still under way on it fails. False if segments stay because others need them: they go with the
    /// last of those, or when this is called again.
    pub fn delete_disk(&self, disk: DiskId) -> Result<bool> {
        self.check_open()?;
        let _sharing = self.sharing.lock();
        self.remove_disk(disk)
    }

    fn remove_disk(&self, disk: DiskId) -> Result<bool> {
        let open = self.disks.lock().remove(&disk);
        let held = match &open {
            Some(open) => {
                open.abandon();
                std::mem::take(&mut *open.held.lock())
            }
            None => match AnchorFile::open(&self.anchors, self.options.pool_uuid, disk) {
                Ok(anchor) => self.held_at_rest(&anchor.root()).unwrap_or_default(),
                // A damaged one never took any.
                Err(_) => HashSet::new(),
            },
        };
        // The anchor goes first: a crash in between leaves segments without a disk, which the next
        // deletion or the pool's clean-up removes, never a disk without segments.
        AnchorFile::remove(&self.anchors, disk)?;
        self.holds.note_deleted(disk);
        let freed = self.holds.release(&held);
        self.free_released(&freed)?;
        self.segments.drop_spares_of(disk)?;
        let mut is_gone = true;
        for id in self.segments.of_disk(disk) {
            match self.holds.is_held(id) {
                true => is_gone = false,
                false => self.segments.remove(id)?,
            }
        }
        if is_gone {
            self.segments.remove_folders(disk)?;
        }
        Ok(is_gone)
    }

    /// Finds out what the pool's snapshots and clones hold.
    pub(crate) fn load_holds(&self) -> Result<()> {
        for disk in anchor_file::list(&*self.anchors)? {
            let anchor = AnchorFile::open(&self.anchors, self.options.pool_uuid, disk);
            match anchor.and_then(|anchor| self.held_at_rest(&anchor.root())) {
                Ok(held) => self.holds.take(&held),
                Err(_) => self.holds.note_unknown(disk),
            }
        }
        Ok(())
    }

    fn snapshot_root(&self, snapshot: DiskId) -> Result<Root> {
        let anchor = AnchorFile::open(&self.anchors, self.options.pool_uuid, snapshot)?;
        let root = anchor.root();
        match root.is_snapshot {
            true => Ok(root),
            false => Err(Error::InvalidRequest("only a snapshot stands still".into())),
        }
    }

    /// Makes a disk whose tree is that of `origin`.
    fn create_from(&self, origin: &Root, disk: DiskId, is_snapshot: bool) -> Result<()> {
        let root = Root {
            tree: origin.tree,
            levels: origin.levels,
            disk,
            replay_lsn: 1,
            usage_segment: origin.usage_segment,
            usage_offset: origin.usage_offset,
            mapped_blocks: origin.mapped_blocks,
            drives: origin.drives,
            segment_high: origin.segment_high,
            clean: true,
            shares: true,
            is_snapshot,
            ..Root::default()
        };
        let held = self.held_at_rest(&root)?;
        self.holds.take(&held);
        let created = AnchorFile::create(&self.anchors, self.options.pool_uuid, root);
        if created.is_err() {
            self.holds.release(&held);
        }
        created
    }

    /// What a disk with this root holds.
    fn held_at_rest(&self, root: &Root) -> Result<HashSet<SegmentId>> {
        if !root.shares {
            return Ok(HashSet::new());
        }
        let (usage, _) = load_usage(root, &self.fetcher(root.disk))?;
        Ok(held_by(root, &usage, &self.segments))
    }

    /// As `Budget::give_back`, for disks that are not in service too.
    fn free_released(&self, freed: &[SegmentId]) -> Result<()> {
        let owners: HashSet<_> = freed.iter().filter_map(|id| self.segments.owner(*id)).collect();
        self.budget.give_back(&self.fetcher(DiskId::default()), freed)?;
        let open = self.disks.lock();
        for owner in owners {
            if open.contains_key(&owner) || self.holds.is_deleted(owner) {
                continue;
            }
            let anchor = AnchorFile::open(&self.anchors, self.options.pool_uuid, owner)?;
            let fetcher = self.fetcher(owner);
            let (usage, _) = load_usage(&anchor.root(), &fetcher)?;
            for id in fetcher.dead_segments(&anchor.root(), &usage) {
                self.segments.remove(id)?;
            }
        }
        Ok(())
    }
}
