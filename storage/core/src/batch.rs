//! A batch: records laid out as they will stand in a segment, waiting for their place.
//!
//! Compression and payload checksums happen here, outside every lock. Only the headers are finished
//! later, when the log knows segment, offset and LSN. All records of a batch form one atomic group:
//! recovery applies all of them or none.

use crate::codec::{self, Compression};
use crate::format::record::RECORD_HEADER_LEN;
use crate::format::{Codec, Kind, RecordHeader, check64, node};
use crate::units::{BLOCK_SIZE, BlockIndex, DiskId, Lsn, SegmentId, align_up};

/// Batches keep their buffers between requests; a larger one is given back.
const KEPT_BYTES_MAX: usize = 2 << 20;

/// A record of a batch. Once appended, `offset` is its place in the segment.
#[derive(Clone, Copy, Debug)]
pub struct Draft {
    pub header: RecordHeader,
    pub offset: usize,
}

#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    drafts: Vec<Draft>,
}

impl Batch {
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.drafts.clear();
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            self.bytes = Vec::new();
        }
    }

    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn drafts(&self) -> &[Draft] {
        &self.drafts
    }

    /// Adds one extent; `data` is 1 to 16 whole blocks.
    pub fn push_data(
        &mut self,
        disk: DiskId,
        block: BlockIndex,
        data: &[u8],
        compression: Compression,
    ) {
        let at = self.begin();
        // Less than an eighth saved is not worth decompressing on every read.
        let len_max = data.len() - data.len() / 8;
        let is_smaller = compression == Compression::Lz4
            && codec::compress(data, len_max, &mut self.bytes).is_some();
        let codec = if is_smaller { Codec::Lz4 } else { Codec::Raw };
        if !is_smaller {
            self.bytes.extend_from_slice(data);
        }
        self.finish(at, Kind::Data, codec, disk, block, (data.len() / BLOCK_SIZE) as u32);
    }

    pub fn push_hole(&mut self, disk: DiskId, block: BlockIndex, count: u32) {
        let at = self.begin();
        self.finish(at, Kind::Hole, Codec::Raw, disk, block, count);
    }

    pub fn push_node(&mut self, disk: DiskId, block: BlockIndex, level: u8, node: &node::Node) {
        let at = self.begin();
        let codec = node::encode(node, &mut self.bytes);
        self.finish(at, Kind::Node, codec, disk, block, level as u32);
    }

    /// Adds a USAGE, ROOT or MARK record; `block` is the durable LSN of a MARK and 0 otherwise.
    pub fn push_metadata(&mut self, disk: DiskId, kind: Kind, block: u64, payload: &[u8]) {
        let at = self.begin();
        self.bytes.extend_from_slice(payload);
        self.finish(at, kind, Codec::Raw, disk, block, 0);
    }

    fn begin(&mut self) -> usize {
        let at = self.bytes.len();
        self.bytes.resize(at + RECORD_HEADER_LEN, 0);
        at
    }

    fn finish(
        &mut self,
        at: usize,
        kind: Kind,
        codec: Codec,
        disk: DiskId,
        block: u64,
        count: u32,
    ) {
        let payload = &self.bytes[at + RECORD_HEADER_LEN..];
        let header = RecordHeader {
            kind,
            codec,
            continues: false,
            lsn: 0,
            block,
            count,
            disk,
            payload_check: check64(payload),
            stored_len: payload.len() as u32,
        };
        let end = align_up(self.bytes.len());
        self.bytes.resize(end, 0);
        if let Some(last) = self.drafts.last_mut() {
            last.header.continues = true;
        }
        self.drafts.push(Draft { header, offset: at });
    }

    /// Gives the records their place: the first at `offset` of `segment`, with `lsn`. Returns the bytes
    /// to write there, and `padding` zeros after them. A batch is placed once; `clear` it before the next use.
    pub fn place(
        &mut self,
        segment: SegmentId,
        offset: usize,
        mut lsn: Lsn,
        padding: usize,
    ) -> &[u8] {
        for draft in &mut self.drafts {
            let at = draft.offset;
            draft.offset = offset + at;
            draft.header.lsn = lsn;
            draft.header.encode(segment, draft.offset, &mut self.bytes[at..]);
            lsn += 1;
        }
        self.bytes.resize(self.bytes.len() + padding, 0);
        &self.bytes
    }
}
