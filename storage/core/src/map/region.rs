//! What a delta knows about one region of a disk: 32 768 blocks (128 MiB), 64 leaves of the tree.
//!
//! ```text
//! hole_leaves  bit l: blocks of leaf l that are not listed are holes (otherwise: nothing known)
//! keys         [u16]       0 = free slot, else 0x8000 | block within the region
//! locations    [Location]  the listed block's location, may be a hole
//! ```
//! An open-addressing table with linear probing. Ten bytes a slot, filled to between 64 and 80 %: 12.5 to
//! 15.6 bytes an entry at any density, where bitmap and packed locations for every leaf cost more than 20
//! below ten entries a leaf, which is what random writes over a large disk make. From 26 214 slots on the
//! table takes one slot a block: then a key's place is the key itself and nothing ever collides.
//!
//! Invariants: both arrays have equal length; `len` slots are taken, at most `len_max`, so that a search
//! in a table that is not direct always meets a free slot.

use std::ops::Range;

use crate::units::{Location, NODE_ENTRIES};

pub(super) const REGION_BITS: u32 = 15;
pub(super) const REGION_BLOCKS: usize = 1 << REGION_BITS;
pub(super) const REGION_LEAVES: usize = REGION_BLOCKS / NODE_ENTRIES;

const LISTED: u16 = 0x8000;
const SLOTS_MIN: usize = 8;
/// Above this a direct table costs no more than the next larger one.
const SLOTS_HASHED_MAX: usize = REGION_BLOCKS * 4 / 5;
/// What the allocator adds to one allocation.
const ALLOCATION_BYTES: usize = 16;

const _: () = assert!(REGION_LEAVES == 64 && REGION_BLOCKS <= LISTED as usize);

#[derive(Default)]
pub(super) struct Region {
    hole_leaves: u64,
    keys: Box<[u16]>,
    locations: Box<[Location]>,
    len: u32,
    len_max: u32,
}

impl Region {
    /// Knows nothing, or knows that everything is a hole.
    pub(super) fn new(is_hole: bool) -> Region {
        Region { hole_leaves: if is_hole { u64::MAX } else { 0 }, ..Region::default() }
    }

    pub(super) fn get(&self, key: usize) -> Option<Location> {
        self.listed(key).or_else(|| self.is_hole_leaf(key / NODE_ENTRIES).then_some(Location::HOLE))
    }

    pub(super) fn set(&mut self, key: usize, at: Location) {
        let mut slot = match self.search(key) {
            Ok(slot) => {
                self.locations[slot] = at;
                return;
            }
            Err(slot) => slot,
        };
        if self.len == self.len_max {
            self.rebuild(self.keys.len() + self.keys.len() / 4, |_| true);
            slot = self.search(key).unwrap_or_else(|free| free);
        }
        self.keys[slot] = LISTED | key as u16;
        self.locations[slot] = at;
        self.len += 1;
    }

    /// Makes holes of `keys`; whole leaves become a bit, the ragged ends are listed.
    pub(super) fn set_holes(&mut self, keys: Range<usize>) {
        let leaves = keys.start.div_ceil(NODE_ENTRIES)..keys.end / NODE_ENTRIES;
        if leaves.start >= leaves.end {
            let middle = (keys.start / NODE_ENTRIES + 1) * NODE_ENTRIES;
            self.list_holes(keys.start..keys.end.min(middle));
            self.list_holes(middle..keys.end);
            return;
        }
        self.list_holes(keys.start..leaves.start * NODE_ENTRIES);
        self.set_hole_leaves(leaves.clone());
        self.list_holes(leaves.end * NODE_ENTRIES..keys.end);
    }

    /// `keys` (may be empty) lie in one leaf.
    fn list_holes(&mut self, keys: Range<usize>) {
        if keys.is_empty() {
            return;
        }
        let leaf = keys.start / NODE_ENTRIES;
        let is_hole = self.is_hole_leaf(leaf);
        for key in keys.clone() {
            match self.search(key) {
                Ok(slot) => self.locations[slot] = Location::HOLE,
                Err(_) if is_hole => {}
                Err(_) => self.set(key, Location::HOLE),
            }
        }
        if !is_hole && self.is_all_listed_holes(leaf, keys) {
            self.set_hole_leaves(leaf..leaf + 1);
        }
    }

