//! A checkpoint's work: tree + delta → new tree.
//!
//! Visits only what the delta touches, in block order, and appends every new node after its children.
//! Memory: one node a level. The old tree stays as it is, so a merge that fails has no effect but
//! unreferenced nodes in the log, whose usage the caller drops together with the sink.

use std::ops::Range;

use super::changes::Changes;
use super::delta::Delta;
use super::region::REGION_BITS;
use super::tree::{NodeStore, TreeRoot, entry_of, node_span, tree_span};
use crate::error::Result;
use crate::format::node::Node;
use crate::units::{BlockIndex, Location, NODE_ENTRIES};

const EMPTY_NODE: Node = [Location::HOLE; NODE_ENTRIES];

/// Hears of every leaf entry and every node that enters or leaves the tree, once each; an entry that is
/// replaced is removed and added.
pub trait UsageSink {
    fn added(&mut self, at: Location);
    fn removed(&mut self, at: Location);
}

/// A merge's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    pub root: TreeRoot,
    /// Blocks mapped minus blocks unmapped.
    pub mapped_delta: i64,
}

/// Merges what `delta` knows into the tree at `root`.
///
/// Subtrees without mapped blocks are dropped (which reads them, to tell `usage`); levels are added as
/// the delta needs them and go away all at once when nothing is mapped any more.
pub fn merge(
    root: TreeRoot,
    delta: &Delta,
    store: &dyn NodeStore,
    usage: &mut dyn UsageSink,
) -> Result<Merged> {
    let mut merger = Merger { changes: Changes::new(delta), store, usage, mapped_delta: 0 };
    let levels = levels_for(delta).max(root.levels);
    if levels == 0 {
        return Ok(Merged { root: TreeRoot::EMPTY, mapped_delta: 0 });
    }
    let old = merger.raise(root, levels)?;
    let location = merger.merge_entry(old, levels - 1, 0)?;
    let root = match location.is_hole() {
        true => TreeRoot::EMPTY,
        false => TreeRoot { location, levels },
    };
    Ok(Merged { root, mapped_delta: merger.mapped_delta })
}

/// Levels a tree must have for the delta's last mapped block.
fn levels_for(delta: &Delta) -> u8 {
    last_mapped(delta).map_or(0, |last| {
        (1..).find(|levels| last < tree_span(*levels)).expect("the span grows to 2^63")
    })
}

fn last_mapped(delta: &Delta) -> Option<BlockIndex> {
    let mut last = None;
    for (index, region) in delta.regions() {
        let is_later = last.is_none_or(|block| index > block >> REGION_BITS);
        if is_later && let Some(key) = region.last_mapped() {
            last = Some((index << REGION_BITS) + key as u64);
        }
    }
    last
}

struct Merger<'a> {
    changes: Changes<'a>,
    store: &'a dyn NodeStore,
    usage: &'a mut dyn UsageSink,
    mapped_delta: i64,
}

