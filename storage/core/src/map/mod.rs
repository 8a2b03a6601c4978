//! The map from block to location.
//!
//! A read asks the [`Delta`] first: what changed since the last checkpoint. What the delta does not know
//! is in the tree ([`TreeRoot`]): immutable nodes in the log, cached in memory ([`NodeCache`]). A
//! checkpoint ([`merge`]) makes a new tree from both.
//!
//! Three answers, everywhere in this module: a location; a hole (reads as zeros); nothing known, which
//! only a delta may say and which means "ask what lies below".

mod cache;
mod changes;
mod delta;
mod difference;
mod hash;
mod holes;
mod merge;
mod region;
mod tree;

#[cfg(test)]
mod model;

pub use cache::NodeCache;
pub use delta::Delta;
pub use difference::{Side, difference};
pub use merge::{Merged, UsageSink, merge};
pub use tree::{NodeStore, TreeRoot};
