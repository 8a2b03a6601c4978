//! Recent changes of a disk's map that no checkpoint holds yet.
//!
//! Sparse: memory follows the number of changed blocks, about 16 bytes each at any density, and trims of
//! whole regions cost next to nothing. Not synchronised: the disk guards it with its map lock.
//!
//! Layout: the disk is cut into regions of 128 MiB. A region with changes has a table
//! ([`super::region`]); the regions that are holes from end to end are kept as ranges
//! ([`super::holes`]).
//!
//! Invariants: no region is both in `regions` and in `holes`; none in `regions` is a hole throughout;
//! `entries` and `table_bytes` are the sums over `regions`.

use std::ops::Range;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::hash::IntegerHash;
use super::holes::HoleRanges;
use super::region::{REGION_BITS, REGION_BLOCKS, REGION_LEAVES, Region};
use crate::units::{BlockIndex, EXTENT_BLOCKS_MAX, Location};

/// Entries of a region, 64 for each of its leaves, from which on it counts as densely changed.
const DENSE_ENTRIES: usize = 64 * REGION_LEAVES;

#[derive(Default)]
pub struct Delta {
    regions: HashMap<u64, Region, IntegerHash>,
    holes: HoleRanges,
    entries: usize,
    table_bytes: usize,
}

impl Delta {
    pub fn new() -> Delta {
        Delta::default()
    }

    /// What the delta knows about a block: `None` nothing, `Some(HOLE)` that it reads as zeros.
    pub fn get(&self, block: BlockIndex) -> Option<Location> {
        match self.regions.get(&region_of(block)) {
            Some(region) => region.get(key_of(block)),
            None => self.hole_at(region_of(block)),
        }
    }

    /// As [`Delta::get`] for `out.len()` blocks from `first` on; writes every element of `out`.
    pub fn fill(&self, first: BlockIndex, out: &mut [Option<Location>]) {
        let mut rest = out;
        let mut block = first;
        while !rest.is_empty() {
            let key = key_of(block);
            let (part, tail) = rest.split_at_mut(rest.len().min(REGION_BLOCKS - key));
            match self.regions.get(&region_of(block)) {
                Some(region) => {
                    for (i, at) in part.iter_mut().enumerate() {
                        *at = region.get(key + i);
                    }
                }
                None => part.fill(self.hole_at(region_of(block))),
            }
            block += part.len() as u64;
            rest = tail;
        }
    }

    /// Is `from` a hole (`None`: nothing known about it), and where does that end? The run goes to the next
    /// block of another kind, at most to `end` (> `from`).
    pub fn next_run(&self, from: BlockIndex, end: BlockIndex) -> (Option<bool>, BlockIndex) {
        let (kind, mut run_end) = self.run(from);
        while run_end < end {
            let (next, next_end) = self.run(run_end);
            if next != kind {
                break;
            }
            run_end = next_end;
        }
        (kind, run_end.min(end))
    }

    /// The kind of `block`, and a block up to which all are of that kind.
    fn run(&self, block: BlockIndex) -> (Option<bool>, BlockIndex) {
        let index = region_of(block);
        if let Some(region) = self.regions.get(&index) {
            let (kind, key) = region.run(key_of(block));
            return (kind, (index << REGION_BITS) + key as u64);
        }
        if let Some(holes) = self.holes.find(index) {
            return (Some(true), holes.end << REGION_BITS);
        }
        let end = if self.regions.is_empty() {
            self.holes.next_start(index).unwrap_or(u64::MAX >> REGION_BITS)
        } else {
            index + 1
        };
        (None, end << REGION_BITS)
    }

    /// Maps `block + i` to block `first.index() + i` of the extent at `first`, for `i < count` ≤ 16.
    pub fn set_run(&mut self, block: BlockIndex, first: Location, count: usize) {
        debug_assert!(!first.is_hole() && first.index() + count <= EXTENT_BLOCKS_MAX);
        let in_first_region = count.min(REGION_BLOCKS - key_of(block));
        for part in [0..in_first_region, in_first_region..count] {
            if part.is_empty() {
                continue;
            }
            let start = block + part.start as u64;
            self.change(region_of(start), |region| {
                for i in part.clone() {
                    let key = key_of(start) + i - part.start;
                    region.set(key, first.with_index(first.index() + i));
                }
            });
        }
    }

    /// Makes holes of the range. Takes time and memory by what is known inside of it and at its ragged
    /// ends, not by its length.
    pub fn set_holes(&mut self, range: Range<BlockIndex>) {
        if range.is_empty() {
            return;
        }
        let region_blocks = REGION_BLOCKS as u64;
        let whole = range.start.div_ceil(region_blocks)..region_of(range.end);
        if whole.start > whole.end {
            self.set_holes_in(region_of(range.start), key_of(range.start)..key_of(range.end));
            return;
        }
        if key_of(range.start) != 0 {
            self.set_holes_in(region_of(range.start), key_of(range.start)..REGION_BLOCKS);
        }
        self.set_holes_whole(whole);
        if key_of(range.end) != 0 {
            self.set_holes_in(region_of(range.end), 0..key_of(range.end));
        }
    }

    /// Memory held. Tables that grow side by side leave gaps in the heap: with 8 million random entries
    /// the process grew by 15 % more than the tables' sizes, so an eighth is counted on top of them.
    pub fn memory_bytes(&self) -> usize {
        let tables_bytes = self.table_bytes + self.table_bytes / 8;
        let directory_bytes = self.regions.allocation_size() + self.holes.memory_bytes();
        size_of::<Delta>() + tables_bytes + directory_bytes
    }

