//! Bugs that these tests have found, each by its shortest workload or its seed.

use _core::storage::recording::faults::{Call, Fault};

use crate::content::Style;
use crate::exhaustive::{SHAPE, check};
use crate::faults::{run_errands, squeeze};
use crate::flips::flip_bits;
use crate::sampled;
use crate::workload::Op;

const BLOCK: u64 = 4096;

fn noise(offset: u64, length: u64, stamp: u64) -> Op {
    Op::Write { disk: 0, offset, length, stamp, style: Style::Noise, fua: true }
}

/// The blanked rest of the last block lay beyond the new size, and was refused.
#[test]
fn shrinking_to_an_odd_size() {
    check(&[noise(0, 4 * BLOCK, 1), Op::Resize { disk: 0, size_bytes: BLOCK + 512 }], 4);
}

/// The ragged ends and the whole blocks between them were three groups; a power loss kept some of them.
#[test]
fn zeroing_a_ragged_range_is_atomic() {
    let zero = |offset, length| Op::Zero { disk: 0, offset, length, fua: false };
    check(&[noise(0, 4 * BLOCK, 1), zero(100, 3 * BLOCK)], 4);
    check(&[noise(0, 4 * BLOCK, 1), zero(BLOCK, 2 * BLOCK + 1)], 4);
    let cut = Op::Resize { disk: 0, size_bytes: 700 };
    check(&[noise(0, SHAPE.capacity_bytes, 1), cut], 4);
}

/// A sync failed, the process was started again, and the next flush was acknowledged: the kernel took the
/// pages that it had never written for clean.
#[test]
fn a_flush_after_a_restart_covers_what_a_failed_sync_lost() {
    run_errands(Fault::once(Call::Sync, 2)).unwrap_or_else(|why| panic!("{why}"));
}

/// On a full drive the cleaner moved the same few blocks from segment to segment for ever: each pass made as
/// much garbage as it removed.
#[test]
fn the_cleaner_comes_to_an_end() {
    squeeze(0x59ee_2e76).unwrap_or_else(|why| panic!("{why}"));
}

/// The MARK that tells damage from a torn end was left out when a segment had no room for it: a flipped bit
/// in what the segment's last flush had covered gave older data.
#[test]
fn a_flush_leaves_its_mark_in_a_full_segment_too() {
    flip_bits(0xc601_00ae_8e47_0f21, false, 5);
}

/// Random workloads that once failed.
#[test]
fn seeds_that_have_failed() {
    for seed in [0x5ea5_0001, 0x5ea5_023a] {
        sampled::tell(seed);
    }
}
