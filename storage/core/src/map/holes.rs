//! Ranges of whole regions that are holes: what keeps the trim of a whole disk small.
//!
//! Invariant: ranges are not empty, disjoint and not adjacent.

use std::collections::{BTreeMap, btree_map};
use std::ops::Range;

/// Cost of one range: 16 bytes in B-tree nodes that are about two thirds full, and the allocator's part.
const RANGE_BYTES: usize = 32;

/// A set of region numbers, kept as ranges: start → end.
#[derive(Default)]
pub(super) struct HoleRanges(BTreeMap<u64, u64>);

impl HoleRanges {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The range around `region`.
    pub(super) fn find(&self, region: u64) -> Option<Range<u64>> {
        let (&start, &end) = self.0.range(..=region).next_back()?;
        (region < end).then_some(start..end)
    }

    /// Where the first range behind `region` starts.
    pub(super) fn next_start(&self, region: u64) -> Option<u64> {
        self.0.range(region + 1..).next().map(|(start, _)| *start)
    }

    pub(super) fn insert(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        if let Some((&before, &before_end)) = self.0.range(..start).next_back()
            && before_end >= start
        {
            start = before;
        }
        while let Some((&other, &other_end)) = self.0.range(start..=end).next() {
            self.0.remove(&other);
            end = end.max(other_end);
        }
        self.0.insert(start, end);
    }

    pub(super) fn remove(&mut self, region: u64) {
        let Some(range) = self.find(region) else { return };
        self.0.remove(&range.start);
        if range.start < region {
            self.0.insert(range.start, region);
        }
        if region + 1 < range.end {
            self.0.insert(region + 1, range.end);
        }
    }

    /// Ranges (start, end) in order.
    pub(super) fn iter(&self) -> btree_map::Iter<'_, u64, u64> {
        self.0.iter()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.0.len() * RANGE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(holes: &HoleRanges) -> Vec<(u64, u64)> {
        holes.iter().map(|(start, end)| (*start, *end)).collect()
    }

    #[test]
    fn ranges_join_and_split() {
        let mut holes = HoleRanges::default();
        for range in [10..20, 30..40, 5..5, 50..60] {
            holes.insert(range);
        }
        assert_eq!(ranges(&holes), [(10, 20), (30, 40), (50, 60)]);
        assert_eq!((holes.find(19), holes.find(20)), (Some(10..20), None));
        assert_eq!((holes.next_start(10), holes.next_start(50)), (Some(30), None));
        holes.insert(20..30);
        assert_eq!(ranges(&holes), [(10, 40), (50, 60)]);
        holes.insert(0..100);
        assert_eq!(ranges(&holes), [(0, 100)]);
        for region in [0, 99, 50, 200] {
            holes.remove(region);
        }
        assert_eq!(ranges(&holes), [(1, 50), (51, 99)]);
        holes.insert(45..51);
        assert_eq!(ranges(&holes), [(1, 99)]);
    }
}
