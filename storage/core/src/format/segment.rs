//! Segment files: header, then records, and once sealed a summary and a trailer at the very end.
//!
//! A trailer is written only after the records are on stable storage, so a valid one vouches for the
//! durability of the whole segment.

use super::record::{Codec, Kind, RecordHeader};
use super::{FORMAT_VERSION, check64, check64_seeded, get_u16, get_u32, get_u64, put};
use crate::units::{ALIGN, BlockIndex, DiskId, Lsn, SEGMENT_SIZE_BYTES_MAX, SegmentId};

pub const SEGMENT_HEADER_LEN: usize = 128;
pub const SUMMARY_ENTRY_LEN: usize = 24;
pub const TRAILER_LEN: usize = 64;

const HEADER_MAGIC: [u8; 8] = *b"NSSEGMT1";
const TRAILER_MAGIC: [u8; 8] = *b"NSTRAIL1";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    pub disk: DiskId,
    pub segment: SegmentId,
    /// The segment before this one in the log.
    pub prev: SegmentId,
    /// Place in the disk's log: 0, 1, 2 … without gaps.
    pub log_index: u64,
    pub first_lsn: Lsn,
    pub epoch: u64,
    pub pool: [u8; 16],
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_LEN] {
        let mut out = [0; SEGMENT_HEADER_LEN];
        put(&mut out, 0, &HEADER_MAGIC);
        put(&mut out, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut out, 12, &self.disk.0.to_le_bytes());
        put(&mut out, 16, &self.segment.0.to_le_bytes());
        put(&mut out, 20, &self.prev.0.to_le_bytes());
        put(&mut out, 24, &self.log_index.to_le_bytes());
        put(&mut out, 32, &self.first_lsn.to_le_bytes());
        put(&mut out, 40, &self.epoch.to_le_bytes());
        put(&mut out, 48, &self.pool);
        let check = check64(&out[..120]);
        put(&mut out, 120, &check.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<SegmentHeader> {
        let bytes = bytes.get(..SEGMENT_HEADER_LEN)?;
        let valid = bytes[..8] == HEADER_MAGIC
            && get_u16(bytes, 8) == FORMAT_VERSION
            && get_u64(bytes, 120) == check64(&bytes[..120]);
        valid.then(|| SegmentHeader {
            disk: DiskId(get_u32(bytes, 12)),
            segment: SegmentId(get_u32(bytes, 16)),
            prev: SegmentId(get_u32(bytes, 20)),
            log_index: get_u64(bytes, 24),
            first_lsn: get_u64(bytes, 32),
            epoch: get_u64(bytes, 40),
            pool: bytes[48..64].try_into().expect("sixteen bytes"),
        })
    }
}

/// One record as the summary lists it; its LSN is the segment's first plus its position in the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SummaryEntry {
    pub block: BlockIndex,
    pub offset: u32,
    pub count: u32,
    pub stored_len: u32,
    pub kind: Kind,
    pub codec: Codec,
    pub continues: bool,
}

impl SummaryEntry {
    pub fn of(header: &RecordHeader, offset: usize) -> SummaryEntry {
        SummaryEntry {
            block: header.block,
            offset: offset as u32,
            count: header.count,
            stored_len: header.stored_len,
            kind: header.kind,
            codec: header.codec,
            continues: header.continues,
        }
    }

