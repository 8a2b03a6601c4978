//! A delta's changes in block order, for a merge into the tree.

use std::collections::btree_map;
use std::iter::Peekable;
use std::ops::Range;
use std::vec;

use super::delta::Delta;
use super::region::{REGION_BITS, Region};
use crate::format::node::Node;
use crate::units::{BlockIndex, Location, NODE_BITS, NODE_ENTRIES};

/// One change: a range of whole leaves that are holes, or one leaf with listed blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Starts and ends at a leaf's border.
    pub blocks: Range<BlockIndex>,
    pub is_hole: bool,
}

/// Walks a delta once. Memory: 16 bytes a region and 16 an entry of the region it is in.
pub(super) struct Changes<'a> {
    regions: Peekable<vec::IntoIter<(u64, &'a Region)>>,
    holes: Peekable<btree_map::Iter<'a, u64, u64>>,
    open: Option<OpenRegion<'a>>,
    current: Option<Change>,
}

/// The region the walk is in.
struct OpenRegion<'a> {
    first_block: BlockIndex,
    region: &'a Region,
    /// Listed blocks in order.
    listed: Vec<(usize, Location)>,
    /// Listed blocks of the current leaf.
    current: Range<usize>,
    /// Leaves before this one are done.
    next_leaf: usize,
}

impl<'a> Changes<'a> {
    pub(super) fn new(delta: &'a Delta) -> Changes<'a> {
        let mut regions: Vec<(u64, &Region)> = delta.regions().collect();
        regions.sort_unstable_by_key(|(region, _)| *region);
        let mut changes = Changes {
            regions: regions.into_iter().peekable(),
            holes: delta.holes().iter().peekable(),
            open: None,
            current: None,
        };
        changes.advance();
        changes
    }

    /// The change the walk stands at.
    pub(super) fn current(&self) -> Option<&Change> {
        self.current.as_ref()
    }

    /// Where the change the walk stands at starts, if that is before `end`.
    pub(super) fn next_start(&self, end: BlockIndex) -> Option<BlockIndex> {
        self.current.as_ref().map(|change| change.blocks.start).filter(|start| *start < end)
    }

    /// Leaves everything before `block` (a leaf's border) behind.
    pub(super) fn skip_to(&mut self, block: BlockIndex) {
        while let Some(change) = &mut self.current {
            if change.blocks.end > block {
                change.blocks.start = change.blocks.start.max(block);
                return;
            }
            self.advance();
        }
    }

    /// Puts the current change, one leaf with listed blocks, into that leaf's node and goes on.
    pub(super) fn apply(&mut self, node: &mut Node) {
        if let Some(open) = &self.open {
            if open.region.is_hole_leaf(open.next_leaf - 1) {
                node.fill(Location::HOLE);
            }
            for (key, at) in &open.listed[open.current.clone()] {
                node[key % NODE_ENTRIES] = *at;
            }
        }
        self.advance();
    }

    fn advance(&mut self) {
        loop {
            if let Some(open) = &mut self.open {
                self.current = open.advance();
                if self.current.is_some() {
                    return;
                }
                self.open = None;
            }
            let hole_start = self.holes.peek().map(|(start, _)| **start);
            match self.regions.next_if(|(region, _)| hole_start.is_none_or(|hole| *region < hole)) {
                Some((index, region)) => self.open = Some(OpenRegion::new(index, region)),
                None => {
                    self.current = self.holes.next().map(|(start, end)| Change {
                        blocks: start << REGION_BITS..end << REGION_BITS,
                        is_hole: true,
                    });
                    return;
                }
            }
        }
    }
}

impl OpenRegion<'_> {
    fn new(index: u64, region: &Region) -> OpenRegion<'_> {
        let mut listed: Vec<(usize, Location)> = Vec::with_capacity(region.len());
        listed.extend(region.iter());
        listed.sort_unstable_by_key(|(key, _)| *key);
        let first_block = index << REGION_BITS;
        OpenRegion { first_block, region, listed, current: 0..0, next_leaf: 0 }
    }

    /// The next leaf that has listed blocks or is a hole.
    fn advance(&mut self) -> Option<Change> {
        let rest = &self.listed[self.current.end..];
        let listed_leaf = rest.first().map(|(key, _)| key / NODE_ENTRIES);
        let hole_leaf = self.region.next_hole_leaf(self.next_leaf);
        let leaf = listed_leaf.into_iter().chain(hole_leaf).min()?;
        let count = rest.iter().take_while(|(key, _)| key / NODE_ENTRIES == leaf).count();
        self.current = self.current.end..self.current.end + count;
        self.next_leaf = leaf + 1;
        let first = self.first_block + ((leaf as u64) << NODE_BITS);
        Some(Change { blocks: first..first + NODE_ENTRIES as u64, is_hole: count == 0 })
    }
}
