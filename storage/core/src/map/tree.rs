//! The tree: the map as of a checkpoint, immutable nodes of 512 entries in the disk's log.
//!
//! ```text
//! level 2  ┌─ 512 × 1 GiB ─┐      a node of level l covers 512^(l+1) blocks;
//! level 1  ├─ 512 × 2 MiB ─┤      a tree of n levels has its root at level n-1 and covers 512^n blocks,
//! level 0  └─ 512 × 4 KiB ─┘      everything behind them is a hole
//! ```
//! Invariant: a node that is referred to has at least one entry; subtrees without any are holes in
//! their parent. So what is absent is skipped unseen, and one path leads to the last mapped block.

use std::sync::Arc;

use crate::error::Result;
use crate::format::node::Node;
use crate::units::{BlockIndex, Location, NODE_BITS, NODE_ENTRIES};

/// A checkpoint's tree; `levels` 0 means that nothing is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TreeRoot {
    pub location: Location,
    pub levels: u8,
}

/// Where nodes come from and go to.
pub trait NodeStore {
    /// The node at `at`, verified to be the one of this level that starts at this block.
    fn load(&self, at: Location, level: u8, first_block: BlockIndex) -> Result<Arc<Node>>;
    /// Appends a node to the log; it is durable when the log is.
    fn append(&self, node: &Node, level: u8, first_block: BlockIndex) -> Result<Location>;
}

/// Blocks that one node of a level covers.
pub(super) fn node_span(level: u8) -> u64 {
    1 << (NODE_BITS * (u32::from(level) + 1))
}

/// Blocks that a tree of so many levels covers.
pub(super) fn tree_span(levels: u8) -> u64 {
    1 << (NODE_BITS * u32::from(levels))
}

/// The entry of a node of `level` below which `block` lies.
pub(super) fn entry_of(block: BlockIndex, level: u8) -> usize {
    (block >> (NODE_BITS * u32::from(level))) as usize % NODE_ENTRIES
}

impl TreeRoot {
    /// A disk nobody has written to.
    pub const EMPTY: TreeRoot = TreeRoot { location: Location::HOLE, levels: 0 };

    /// Looks up `out.len()` blocks from `first` on; writes every element of `out` unless it fails.
    /// Each leaf is loaded once, with the inner nodes above it.
    pub fn fill(
        &self,
        store: &dyn NodeStore,
        first: BlockIndex,
        out: &mut [Location],
    ) -> Result<()> {
        let mut rest = out;
        let mut block = first;
        while !rest.is_empty() {
            let entry = entry_of(block, 0);
            let (part, tail) = rest.split_at_mut(rest.len().min(NODE_ENTRIES - entry));
            match self.leaf(store, block)? {
                Some(leaf) => part.copy_from_slice(&leaf[entry..entry + part.len()]),
                None => part.fill(Location::HOLE),
            }
            block += part.len() as u64;
            rest = tail;
        }
        Ok(())
    }

    /// Where the tree's node of `level` that starts at `first_block` lies; a hole if there is none.
    pub fn node_at(
        &self,
        store: &dyn NodeStore,
        level: u8,
        first_block: BlockIndex,
    ) -> Result<Location> {
        if first_block >= tree_span(self.levels) || level >= self.levels {
            return Ok(Location::HOLE);
        }
        let mut at = self.location;
        for above in (level + 1..self.levels).rev() {
            if at.is_hole() {
                break;
            }
            let node = store.load(at, above, first_block & !(node_span(above) - 1))?;
            at = node[entry_of(first_block, above)];
        }
        Ok(at)
    }

    /// The leaf that covers `block`.
    fn leaf(&self, store: &dyn NodeStore, block: BlockIndex) -> Result<Option<Arc<Node>>> {
        if block >= tree_span(self.levels) {
            return Ok(None);
        }
        let mut at = self.location;
        for level in (0..self.levels).rev() {
            if at.is_hole() {
                return Ok(None);
            }
            let node = store.load(at, level, block & !(node_span(level) - 1))?;
            if level == 0 {
                return Ok(Some(node));
            }
            at = node[entry_of(block, level)];
        }
        Ok(None)
    }

    /// Is `from` a hole, and where does that end? The run goes to the next block of the other kind, at
    /// most to `end` (> `from`). Absent subtrees are skipped.
    pub fn next_run(
        &self,
        store: &dyn NodeStore,
        from: BlockIndex,
        end: BlockIndex,
    ) -> Result<(bool, BlockIndex)> {
        let covered = if self.location.is_hole() { 0 } else { tree_span(self.levels) };
        if from >= covered {
            return Ok((true, end));
        }
        let mut run = Run { from, end: end.min(covered), is_hole: None };
        let stopped = run.walk(store, self.location, self.levels - 1, 0)?;
        let is_hole = run.is_hole.unwrap_or(true);
        Ok((is_hole, stopped.unwrap_or(if is_hole { end } else { run.end })))
    }

    /// The last mapped block.
    pub fn last_block(&self, store: &dyn NodeStore) -> Result<Option<BlockIndex>> {
        let (mut at, mut first) = (self.location, 0);
        for level in (0..self.levels).rev() {
            let node = store.load(at, level, first)?;
            let Some(last) = node.iter().rposition(|entry| !entry.is_hole()) else {
                return Ok(None);
            };
            at = node[last];
            first += (last as u64) << (NODE_BITS * u32::from(level));
        }
        Ok((self.levels > 0).then_some(first))
    }
}

/// A walk from `from` on that ends where the kind changes.
struct Run {
    from: BlockIndex,
    end: BlockIndex,
    /// The kind of `from`, once seen.
    is_hole: Option<bool>,
}

impl Run {
    /// Walks the node's part of the range; `Some(block)` where the run ends.
    fn walk(
        &mut self,
        store: &dyn NodeStore,
        at: Location,
        level: u8,
        first: BlockIndex,
    ) -> Result<Option<BlockIndex>> {
        let node = store.load(at, level, first)?;
        let entry_span = node_span(level) / NODE_ENTRIES as u64;
        let skipped = (self.from.saturating_sub(first) / entry_span) as usize;
        for (i, entry) in node.iter().enumerate().skip(skipped) {
            let start = first + i as u64 * entry_span;
            if start >= self.end {
                break;
            }
            if level > 0 && !entry.is_hole() {
                let stopped = self.walk(store, *entry, level - 1, start)?;
                if stopped.is_some() {
                    return Ok(stopped);
                }
            } else if *self.is_hole.get_or_insert(entry.is_hole()) != entry.is_hole() {
                return Ok(Some(start));
            }
        }
        Ok(None)
    }
}
