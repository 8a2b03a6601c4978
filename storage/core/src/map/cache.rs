//! Map nodes in memory, within a budget of bytes.
//!
//! Nodes never change and segment numbers are never reused in a pool, so that an entry is never stale and
//! one cache serves all disks. Safe for concurrent use; locks are sharded and held for a lookup.

use std::sync::Arc;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use super::hash::IntegerHash;
use crate::error::Result;
use crate::format::node::{NODE_LEN, Node};
use crate::units::Location;

/// What one node costs: itself, the counts of its `Arc`, the allocator's part, its place in the cache.
const NODE_BYTES: usize = NODE_LEN + 16 + 16 + 96;

#[derive(Clone)]
struct NodeWeight;

impl Weighter<Location, Arc<Node>> for NodeWeight {
    fn weight(&self, _: &Location, _: &Arc<Node>) -> u64 {
        NODE_BYTES as u64
    }
}

pub struct NodeCache(Cache<Location, Arc<Node>, NodeWeight, IntegerHash>);

impl NodeCache {
    /// A cache that stays within `budget_bytes` (at least room for a few nodes).
    pub fn new(budget_bytes: usize) -> NodeCache {
        let options = OptionsBuilder::new()
            .estimated_items_capacity(budget_bytes / NODE_BYTES)
            .weight_capacity(budget_bytes as u64)
            .build()
            .expect("both capacities are given");
        NodeCache(Cache::with_options(
            options,
            NodeWeight,
            IntegerHash,
            DefaultLifecycle::default(),
        ))
    }

    pub fn get(&self, at: Location) -> Option<Arc<Node>> {
        self.0.get(&at)
    }

    pub fn insert(&self, at: Location, node: Arc<Node>) {
        self.0.insert(at, node);
    }

    /// The node, from memory or else from `load`, which runs once however many threads ask at a time.
    /// If it fails, nothing is kept and the next one to ask tries again.
    pub fn get_or_load(
        &self,
        at: Location,
        load: impl FnOnce() -> Result<Arc<Node>>,
    ) -> Result<Arc<Node>> {
        self.0.get_or_insert_with(&at, load)
    }

    /// Memory held by the nodes in the cache.
    pub fn memory_bytes(&self) -> usize {
        self.0.weight() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::units::NODE_ENTRIES;

    fn node(value: u64) -> Arc<Node> {
        Arc::new([Location(value); NODE_ENTRIES])
    }

    #[test]
    fn the_budget_holds() {
        for budget in [64 << 10, 1 << 20, 8 << 20] {
            let cache = NodeCache::new(budget);
            for value in 1..10_000 {
                cache.insert(Location(value << 10), node(value));
                assert!(cache.memory_bytes() <= budget + NODE_BYTES, "{value}");
            }
            assert!(cache.memory_bytes() >= budget * 3 / 4, "{budget}");
            let kept = (1..10_000).filter_map(|value| cache.get(Location(value << 10)));
            assert_eq!(kept.count() * NODE_BYTES, cache.memory_bytes());
        }
    }

    #[test]
    fn a_failed_load_is_tried_again() {
        let cache = NodeCache::new(1 << 20);
        let at = Location(77 << 10);
        assert!(cache.get_or_load(at, || Err(Error::PoolClosed)).is_err());
        assert!(cache.get_or_load(at, || Ok(node(5))).is_ok_and(|found| found[3] == Location(5)));
        assert!(cache.get_or_load(at, || Err(Error::PoolClosed)).is_ok());
        assert!(cache.get(at).is_some() && cache.get(Location(1)).is_none());
    }
}