    /// Is every block of the leaf outside of `known` listed as a hole? Trims often come in pieces that
    /// make up whole leaves. Looks next to `known` and at the ends first, so that a "no" is cheap.
    fn is_all_listed_holes(&self, leaf: usize, known: Range<usize>) -> bool {
        let all = leaf * NODE_ENTRIES..(leaf + 1) * NODE_ENTRIES;
        let is_hole = |key: usize| self.listed(key) == Some(Location::HOLE);
        is_hole(all.start)
            && is_hole(all.end - 1)
            && (known.start..known.end + 1)
                .map(|key| key.saturating_sub(1))
                .filter(|key| all.contains(key))
                .all(is_hole)
            && all.into_iter().all(is_hole)
    }

    fn set_hole_leaves(&mut self, leaves: Range<usize>) {
        self.hole_leaves |= (u64::MAX >> (REGION_LEAVES - leaves.len())) << leaves.start;
        let first = LISTED as usize + leaves.start * NODE_ENTRIES;
        let dropped = first..first + leaves.len() * NODE_ENTRIES;
        let is_kept = |key: u16| !dropped.contains(&(key as usize));
        let kept = self.keys.iter().filter(|key| **key != 0 && is_kept(**key)).count();
        if kept < self.len() {
            self.rebuild(kept + kept / 3, is_kept);
        }
    }

    /// Where the key is listed, or the free slot for it (no meaning in a table without slots).
    #[inline]
    fn search(&self, key: usize) -> Result<usize, usize> {
        let listed = LISTED | key as u16;
        let mut slot = home(key, self.keys.len());
        loop {
            match self.keys.get(slot) {
                Some(&found) if found == listed => return Ok(slot),
                Some(0) => return Err(slot),
                Some(_) => slot += 1,
                None if self.len == 0 => return Err(0),
                None => slot = 0,
            }
        }
    }

    /// The listed location, without regard to `hole_leaves`.
    #[inline]
    fn listed(&self, key: usize) -> Option<Location> {
        self.search(key).ok().map(|slot| self.locations[slot])
    }

    /// Moves the entries whose key passes `is_kept` to a table of about `slots` slots.
    #[cold]
    fn rebuild(&mut self, slots: usize, is_kept: impl Fn(u16) -> bool) {
        let slots = match slots.max(SLOTS_MIN) {
            slots if slots <= SLOTS_HASHED_MAX => slots,
            _ => REGION_BLOCKS,
        };
        let old = std::mem::take(self);
        self.hole_leaves = old.hole_leaves;
        self.len_max = len_max(slots) as u32;
        self.keys = vec![0; slots].into_boxed_slice();
        self.locations = vec![Location::HOLE; slots].into_boxed_slice();
        for (key, at) in old.keys.iter().zip(&old.locations) {
            if *key != 0 && is_kept(*key) {
                let mut slot = home((*key & !LISTED) as usize, slots);
                while self.keys[slot] != 0 {
                    slot = if slot + 1 == slots { 0 } else { slot + 1 };
                }
                self.keys[slot] = *key;
                self.locations[slot] = *at;
                self.len += 1;
            }
        }
    }

    pub(super) fn is_hole_leaf(&self, leaf: usize) -> bool {
        (self.hole_leaves >> leaf) & 1 != 0
    }

    /// Everything is a hole, nothing is listed: a range of [`super::holes`] says the same in less room.
    pub(super) fn is_hole(&self) -> bool {
        self.hole_leaves == u64::MAX && self.len == 0
    }

    /// The first leaf from `leaf` on whose unlisted blocks are holes.
    pub(super) fn next_hole_leaf(&self, leaf: usize) -> Option<usize> {
        let rest = self.hole_leaves.checked_shr(leaf as u32).unwrap_or(0);
        (rest != 0).then(|| leaf + rest.trailing_zeros() as usize)
    }

    /// Whether `key` is a hole (`None`: not known), and a key up to which all are of that kind.
    pub(super) fn run(&self, key: usize) -> (Option<bool>, usize) {
        if let Some(at) = self.listed(key) {
            let is_same = |next: &usize| {
                self.listed(*next).is_some_and(|other| other.is_hole() == at.is_hole())
            };
            let more = (key + 1..REGION_BLOCKS).take_while(is_same).count();
            return (Some(at.is_hole()), key + 1 + more);
        }
        let leaf = key / NODE_ENTRIES;
        let is_hole = self.is_hole_leaf(leaf);
        let leaves = (leaf..REGION_LEAVES).take_while(|leaf| self.is_hole_leaf(*leaf) == is_hole);
        let leaf_end = (leaf + leaves.count()) * NODE_ENTRIES;
        // One pass over the keys: an empty stretch costs nothing per block.
        let first = LISTED | key as u16;
        let next = self.keys.iter().filter(|listed| **listed >= first).min();
        let next = next.map_or(REGION_BLOCKS, |listed| (listed & !LISTED) as usize);
        (is_hole.then_some(true), next.min(leaf_end))
    }

