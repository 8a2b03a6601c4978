//! One target a decoder: what it accepts it must also agree with.

use _core::codec;
use _core::format::anchor::SLOT_LEN;
use _core::format::record::RECORD_HEADER_LEN;
use _core::format::{
    Anchor, Codec, Kind, RecordHeader, Root, SegmentHeader, SummaryEntry, Trailer,
};
use _core::format::{check64, check64_seeded, node};
use _core::units::{BLOCK_SIZE, DiskId, Location, NODE_ENTRIES, SegmentId};

pub struct Target {
    pub name: &'static str,
    pub samples: fn() -> Vec<Vec<u8>>,
    /// Is the input accepted?
    pub run: fn(&[u8]) -> bool,
    /// Every bit of the samples is covered by a checksum.
    pub is_checksummed: bool,
}

const fn target(
    name: &'static str,
    samples: fn() -> Vec<Vec<u8>>,
    run: fn(&[u8]) -> bool,
    is_checksummed: bool,
) -> Target {
    Target { name, samples, run, is_checksummed }
}

pub const TARGETS: &[Target] = &[
    target("record header", record_headers, record_header, true),
    target("record header, resealed", record_headers, resealed_record_header, false),
    target("segment header", segment_headers, segment_header, true),
    target("segment header, resealed", segment_headers, resealed_segment_header, false),
    target("trailer", trailers, trailer, true),
    target("trailer, resealed", trailers, resealed_trailer, false),
    target("summary entry", summary_entries, summary_entry, false),
    target("anchor slot", anchor_slots, anchor, true),
    target("anchor slot, resealed", anchor_slots, resealed_anchor, false),
    target("anchor file", anchor_files, anchor, false),
    target("root", roots, root, false),
    target("node", nodes, any_node, false),
    target("LZ4", compressed, decompress, false),
    target("LZ4 prefix", compressed, decompress_prefix, false),
];

const SEGMENT: SegmentId = SegmentId(0x0102_0304);
const OFFSET: usize = 4096;
const DISK: DiskId = DiskId(7);

/// Replaces the last bytes of `data`, as long as `check`, by the right checksum.
fn resealed(data: &[u8], len: usize, check: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut bytes = data.to_vec();
    bytes.resize(len, 0);
    let check_len = check(&[]).len();
    let sum = check(&bytes[..len - check_len]);
    bytes[len - check_len..].copy_from_slice(&sum);
    bytes
}

fn record_headers() -> Vec<Vec<u8>> {
    let kinds = [Kind::Data, Kind::Hole, Kind::Node, Kind::Usage, Kind::Root, Kind::Mark];
    let header = |kind| RecordHeader {
        kind,
        codec: Codec::Raw,
        continues: kind == Kind::Data,
        lsn: 1 << 40,
        block: 1 << 33,
        count: 3,
        disk: DISK,
        payload_check: 0x1234_5678_9abc_def0,
        stored_len: match kind {
            Kind::Data => 3 * BLOCK_SIZE as u32,
            Kind::Node => 1500,
            Kind::Usage | Kind::Root => 96,
            Kind::Hole | Kind::Mark => 0,
        },
    };
    let encoded = kinds.into_iter().map(|kind| {
        let mut bytes = vec![0; RECORD_HEADER_LEN];
        header(kind).encode(SEGMENT, OFFSET, &mut bytes);
        bytes
    });
    encoded.collect()
}

fn record_header(data: &[u8]) -> bool {
    let Some(header) = RecordHeader::decode(data, SEGMENT, OFFSET) else { return false };
    let mut again = [0; RECORD_HEADER_LEN];
    header.encode(SEGMENT, OFFSET, &mut again);
    assert_eq!(again, data[..RECORD_HEADER_LEN], "what is accepted has one encoding");
    assert!(header.stride() >= RECORD_HEADER_LEN && header.stride().is_multiple_of(16));
    assert!(header.kind != Kind::Data || (1..=16).contains(&header.count));
    let blocks_end = header.block.checked_add(header.count as u64);
    assert!(!matches!(header.kind, Kind::Data | Kind::Hole) || blocks_end.is_some());
    true
}

fn resealed_record_header(data: &[u8]) -> bool {
    let seed = (SEGMENT.0 as u64) << 32 | (OFFSET / 16) as u64;
    let check = |bytes: &[u8]| (check64_seeded(bytes, seed) as u32).to_le_bytes().to_vec();
    record_header(&resealed(data, RECORD_HEADER_LEN, check))
}

fn segment_headers() -> Vec<Vec<u8>> {
    let header = |log_index| SegmentHeader {
        disk: DISK,
        segment: SEGMENT,
        prev: SegmentId(3),
        log_index,
        first_lsn: 77,
        epoch: 1,
        pool: [9; 16],
    };
    [0, u64::MAX].map(|i| header(i).encode().to_vec()).into()
}

fn segment_header(data: &[u8]) -> bool {
    let Some(header) = SegmentHeader::decode(data) else { return false };
    assert_eq!(SegmentHeader::decode(&header.encode()), Some(header));
    true
}

fn resealed_segment_header(data: &[u8]) -> bool {
    segment_header(&resealed(data, 128, |bytes| check64(bytes).to_le_bytes().to_vec()))
}

fn trailers() -> Vec<Vec<u8>> {
    let trailer = |entries, last_lsn| Trailer {
        segment: SEGMENT,
        records_end: 8192,
        entries,
        first_lsn: 100,
        last_lsn,
        summary_check: 5,
    };
    [(0, 99), (1, 100), (900, 999)].map(|(n, last)| trailer(n, last).encode().to_vec()).into()
}

fn trailer(data: &[u8]) -> bool {
    let Some(trailer) = Trailer::decode(data, SEGMENT) else { return false };
    assert_eq!(Trailer::decode(&trailer.encode(), SEGMENT), Some(trailer));
    true
}

