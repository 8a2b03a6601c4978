//! Records: the self-describing units of the log.
//!
//! A record is a 48-byte header, its stored payload, and zeros up to the next multiple of 16 bytes.
//! The header's checksum is seeded with the record's place, so that a record read from the wrong place
//! is not taken for the right one; it covers the payload's checksum, which can be computed before the
//! place is known.

use super::{check64, check64_seeded, get_u16, get_u32, get_u64, put};
use crate::units::{ALIGN, BLOCK_SIZE, BlockIndex, DiskId, EXTENT_BLOCKS_MAX, Lsn, SegmentId};
use crate::units::{NODE_ENTRIES, align_up};

pub const RECORD_HEADER_LEN: usize = 48;
/// Largest payload of records that are neither DATA nor NODE.
pub const METADATA_PAYLOAD_MAX: usize = 16 << 20;

const MAGIC: [u8; 4] = *b"NSR\x01";
const FLAG_GROUP_CONTINUES: u16 = 1;

/// What a record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Contents of `count` blocks from `block`.
    Data = 1,
    /// `count` blocks from `block` read as zeros.
    Hole = 2,
    /// A map node of level `count`.
    Node = 3,
    /// Live and total blocks of each segment as of a checkpoint.
    Usage = 4,
    /// A checkpoint's root.
    Root = 5,
    /// All records up to LSN `block` are on stable storage.
    Mark = 6,
}

/// How a payload is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Codec {
    Raw = 0,
    /// LZ4 block format without a size prefix.
    Lz4 = 1,
    /// LZ4 over 512 u64 rearranged as eight planes of bytes.
    Lz4Planes = 2,
}

impl Kind {
    pub(crate) fn from_u8(value: u8) -> Option<Kind> {
        use Kind::*;
        [Data, Hole, Node, Usage, Root, Mark].into_iter().find(|k| *k as u8 == value)
    }
}

impl Codec {
    pub(crate) fn from_u8(value: u8) -> Option<Codec> {
        use Codec::*;
        [Raw, Lz4, Lz4Planes].into_iter().find(|c| *c as u8 == value)
    }
}

/// A record's header. `payload_check` covers the stored payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHeader {
    pub kind: Kind,
    pub codec: Codec,
    /// The next record belongs to the same atomic group.
    pub continues: bool,
    pub lsn: Lsn,
    pub block: BlockIndex,
    pub count: u32,
    pub disk: DiskId,
    pub payload_check: u64,
    pub stored_len: u32,
}

/// The seed that binds a header to its place.
fn place_seed(segment: SegmentId, offset: usize) -> u64 {
    (segment.0 as u64) << 32 | (offset / ALIGN) as u64
}

impl RecordHeader {
    /// Bytes from this record's start to the next one's.
    pub fn stride(&self) -> usize {
        align_up(RECORD_HEADER_LEN + self.stored_len as usize)
    }

    /// Writes the header for a record at `offset` of `segment` into the first 48 bytes of `out`.
    pub fn encode(&self, segment: SegmentId, offset: usize, out: &mut [u8]) {
        put(out, 0, &MAGIC);
        out[4] = self.kind as u8;
        out[5] = self.codec as u8;
        let flags = if self.continues { FLAG_GROUP_CONTINUES } else { 0 };
        put(out, 6, &flags.to_le_bytes());
        put(out, 8, &self.lsn.to_le_bytes());
        put(out, 16, &self.block.to_le_bytes());
        put(out, 24, &self.count.to_le_bytes());
        put(out, 28, &self.disk.0.to_le_bytes());
        put(out, 32, &self.payload_check.to_le_bytes());
        put(out, 40, &self.stored_len.to_le_bytes());
        let check = check64_seeded(&out[..44], place_seed(segment, offset)) as u32;
        put(out, 44, &check.to_le_bytes());
    }

    /// The header of the record at `offset` of `segment`, or `None` if it is not a valid one there.
    pub fn decode(bytes: &[u8], segment: SegmentId, offset: usize) -> Option<RecordHeader> {
        if bytes.len() < RECORD_HEADER_LEN || bytes[..4] != MAGIC {
            return None;
        }
        if get_u32(bytes, 44) != check64_seeded(&bytes[..44], place_seed(segment, offset)) as u32 {
            return None;
        }
        let flags = get_u16(bytes, 6);
        let header = RecordHeader {
            kind: Kind::from_u8(bytes[4])?,
            codec: Codec::from_u8(bytes[5])?,
            continues: flags & FLAG_GROUP_CONTINUES != 0,
            lsn: get_u64(bytes, 8),
            block: get_u64(bytes, 16),
            count: get_u32(bytes, 24),
            disk: DiskId(get_u32(bytes, 28)),
            payload_check: get_u64(bytes, 32),
            stored_len: get_u32(bytes, 40),
        };
        (flags & !FLAG_GROUP_CONTINUES == 0 && header.has_sane_lengths()).then_some(header)
    }

    /// Does the stored payload that follows the header match its checksum?
    pub fn payload_matches(&self, payload: &[u8]) -> bool {
        payload.len() == self.stored_len as usize && check64(payload) == self.payload_check
    }

    pub(super) fn has_sane_lengths(&self) -> bool {
        let (count, stored) = (self.count as usize, self.stored_len as usize);
        match self.kind {
            Kind::Data => {
                let plain = count * BLOCK_SIZE;
                (1..=EXTENT_BLOCKS_MAX).contains(&count)
                    && self.block < u64::MAX / BLOCK_SIZE as u64 - count as u64
                    && match self.codec {
                        Codec::Raw => stored == plain,
                        _ => stored > 0 && stored < plain,
                    }
            }
            Kind::Hole => {
                count > 0 && stored == 0 && self.block < u64::MAX / BLOCK_SIZE as u64 - count as u64
            }
            Kind::Node => stored <= NODE_ENTRIES * 8 && count < 16,
            Kind::Usage | Kind::Root => stored <= METADATA_PAYLOAD_MAX && self.codec == Codec::Raw,
            Kind::Mark => stored == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> RecordHeader {
        RecordHeader {
            kind: Kind::Data,
            codec: Codec::Lz4,
            continues: true,
            lsn: 77,
            block: 1 << 35,
            count: 16,
            disk: DiskId(9),
            payload_check: check64(b"payload"),
            stored_len: 7,
        }
    }

    #[test]
    fn a_header_is_valid_only_in_its_place() {
        let (header, mut bytes) = (sample(), [0u8; RECORD_HEADER_LEN]);
        header.encode(SegmentId(3), 4096, &mut bytes);
        assert_eq!(RecordHeader::decode(&bytes, SegmentId(3), 4096), Some(header));
        assert_eq!(RecordHeader::decode(&bytes, SegmentId(3), 4112), None);
        assert_eq!(RecordHeader::decode(&bytes, SegmentId(4), 4096), None);
        assert_eq!((header.stride(), header.payload_matches(b"payload")), (64, true));
        assert!(!header.payload_matches(b"Payload") && !header.payload_matches(b"payloa"));
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let mut bytes = [0u8; RECORD_HEADER_LEN];
        sample().encode(SegmentId(3), 4096, &mut bytes);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(&bytes, SegmentId(3), 4096), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
