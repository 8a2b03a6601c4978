//! Nearstone's extent store: a log-structured block store served at native speed.
//!
//! Order of the modules, low to high; each uses only those before it:
//! `units`, `error`, `codec`, `format` (bytes on disk), `storage` (drives), `map` (block → location).

pub mod codec;
pub mod error;
pub mod format;
pub mod map;
pub mod storage;
pub mod units;
