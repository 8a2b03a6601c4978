//! Which segments are kept for the sake of disks other than the one that wrote them.
//!
//! A snapshot and a clone are disks whose tree begins as another disk's. Each *holds* the foreign segments
//! that its usage table says are live, and the one its usage table lies in. A segment is freed only when
//! the disk that wrote it does not need it and nobody holds it.
//!
//! Invariant: the count of a segment is the number of disks whose durable root may lead into it from
//! outside. Holds are taken before the anchor that needs them is written and released after the one that
//! does not need them any more is durable. While there is a disk whose holds could not be read, nothing
//! is freed: nobody can say what it needs.

use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;

use crate::error::Result;
use crate::fetch::Fetcher;
use crate::format::Root;
use crate::segments::Segments;
use crate::units::{DiskId, SegmentId};
use crate::usage::{UsageTable, load_usage};

#[derive(Default)]
struct State {
    counts: HashMap<SegmentId, u32>,
    /// Disks whose anchor or usage table could not be read.
    unknown: HashSet<DiskId>,
    /// Disks that are gone but for segments that others hold.
    deleted: HashSet<DiskId>,
}

#[derive(Default)]
pub struct Holds(Mutex<State>);

/// What a disk with this root holds.
pub fn held_at_rest(root: &Root, fetcher: &Fetcher) -> Result<HashSet<SegmentId>> {
    if !root.shares {
        return Ok(HashSet::new());
    }
    let (usage, _) = load_usage(root, fetcher)?;
    Ok(held_by(root, &usage, &fetcher.segments))
}

/// The foreign segments that a disk with this root and table needs.
pub fn held_by(root: &Root, usage: &UsageTable, segments: &Segments) -> HashSet<SegmentId> {
    let live = usage.iter().filter(|(_, u)| u.live > 0).map(|(id, _)| id);
    let table = Some(root.usage_segment).filter(|id| !id.is_none());
    live.chain(table).filter(|id| segments.owner(*id) != Some(root.disk)).collect()
}

impl Holds {
    pub fn take(&self, segments: &HashSet<SegmentId>) {
        let mut state = self.0.lock();
        segments.iter().for_each(|id| *state.counts.entry(*id).or_default() += 1);
    }

    /// Returns those that nobody holds any more.
    pub fn release(&self, segments: &HashSet<SegmentId>) -> Vec<SegmentId> {
        let mut state = self.0.lock();
        let mut freed = Vec::new();
        for id in segments {
            let Some(count) = state.counts.get_mut(id) else { continue };
            *count -= 1;
            if *count == 0 {
                state.counts.remove(id);
                freed.push(*id);
            }
        }
        freed
    }

    /// Must the segment stay, though the disk that wrote it may not need it?
    pub fn is_held(&self, segment: SegmentId) -> bool {
        let state = self.0.lock();
        !state.unknown.is_empty() || state.counts.contains_key(&segment)
    }

    /// Nobody knows what `disk` holds: nothing is freed until it is deleted or the pool opened anew.
    pub fn note_unknown(&self, disk: DiskId) {
        self.0.lock().unknown.insert(disk);
    }

    /// The disk is gone, its own segments go when nobody holds them.
    pub fn note_deleted(&self, disk: DiskId) {
        let mut state = self.0.lock();
        state.unknown.remove(&disk);
        state.deleted.insert(disk);
    }

    pub fn is_deleted(&self, disk: DiskId) -> bool {
        self.0.lock().deleted.contains(&disk)
    }
}
