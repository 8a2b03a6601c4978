//! Files used again for new segments: wherever the power is cut, nothing shows of what they held before.

use _core::storage::recording::fates::Rng;
use _core::storage::recording::faults::Call;

use crate::content::Style;
use crate::workload::{AMPLE, Op, Shape};
use crate::world::World;
use crate::{first_seed, rounds};

const BLOCK: u64 = 4096;

/// A disk overwritten from end to end, again and again: every checkpoint gives up whole segments.
fn overwrite(seed: u64) -> Result<u64, String> {
    let mut rng = Rng::new(seed);
    let shape = Shape {
        disks: 2,
        capacity_bytes: 16 * BLOCK,
        request_bytes_max: 8 * BLOCK,
        drives: 1 + rng.below(2) as u32,
        segment_size_bytes: 32 << 10,
        memory_bytes: 4 << 20,
        drive_bytes: AMPLE,
        is_syncing: false,
    };
    let mut world = World::new(shape).map_err(|e| format!("no pool: {e}"))?;
    let mut since = 0;
    for round in 0..8 {
        let disk = u32::from(rng.chance(1, 4));
        for half in 0..2 {
            let (offset, length) = (half * 8 * BLOCK, 8 * BLOCK);
            let style = if rng.chance(1, 2) { Style::Noise } else { Style::Mixed };
            let stamp = rng.next_u64();
            let fua = rng.chance(1, 3);
            let write = Op::Write { disk, offset, length, stamp, style, fua };
            world.apply(&write).map_err(|e| format!("{write:?}: {e}"))?;
        }
        if rng.chance(3, 4) {
            // Only sealed segments are used again.
            world.apply(&Op::Background).map_err(|e| format!("background: {e}"))?;
        }
        if rng.chance(3, 4) {
            world.apply(&Op::Checkpoint { disk }).map_err(|e| format!("checkpoint: {e}"))?;
        }
        if rng.chance(1, 5) {
            world.probe(rng.next_u64(), 12).map_err(|e| format!("round {round}: {e}"))?;
            let crash = Op::PowerLoss { seed: rng.next_u64() };
            since += world.drive.calls(Call::Rename);
            world.crash(&crash).map_err(|e| format!("round {round}: {e}"))?;
        }
    }
    world.compare()?;
    world.probe(rng.next_u64(), 40)?;
    Ok(since + world.drive.calls(Call::Rename))
}

#[test]
fn files_used_again_show_nothing_of_what_they_held() {
    let first = first_seed(0x5a4e_0000);
    let mut reused = 0;
    for seed in first..first + rounds(150) {
        reused += overwrite(seed).unwrap_or_else(|why| panic!("seed {seed:#x}: {why}"));
    }
    assert!(reused > 0, "no file was used again");
    println!("{reused} files used again");
}
