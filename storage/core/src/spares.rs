//! Files of removed segments, kept for the next ones.
//!
//! A log that overwrites gives up segments as fast as it makes new ones. A file that is used again has its
//! space on the drive and its pages in memory already: appending costs half as much, and a sync has no
//! file metadata to write. (The same holds for the log files that PostgreSQL and RocksDB recycle.)
//!
//! What makes it safe: every header, record and trailer carries the id of its segment inside its checksum,
//! so that nothing old in a file is ever valid under its new name. A file is kept only when it is sealed
//! and its header is its own: nobody will write to it any more, and it is not another segment's file
//! that a power loss left under two names.

use parking_lot::Mutex;

use crate::units::{DiskId, SegmentId};

/// Files kept in a pool: 1 GiB of full segments.
const SPARES_MAX: usize = 16;
/// Of what is free on a drive, one in so many bytes may be kept.
const FREE_SHARE: u64 = 16;

#[derive(Clone, Copy, Debug)]
pub struct Spare {
    /// The segment whose name the file still has.
    pub id: SegmentId,
    pub disk: DiskId,
    pub drive: u32,
    pub length: u64,
}

#[derive(Default)]
pub struct Spares(Mutex<Vec<Spare>>);

impl Spares {
    /// Keeps a file unless there are enough; false if it should be removed.
    pub fn keep(&self, spare: Spare, free_bytes: u64) -> bool {
        let mut spares = self.0.lock();
        let on_drive = spares.iter().filter(|s| s.drive == spare.drive);
        let kept_bytes = on_drive.map(|s| s.length).sum::<u64>();
        let is_kept =
            spares.len() < SPARES_MAX && kept_bytes + spare.length <= free_bytes / FREE_SHARE;
        if is_kept {
            spares.push(spare);
        }
        is_kept
    }

    pub fn contains(&self, id: SegmentId) -> bool {
        self.0.lock().iter().any(|s| s.id == id)
    }

    /// One that lies in the folder of `disk`, so that its new name needs no other folder synced.
    pub fn take(&self, disk: DiskId, drive: u32) -> Option<Spare> {
        let mut spares = self.0.lock();
        let at = spares.iter().position(|s| s.disk == disk && s.drive == drive)?;
        Some(spares.swap_remove(at))
    }

    /// Takes all that are chosen, for removal.
    pub fn take_all(&self, is_chosen: impl Fn(&Spare) -> bool) -> Vec<Spare> {
        self.0.lock().extract_if(.., |s| is_chosen(s)).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    pub fn bytes_on(&self, drive: u32) -> u64 {
        self.0.lock().iter().filter(|s| s.drive == drive).map(|s| s.length).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_share_of_the_free_space_is_kept() {
        let spares = Spares::default();
        let spare = |id| Spare { id: SegmentId(id), disk: DiskId(1), drive: 0, length: 100 };
        assert!(!spares.keep(spare(1), 1599), "more than a sixteenth");
        assert!(spares.keep(spare(1), 1600));
        assert!(!spares.keep(spare(2), 1600), "with the first");
        assert_eq!((spares.bytes_on(0), spares.bytes_on(1)), (100, 0));
        let kept = (2..100).filter(|id| spares.keep(spare(*id), u64::MAX)).count();
        assert_eq!(kept, SPARES_MAX - 1);
        assert!(spares.take(DiskId(2), 0).is_none() && spares.take(DiskId(1), 1).is_none());
        assert!(spares.take(DiskId(1), 0).is_some());
        assert_eq!(spares.take_all(|s| s.id != SegmentId(5)).len(), SPARES_MAX - 2);
        assert!(spares.contains(SegmentId(5)) && !spares.is_empty());
    }
}