impl Merger<'_> {
    /// Puts nodes above the old root until the tree has `levels`. Happens a few times in a disk's life,
    /// so it may cost a node that the merge replaces at once.
    fn raise(&mut self, root: TreeRoot, levels: u8) -> Result<Location> {
        let mut at = root.location;
        for level in root.levels..levels {
            if at.is_hole() {
                break;
            }
            let mut node = EMPTY_NODE;
            node[0] = at;
            at = self.store.append(&node, level, 0)?;
            self.usage.added(at);
        }
        Ok(at)
    }

    /// Merges the changes from `first` to the node's end into the subtree at `old` (a hole if there is
    /// none) and returns what takes its place in the parent. Consumes those changes.
    fn merge_entry(&mut self, old: Location, level: u8, first: BlockIndex) -> Result<Location> {
        let end = first + node_span(level);
        let mut at = old;
        while let Some(change) = self.changes.current()
            && change.blocks.start < end
        {
            let Range { start, end: change_end } = change.blocks;
            if change.is_hole && (at.is_hole() || (start <= first && change_end >= end)) {
                self.changes.skip_to(change_end.min(end));
                self.drop_subtree(at, level, first)?;
                at = Location::HOLE;
            } else {
                at = self.merge_node(at, level, first)?;
            }
        }
        Ok(at)
    }

    /// Rewrites a node with the changes in its range; a hole if nothing is left, `old` if they change nothing.
    fn merge_node(&mut self, old: Location, level: u8, first: BlockIndex) -> Result<Location> {
        let mut node = match old.is_hole() {
            true => EMPTY_NODE,
            false => *self.store.load(old, level, first)?,
        };
        let is_changed = match level {
            0 => self.merge_leaf(&mut node),
            _ => self.merge_children(&mut node, level, first)?,
        };
        if !is_changed {
            return Ok(old);
        }
        let new = match node.iter().all(|entry| entry.is_hole()) {
            true => Location::HOLE,
            false => self.store.append(&node, level, first)?,
        };
        self.replaced(old, new);
        Ok(new)
    }

    fn replaced(&mut self, old: Location, new: Location) {
        if !old.is_hole() {
            self.usage.removed(old);
        }
        if !new.is_hole() {
            self.usage.added(new);
        }
    }

    fn merge_leaf(&mut self, node: &mut Node) -> bool {
        let old = *node;
        self.changes.apply(node);
        let mut is_changed = false;
        for (old, new) in old.iter().zip(node.iter()) {
            if old != new {
                is_changed = true;
                self.replaced(*old, *new);
                self.mapped_delta += i64::from(!new.is_hole()) - i64::from(!old.is_hole());
            }
        }
        is_changed
    }

    fn merge_children(&mut self, node: &mut Node, level: u8, first: BlockIndex) -> Result<bool> {
        let end = first + node_span(level);
        let mut is_changed = false;
        while let Some(start) = self.changes.next_start(end) {
            let entry = entry_of(start, level);
            let child_first = first + entry as u64 * node_span(level - 1);
            let new = self.merge_entry(node[entry], level - 1, child_first)?;
            is_changed |= new != node[entry];
            node[entry] = new;
        }
        Ok(is_changed)
    }

    /// Takes a subtree and everything in it away.
    fn drop_subtree(&mut self, at: Location, level: u8, first: BlockIndex) -> Result<()> {
        if at.is_hole() {
            return Ok(());
        }
        let node = self.store.load(at, level, first)?;
        for (i, entry) in node.iter().enumerate().filter(|(_, entry)| !entry.is_hole()) {
            if level == 0 {
                self.usage.removed(*entry);
                self.mapped_delta -= 1;
            } else {
                self.drop_subtree(*entry, level - 1, first + i as u64 * node_span(level - 1))?;
            }
        }
        self.usage.removed(at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{MemoryNodes, Usage};
    use super::*;
    use crate::units::SegmentId;

    fn location(number: u64) -> Location {
        Location::new(SegmentId(1 + number as u32), 128, 4144, 0)
    }

    fn delta(blocks: impl IntoIterator<Item = BlockIndex>) -> Delta {
        let mut delta = Delta::new();
        blocks.into_iter().for_each(|block| delta.set_run(block, location(block >> 9), 1));
        delta
    }

    /// A tree with one block in each of 1024 leaves of 2 GiB, and what it holds.
    fn tree(store: &MemoryNodes) -> (TreeRoot, Usage) {
        let mut usage = Usage::default();
        let delta = delta((0..1024).map(|leaf| leaf * 512));
        let merged = merge(TreeRoot::EMPTY, &delta, store, &mut usage).expect("a merge");
        assert_eq!((merged.mapped_delta, merged.root.levels), (1024, 3));
        assert_eq!(store.appends.replace(0), 1024 + 2 + 1);
        assert_eq!(store.loads.replace(0), 0);
        store.begin_merge();
        (merged.root, usage)
    }

    #[test]
    fn a_merge_visits_what_the_delta_touches() {
        let store = MemoryNodes::new();
        let (root, mut usage) = tree(&store);
        let merged = merge(root, &delta([5, 700_000, 6]), &store, &mut usage).expect("a merge");
        assert_eq!((merged.mapped_delta, merged.root.levels), (3, 3));
        // The root, its children 0 and 2, of which one is new, and a leaf below each.
        assert_eq!((store.loads.get(), store.appends.get()), (3, 5));
    }

    #[test]
    fn a_merge_without_effect_writes_nothing() {
        let store = MemoryNodes::new();
        let (root, mut usage) = tree(&store);
        let mut same = delta([512]);
        same.set_holes(5..100);
        same.set_holes(1 << 19..1 << 30);
        let merged = merge(root, &same, &store, &mut usage).expect("a merge");
        assert_eq!(merged, Merged { root, mapped_delta: 0 });
        assert_eq!(store.appends.get(), 0);
        let merged = merge(TreeRoot::EMPTY, &Delta::new(), &store, &mut usage).expect("a merge");
        assert_eq!(merged, Merged { root: TreeRoot::EMPTY, mapped_delta: 0 });
    }

    #[test]
    fn holes_from_the_middle_of_a_subtree_leave_its_beginning() {
        let store = MemoryNodes::new();
        let (root, mut usage) = tree(&store);
        let mut holes = Delta::new();
        holes.set_holes(3 << 15..1 << 36);
        let merged = merge(root, &holes, &store, &mut usage).expect("a merge");
        assert_eq!(merged.mapped_delta, -(1024 - 3 * 64));
        let run = merged.root.next_run(&store, (3 << 15) - 512, 1 << 36).expect("a tree");
        assert_eq!(run, (false, (3 << 15) - 511));
        assert_eq!(merged.root.last_block(&store).expect("a tree"), Some((3 << 15) - 512));
    }

    #[test]
    fn a_tree_without_blocks_is_empty() {
        let store = MemoryNodes::new();
        let (root, mut usage) = tree(&store);
        let mut holes = Delta::new();
        holes.set_holes(0..1 << 19);
        let merged = merge(root, &holes, &store, &mut usage).expect("a merge");
        assert_eq!(merged, Merged { root: TreeRoot::EMPTY, mapped_delta: -1024 });
        assert_eq!((usage, store.appends.get()), (Usage::default(), 0));
    }

    #[test]
    fn a_tree_grows_to_the_largest_disk() {
        let store = MemoryNodes::new();
        let mut usage = Usage::default();
        let mut root = TreeRoot::EMPTY;
        for (block, levels) in
            [(0, 1), (511, 1), (512, 2), (1 << 18, 3), (1 << 27, 4), ((1 << 36) - 1, 4)]
        {
            store.begin_merge();
            root = merge(root, &delta([block]), &store, &mut usage).expect("a merge").root;
            assert_eq!(root.levels, levels, "{block}");
            assert_eq!(root.last_block(&store).expect("a tree"), Some(block));
        }
        // Six blocks, five leaves (0 and 511 share one), and the inner nodes above: 5, 4 and the root.
        assert_eq!(usage.0.values().sum::<i64>(), 6 + 5 + 4 + 3 + 1);
    }
}
