//! A disk's map in memory: recent changes over the tree on disk.
//!
//! ```text
//!   write ──► active delta          changes since the last freeze
//!             frozen deltas         newest first: each ends at a snapshot or where a checkpoint was asked for
//!             tree                  immutable nodes on disk, cached
//!   read  ──► the first of them that knows the block
//! ```
//!
//! Checkpoints merge the oldest frozen delta into the tree, one after the other. Most of the time there is
//! none: each snapshot and each checkpoint adds one, and [`FROZEN_MAX`] bounds them.
//!
//! Every change of what the layers are (freeze, publish) raises `generation`. A reader that finds a
//! record gone looks whether the generation has changed meanwhile, and if so starts over: what a
//! checkpoint frees was reachable from older generations only.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::batch::Draft;
use crate::error::Result;
use crate::format::record::RECORD_HEADER_LEN;
use crate::format::{Kind, RecordHeader};
use crate::log::Position;
use crate::map::{Delta, NodeStore, TreeRoot};
use crate::units::{BlockIndex, DiskId, Location, SegmentId};

/// Frozen deltas from which on a snapshot waits for the merging of one: a read looks into each.
pub const FROZEN_MAX: usize = 8;

/// Where changes are cut off.
#[derive(Clone, Copy)]
pub struct Cut {
    /// Where the log stands: the first change that is not in.
    pub replay: Position,
    /// The snapshot that is the disk as of this instant.
    pub snapshot: Option<DiskId>,
    /// How much had been appended to the log since it was opened.
    pub appended_bytes: u64,
}

/// Changes that wait to be merged.
#[derive(Clone)]
pub struct Frozen {
    pub delta: Arc<Delta>,
    pub cut: Cut,
}

struct Layers {
    active: Delta,
    /// Oldest first.
    frozen: Vec<Frozen>,
    tree: TreeRoot,
}

impl Layers {
    fn delta_bytes(&self) -> usize {
        let frozen = self.frozen.iter().map(|f| f.delta.memory_bytes()).sum::<usize>();
        self.active.memory_bytes() + frozen
    }
}

/// Where a block's location was found; tells whether it has changed since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    generation: u64,
    active: Option<Location>,
}

pub struct DiskMap {
    layers: RwLock<Layers>,
    /// Changes under `layers`' write lock only.
    generation: AtomicU64,
}

/// What a disk's map holds beyond its tree.
#[derive(Clone, Copy)]
pub struct Changes {
    /// Memory that changes not yet in the tree take.
    pub bytes: usize,
    /// Changes that no checkpoint has cut off yet …
    pub entries: usize,
    /// … and whether they lie close together.
    pub is_dense: bool,
}

/// Enters a record into `delta`; records other than DATA and HOLE do not concern the map.
pub fn apply(delta: &mut Delta, header: &RecordHeader, segment: SegmentId, offset: usize) {
    match header.kind {
        Kind::Data => {
            let len = RECORD_HEADER_LEN + header.stored_len as usize;
            let first = Location::new(segment, offset, len, 0);
            delta.set_run(header.block, first, header.count as usize);
        }
        Kind::Hole => delta.set_holes(header.block..header.block + header.count as u64),
        Kind::Node | Kind::Usage | Kind::Root | Kind::Mark => {}
    }
}