    /// Listed blocks.
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// Listed blocks, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, Location)> {
        let listed = self.keys.iter().zip(&self.locations).filter(|(key, _)| **key != 0);
        listed.map(|(key, at)| ((key & !LISTED) as usize, *at))
    }

    /// The last listed block that is not a hole.
    pub(super) fn last_mapped(&self) -> Option<usize> {
        self.iter().filter(|(_, at)| !at.is_hole()).map(|(key, _)| key).max()
    }

    /// Heap memory behind the region.
    pub(super) fn memory_bytes(&self) -> usize {
        match self.keys.len() {
            0 => 0,
            slots => slots * (size_of::<u16>() + size_of::<Location>()) + 2 * ALLOCATION_BYTES,
        }
    }
}

/// The slot where the search for a key starts. The product's high bits scale to any number of slots, and
/// consecutive keys land evenly apart.
#[inline]
fn home(key: usize, slots: usize) -> usize {
    if slots == REGION_BLOCKS {
        return key;
    }
    let spread = (key as u32).wrapping_mul(0x9e37_79b1);
    ((u64::from(spread) * slots as u64) >> 32) as usize
}

fn len_max(slots: usize) -> usize {
    if slots == REGION_BLOCKS { slots } else { slots * 4 / 5 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(number: usize) -> Location {
        Location((number as u64 + 1) << 32)
    }

    /// Compares with an array that has every block.
    fn check(region: &Region, model: &[Option<Location>]) {
        for (key, want) in model.iter().enumerate() {
            assert_eq!(region.get(key), *want, "{key} of {} slots", region.keys.len());
        }
        assert_eq!(region.len(), region.iter().count());
        assert!(region.len <= region.len_max && region.keys.len() == region.locations.len());
        assert_eq!(
            region.last_mapped(),
            model.iter().rposition(|at| at.is_some_and(|at| !at.is_hole()))
        );
    }

    #[test]
    fn a_table_grows_from_nothing_to_every_block_and_shrinks() {
        let (mut region, mut model) = (Region::default(), vec![None; REGION_BLOCKS]);
        check(&region, &model);
        for i in 0..REGION_BLOCKS {
            // Odd factor: visits every key once, in no apparent order.
            let key = i * 20_077 % REGION_BLOCKS;
            region.set(key, location(i));
            model[key] = Some(location(i));
            if i < 40 || i % 4093 == 0 {
                check(&region, &model);
                region.set(key, location(i + 1));
                model[key] = Some(location(i + 1));
            }
            let cost = region.memory_bytes() as f64 / region.len() as f64;
            assert!(region.len() < 1000 || cost < 16.3, "{cost} bytes at {}", region.len());
        }
        check(&region, &model);
        assert_eq!((region.keys.len(), region.len()), (REGION_BLOCKS, REGION_BLOCKS));

        for (holes, len_max) in [(100..20_000, 13_700), (512..32_256, 1024), (0..REGION_BLOCKS, 0)]
        {
            region.set_holes(holes.clone());
            model[holes].fill(Some(Location::HOLE));
            check(&region, &model);
            assert!(region.len() <= len_max && region.keys.len() <= len_max.max(6) * 4 / 3);
        }
        assert!(region.is_hole());
    }

    #[test]
    fn trims_in_pieces_become_whole_leaves() {
        for step in [1, 8, 256, 300] {
            let mut region = Region::default();
            region.set(1000, location(1));
            for start in (0..REGION_BLOCKS).step_by(step) {
                region.set_holes(start..(start + step).min(REGION_BLOCKS));
                assert!(region.len() <= 2 * NODE_ENTRIES, "{} listed", region.len());
            }
            assert!(region.is_hole());
            let mut region = Region::default();
            for end in (1..=REGION_BLOCKS).rev().step_by(step) {
                region.set_holes(end.saturating_sub(step)..end);
            }
            assert!(region.is_hole());
        }
    }

    #[test]
    fn runs_end_where_the_kind_changes() {
        let mut region = Region::default();
        assert_eq!(region.run(5), (None, REGION_BLOCKS));
        region.set_holes(512..1536);
        region.set(1000, location(1));
        region.set(1001, location(9));
        region.set(2000, Location::HOLE);
        let kinds = [
            (0, None, 512),
            (512, Some(true), 1000),
            (1000, Some(false), 1002),
            (1002, Some(true), 1536),
            (1536, None, 2000),
            (2000, Some(true), 2001),
            (2001, None, REGION_BLOCKS),
        ];
        for (key, kind, end) in kinds {
            assert_eq!(region.run(key), (kind, end));
        }
    }
}