fn resealed_trailer(data: &[u8]) -> bool {
    let check = |bytes: &[u8]| check64_seeded(bytes, SEGMENT.0 as u64).to_le_bytes().to_vec();
    trailer(&resealed(data, 64, check))
}

fn summary_entries() -> Vec<Vec<u8>> {
    let entry = |kind, count, stored_len| SummaryEntry {
        block: 1 << 35,
        offset: 128,
        count,
        stored_len,
        kind,
        codec: Codec::Raw,
        continues: false,
    };
    let entries = [
        entry(Kind::Data, 4, 4 * BLOCK_SIZE as u32),
        entry(Kind::Hole, 3, 0),
        entry(Kind::Mark, 0, 0),
    ];
    let encoded = entries.map(|e| {
        let mut bytes = Vec::new();
        e.encode(&mut bytes);
        bytes
    });
    encoded.into()
}

fn summary_entry(data: &[u8]) -> bool {
    // Callers cut a summary into entries of exactly this length.
    let mut bytes = data.to_vec();
    bytes.resize(24, 0);
    let Some(entry) = SummaryEntry::decode(&bytes) else { return false };
    let mut again = Vec::new();
    entry.encode(&mut again);
    assert_eq!(again, bytes, "what is accepted has one encoding");
    assert!(entry.kind != Kind::Data || (1..=16).contains(&entry.count), "{entry:?}");
    true
}

fn sample_root(seq: u64, levels: u8) -> Root {
    let tree = if levels == 0 { Location::HOLE } else { Location::new(SEGMENT, OFFSET, 700, 0) };
    Root { seq, levels, tree, disk: DISK, replay_lsn: 9, mapped_blocks: 4, ..Root::default() }
}

fn anchor_slots() -> Vec<Vec<u8>> {
    let slot = |seq| Anchor { pool: [9; 16], root: sample_root(seq, 2) }.encode().to_vec();
    [0, 1, u64::MAX].map(slot).into()
}

fn anchor_files() -> Vec<Vec<u8>> {
    let slots = anchor_slots();
    vec![[&slots[0][..], &slots[1][..]].concat(), [&slots[0][..], &[0; SLOT_LEN][..]].concat()]
}

fn anchor(data: &[u8]) -> bool {
    let Some(anchor) = Anchor::decode(data, DISK) else { return false };
    assert_eq!(anchor.root.disk, DISK);
    let mut file = vec![0; 2 * SLOT_LEN];
    let at = anchor.slot_offset() as usize;
    file[at..at + SLOT_LEN].copy_from_slice(&anchor.encode());
    assert_eq!(Anchor::decode(&file, DISK), Some(anchor));
    true
}

fn resealed_anchor(data: &[u8]) -> bool {
    let check = |bytes: &[u8]| check64_seeded(bytes, DISK.0 as u64).to_le_bytes().to_vec();
    anchor(&resealed(data, SLOT_LEN, check))
}

fn roots() -> Vec<Vec<u8>> {
    [sample_root(1, 0), sample_root(2, 3)].map(|r| r.encode().to_vec()).into()
}

fn root(data: &[u8]) -> bool {
    let Some(root) = Root::decode(data) else { return false };
    assert_eq!(Root::decode(&root.encode()), Some(root));
    true
}

/// The first byte of the input chooses the codec.
fn nodes() -> Vec<Vec<u8>> {
    let mut node = [Location::HOLE; NODE_ENTRIES];
    for (i, entry) in node.iter_mut().enumerate().step_by(3) {
        *entry = Location(0x0700_0000_0000 + ((i as u64) << 10));
    }
    let mut planes = vec![2];
    node::encode(&node, &mut planes);
    let raw = node.iter().flat_map(|l| l.0.to_le_bytes());
    vec![planes, std::iter::once(0).chain(raw).collect()]
}

fn any_node(data: &[u8]) -> bool {
    let Some((first, payload)) = data.split_first() else { return false };
    let codec = [Codec::Raw, Codec::Lz4, Codec::Lz4Planes][*first as usize % 3];
    let Some(found) = node::decode(codec, payload) else { return false };
    let mut again = Vec::new();
    let codec = node::encode(&found, &mut again);
    assert_eq!(node::decode(codec, &again), Some(found));
    true
}

/// The first byte of the input is the number of blocks expected, from 0.
fn compressed() -> Vec<Vec<u8>> {
    let sample = |blocks: usize| {
        let plain: Vec<u8> = (0..blocks * BLOCK_SIZE).map(|i| (i / 7 * (i / 900)) as u8).collect();
        let mut bytes = vec![blocks as u8 - 1];
        codec::compress(&plain, plain.len(), &mut bytes).expect("compressible");
        bytes
    };
    vec![sample(1), sample(4), sample(16)]
}

fn decompress(data: &[u8]) -> bool {
    let Some((first, stored)) = data.split_first() else { return false };
    let mut out = vec![0; (*first as usize % 16 + 1) * BLOCK_SIZE];
    codec::decompress(stored, &mut out).is_some()
}

fn decompress_prefix(data: &[u8]) -> bool {
    let Some((first, stored)) = data.split_first() else { return false };
    let blocks = *first as usize % 16 + 1;
    let mut whole = vec![0; blocks * BLOCK_SIZE];
    let is_valid = codec::decompress(stored, &mut whole).is_some();
    let wanted = blocks.div_ceil(2) * BLOCK_SIZE;
    let mut part = vec![0; whole.len()];
    let found = codec::decompress_prefix(stored, &mut part, wanted);
    assert!(!is_valid || (found.is_some() && part[..wanted] == whole[..wanted]));
    found.is_some()
}
