//! Roots and anchors: where a disk's recovery starts.
//!
//! An anchor file has two slots that checkpoints write in turn, so that a torn slot leaves the older
//! one. The valid slot with the higher sequence number wins.

use super::{FORMAT_VERSION, check64_seeded, get_u16, get_u32, get_u64, put};
use crate::units::{DiskId, LEVELS_MAX, Location, Lsn, SegmentId};

pub const ROOT_LEN: usize = 96;
pub const SLOT_LEN: usize = 4096;
pub const ANCHOR_LEN: usize = 2 * SLOT_LEN;

const MAGIC: [u8; 8] = *b"NSANCHR1";
const FLAG_CLEAN: u32 = 1;

/// A checkpoint: the map's tree, and where the log must be replayed from to bring it up to date.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Root {
    /// Number of the checkpoint, 0 for a new disk.
    pub seq: u64,
    pub epoch: u64,
    /// The tree's root node; a hole when nothing is mapped.
    pub tree: Location,
    /// 0 for an empty tree, 1 when the root is a leaf.
    pub levels: u8,
    pub disk: DiskId,
    pub replay_log_index: u64,
    /// None when no segment has been written yet.
    pub replay_segment: SegmentId,
    pub replay_offset: u32,
    /// The first LSN that the tree does not hold.
    pub replay_lsn: Lsn,
    pub usage_segment: SegmentId,
    pub usage_offset: u32,
    pub mapped_blocks: u64,
    /// Bit i: drive i holds segments of this disk.
    pub drives: u64,
    /// The highest segment id this disk has used.
    pub segment_high: SegmentId,
    /// Closed in order: nothing to replay.
    pub clean: bool,
}

impl Root {
    pub fn encode(&self) -> [u8; ROOT_LEN] {
        let mut out = [0; ROOT_LEN];
        put(&mut out, 0, &self.seq.to_le_bytes());
        put(&mut out, 8, &self.epoch.to_le_bytes());
        put(&mut out, 16, &self.tree.0.to_le_bytes());
        out[24] = self.levels;
        put(&mut out, 28, &self.disk.0.to_le_bytes());
        put(&mut out, 32, &self.replay_log_index.to_le_bytes());
        put(&mut out, 40, &self.replay_segment.0.to_le_bytes());
        put(&mut out, 44, &self.replay_offset.to_le_bytes());
        put(&mut out, 48, &self.replay_lsn.to_le_bytes());
        put(&mut out, 56, &self.usage_segment.0.to_le_bytes());
        put(&mut out, 60, &self.usage_offset.to_le_bytes());
        put(&mut out, 64, &self.mapped_blocks.to_le_bytes());
        put(&mut out, 72, &self.drives.to_le_bytes());
        put(&mut out, 80, &self.segment_high.0.to_le_bytes());
        put(&mut out, 84, &if self.clean { FLAG_CLEAN } else { 0 }.to_le_bytes());
        out
    }

    /// `bytes` must have been verified by the checksum of what they came in.
    pub fn decode(bytes: &[u8]) -> Option<Root> {
        let bytes = bytes.get(..ROOT_LEN)?;
        let root = Root {
            seq: get_u64(bytes, 0),
            epoch: get_u64(bytes, 8),
            tree: Location(get_u64(bytes, 16)),
            levels: bytes[24],
            disk: DiskId(get_u32(bytes, 28)),
            replay_log_index: get_u64(bytes, 32),
            replay_segment: SegmentId(get_u32(bytes, 40)),
            replay_offset: get_u32(bytes, 44),
            replay_lsn: get_u64(bytes, 48),
            usage_segment: SegmentId(get_u32(bytes, 56)),
            usage_offset: get_u32(bytes, 60),
            mapped_blocks: get_u64(bytes, 64),
            drives: get_u64(bytes, 72),
            segment_high: SegmentId(get_u32(bytes, 80)),
            clean: get_u32(bytes, 84) & FLAG_CLEAN != 0,
        };
        let sane = root.levels <= LEVELS_MAX && (root.levels == 0) == root.tree.is_hole();
        sane.then_some(root)
    }
}

/// One slot of an anchor file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Anchor {
    pub pool: [u8; 16],
    pub root: Root,
}

impl Anchor {
    /// Byte offset of the slot that this checkpoint goes to.
    pub fn slot_offset(&self) -> u64 {
        self.root.seq % 2 * SLOT_LEN as u64
    }

    pub fn encode(&self) -> [u8; SLOT_LEN] {
        let mut out = [0; SLOT_LEN];
        put(&mut out, 0, &MAGIC);
        put(&mut out, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut out, 16, &self.pool);
        put(&mut out, 32, &self.root.encode());
        let check = check64_seeded(&out[..SLOT_LEN - 8], self.root.disk.0 as u64);
        put(&mut out, SLOT_LEN - 8, &check.to_le_bytes());
        out
    }

    fn decode_slot(bytes: &[u8], disk: DiskId) -> Option<Anchor> {
        let check = check64_seeded(&bytes[..SLOT_LEN - 8], disk.0 as u64);
        let valid = bytes[..8] == MAGIC
            && get_u16(bytes, 8) == FORMAT_VERSION
            && get_u64(bytes, SLOT_LEN - 8) == check;
        let root = if valid { Root::decode(&bytes[32..])? } else { return None };
        let pool = bytes[16..32].try_into().expect("sixteen bytes");
        (root.disk == disk).then_some(Anchor { pool, root })
    }

    /// The newest valid slot of the anchor file of `disk`.
    pub fn decode(file: &[u8], disk: DiskId) -> Option<Anchor> {
        let slots = file.chunks_exact(SLOT_LEN).take(2);
        slots.filter_map(|slot| Anchor::decode_slot(slot, disk)).max_by_key(|a| a.root.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_valid_slot_wins() {
        let root = |seq| Root { seq, disk: DiskId(4), mapped_blocks: seq, ..Root::default() };
        let anchor = |seq| Anchor { pool: [1; 16], root: root(seq) };
        let mut file = [anchor(8).encode(), anchor(7).encode()].concat();
        assert_eq!(Anchor::decode(&file, DiskId(4)), Some(anchor(8)));
        assert_eq!(Anchor::decode(&file, DiskId(5)), None);
        file[100] ^= 1;
        assert_eq!(Anchor::decode(&file, DiskId(4)), Some(anchor(7)));
        assert_eq!(anchor(7).slot_offset(), SLOT_LEN as u64);
    }
}
