//! Nearstone's extent store: a log-structured block store served at native speed.
//!
//! Order of the modules, low to high; each uses only those before it (but for `budget`, which calls disks
//! back to do their chores):
//! `units`, `error`, `codec`, `format` (bytes on disk), `storage` (drives), `spares`, `segments` (files),
//! `segment_reader`, `map` (block → location), `batch`, `anchor_file`, `log`, `usage`, `holds`, `fetch`,
//! `disk_map`, `recovery`, `throttle`, `pending`, `disk`, `write`, `checkpoint`, `clean`, `scrub`, `changes`, `budget`,
//! `pool`, `sharing`, `python`.

mod anchor_file;
mod batch;
mod budget;
mod changes;
mod checkpoint;
mod clean;
pub mod codec;
mod disk;
mod disk_map;
pub mod error;
mod fetch;
pub mod format;
mod holds;
mod log;
pub mod map;
mod pending;
mod pool;
#[cfg(feature = "python")]
mod python;
mod recovery;
mod scrub;
mod segment_reader;
mod segments;
mod sharing;
mod spares;
pub mod storage;
mod throttle;
pub mod units;
mod usage;
mod write;

pub use disk::Disk;
pub use error::{Error, Result};
pub use pool::{Options, Pool, PoolStats};
pub use scrub::{Damage, Scrubbed};
pub use throttle::Limits;