impl DiskMap {
    pub fn new(active: Delta, frozen: Vec<Frozen>, tree: TreeRoot) -> DiskMap {
        DiskMap {
            layers: RwLock::new(Layers { active, frozen, tree }),
            generation: AtomicU64::new(0),
        }
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The locations of `out.len()` blocks from `first`, all as of one instant.
    pub fn locate(
        &self,
        store: &dyn NodeStore,
        first: BlockIndex,
        out: &mut [Location],
    ) -> Result<()> {
        let mut known = vec![None; out.len()];
        let layers = self.layers.read();
        layers.active.fill(first, &mut known);
        let tree = layers.tree;
        let frozen = layers.frozen.clone();
        drop(layers);
        for frozen in frozen.iter().rev() {
            let mut below = vec![None; out.len()];
            frozen.delta.fill(first, &mut below);
            known.iter_mut().zip(below).for_each(|(k, b)| *k = k.or(b));
        }
        if known.iter().any(Option::is_none) {
            tree.fill(store, first, out)?;
        }
        for (location, known) in out.iter_mut().zip(known) {
            *location = known.unwrap_or(*location);
        }
        Ok(())
    }

    /// The location of one block, and a token for [`DiskMap::is_unchanged`].
    pub fn locate_one(
        &self,
        store: &dyn NodeStore,
        block: BlockIndex,
    ) -> Result<(Location, Origin)> {
        let layers = self.layers.read();
        let active = layers.active.get(block);
        let origin = Origin { generation: self.generation(), active };
        if let Some(location) = active {
            return Ok((location, origin));
        }
        if let Some(location) = layers.frozen.iter().rev().find_map(|f| f.delta.get(block)) {
            return Ok((location, origin));
        }
        let tree = layers.tree;
        drop(layers);
        let mut location = [Location::HOLE];
        tree.fill(store, block, &mut location)?;
        Ok((location[0], origin))
    }

    /// Does the block still have the location that `origin` was given for? Ask under the log's lock, so
    /// that the answer holds until the append.
    pub fn is_unchanged(&self, block: BlockIndex, origin: Origin) -> bool {
        let layers = self.layers.read();
        self.generation() == origin.generation && layers.active.get(block) == origin.active
    }

    /// Enters appended records. Call under the log's lock.
    pub fn publish(&self, segment: SegmentId, drafts: &[Draft]) -> Changes {
        let mut layers = self.layers.write();
        for draft in drafts {
            apply(&mut layers.active, &draft.header, segment, draft.offset);
        }
        Changes {
            bytes: layers.delta_bytes(),
            entries: layers.active.entries(),
            is_dense: layers.active.is_dense(),
        }
    }

    /// Cuts off the changes so far, also if there are none. Call under the log's lock.
    pub fn freeze(&self, cut: Cut) {
        let mut layers = self.layers.write();
        let delta = Arc::new(std::mem::take(&mut layers.active));
        layers.frozen.push(Frozen { delta, cut });
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The changes to be merged next, and the tree they go over.
    pub fn oldest(&self) -> Option<(Frozen, TreeRoot)> {
        let layers = self.layers.read();
        layers.frozen.first().map(|frozen| (frozen.clone(), layers.tree))
    }

    /// The merge is done and durable: `tree` holds the oldest frozen changes.
    pub fn publish_tree(&self, tree: TreeRoot) {
        let mut layers = self.layers.write();
        layers.tree = tree;
        layers.frozen.remove(0);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Are there changes that no checkpoint or snapshot has cut off yet?
    pub fn has_active_changes(&self) -> bool {
        !self.layers.read().active.is_empty()
    }

    /// Are there changes beyond the oldest that were cut off?
    pub fn has_changes_after_oldest(&self) -> bool {
        let layers = self.layers.read();
        !layers.active.is_empty() || layers.frozen.len() > 1
    }

    /// Have changes been cut off as often as they may?
    pub fn is_deep(&self) -> bool {
        self.layers.read().frozen.len() >= FROZEN_MAX
    }

    /// Memory that changes not yet in the tree take.
    pub fn delta_bytes(&self) -> usize {
        self.layers.read().delta_bytes()
    }

    pub fn tree(&self) -> TreeRoot {
        self.layers.read().tree
    }

    /// Calls `each(is_hole, blocks)` for the runs of `range` in order, until it returns false. Ranges
    /// that no layer knows cost next to nothing.
    pub fn runs(
        &self,
        store: &dyn NodeStore,
        range: Range<BlockIndex>,
        mut each: impl FnMut(bool, Range<BlockIndex>) -> bool,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let (tree, mut known, mut end) = {
                let layers = self.layers.read();
                let (mut known, mut end) = layers.active.next_run(at, range.end);
                for frozen in layers.frozen.iter().rev() {
                    if known.is_some() {
                        break;
                    }
                    (known, end) = frozen.delta.next_run(at, end);
                }
                (layers.tree, known, end)
            };
            if known.is_none() {
                let (is_hole, run_end) = tree.next_run(store, at, end)?;
                (known, end) = (Some(is_hole), run_end);
            }
            if !each(known.unwrap_or(true), at..end) {
                return Ok(());
            }
            at = end;
        }
        Ok(())
    }
}
