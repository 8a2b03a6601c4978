//! Damage: flipped bits, files cut short, garbage. An error or the right data, never anything else.

use std::sync::Arc;

use _core::Disk;
use _core::storage::recording::RecordingDrive;
use _core::storage::recording::fates::Rng;
use _core::storage::recording::image::Image;
use _core::units::{BLOCK_SIZE, DiskId};

use crate::content::{STYLES, Style};
use crate::workload::{AMPLE, Op, Shape};
use crate::world::{World, open_pool};
use crate::{caught, first_seed, rounds};

const SHAPE: Shape = Shape {
    disks: 1,
    capacity_bytes: 24 * 4096,
    request_bytes_max: 16384,
    drives: 1,
    segment_size_bytes: 32768,
    memory_bytes: 4 << 20,
    drive_bytes: AMPLE,
    is_syncing: false,
};

pub type Files = Vec<(String, Arc<Vec<u8>>)>;

/// A pool's files with everything flushed, and what the disk holds.
pub struct Victim {
    pub files: Files,
    pub wanted: Vec<u8>,
}

/// `is_closed`: in order, so that every segment is sealed; otherwise the process has died after a flush.
pub fn victim(seed: u64, is_closed: bool) -> Victim {
    let mut rng = Rng::new(seed);
    let mut world = World::new(SHAPE).expect("a pool");
    let disk = 0;
    for number in 0..40 {
        let (offset, length) = (rng.below(20) * 4096, 4096 * (1 + rng.below(4)));
        let style = STYLES[rng.below(4) as usize];
        let op = match number % 10 {
            7 => Op::Zero { disk, offset, length, fua: false },
            8 => Op::Background,
            9 if number < 30 => Op::Checkpoint { disk },
            _ => Op::Write { disk, offset, length, stamp: rng.next_u64(), style, fua: false },
        };
        world.apply(&op).expect("no fault was injected");
    }
    let last = [Op::Flush { disk }, Op::Background, Op::Restart];
    for op in &last[..if is_closed { 3 } else { 2 }] {
        world.apply(op).expect("no fault was injected");
    }
    let wanted = world.contents(disk).to_vec();
    let files = world.drive.files();
    Victim { files, wanted }
}

/// Every block gives an error or what it should.
fn check_blocks(disk: &Disk, wanted: &[u8]) -> Result<usize, String> {
    let mut errors = 0;
    for (block, wanted) in wanted.chunks(BLOCK_SIZE).enumerate() {
        let mut found = vec![0xee; wanted.len()];
        match disk.read((block * BLOCK_SIZE) as u64, &mut found) {
            Ok(()) if found != wanted => {
                let what = if found.iter().all(|b| *b == 0) { "zeros" } else { "other data" };
                return Err(format!("block {block} reads {what}"));
            }
            Ok(()) => {}
            Err(_) => errors += 1,
        }
    }
    Ok(errors)
}

/// Opens what damage has left, reads, checkpoints, restarts, reads again. `Ok(false)`: nothing noticed.
pub fn check(files: Files, wanted: &[u8]) -> Result<bool, String> {
    let drive = RecordingDrive::new(Image::holding(files), false);
    let mut is_noticed = false;
    for round in ["at first", "after a restart"] {
        let Ok(pool) = open_pool(&SHAPE, &drive) else { return Ok(true) };
        let Ok(disk) = pool.open_disk(DiskId(1), wanted.len() as u64) else { return Ok(true) };
        is_noticed |= check_blocks(&disk, wanted).map_err(|e| format!("{round}: {e}"))? > 0;
        is_noticed |= disk.checkpoint().is_err();
        is_noticed |= pool.run_background().is_err();
        check_blocks(&disk, wanted).map_err(|e| format!("{round}, checkpointed: {e}"))?;
        is_noticed |= pool.close().is_err();
    }
    Ok(is_noticed)
}

fn damaged(files: &Files, index: usize, damage: impl FnOnce(&mut Vec<u8>)) -> Files {
    let mut files = files.clone();
    damage(Arc::make_mut(&mut files[index].1));
    files
}

/// Flips bits all over a pool, about one byte in `stride`; the share of them that was noticed.
pub fn flip_bits(seed: u64, is_closed: bool, stride: usize) -> f64 {
    let victim = victim(seed, is_closed);
    let mut rng = Rng::new(seed);
    let (mut flips, mut noticed) = (0, 0);
    for (index, (path, bytes)) in victim.files.iter().enumerate() {
        let mut at = rng.below(stride as u64) as usize;
        while at < bytes.len() {
            let bit = 1u8 << rng.below(8);
            let files = damaged(&victim.files, index, |bytes| bytes[at] ^= bit);
            let outcome = caught(|| {
                noticed += u64::from(check(files, &victim.wanted)?);
                Ok(())
            });
            if let Err(why) = outcome {
                panic!("seed {seed:#x}, closed {is_closed}: bit {bit:#x} of {path} at {at}: {why}");
            }
            flips += 1;
            at += 1 + rng.below(2 * stride as u64 - 1) as usize;
        }
    }
    println!("seed {seed:#x}: {flips} flips, {noticed} noticed");
    noticed as f64 / flips as f64
}

/// `flip_bits` of several pools.
fn flip_bits_of_many(first: u64, is_closed: bool) {
    let pools = rounds(4);
    let noticed: f64 = (first..first + pools).map(|seed| flip_bits(seed, is_closed, 13)).sum();
    // Most of a small pool's bytes are garbage, superseded nodes and the anchor's other slot.
    let is_telling = noticed / pools as f64 > 0.05;
    assert!(is_telling, "too few flips were noticed for the test to mean something");
}

#[test]
fn flipped_bits_of_a_closed_pool_give_errors_or_the_right_data() {
    flip_bits_of_many(first_seed(0xf11), true);
}

#[test]
fn flipped_bits_of_a_crashed_pool_give_errors_or_the_right_data() {
    flip_bits_of_many(first_seed(0xf12), false);
}

/// Whole sectors of nonsense, other files' bytes, zeros and cut-off ends: what then reads without an error
/// may be older than it should (the end of the log cannot be told from a log that ended there), but it is
/// made of what was written, and nothing panics.
#[test]
fn garbage_never_panics() {
    let victims: Vec<Victim> = (0..8).map(|seed| victim(seed, seed % 2 == 0)).collect();
    let series = first_seed(0x6a7b);
    for seed in series..series + rounds(4000) {
        let mut rng = Rng::new(seed);
        let victim = &victims[rng.below(8) as usize];
        let index = rng.below(victim.files.len() as u64) as usize;
        let from = rng.below(victim.files[index].1.len() as u64) as usize;
        let length = 1 + rng.below(4096) as usize;
        let style = rng.below(4);
        let files = damaged(&victim.files, index, |bytes| {
            let to = (from + length).min(bytes.len());
            match style {
                0 => bytes.truncate(from),
                1 => bytes[from..to].fill(0),
                2 => bytes.copy_within(0..to - from, from),
                _ => {
                    let noise = crate::content::bytes(seed, Style::Noise, (to - from) as u64);
                    bytes[from..to].copy_from_slice(&noise);
                }
            }
        });
        let outcome = caught(|| {
            // Only panics count here: see above.
            let _ = check(files, &victim.wanted);
            Ok(())
        });
        if let Err(why) = outcome {
            let path = &victim.files[index].0;
            panic!("seed {seed:#x}: style {style}, {path} from {from}, {length} bytes: {why}");
        }
    }
}
