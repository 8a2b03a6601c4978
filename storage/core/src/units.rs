//! Sizes and identities used everywhere in the core.
//!
//! Blocks are counted from 0 within a disk, LSNs from 1 within a disk's log. Byte positions inside a
//! segment are multiples of [`ALIGN`], so that 22 bits address a whole segment.

/// Bytes of one block of a disk's address space.
pub const BLOCK_SIZE: usize = 4096;
/// Most blocks that one extent (one record, one compression unit) may hold.
pub const EXTENT_BLOCKS_MAX: usize = 16;
/// Records start at multiples of this many bytes in their segment.
pub const ALIGN: usize = 16;
/// Largest segment file. Offsets in units of [`ALIGN`] must fit into 22 bits of a location.
pub const SEGMENT_SIZE_BYTES_MAX: usize = 64 << 20;
/// Largest request that is one atomic group in the log; larger ones are cut into several.
pub const GROUP_BYTES_MAX: usize = 1 << 20;
/// Entries of a map node.
pub const NODE_ENTRIES: usize = 512;
/// log2 of [`NODE_ENTRIES`].
pub const NODE_BITS: u32 = 9;
/// Most levels of a map's tree.
pub const LEVELS_MAX: u8 = 4;
/// Largest disk: 256 TiB, the reach of a tree of four levels.
pub const DISK_SIZE_BYTES_MAX: u64 = 256 << 40;

const _: () = assert!(SEGMENT_SIZE_BYTES_MAX / ALIGN == 1 << 22);
const _: () = assert!(1 << NODE_BITS == NODE_ENTRIES);
const _: () =
    assert!(DISK_SIZE_BYTES_MAX / BLOCK_SIZE as u64 == 1 << (NODE_BITS * LEVELS_MAX as u32));

/// A block's position in its disk.
pub type BlockIndex = u64;
/// Log sequence number: 1, 2, 3 … without gaps within a disk's log.
pub type Lsn = u64;

/// A virtual disk's number within its pool; never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct DiskId(pub u32);

/// A segment's number within its pool; 0 means "none".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct SegmentId(pub u32);

impl SegmentId {
    pub const NONE: SegmentId = SegmentId(0);

    pub fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// Rounds up to the next multiple of [`ALIGN`].
pub const fn align_up(bytes: usize) -> usize {
    (bytes + ALIGN - 1) & !(ALIGN - 1)
}

/// Where a block lies: `segment:32 | offset/16:22 | size class:6 | index in extent:4`; 0 is a hole.
///
/// The size class bounds the length of the record (header and payload) from above, so that a reader
/// fetches it with one system call; the record's header has the exact length.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Location(pub u64);

impl Location {
    pub const HOLE: Location = Location(0);

    /// `offset` and `record_len` in bytes, `index` the block's place inside its extent.
    pub fn new(segment: SegmentId, offset: usize, record_len: usize, index: usize) -> Location {
        debug_assert!(!segment.is_none() && offset.is_multiple_of(ALIGN));
        debug_assert!(offset < SEGMENT_SIZE_BYTES_MAX && index < EXTENT_BLOCKS_MAX);
        let class = size_class(record_len.div_ceil(ALIGN) as u32);
        Location(
            (segment.0 as u64) << 32
                | ((offset / ALIGN) as u64) << 10
                | (class as u64) << 4
                | index as u64,
        )
    }

    pub fn is_hole(self) -> bool {
        self.0 == 0
    }

    pub fn segment(self) -> SegmentId {
        SegmentId((self.0 >> 32) as u32)
    }

    /// Byte offset of the record in its segment.
    pub fn offset(self) -> usize {
        ((self.0 >> 10) as usize & 0x3f_ffff) * ALIGN
    }

    /// Upper bound, in bytes, of the record's header and payload.
    pub fn record_len_max(self) -> usize {
        size_class_bound((self.0 >> 4) as u32 & 0x3f) as usize * ALIGN
    }

    /// Place of the block inside its extent.
    pub fn index(self) -> usize {
        (self.0 & 0xf) as usize
    }

    /// The same extent, block 0: equal for all blocks of one extent.
    pub fn extent(self) -> Location {
        Location(self.0 & !0xf)
    }

    /// The same extent, another block of it.
    pub fn with_index(self, index: usize) -> Location {
        Location(self.0 & !0xf | index as u64)
    }
}

/// Upper bound, in 16-byte units, that a size class stands for.
pub const fn size_class_bound(class: u32) -> u32 {
    if class < 4 { class + 1 } else { (5 + (class & 3)) << ((class >> 2) - 1) }
}

/// The smallest class whose bound is at least `units`.
pub const fn size_class(units: u32) -> u32 {
    let mut class = match units {
        0..=4 => return units.saturating_sub(1),
        // 4..8 units per octave: start one octave below and step up, at most seven steps.
        _ => (units.ilog2() - 2) * 4,
    };
    while size_class_bound(class) < units {
        class += 1;
    }
    class
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_are_the_smallest_that_fit() {
        assert!((0..63).all(|c| size_class_bound(c) < size_class_bound(c + 1)));
        for units in 1..=70_000 {
            let class = size_class(units);
            assert!(class < 64 && size_class_bound(class) >= units, "{units}");
            assert!(class == 0 || size_class_bound(class - 1) < units, "{units}");
        }
    }

    #[test]
    fn locations_keep_their_parts() {
        let last = SEGMENT_SIZE_BYTES_MAX - ALIGN;
        for (segment, offset, len, index) in [(1, 128, 48, 0), (u32::MAX, last, 65_584, 15)] {
            let at = Location::new(SegmentId(segment), offset, len, index);
            assert_eq!(
                (at.segment(), at.offset(), at.index()),
                (SegmentId(segment), offset, index)
            );
            assert!(at.record_len_max() >= len && at.record_len_max() <= len * 5 / 4 + 16);
            assert_eq!(at.extent().with_index(index), at);
        }
    }
}
