//! The map held against a model that cannot be wrong: the list of operations, searched from its end.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;

use super::tree::node_span;
use super::{Delta, NodeStore, TreeRoot, UsageSink, merge};
use crate::error::{Error, Result};
use crate::format::node::Node;
use crate::units::{BlockIndex, DiskId, LEVELS_MAX, Location, NODE_ENTRIES, SegmentId};

/// End of the largest disk.
const BLOCKS_MAX: u64 = 1 << 36;

/// Level, first block and content of a node.
type Stored = (u8, BlockIndex, Arc<Node>);

/// Nodes in memory. Holds the map to its promises: children before parents, leaves in block order, and
/// every node asked for as what it is.
#[derive(Default)]
pub(super) struct MemoryNodes {
    nodes: RefCell<HashMap<Location, Stored>>,
    last_leaf: Cell<Option<BlockIndex>>,
    pub(super) loads: Cell<usize>,
    pub(super) appends: Cell<usize>,
    /// Appends that still succeed.
    pub(super) room: Cell<usize>,
}

impl MemoryNodes {
    pub(super) fn new() -> MemoryNodes {
        MemoryNodes { room: Cell::new(usize::MAX), ..MemoryNodes::default() }
    }

    /// Leaves may start from block 0 again.
    pub(super) fn begin_merge(&self) {
        self.last_leaf.set(None);
    }
}

impl NodeStore for MemoryNodes {
    fn load(&self, at: Location, level: u8, first_block: BlockIndex) -> Result<Arc<Node>> {
        self.loads.set(self.loads.get() + 1);
        match self.nodes.borrow().get(&at) {
            Some((l, first, node)) if (*l, *first) == (level, first_block) => Ok(node.clone()),
            _ => Err(Error::corrupt(DiskId(1), at.segment(), at.offset(), "no such node")),
        }
    }

    fn append(&self, node: &Node, level: u8, first_block: BlockIndex) -> Result<Location> {
        if self.room.get() == 0 {
            return Err(Error::NoSpace);
        }
        assert!(first_block.is_multiple_of(node_span(level)));
        assert!(node.iter().any(|entry| !entry.is_hole()), "an empty node");
        let mut nodes = self.nodes.borrow_mut();
        if level == 0 {
            assert!(
                self.last_leaf.replace(Some(first_block)).is_none_or(|last| last < first_block)
            );
        } else {
            for (i, child) in node.iter().enumerate().filter(|(_, child)| !child.is_hole()) {
                let first = first_block + i as u64 * node_span(level - 1);
                let (child_level, child_first, _) = nodes.get(child).expect("children come first");
                assert_eq!((*child_level, *child_first), (level - 1, first));
            }
        }
        self.room.set(self.room.get() - 1);
        self.appends.set(self.appends.get() + 1);
        let at = Location::new(SegmentId(7_000_000 + nodes.len() as u32), 128, 4144, 0);
        nodes.insert(at, (level, first_block, Arc::new(*node)));
        Ok(at)
    }
}

/// Counts references; what is not referred to is not listed.
#[derive(Default, PartialEq, Debug)]
pub(super) struct Usage(pub(super) HashMap<Location, i64>);

impl Usage {
    fn add(&mut self, at: Location, count: i64) {
        assert!(!at.is_hole());
        let sum = self.0.entry(at).or_default();
        *sum += count;
        if *sum == 0 {
            self.0.remove(&at);
        }
    }

    /// Counts what a tree refers to; returns its mapped blocks.
    fn recount(&mut self, nodes: &MemoryNodes, at: Location, level: u8, first: BlockIndex) -> i64 {
        let node = nodes.load(at, level, first).expect("a node of the tree");
        self.add(at, 1);
        let mut mapped = 0;
        for (i, entry) in node.iter().enumerate().filter(|(_, entry)| !entry.is_hole()) {
            if level == 0 {
                self.add(*entry, 1);
                mapped += 1;
            } else {
                let child = first + i as u64 * node_span(level - 1);
                mapped += self.recount(nodes, *entry, level - 1, child);
            }
        }
        mapped
    }
}

impl UsageSink for Usage {
    fn added(&mut self, at: Location) {
        self.add(at, 1);
    }

