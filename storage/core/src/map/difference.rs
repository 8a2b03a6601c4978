//! Where two trees differ, in time proportional to that: what both lead to by the same node is passed unseen.

use crate::error::Result;
use crate::units::{BlockIndex, Location, NODE_ENTRIES};

use super::tree::{NodeStore, TreeRoot, node_span};

/// One of the two trees.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    pub tree: TreeRoot,
    pub store: &'a dyn NodeStore,
}

impl Side<'_> {
    /// The entries of what lies at `at`. Above its root a tree is a chain of first entries.
    fn entries(&self, at: Location, level: u8, first: BlockIndex) -> Result<Entries> {
        if at.is_hole() {
            return Ok([Location::HOLE; NODE_ENTRIES]);
        }
        if level >= self.tree.levels {
            let mut entries = [Location::HOLE; NODE_ENTRIES];
            entries[0] = at;
            return Ok(entries);
        }
        Ok(*self.store.load(at, level, first)?)
    }
}

type Entries = [Location; NODE_ENTRIES];

/// Calls `each(block, is_hole)` for the blocks from `from` on that `newer` maps to another place than `older`,
/// ascending, until it returns false; `is_hole` says what `newer` has there.
pub fn difference(
    older: Side,
    newer: Side,
    from: BlockIndex,
    each: &mut dyn FnMut(BlockIndex, bool) -> bool,
) -> Result<()> {
    let levels = older.tree.levels.max(newer.tree.levels);
    let roots = [older.tree.location, newer.tree.location];
    if levels > 0 && older.tree != newer.tree {
        walk([older, newer], roots, levels - 1, 0, from, each)?;
    }
    Ok(())
}

/// False when `each` wants no more.
fn walk(
    sides: [Side; 2],
    at: [Location; 2],
    level: u8,
    first: BlockIndex,
    from: BlockIndex,
    each: &mut dyn FnMut(BlockIndex, bool) -> bool,
) -> Result<bool> {
    let older = sides[0].entries(at[0], level, first)?;
    let newer = sides[1].entries(at[1], level, first)?;
    let entry_span = node_span(level) / NODE_ENTRIES as u64;
    let skipped = (from.saturating_sub(first) / entry_span) as usize;
    for i in skipped..NODE_ENTRIES {
        // The same place is the same node, of the same level: a record is never another one's.
        if older[i] == newer[i] {
            continue;
        }
        let start = first + i as u64 * entry_span;
        let goes_on = match level {
            0 => each(start, newer[i].is_hole()),
            _ => walk(sides, [older[i], newer[i]], level - 1, start, from, each)?,
        };
        if !goes_on {
            return Ok(false);
        }
    }
    Ok(true)
}
