//! Structures whose checksums are right and whose contents are nonsense: what a bug in another version or
//! an unfriendly hand might leave. Anything may come of it but a panic, an endless loop or a huge
//! allocation.

use std::sync::Arc;

use _core::format::anchor::{ANCHOR_LEN, SLOT_LEN};
use _core::format::record::RECORD_HEADER_LEN;
use _core::format::segment::{SEGMENT_HEADER_LEN, SUMMARY_ENTRY_LEN, TRAILER_LEN};
use _core::format::{Anchor, Codec, Kind, RecordHeader, SegmentHeader, Trailer, check64};
use _core::storage::recording::fates::Rng;
use _core::units::{DiskId, Location, SegmentId};

use crate::flips::{Files, check, victim};
use crate::{caught, first_seed, rounds};

/// Numbers at which arithmetic breaks.
fn odd_number(rng: &mut Rng, old: u64) -> u64 {
    match rng.below(6) {
        0 => old.wrapping_add(1),
        1 => old.wrapping_sub(1),
        2 => 0,
        3 => u64::MAX >> rng.below(64),
        4 => 1 << rng.below(64),
        _ => rng.next_u64() >> rng.below(64),
    }
}

fn odd_kind(rng: &mut Rng) -> Kind {
    let kinds = [Kind::Data, Kind::Hole, Kind::Node, Kind::Usage, Kind::Root, Kind::Mark];
    kinds[rng.below(6) as usize]
}

/// Changes one field of a record's header and gives it the right checksum again.
fn spoil_record(rng: &mut Rng, bytes: &mut [u8], segment: SegmentId) {
    let is_record = |at: usize| RecordHeader::decode(&bytes[at..], segment, at).is_some();
    let places = (SEGMENT_HEADER_LEN..bytes.len().saturating_sub(RECORD_HEADER_LEN)).step_by(16);
    let records: Vec<usize> = places.filter(|at| is_record(*at)).collect();
    if records.is_empty() {
        return;
    }
    let at = records[rng.below(records.len() as u64) as usize];
    let mut header = RecordHeader::decode(&bytes[at..], segment, at).expect("found just now");
    match rng.below(8) {
        0 => header.kind = odd_kind(rng),
        1 => header.codec = [Codec::Raw, Codec::Lz4, Codec::Lz4Planes][rng.below(3) as usize],
        2 => header.continues = !header.continues,
        3 => header.lsn = odd_number(rng, header.lsn),
        4 => header.block = odd_number(rng, header.block),
        5 => header.count = odd_number(rng, header.count as u64) as u32,
        6 => header.stored_len = odd_number(rng, header.stored_len as u64) as u32,
        _ => header.disk = DiskId(odd_number(rng, header.disk.0 as u64) as u32),
    }
    header.encode(segment, at, &mut bytes[at..at + RECORD_HEADER_LEN]);
}

fn spoil_segment_header(rng: &mut Rng, bytes: &mut [u8]) {
    let Some(mut header) = SegmentHeader::decode(bytes) else { return };
    match rng.below(5) {
        0 => header.disk = DiskId(odd_number(rng, header.disk.0 as u64) as u32),
        1 => header.segment = SegmentId(odd_number(rng, header.segment.0 as u64) as u32),
        2 => header.log_index = odd_number(rng, header.log_index),
        3 => header.first_lsn = odd_number(rng, header.first_lsn),
        _ => header.prev = SegmentId(odd_number(rng, header.prev.0 as u64) as u32),
    }
    bytes[..SEGMENT_HEADER_LEN].copy_from_slice(&header.encode());
}

/// Changes the trailer, or the summary that it vouches for.
fn spoil_seal(rng: &mut Rng, bytes: &mut [u8], segment: SegmentId) {
    let end = bytes.len();
    let Some(trailer_at) = end.checked_sub(TRAILER_LEN) else { return };
    let Some(mut trailer) = Trailer::decode(&bytes[trailer_at..], segment) else { return };
    let summary_len = trailer.entries as usize * SUMMARY_ENTRY_LEN;
    let summary_at = trailer_at.saturating_sub(summary_len);
    match rng.below(5) {
        0 => trailer.records_end = odd_number(rng, trailer.records_end as u64) as u32,
        1 => trailer.entries = odd_number(rng, trailer.entries as u64) as u32,
        2 => trailer.first_lsn = odd_number(rng, trailer.first_lsn),
        3 => trailer.last_lsn = odd_number(rng, trailer.last_lsn),
        _ => {
            let at = summary_at + rng.below(summary_len.max(1) as u64) as usize;
            bytes[at] = odd_number(rng, bytes[at] as u64) as u8;
            trailer.summary_check = check64(&bytes[summary_at..trailer_at]);
        }
    }
    bytes[trailer_at..].copy_from_slice(&trailer.encode());
}

fn spoil_anchor(rng: &mut Rng, bytes: &mut [u8]) {
    let Some(mut anchor) = Anchor::decode(&bytes[..ANCHOR_LEN], DiskId(1)) else { return };
    let root = &mut anchor.root;
    match rng.below(10) {
        0 => root.tree = Location(odd_number(rng, root.tree.0)),
        1 => root.levels = rng.below(9) as u8,
        2 => root.replay_log_index = odd_number(rng, root.replay_log_index),
        3 => root.replay_segment = SegmentId(odd_number(rng, root.replay_segment.0 as u64) as u32),
        4 => root.replay_offset = odd_number(rng, root.replay_offset as u64) as u32,
        5 => root.replay_lsn = odd_number(rng, root.replay_lsn),
        6 => root.usage_segment = SegmentId(odd_number(rng, root.usage_segment.0 as u64) as u32),
        7 => root.usage_offset = odd_number(rng, root.usage_offset as u64) as u32,
        8 => root.segment_high = SegmentId(odd_number(rng, root.segment_high.0 as u64) as u32),
        _ => (root.seq, root.mapped_blocks) = (rng.next_u64(), rng.next_u64()),
    }
    let at = anchor.slot_offset() as usize;
    bytes[at..at + SLOT_LEN].copy_from_slice(&anchor.encode());
}

fn spoil(rng: &mut Rng, files: &mut Files) -> String {
    let index = rng.below(files.len() as u64) as usize;
    let (path, bytes) = &mut files[index];
    let bytes = Arc::make_mut(bytes);
    let name = path.rsplit('/').next().unwrap_or_default();
    let number = name.split('.').next().and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let segment = SegmentId(number.unwrap_or_default());
    match rng.below(4) {
        _ if path.ends_with("anchor") => spoil_anchor(rng, bytes),
        0 => spoil_segment_header(rng, bytes),
        1 => spoil_seal(rng, bytes, segment),
        _ => spoil_record(rng, bytes, segment),
    }
    path.clone()
}

#[test]
fn nonsense_with_right_checksums_never_panics() {
    let victims: Vec<_> = (0..8).map(|seed| victim(seed, seed % 2 == 0)).collect();
    let first = first_seed(0x4057);
    for seed in first..first + rounds(8000) {
        let mut rng = Rng::new(seed);
        let victim = &victims[rng.below(8) as usize];
        let mut files = victim.files.clone();
        let path = spoil(&mut rng, &mut files);
        let outcome = caught(|| {
            // What is read may be nonsense too: the checksums say that it is what was written.
            let _ = check(files, &victim.wanted);
            Ok(())
        });
        outcome.unwrap_or_else(|why| panic!("seed {seed:#x}, {path}: {why}"));
    }
}
