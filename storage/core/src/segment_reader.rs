//! Reading a segment file as a whole: for recovery, the cleaner and the scrub.

use crate::error::{Error, Result};
use crate::format::record::RECORD_HEADER_LEN;
use crate::format::segment::{SEGMENT_HEADER_LEN, SUMMARY_ENTRY_LEN, TRAILER_LEN};
use crate::format::{RecordHeader, SegmentHeader, SummaryEntry, Trailer, check64};
use crate::segments::Segment;
use crate::units::{ALIGN, SEGMENT_SIZE_BYTES_MAX, align_up};

/// A record met by a scan: its header is valid in its place, its payload perhaps not.
pub struct Scanned {
    pub offset: usize,
    pub header: RecordHeader,
    pub is_payload_valid: bool,
}

fn io_error(segment: &Segment, error: std::io::Error) -> Error {
    Error::io(format!("segment {:08x}", segment.id.0), error)
}

/// Bytes of the file; nothing of ours lies beyond the largest segment.
pub fn file_len(segment: &Segment) -> Result<usize> {
    let len = segment.file.len().map_err(|e| io_error(segment, e))?;
    Ok(len.min(2 * SEGMENT_SIZE_BYTES_MAX as u64) as usize)
}

fn read_range(segment: &Segment, from: usize, to: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; to.saturating_sub(from)];
    let got = segment.file.read_at(&mut bytes, from as u64).map_err(|e| io_error(segment, e))?;
    bytes.truncate(got);
    Ok(bytes)
}

/// The segment's header, or `None` if the file does not start with a valid one.
pub fn read_header(segment: &Segment) -> Result<Option<SegmentHeader>> {
    Ok(SegmentHeader::decode(&read_range(segment, 0, SEGMENT_HEADER_LEN)?))
}

/// The trailer of a sealed segment; `None` for one that is not, or whose end is damaged.
pub fn read_trailer(segment: &Segment) -> Result<Option<Trailer>> {
    let len = file_len(segment)?;
    if len < SEGMENT_HEADER_LEN + TRAILER_LEN {
        return Ok(None);
    }
    let trailer = Trailer::decode(&read_range(segment, len - TRAILER_LEN, len)?, segment.id);
    let summary_len = |t: &Trailer| t.entries as usize * SUMMARY_ENTRY_LEN;
    Ok(trailer.filter(|t| t.records_end as usize + summary_len(t) + TRAILER_LEN == len))
}

/// The records a trailer vouches for, in order; `None` if the summary is damaged.
pub fn read_summary(segment: &Segment, trailer: &Trailer) -> Result<Option<Vec<SummaryEntry>>> {
    let from = trailer.records_end as usize;
    let bytes = read_range(segment, from, from + trailer.entries as usize * SUMMARY_ENTRY_LEN)?;
    if check64(&bytes) != trailer.summary_check {
        return Ok(None);
    }
    Ok(bytes.chunks_exact(SUMMARY_ENTRY_LEN).map(SummaryEntry::decode).collect())
}

/// Every record whose header is valid where it stands, by ascending offset. After bytes that are none, it
/// looks for the next one.
pub fn scan(segment: &Segment) -> Result<Vec<Scanned>> {
    let bytes = read_range(segment, 0, file_len(segment)?)?;
    let mut found = Vec::new();
    let mut offset = align_up(SEGMENT_HEADER_LEN);
    while offset + RECORD_HEADER_LEN <= bytes.len() {
        let Some(header) = RecordHeader::decode(&bytes[offset..], segment.id, offset) else {
            offset += ALIGN;
            continue;
        };
        let payload = offset + RECORD_HEADER_LEN;
        let payload = bytes.get(payload..payload + header.stored_len as usize);
        let is_payload_valid = payload.is_some_and(|p| header.payload_matches(p));
        found.push(Scanned { offset, header, is_payload_valid });
        // A bad payload's length may be believed: the header that says it is valid.
        offset += header.stride();
    }
    Ok(found)
}
