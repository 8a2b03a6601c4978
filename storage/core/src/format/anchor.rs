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
const FLAG_SHARES: u32 = 2;
const FLAG_SNAPSHOT: u32 = 4;
const FLAG_PENDING: u32 = 8;
const FLAGS_KNOWN: u32 = FLAG_CLEAN | FLAG_SHARES | FLAG_SNAPSHOT | FLAG_PENDING;

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
    /// The tree or the usage table may lie in segments of other disks.
    pub shares: bool,
    /// Nothing is ever written to this disk.
    pub is_snapshot: bool,
    /// Of a snapshot without a tree of its own yet: the disk whose log, up to the replay position, holds
    /// it. 0 for everything else.
    pub origin: DiskId,
}

impl Root {
    /// Has the snapshot been taken and not got its tree yet?
    pub fn is_pending(&self) -> bool {
        self.origin != DiskId::default()
    }

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
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let flags = flag(self.clean, FLAG_CLEAN)
            | flag(self.shares, FLAG_SHARES)
            | flag(self.is_snapshot, FLAG_SNAPSHOT)
            | flag(self.is_pending(), FLAG_PENDING);
        put(&mut out, 84, &flags.to_le_bytes());
        put(&mut out, 88, &self.origin.0.to_le_bytes());
        out
    }

    /// `bytes` must have been verified by the checksum of what they came in.
    pub fn decode(bytes: &[u8]) -> Option<Root> {
        let bytes = bytes.get(..ROOT_LEN)?;
        let flags = get_u32(bytes, 84);
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
            clean: flags & FLAG_CLEAN != 0,
            shares: flags & FLAG_SHARES != 0,
            is_snapshot: flags & FLAG_SNAPSHOT != 0,
            origin: DiskId(get_u32(bytes, 88)),
        };
        let is_pending = flags & FLAG_PENDING != 0;
        let sane = root.levels <= LEVELS_MAX
            && (root.levels == 0) == root.tree.is_hole()
            && is_pending == root.is_pending()
            && (!is_pending || root.is_snapshot && root.levels == 0)
            && flags & !FLAGS_KNOWN == 0;
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
        let root = |seq| Root {
            seq,
            disk: DiskId(4),
            mapped_blocks: seq,
            shares: seq == 8,
            is_snapshot: seq == 7,
            origin: DiskId(if seq == 7 { 3 } else { 0 }),
            ..Root::default()
        };
        let anchor = |seq| Anchor { pool: [1; 16], root: root(seq) };
        let mut file = [anchor(8).encode(), anchor(7).encode()].concat();
        assert_eq!(Anchor::decode(&file, DiskId(4)), Some(anchor(8)));
        assert_eq!(Anchor::decode(&file, DiskId(5)), None);
        file[100] ^= 1;
        assert_eq!(Anchor::decode(&file, DiskId(4)), Some(anchor(7)));
        assert_eq!(anchor(7).slot_offset(), SLOT_LEN as u64);
    }
}
