//! Reading: from locations to verified bytes.
//!
//! Blocks that share an extent are decoded once, and extents that lie side by side are fetched with one
//! system call. Nothing leaves here unverified: header (place, kind, the disk whose segment it is, block) and payload checksum are
//! compared on every read, whatever the page cache may hold.

use std::cell::RefCell;
use std::sync::Arc;

use crate::codec;
use crate::error::{Error, Result};
use crate::format::record::RECORD_HEADER_LEN;
use crate::format::{Codec, Kind, RecordHeader, Root, node};
use crate::holds::Holds;
use crate::map::NodeCache;
use crate::segments::Segments;
use crate::units::{BLOCK_SIZE, BlockIndex, DiskId, EXTENT_BLOCKS_MAX, Location, SegmentId};
use crate::usage::UsageTable;

/// Most bytes fetched with one system call; larger gains nothing and costs memory per thread.
const FETCH_BYTES_MAX: usize = 512 << 10;

thread_local! {
    static FETCHED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static DECODED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Consecutive blocks of one extent, wanted by a read.
#[derive(Clone, Copy)]
struct Piece {
    location: Location,
    /// First block, relative to the request.
    at: usize,
    blocks: usize,
}

impl Piece {
    fn of(locations: &[Location], at: usize) -> Piece {
        let location = locations[at];
        let same = |i: &usize| {
            let expected = location.index() + i;
            expected < EXTENT_BLOCKS_MAX && locations[at + i] == location.with_index(expected)
        };
        let blocks = (1..locations.len() - at).take_while(same).count() + 1;
        Piece { location, at, blocks }
    }

    /// Where the next piece begins.
    fn end(&self) -> usize {
        self.at + self.blocks
    }

    /// Does `next` lie right behind this extent, so that one call can fetch both?
    fn is_followed_by(&self, next: &Piece) -> bool {
        let (a, b) = (self.location, next.location);
        a.segment() == b.segment()
            && b.offset() > a.offset()
            && b.offset() <= a.offset() + a.record_len_max()
    }
}

pub struct Fetcher {
    pub disk: DiskId,
    pub segments: Arc<Segments>,
    pub nodes: Arc<NodeCache>,
    pub holds: Arc<Holds>,
}

impl Fetcher {
    /// Fills `out` with the contents of the blocks from `first`, which lie at `locations`.
    pub fn read(&self, first: BlockIndex, locations: &[Location], out: &mut [u8]) -> Result<()> {
        debug_assert_eq!(locations.len() * BLOCK_SIZE, out.len());
        let mut at = 0;
        while at < locations.len() {
            if locations[at].is_hole() {
                let blocks = locations[at..].iter().take_while(|l| l.is_hole()).count();
                out[at * BLOCK_SIZE..(at + blocks) * BLOCK_SIZE].fill(0);
                at += blocks;
                continue;
            }
            at = self.read_neighbours(first, locations, at, out)?;
        }
        Ok(())
    }

    /// Reads the extent at `at` and those that lie behind it; returns where to go on.
    fn read_neighbours(
        &self,
        first: BlockIndex,
        locations: &[Location],
        at: usize,
        out: &mut [u8],
    ) -> Result<usize> {
        let head = Piece::of(locations, at);
        let start = head.location.offset();
        let mut last = head;
        while last.end() < locations.len() && !locations[last.end()].is_hole() {
            let piece = Piece::of(locations, last.end());
            let end = piece.location.offset() + piece.location.record_len_max();
            if !last.is_followed_by(&piece) || end - start > FETCH_BYTES_MAX {
                break;
            }
            last = piece;
        }
        let len = last.location.offset() + last.location.record_len_max() - start;
        self.with_bytes(head.location, len, |owner, bytes| {
            let mut piece = head;
            loop {
                let record = &bytes[(piece.location.offset() - start).min(bytes.len())..];
                let range = piece.at * BLOCK_SIZE..piece.end() * BLOCK_SIZE;
                let block = first + piece.at as u64;
                self.decode_data(owner, piece.location, block, record, &mut out[range])?;
                if piece.end() == last.end() {
                    return Ok(());
                }
                piece = Piece::of(locations, piece.end());
            }
        })?;
        Ok(last.end())
    }

    /// Calls `use_bytes` with the disk that wrote the location's segment and up to `len` bytes from the
    /// record on (fewer at the file's end).
    fn with_bytes<T>(
        &self,
        at: Location,
        len: usize,
        use_bytes: impl FnOnce(DiskId, &[u8]) -> Result<T>,
    ) -> Result<T> {
        let segment = self.segments.get(at.segment(), self.disk)?;
        FETCHED.with_borrow_mut(|buffer| {
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            let got = segment.file.read_at(&mut buffer[..len], at.offset() as u64);
            let got = got.map_err(|e| Error::io(format!("segment {:08x}", at.segment().0), e))?;
            use_bytes(segment.owner, &buffer[..got])
        })
    }

    /// Verifies the DATA record at `at` and decodes the blocks from `block` on into `out`.
    fn decode_data(
        &self,
        owner: DiskId,
        at: Location,
        block: BlockIndex,
        record: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        let (header, payload) = self.verified(at, record)?;
        let skip = at.index() * BLOCK_SIZE;
        let plain_len = header.count as usize * BLOCK_SIZE;
        let is_expected = header.kind == Kind::Data
            && header.disk == owner
            && header.block + at.index() as u64 == block
            && skip + out.len() <= plain_len;
        if !is_expected {
            return Err(self.damage(at, "the record is not the one the map expects"));
        }
        match header.codec {
            Codec::Raw => out.copy_from_slice(&payload[skip..skip + out.len()]),
            _ if out.len() == plain_len => {
                codec::decompress(payload, out).ok_or_else(|| self.damage(at, "undecodable"))?
            }
            _ => DECODED.with_borrow_mut(|plain| {
                plain.resize(EXTENT_BLOCKS_MAX * BLOCK_SIZE, 0);
                let wanted = &mut plain[..plain_len];
                codec::decompress_prefix(payload, wanted, skip + out.len())
                    .ok_or_else(|| self.damage(at, "undecodable"))?;
                out.copy_from_slice(&wanted[skip..skip + out.len()]);
                Ok(())
            })?,
        }
        Ok(())
    }

    /// The record at the start of `bytes`, checksums compared.
    fn verified<'a>(&self, at: Location, bytes: &'a [u8]) -> Result<(RecordHeader, &'a [u8])> {
        let header = RecordHeader::decode(bytes, at.segment(), at.offset())
            .ok_or_else(|| self.damage(at, "record header fails its checksum"))?;
        let end = RECORD_HEADER_LEN + header.stored_len as usize;
        let payload = bytes.get(RECORD_HEADER_LEN..end);
        let payload = payload.filter(|p| header.payload_matches(p));
        payload.map(|p| (header, p)).ok_or_else(|| self.damage(at, "payload fails its checksum"))
    }

    /// The map node at `at`, from the cache or verified from the drive.
    pub fn node(&self, at: Location, level: u8, first: BlockIndex) -> Result<Arc<node::Node>> {
        if let Some(node) = self.nodes.get(at) {
            return Ok(node);
        }
        let node = self.with_bytes(at, at.record_len_max(), |owner, bytes| {
            let (header, payload) = self.verified(at, bytes)?;
            let is_expected = header.kind == Kind::Node
                && header.disk == owner
                && header.count == level as u32
                && header.block == first;
            let node = is_expected.then(|| node::decode(header.codec, payload)).flatten();
            node.ok_or_else(|| self.damage(at, "the record is not the map node it should be"))
        })?;
        let node: Arc<node::Node> = Arc::from(node);
        self.nodes.insert(at, node.clone());
        Ok(node)
    }

    /// The verified header and payload of a record that is neither DATA nor NODE.
    pub fn metadata(
        &self,
        id: SegmentId,
        offset: usize,
        kind: Kind,
    ) -> Result<(RecordHeader, Vec<u8>)> {
        let segment = self.segments.get(id, self.disk)?;
        let place = |e| Error::io(format!("segment {:08x}", id.0), e);
        let damage = || Error::corrupt(self.disk, id, offset, "a metadata record is damaged");
        let mut bytes = vec![0; RECORD_HEADER_LEN];
        segment.file.read_at(&mut bytes, offset as u64).map_err(place)?;
        let header = RecordHeader::decode(&bytes, id, offset).ok_or_else(damage)?;
        let mut payload = vec![0; header.stored_len as usize];
        let start = (offset + RECORD_HEADER_LEN) as u64;
        let got = segment.file.read_at(&mut payload, start).map_err(place)?;
        let is_valid = header.kind == kind
            && header.disk == segment.owner
            && header.payload_matches(&payload[..got]);
        if is_valid { Ok((header, payload)) } else { Err(damage()) }
    }

    /// Asks the kernel to bring the extents at `locations` into the page cache.
    pub fn prefetch(&self, locations: &[Location]) -> Result<()> {
        let mut at = 0;
        while at < locations.len() {
            if locations[at].is_hole() {
                at += 1;
                continue;
            }
            let piece = Piece::of(locations, at);
            let segment = self.segments.get(piece.location.segment(), self.disk)?;
            let len = piece.location.record_len_max() as u64;
            segment.file.prefetch(piece.location.offset() as u64, len);
            at += piece.blocks;
        }
        Ok(())
    }

    /// Does the segment belong to this disk's log? So does one whose file is gone or kept for another:
    /// those of other disks are held, or not listed any more.
    pub fn is_own(&self, id: SegmentId) -> bool {
        self.segments.owner(id).is_none_or(|owner| owner == self.disk)
    }

    /// The disk's segments before the replay position that hold nothing which it or another disk needs.
    pub fn dead_segments(&self, root: &Root, usage: &UsageTable) -> Vec<SegmentId> {
        let is_dead = |id: SegmentId, live: u32| {
            let is_needed = live > 0 || id >= root.replay_segment || id == root.usage_segment;
            !is_needed && self.is_own(id) && !self.holds.is_held(id)
        };
        usage.iter().filter(|(id, u)| is_dead(*id, u.live)).map(|(id, _)| id).collect()
    }

    fn damage(&self, at: Location, detail: &str) -> Error {
        Error::corrupt(self.disk, at.segment(), at.offset(), detail)
    }
}
