//! Disks that share segments: snapshots, clones, rollback, and deletion in any order.
//!
//! A snapshot is a disk that nobody writes to and whose tree is the one of another disk's checkpoint; a
//! clone is the same, but written to. Neither copies anything, and no tree leads through another disk's:
//! reading costs what it costs on any disk, however many snapshots there are.
//!
//! Lock order: `sharing`, then a disk's `checkpointing`, then the logs by id.

use std::sync::Arc;

use hashbrown::HashSet;

use crate::anchor_file::{self, AnchorFile};
use crate::budget::Chore;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::Root;
use crate::holds::held_at_rest;
use crate::pending::{Pending, copy_of};
use crate::pool::Pool;
use crate::units::{DiskId, SegmentId};
use crate::usage::load_usage;

impl Pool {
    /// Freezes disks in service, all at one instant, as new disks: pairs of disk and snapshot. Writes wait
    /// while the instant is fixed, not while it is made durable. All of them are on return, or none is there.
    ///
    /// Time: what a flush of the disks takes, and an anchor for each. Their trees are made in the background;
    /// opening, cloning and rolling back to a snapshot wait for its own.
    pub fn snapshot(&self, pairs: &[(DiskId, DiskId)]) -> Result<()> {
        self.check_open()?;
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
        for disk in disks.iter().filter(|disk| disk.map.is_deep()) {
            disk.checkpoint()?;
        }
        let _sharing = self.sharing.lock();
        self.pending.begin(&pairs);
        let outcome = self.snapshot_open(&disks, &pairs);
        if outcome.is_err() {
            // All of them before anything here may fail: checkpoints wait for the last one.
            pairs.iter().for_each(|(_, snapshot)| self.pending.forget(*snapshot));
            for (_, snapshot) in &pairs {
                self.remove_disk(*snapshot)?;
            }
        }
        outcome
    }

    fn snapshot_open(&self, disks: &[Arc<Disk>], pairs: &[(DiskId, DiskId)]) -> Result<()> {
        disks.iter().try_for_each(|disk| disk.check_open())?;
        let cuts: Vec<_> = {
            let mut logs: Vec<_> = disks.iter().map(|disk| disk.log.lock()).collect();
            logs.iter_mut().for_each(|log| log.cover_marks());
            let each = disks.iter().zip(&logs).zip(pairs);
            each.map(|((disk, log), (_, snapshot))| disk.cut_off(log, Some(*snapshot))).collect()
        };
        // The anchors say that the logs are durable up to the cuts.
        disks.iter().try_for_each(|disk| disk.log.flush())?;
        let each = disks.iter().zip(cuts).zip(pairs);
        let root = |((disk, cut), (_, snapshot)): ((&Arc<Disk>, _), &(_, DiskId))| {
            Pending::root_of(&disk.anchor.root(), cut, *snapshot)
        };
        self.pending.make(&each.map(root).collect::<Vec<_>>())?;
        disks.iter().for_each(|disk| self.budget.request(disk, Chore::Checkpoint));
        Ok(())
    }

    /// Waits until the disk has a tree of its own, if it is a snapshot just taken.
    pub(crate) fn settle(&self, disk: DiskId) -> Result<()> {
        let Some(origin) = self.pending.origin_of(disk) else { return Ok(()) };
        self.in_service(origin)?.checkpoint()?;
        match self.pending.origin_of(disk) {
            Some(_) => Err(Pending::lost(disk)),
            None => Ok(()),
        }
    }

    /// Makes a disk that begins as a snapshot; durable on return.
    pub fn clone_disk(&self, snapshot: DiskId, clone: DiskId) -> Result<()> {
        self.check_open()?;
        self.settle(snapshot)?;
        let _sharing = self.sharing.lock();
        self.create_from(&self.snapshot_root(snapshot)?, clone)
    }

    /// Makes the contents of a disk those of a snapshot of it, with one write of its anchor. Nobody may
    /// use the disk; it is out of service afterwards.
    pub fn rollback_disk(&self, disk: DiskId, size_bytes: u64, snapshot: DiskId) -> Result<()> {
        self.settle(snapshot)?;
        self.open_disk(disk, size_bytes)?.close()?;
        let _sharing = self.sharing.lock();
        let origin = self.snapshot_root(snapshot)?;
        let anchor = AnchorFile::open(&self.anchors, self.options.pool_uuid, disk)?;
        let old = anchor.root();
        // The log behind the root must mean nothing, neither to the disk nor to a snapshot of it.
        if !old.clean || !self.pending.cuts_of(disk, old.replay_lsn).is_empty() {
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
        loop {
            for cut in self.pending.cuts_of(disk, 0) {
                self.settle(cut.snapshot.expect("the cut of a snapshot"))?;
            }
            let _sharing = self.sharing.lock();
            if self.pending.cuts_of(disk, 0).is_empty() {
                return self.remove_disk(disk);
            }
        }
    }

    fn remove_disk(&self, disk: DiskId) -> Result<bool> {
        self.pending.forget(disk);
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

    /// Finds out what the pool's snapshots and clones hold, and which have no trees yet.
    pub(crate) fn load_holds(&self) -> Result<()> {
        for disk in anchor_file::list(&*self.anchors)? {
            let anchor = AnchorFile::open(&self.anchors, self.options.pool_uuid, disk);
            if let Ok(anchor) = &anchor
                && anchor.root().is_pending()
            {
                self.pending.found(&anchor.root());
            }
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
        match root.is_snapshot && !root.is_pending() {
            true => Ok(root),
            false => Err(Error::InvalidRequest("only a snapshot stands still".into())),
        }
    }

    /// Makes a disk, not a snapshot, whose tree is that of `origin`.
    fn create_from(&self, origin: &Root, disk: DiskId) -> Result<()> {
        let root = copy_of(origin, disk, false);
        let held = self.held_at_rest(&root)?;
        self.holds.take(&held);
        let created = AnchorFile::create(&self.anchors, self.options.pool_uuid, &[root]);
        if created.is_err() {
            self.holds.release(&held);
        }
        created
    }

    fn held_at_rest(&self, root: &Root) -> Result<HashSet<SegmentId>> {
        held_at_rest(root, &self.fetcher(root.disk))
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
