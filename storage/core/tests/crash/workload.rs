//! Operations on a pool, and their random sequences.

use _core::storage::recording::fates::Rng;

use crate::content::{STYLES, Style};

#[derive(Clone, PartialEq, Debug)]
pub enum Op {
    Write {
        disk: u32,
        offset: u64,
        length: u64,
        stamp: u64,
        style: Style,
        fua: bool,
    },
    Zero {
        disk: u32,
        offset: u64,
        length: u64,
        fua: bool,
    },
    Flush {
        disk: u32,
    },
    Checkpoint {
        disk: u32,
    },
    Resize {
        disk: u32,
        size_bytes: u64,
    },
    Create {
        disk: u32,
    },
    Delete {
        disk: u32,
    },
    /// Freezes a disk, in place of an older snapshot of that number.
    Snapshot {
        disk: u32,
        number: u32,
    },
    /// A clone of a snapshot in place of a disk.
    Clone {
        number: u32,
        disk: u32,
    },
    Rollback {
        disk: u32,
        number: u32,
    },
    DeleteSnapshot {
        number: u32,
    },
    /// Everything that the pool's threads would do.
    Background,
    /// Close in order and open again.
    Restart,
    /// The process dies between two operations and is started again.
    Crash,
    /// The process dies in the middle of something done since it was started; the drive goes on.
    Kill {
        seed: u64,
    },
    /// The power fails at some moment since the start.
    PowerLoss {
        seed: u64,
    },
}

/// What random workloads look like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub disks: u32,
    /// Disks are of at most so many bytes.
    pub capacity_bytes: u64,
    pub request_bytes_max: u64,
    pub drives: u32,
    pub segment_size_bytes: usize,
    pub memory_bytes: usize,
    /// Room on the drive.
    pub drive_bytes: u64,
    /// Every small write is flushed, as databases do: the log then prepares its segments in advance.
    pub is_syncing: bool,
}

/// More room than any test fills.
pub const AMPLE: u64 = 1 << 40;
/// What the store keeps of a small drive for metadata, as `segments.rs` has it.
pub const RESERVE_BYTES: u64 = 8 << 20;

impl Shape {
    /// The shapes that random workloads take in turn.
    pub fn of(rng: &mut Rng) -> Shape {
        let blocks = [4, 16, 64, 700][rng.below(4) as usize];
        let is_large = rng.chance(1, 30);
        let disks = 1 + rng.below(3);
        let capacity_bytes = if is_large { 3 << 20 } else { blocks * 4096 - rng.below(2) * 512 };
        Shape {
            disks: disks as u32,
            capacity_bytes,
            request_bytes_max: if is_large { 5 << 19 } else { 4096 << rng.below(5) },
            drives: 1 + rng.below(2) as u32,
            segment_size_bytes: 16384 << rng.below(4),
            memory_bytes: 4 << 20,
            drive_bytes: match rng.below(2) {
                // So little that garbage has to be cleaned away.
                0 => RESERVE_BYTES + (32 << 10) + disks * capacity_bytes * (4 + rng.below(4)) / 4,
                _ => AMPLE,
            },
            is_syncing: rng.chance(1, 5),
        }
    }

    fn range(&self, rng: &mut Rng) -> (u64, u64) {
        let length = match rng.below(4) {
            0 => 4096 * (1 + rng.below(self.request_bytes_max.div_ceil(4096))),
            1 => 512 * (1 + rng.below(self.request_bytes_max.div_ceil(512))),
            2 => 4096,
            _ => 1 + rng.below(self.request_bytes_max),
        };
        let length = length.min(self.capacity_bytes);
        let end = match rng.below(3) {
            // A hot spot, so that blocks are overwritten often.
            0 => (8 * 4096).min(self.capacity_bytes),
            _ => self.capacity_bytes,
        };
        let offset = rng.below(end.saturating_sub(length) + 1);
        match rng.below(3) {
            0 => (offset, length),
            1 => (offset & !511, length),
            _ => (offset & !4095, length),
        }
    }

    pub fn op(&self, rng: &mut Rng) -> Op {
        if self.is_syncing && rng.chance(9, 10) {
            return self.syncing_op(rng);
        }
        let disk = rng.below(self.disks as u64) as u32;
        let fua = rng.chance(1, 6);
        let (offset, length) = self.range(rng);
        match rng.below(100) {
            0..50 => {
                let style = STYLES[rng.below(4) as usize];
                Op::Write { disk, offset, length, stamp: rng.next_u64(), style, fua }
            }
            50..62 => Op::Zero { disk, offset, length, fua },
            62..74 => Op::Flush { disk },
            74..80 => Op::Checkpoint { disk },
            80..83 => Op::Snapshot { disk, number: rng.below(3) as u32 },
            83..84 => Op::Clone { number: rng.below(3) as u32, disk },
            84..85 => Op::Rollback { disk, number: rng.below(3) as u32 },
            85..86 => Op::DeleteSnapshot { number: rng.below(3) as u32 },
            86..90 => Op::Background,
            90..92 => Op::Resize { disk, size_bytes: self.size(rng) },
            92..94 => Op::Create { disk },
            94..95 => Op::Delete { disk },
            95..96 => Op::Restart,
            96..97 => Op::Crash,
            97..98 => Op::Kill { seed: rng.next_u64() },
            _ => Op::PowerLoss { seed: rng.next_u64() },
        }
    }

    fn syncing_op(&self, rng: &mut Rng) -> Op {
        if rng.chance(1, 8) {
            return Op::Background;
        }
        let length = (1 + rng.below(5000)).min(self.capacity_bytes);
        let offset = rng.below(self.capacity_bytes - length + 1);
        let (stamp, style) = (rng.next_u64(), STYLES[rng.below(4) as usize]);
        Op::Write { disk: 0, offset, length, stamp, style, fua: rng.chance(15, 16) }
    }

    pub fn size(&self, rng: &mut Rng) -> u64 {
        match rng.below(3) {
            0 => self.capacity_bytes,
            _ => rng.below(self.capacity_bytes / 512 + 1) * 512,
        }
    }

    pub fn ops(&self, rng: &mut Rng, count: usize) -> Vec<Op> {
        (0..count).map(|_| self.op(rng)).collect()
    }
}

/// Takes operations out of `ops` as long as `fails` says that the rest still fails.
pub fn minimised(mut ops: Vec<Op>, mut fails: impl FnMut(&[Op]) -> bool) -> Vec<Op> {
    let mut width = ops.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        let mut is_shorter = false;
        while at < ops.len() {
            let mut fewer = ops.clone();
            fewer.drain(at..(at + width).min(ops.len()));
            if fails(&fewer) {
                (ops, is_shorter) = (fewer, true);
            } else {
                at += width;
            }
        }
        if width == 1 && !is_shorter {
            return ops;
        }
        width = (width / 2).max(1);
    }
}