    /// What the record's header says, its payload checksum aside.
    pub fn to_header(&self, disk: DiskId, lsn: Lsn) -> RecordHeader {
        RecordHeader {
            kind: self.kind,
            codec: self.codec,
            continues: self.continues,
            lsn,
            block: self.block,
            count: self.count,
            disk,
            payload_check: 0,
            stored_len: self.stored_len,
        }
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.block.to_le_bytes());
        out.extend_from_slice(&(self.offset / ALIGN as u32).to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.stored_len.to_le_bytes());
        out.extend_from_slice(&[self.kind as u8, self.codec as u8, self.continues as u8, 0]);
    }

    /// `bytes` comes out of a summary whose checksum is right; nonsense in it is still refused.
    pub fn decode(bytes: &[u8]) -> Option<SummaryEntry> {
        let kind = Kind::from_u8(bytes[20])?;
        let codec = Codec::from_u8(bytes[21])?;
        let entry = SummaryEntry {
            block: get_u64(bytes, 0),
            offset: get_u32(bytes, 8).checked_mul(ALIGN as u32)?,
            count: get_u32(bytes, 12),
            stored_len: get_u32(bytes, 16),
            kind,
            codec,
            continues: bytes[22] == 1,
        };
        let is_sane = (entry.offset as usize) < SEGMENT_SIZE_BYTES_MAX
            && bytes[22] < 2
            && bytes[23] == 0
            && entry.to_header(DiskId(0), 0).has_sane_lengths();
        is_sane.then_some(entry)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trailer {
    pub segment: SegmentId,
    /// Where the records end and the summary begins.
    pub records_end: u32,
    pub entries: u32,
    pub first_lsn: Lsn,
    /// `first_lsn - 1` when the segment has no record.
    pub last_lsn: Lsn,
    pub summary_check: u64,
}

impl Trailer {
    pub fn encode(&self) -> [u8; TRAILER_LEN] {
        let mut out = [0; TRAILER_LEN];
        put(&mut out, 0, &TRAILER_MAGIC);
        put(&mut out, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut out, 12, &self.segment.0.to_le_bytes());
        put(&mut out, 16, &self.records_end.to_le_bytes());
        put(&mut out, 20, &self.entries.to_le_bytes());
        put(&mut out, 24, &self.first_lsn.to_le_bytes());
        put(&mut out, 32, &self.last_lsn.to_le_bytes());
        put(&mut out, 40, &self.summary_check.to_le_bytes());
        let check = check64_seeded(&out[..56], self.segment.0 as u64);
        put(&mut out, 56, &check.to_le_bytes());
        out
    }

    /// The trailer of `segment`, or `None`: the segment is not sealed, or its end is damaged.
    pub fn decode(bytes: &[u8], segment: SegmentId) -> Option<Trailer> {
        let bytes = bytes.get(..TRAILER_LEN)?;
        let trailer = Trailer {
            segment: SegmentId(get_u32(bytes, 12)),
            records_end: get_u32(bytes, 16),
            entries: get_u32(bytes, 20),
            first_lsn: get_u64(bytes, 24),
            last_lsn: get_u64(bytes, 32),
            summary_check: get_u64(bytes, 40),
        };
        let valid = bytes[..8] == TRAILER_MAGIC
            && get_u16(bytes, 8) == FORMAT_VERSION
            && trailer.segment == segment
            && get_u64(bytes, 56) == check64_seeded(&bytes[..56], segment.0 as u64)
            && trailer.records_end as usize <= SEGMENT_SIZE_BYTES_MAX
            && (trailer.entries as usize) < SEGMENT_SIZE_BYTES_MAX / SUMMARY_ENTRY_LEN
            && trailer.first_lsn.checked_add(trailer.entries as u64)
                == trailer.last_lsn.checked_add(1);
        valid.then_some(trailer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_trailers_and_entries_survive_the_round_trip() {
        let header = SegmentHeader {
            disk: DiskId(7),
            segment: SegmentId(8),
            prev: SegmentId(6),
            log_index: 2,
            first_lsn: 100,
            epoch: 5,
            pool: [9; 16],
        };
        let mut bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Some(header));
        bytes[50] ^= 1;
        assert_eq!(SegmentHeader::decode(&bytes), None);

        let trailer = Trailer {
            segment: SegmentId(8),
            records_end: 4096,
            entries: 1,
            first_lsn: 100,
            last_lsn: 100,
            summary_check: 3,
        };
        assert_eq!(Trailer::decode(&trailer.encode(), SegmentId(8)), Some(trailer));
        assert_eq!(Trailer::decode(&trailer.encode(), SegmentId(9)), None);

        let entry = SummaryEntry {
            block: 1 << 40,
            offset: 128,
            count: 16,
            stored_len: 65_536,
            kind: Kind::Data,
            codec: Codec::Raw,
            continues: true,
        };
        let mut out = Vec::new();
        entry.encode(&mut out);
        assert_eq!((out.len(), SummaryEntry::decode(&out)), (SUMMARY_ENTRY_LEN, Some(entry)));
    }
}