    /// Blocks listed one by one.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Are there so many changes for each leaf they touch that merging them writes next to nothing?
    pub fn is_dense(&self) -> bool {
        self.entries >= self.regions.len() * DENSE_ENTRIES
    }

    /// Knows nothing about any block.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty() && self.holes.is_empty()
    }

    pub(super) fn regions(&self) -> impl Iterator<Item = (u64, &Region)> {
        self.regions.iter().map(|(index, region)| (*index, region))
    }

    pub(super) fn holes(&self) -> &HoleRanges {
        &self.holes
    }

    /// For a region that has no table.
    fn hole_at(&self, region: u64) -> Option<Location> {
        let is_hole = !self.holes.is_empty() && self.holes.find(region).is_some();
        is_hole.then_some(Location::HOLE)
    }

    /// Runs `edit` on a region, made if needed, and keeps the sums.
    #[inline]
    fn change(&mut self, index: u64, edit: impl FnOnce(&mut Region)) {
        let region = match self.regions.entry(index) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let is_hole = !self.holes.is_empty() && self.holes.find(index).is_some();
                if is_hole {
                    self.holes.remove(index);
                }
                entry.insert(Region::new(is_hole))
            }
        };
        let before = (region.len(), region.memory_bytes());
        edit(region);
        self.entries = self.entries - before.0 + region.len();
        self.table_bytes = self.table_bytes - before.1 + region.memory_bytes();
    }

    fn set_holes_in(&mut self, index: u64, keys: Range<usize>) {
        if !self.regions.contains_key(&index) && self.hole_at(index).is_some() {
            return;
        }
        let mut is_hole = false;
        self.change(index, |region| {
            region.set_holes(keys);
            is_hole = region.is_hole();
        });
        if is_hole {
            self.set_holes_whole(index..index + 1);
        }
    }

    fn set_holes_whole(&mut self, range: Range<u64>) {
        let Delta { regions, entries, table_bytes, .. } = self;
        let mut forget = |region: &Region| {
            *entries -= region.len();
            *table_bytes -= region.memory_bytes();
        };
        if range.end - range.start < regions.len() as u64 {
            range.clone().filter_map(|index| regions.remove(&index)).for_each(|r| forget(&r));
        } else {
            regions.retain(|index, region| {
                let is_inside = range.contains(index);
                if is_inside {
                    forget(region);
                }
                !is_inside
            });
        }
        self.holes.insert(range);
    }
}

fn region_of(block: BlockIndex) -> u64 {
    block >> REGION_BITS
}

fn key_of(block: BlockIndex) -> usize {
    block as usize % REGION_BLOCKS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{NODE_ENTRIES, SegmentId};

    /// Blocks of 1 TiB.
    const DISK_BLOCKS: u64 = 1 << 28;

    fn location(number: u64) -> Location {
        Location::new(SegmentId(1 + number as u32), 128, 4144, 0)
    }

    /// Numbers without pattern.
    fn scatter(number: u64) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&number.to_le_bytes())
    }

    #[test]
    fn eight_million_random_entries_over_1_tib_fit_160_mib() {
        let mut delta = Delta::new();
        for number in 0..8_000_000 {
            delta.set_run(scatter(number) % DISK_BLOCKS, location(number), 1);
            let entries = delta.entries();
            if entries > 500_000 && entries.is_multiple_of(65_536) {
                let cost = delta.memory_bytes() as f64 / entries as f64;
                assert!(cost < 20.0, "{cost} bytes an entry at {entries}");
            }
        }
        let (bytes, entries) = (delta.memory_bytes(), delta.entries());
        println!("{entries} entries: {bytes} bytes, {:.1} each", bytes as f64 / entries as f64);
        assert!(entries > 7_800_000 && bytes <= 160 << 20, "{bytes} bytes");
    }

    #[test]
    fn trimming_a_disk_costs_what_is_known_about_it() {
        let mut delta = Delta::new();
        delta.set_holes(3..DISK_BLOCKS * 256 - 3);
        assert!(delta.memory_bytes() < 100 << 10, "{} bytes", delta.memory_bytes());
        assert_eq!(delta.get(DISK_BLOCKS), Some(Location::HOLE));
        assert_eq!((delta.get(2), delta.get(DISK_BLOCKS * 256 - 3)), (None, None));
        for number in 0..100_000 {
            delta.set_run(scatter(number) % DISK_BLOCKS, location(number), 1);
        }
        assert!(delta.entries() > 99_000);
        delta.set_holes(0..DISK_BLOCKS);
        assert_eq!(delta.next_run(0, u64::MAX), (Some(true), DISK_BLOCKS * 256 - 3));
        // The last leaf of the first trim, without its last three blocks.
        assert_eq!(delta.entries(), NODE_ENTRIES - 3);
    }

    #[test]
    fn trims_of_1_mib_in_turn_leave_no_entries() {
        let mut delta = Delta::new();
        for start in (0..DISK_BLOCKS / 64).step_by(256) {
            delta.set_holes(start..start + 256);
        }
        assert_eq!(delta.entries(), 0);
        assert!(delta.memory_bytes() < 16 << 10, "{} bytes", delta.memory_bytes());
    }

    #[test]
    fn an_extent_may_span_regions() {
        let mut delta = Delta::new();
        let first = location(1).with_index(2);
        delta.set_run(REGION_BLOCKS as u64 - 5, first, 14);
        let mut out = [Some(Location::HOLE); 16];
        delta.fill(REGION_BLOCKS as u64 - 6, &mut out);
        let want = (0..16).map(|i| (1..15).contains(&i).then(|| first.with_index(i + 1)));
        assert!(out.into_iter().eq(want));
        assert_eq!(delta.entries(), 14);
    }
}
