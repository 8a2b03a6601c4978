//! The on-disk format, version 1: encoding and verification of every structure, nothing else.
//!
//! `docs/format.md` draws them. All integers are little-endian. A structure is checked as a whole
//! before any field of it is used; what fails is `None`, the caller knows file and offset.

pub mod anchor;
pub mod node;
pub mod record;
pub mod segment;

pub use anchor::{Anchor, Root};
pub use record::{Codec, Kind, RecordHeader};
pub use segment::{SegmentHeader, SummaryEntry, Trailer};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// On-disk format version written into segment headers, trailers and anchors.
pub const FORMAT_VERSION: u16 = 1;

/// XXH3-64 of a payload or structure.
pub fn check64(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// Seeded XXH3-64: the seed binds a structure to its place or owner.
pub fn check64_seeded(bytes: &[u8], seed: u64) -> u64 {
    xxh3_64_with_seed(bytes, seed)
}

pub(crate) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}