    fn removed(&mut self, at: Location) {
        self.add(at, -1);
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// block, count, index of the first block in its extent
    Run(BlockIndex, usize, usize),
    Holes(Range<BlockIndex>),
    Merge,
    /// A merge that runs out of space after so many nodes; the delta and the old tree stay.
    FailedMerge(usize),
}

/// Blocks near everything that has an edge: leaves, regions, nodes, the end.
fn blocks() -> impl Strategy<Value = BlockIndex> {
    let edge = prop_oneof![
        Just(0),
        (0u64..6).prop_map(|leaf| leaf << 9),
        (1u64..5).prop_map(|region| region << 15),
        (1u64..3).prop_map(|node| node << 18),
        (1u64..3).prop_map(|node| node << 27),
        Just(BLOCKS_MAX - 40_000),
        0..BLOCKS_MAX,
    ];
    (edge, prop_oneof![0..600u64, 0..40u64, Just(20)])
        .prop_map(|(edge, offset)| (edge + offset).saturating_sub(20).min(BLOCKS_MAX - 17))
}

fn lengths() -> impl Strategy<Value = u64> {
    prop_oneof![
        1..20u64,
        1..1500u64,
        Just(512),
        Just(1 << 15),
        20_000..200_000u64,
        Just(1 << 18),
        1 << 26..1u64 << 30,
        Just(BLOCKS_MAX),
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let run = (blocks(), 1..=16usize)
        .prop_flat_map(|(block, count)| (Just(block), Just(count), 0..=16 - count))
        .prop_map(|(block, count, index)| Op::Run(block, count, index));
    let holes = (blocks(), lengths())
        .prop_map(|(block, length)| Op::Holes(block..(block + length).min(BLOCKS_MAX)));
    let op = prop_oneof![
        20 => run,
        8 => holes,
        2 => Just(Op::Merge),
        1 => (0..6usize).prop_map(Op::FailedMerge),
    ];
    prop::collection::vec(op, 1..60)
}

/// What the operations say about a block.
fn expected(ops: &[Op], block: BlockIndex) -> Option<Location> {
    ops.iter().enumerate().rev().find_map(|(number, op)| match op {
        Op::Run(first, count, index) if (*first..first + *count as u64).contains(&block) => {
            Some(extent(number).with_index(index + (block - first) as usize))
        }
        Op::Holes(range) if range.contains(&block) => Some(Location::HOLE),
        _ => None,
    })
}

fn extent(number: usize) -> Location {
    Location::new(SegmentId(1 + number as u32), 4096, 9000, 0)
}

/// Blocks where something may change, in order, with 0 and the end.
fn edges(ops: &[Op]) -> Vec<BlockIndex> {
    let mut edges = BTreeSet::from([0, BLOCKS_MAX]);
    for op in ops {
        match op {
            Op::Run(first, count, _) => edges.extend([*first, first + *count as u64]),
            Op::Holes(range) => edges.extend([range.start, range.end]),
            Op::Merge | Op::FailedMerge(_) => {}
        }
    }
    edges.into_iter().collect()
}

/// Where the run that starts at `edges[at]` ends.
fn expected_run<K: PartialEq>(edges: &[u64], at: usize, kind: impl Fn(u64) -> K) -> (K, u64) {
    let first = kind(edges[at]);
    let end = edges[at + 1..].iter().find(|edge| **edge == BLOCKS_MAX || kind(**edge) != first);
    (first, *end.expect("the end is an edge"))
}

struct Map {
    delta: Delta,
    root: TreeRoot,
    nodes: MemoryNodes,
    usage: Usage,
    mapped: i64,
}

impl Map {
    fn apply(&mut self, number: usize, op: &Op) {
        match op {
            Op::Run(block, count, index) => {
                self.delta.set_run(*block, extent(number).with_index(*index), *count);
            }
            Op::Holes(range) => self.delta.set_holes(range.clone()),
            Op::Merge => {
                self.nodes.begin_merge();
                let merged = merge(self.root, &self.delta, &self.nodes, &mut self.usage)
                    .expect("nothing fails here");
                self.root = merged.root;
                self.mapped += merged.mapped_delta;
                self.delta = Delta::new();
            }
            Op::FailedMerge(room) => {
                self.nodes.begin_merge();
                self.nodes.room.set(*room);
                let _ = merge(self.root, &self.delta, &self.nodes, &mut Discard);
                self.nodes.room.set(usize::MAX);
            }
        }
    }

    fn get(&self, first: BlockIndex, count: usize) -> Vec<Location> {
        let mut known = vec![Some(Location(1)); count];
        let mut below = vec![Location(2); count];
        self.delta.fill(first, &mut known);
        self.root.fill(&self.nodes, first, &mut below).expect("a whole tree");
        known.iter().zip(below).map(|(known, below)| known.unwrap_or(below)).collect()
    }

    fn check_tree(&self, merged: &[Op]) {
        let mut recount = Usage::default();
        let mapped = match self.root.levels {
            0 => 0,
            levels => recount.recount(&self.nodes, self.root.location, levels - 1, 0),
        };
        assert_eq!((mapped, &recount), (self.mapped, &self.usage));
        let is_hole = |block| expected(merged, block).is_none_or(Location::is_hole);
        let edges = edges(merged);
        for (at, edge) in edges[..edges.len() - 1].iter().enumerate() {
            let (kind, run_end) = expected_run(&edges, at, is_hole);
            for end in [BLOCKS_MAX, edge + 1, edge + 600, run_end] {
                let run = self.root.next_run(&self.nodes, *edge, end).expect("a whole tree");
                assert_eq!(run, (kind, run_end.min(end)), "from {edge} to {end}");
            }
        }
        let last = edges.iter().rev().filter(|edge| **edge > 0).find(|edge| !is_hole(**edge - 1));
        let found = self.root.last_block(&self.nodes).expect("a whole tree");
        assert_eq!(found, last.map(|edge| edge - 1));
        assert!(self.root.levels <= LEVELS_MAX);
    }

    fn check_delta(&self, unmerged: &[Op], first_number: usize) {
        let edges = edges(unmerged);
        let kind = |block| expected(unmerged, block).map(Location::is_hole);
        for (at, edge) in edges[..edges.len() - 1].iter().enumerate() {
            let (kind, run_end) = expected_run(&edges, at, kind);
            for end in [BLOCKS_MAX, edge + 1, edge + 600, run_end] {
                let want = (kind, run_end.min(end));
                assert_eq!(self.delta.next_run(*edge, end), want, "from {edge} to {end}");
            }
            for block in [edge.saturating_sub(1), *edge] {
                let numbered = expected(unmerged, block).map(|at| renumbered(at, first_number));
                assert_eq!(self.delta.get(block), numbered, "block {block}");
            }
        }
        let sums = self.delta.regions().fold((0, 0), |(entries, bytes), (_, region)| {
            assert!(!region.is_hole());
            (entries + region.len(), bytes + region.memory_bytes())
        });
        assert_eq!(sums.0, self.delta.entries());
        assert!(sums.1 <= self.delta.memory_bytes());
        assert_eq!(
            self.delta.is_empty(),
            unmerged.iter().all(|op| matches!(op, Op::FailedMerge(_)))
        );
    }
}

/// The location as operation numbers count from the start of all operations.
fn renumbered(at: Location, first_number: usize) -> Location {
    if at.is_hole() { at } else { Location(at.0 + ((first_number as u64) << 32)) }
}

struct Discard;

impl UsageSink for Discard {
    fn added(&mut self, _: Location) {}
    fn removed(&mut self, _: Location) {}
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn the_map_answers_as_the_list_of_operations(ops in ops()) {
        let mut map = Map {
            delta: Delta::new(),
            root: TreeRoot::EMPTY,
            nodes: MemoryNodes::new(),
            usage: Usage::default(),
            mapped: 0,
        };
        let mut merged = 0;
        for (number, op) in ops.iter().enumerate() {
            map.apply(number, op);
            if matches!(op, Op::Merge) {
                merged = number + 1;
                map.check_tree(&ops[..merged]);
            }
            if matches!(op, Op::Merge) || number + 1 == ops.len() {
                map.check_delta(&ops[merged..number + 1], merged);
                for edge in edges(&ops[..=number]) {
                    let first = edge.saturating_sub(NODE_ENTRIES as u64 / 2);
                    let found = map.get(first, 600);
                    for (block, at) in (first..).zip(found) {
                        let want = expected(&ops[..=number], block).unwrap_or_default();
                        prop_assert_eq!(at, want, "block {}", block);
                    }
                }
            }
        }
    }
}
