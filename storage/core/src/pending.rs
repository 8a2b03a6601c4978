//! Snapshots that have been taken and have no tree of their own yet.
//!
//! Taking one cuts off the disk's changes, makes the log durable up to there and writes an anchor that names
//! the disk and the place in its log: root and log of the disk are the snapshot, and it is safe. Later
//! a checkpoint of the disk merges the changes exactly up to the cut, and its tree becomes the snapshot's
//! before the disk's own root moves on.
//!
//! Invariant: the durable root of a disk never lies behind the cut of one of its pending snapshots. So recovery
//! can always cut the changes off at the same place again.
//!
//! Lock order: this lock is the last one; it is held while an anchor is written, so nobody asks for it
//! under a log's lock.

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::{Condvar, Mutex};

use crate::anchor_file::AnchorFile;
use crate::disk_map::Cut;
use crate::error::{Error, Result};
use crate::fetch::Fetcher;
use crate::format::Root;
use crate::holds::held_at_rest;
use crate::log::Position;
use crate::storage::Drive;
use crate::units::{DiskId, Lsn};

struct Taken {
    origin: DiskId,
    /// `None` until the anchor that says so is durable.
    cut: Option<Position>,
}

pub struct Pending {
    anchors: Arc<dyn Drive>,
    pool: [u8; 16],
    taken: Mutex<HashMap<DiskId, Taken>>,
    changed: Condvar,
}

/// The root of a disk that begins as `origin`.
pub fn copy_of(origin: &Root, disk: DiskId, is_snapshot: bool) -> Root {
    Root {
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
    }
}

impl Pending {
    pub fn new(anchors: Arc<dyn Drive>, pool: [u8; 16]) -> Pending {
        Pending { anchors, pool, taken: Mutex::default(), changed: Condvar::new() }
    }

    /// Snapshots are about to be taken: pairs of disk and snapshot. Each is to be `made` or forgotten soon,
    /// checkpoints wait for that.
    pub fn begin(&self, pairs: &[(DiskId, DiskId)]) {
        let taken = pairs.iter().map(|(disk, id)| (*id, Taken { origin: *disk, cut: None }));
        self.taken.lock().extend(taken);
    }

    /// Makes the anchors of snapshots that have begun, durably; `roots` from [`Pending::root_of`].
    pub fn make(&self, roots: &[Root]) -> Result<()> {
        AnchorFile::create(&self.anchors, self.pool, roots)?;
        roots.iter().for_each(|root| self.found(root));
        self.changed.notify_all();
        Ok(())
    }

    /// The root of a snapshot that `disk` was cut off for.
    pub fn root_of(disk: &Root, cut: Position, snapshot: DiskId) -> Root {
        Root {
            disk: snapshot,
            origin: disk.disk,
            replay_log_index: cut.log_index,
            replay_segment: cut.segment,
            replay_offset: cut.offset as u32,
            replay_lsn: cut.lsn,
            drives: disk.drives,
            segment_high: disk.segment_high.max(cut.segment),
            clean: true,
            shares: true,
            is_snapshot: true,
            ..Root::default()
        }
    }

    /// Notes a snapshot whose anchor, with this root, is durable.
    pub fn found(&self, root: &Root) {
        let cut = Position {
            log_index: root.replay_log_index,
            segment: root.replay_segment,
            offset: root.replay_offset as usize,
            lsn: root.replay_lsn,
        };
        self.taken.lock().insert(root.disk, Taken { origin: root.origin, cut: Some(cut) });
    }

    /// The snapshot is deleted or could not be taken.
    pub fn forget(&self, snapshot: DiskId) {
        self.taken.lock().remove(&snapshot);
        self.changed.notify_all();
    }

    /// The disk whose log a snapshot without a tree is in; `None` for every other disk.
    pub fn origin_of(&self, snapshot: DiskId) -> Option<DiskId> {
        self.taken.lock().get(&snapshot).map(|taken| taken.origin)
    }

    /// Where the disk's changes from `replay_lsn` on are to be cut off, in log order.
    pub fn cuts_of(&self, disk: DiskId, replay_lsn: Lsn) -> Vec<Cut> {
        let taken = self.taken.lock();
        let of_disk = taken.iter().filter(|(_, taken)| taken.origin == disk);
        let to_cut = |(id, taken): (&DiskId, &Taken)| {
            taken.cut.map(|replay| Cut { replay, snapshot: Some(*id), appended_bytes: 0 })
        };
        let mut cuts: Vec<_> = of_disk.filter_map(to_cut).collect();
        cuts.retain(|cut| cut.replay.lsn >= replay_lsn);
        cuts.sort_by_key(|cut| (cut.replay.lsn, cut.snapshot));
        cuts
    }

    /// Gives a snapshot the tree of its disk's checkpoint, durably, if it still waits for one.
    pub fn settle(&self, snapshot: DiskId, origin: &Root, fetcher: &Fetcher) -> Result<()> {
        let mut taken = self.taken.lock();
        while taken.get(&snapshot).is_some_and(|taken| taken.cut.is_none()) {
            self.changed.wait(&mut taken);
        }
        if !taken.contains_key(&snapshot) {
            return Ok(());
        }
        let anchor = AnchorFile::open(&self.anchors, self.pool, snapshot)?;
        let root = copy_of(origin, snapshot, true);
        let held = held_at_rest(&root, fetcher)?;
        fetcher.holds.take(&held);
        // If this fails, either root is right: the disk's own root stays before the cut.
        if let Err(error) = anchor.commit(root) {
            fetcher.holds.release(&held);
            return Err(error);
        }
        taken.remove(&snapshot);
        Ok(())
    }

    /// What to say of a snapshot that its disk's checkpoint has not given a tree.
    pub fn lost(snapshot: DiskId) -> Error {
        Error::Corrupt {
            disk: snapshot,
            place: crate::anchor_file::path_of(snapshot),
            detail: "its disk's log does not lead there any more".into(),
        }
    }
}
