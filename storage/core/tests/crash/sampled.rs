//! Thousands of random workloads, crashed at random moments with random outcomes, several times in a row.

use _core::Error;
use _core::storage::recording::fates::Rng;

use crate::workload::{AMPLE, Op, Shape, minimised};
use crate::world::World;
use crate::{caught, first_seed, rounds};

/// Crashes looked at in each life of a workload.
const PROBES: usize = 24;

fn run(shape: Shape, ops: &[Op], seed: u64) -> Result<(), String> {
    let mut world = World::new(shape).map_err(|e| format!("no pool: {e}"))?;
    let mut rng = Rng::new(seed);
    for (number, op) in ops.iter().enumerate() {
        let at = |e: String| format!("operation {number} {op:?}: {e}");
        if matches!(op, Op::Crash | Op::Kill { .. } | Op::PowerLoss { .. }) {
            world.probe(rng.next_u64(), PROBES).map_err(|e| format!("before {}", at(e)))?;
            world.crash(op).map_err(at)?;
        } else {
            match world.apply(op) {
                Err(Error::NoSpace) if shape.drive_bytes != AMPLE => {}
                outcome => outcome.map_err(|e| at(e.to_string()))?,
            }
        }
        if rng.chance(1, 8) {
            world.compare().map_err(at)?;
        }
    }
    world.compare()?;
    world.probe(rng.next_u64(), PROBES)?;
    world.apply(&Op::Restart).map_err(|e| format!("restart: {e}"))?;
    world.compare()?;
    world.check_leftovers()?;
    give_everything_back(&mut world)
}

/// Once all is trimmed, checkpoints leave each disk the segments it is writing and little else.
fn give_everything_back(world: &mut World) -> Result<(), String> {
    let Shape { disks, capacity_bytes, request_bytes_max, segment_size_bytes, .. } = world.shape;
    let snapshots = (0..3).map(|number| Op::DeleteSnapshot { number });
    // Twice: a clone must have let go of what the disks before it wrote.
    let trims = (0..disks).chain(0..disks).flat_map(|disk| {
        let all = Op::Zero { disk, offset: 0, length: capacity_bytes, fua: false };
        [all, Op::Checkpoint { disk }, Op::Background, Op::Flush { disk }]
    });
    for op in snapshots.chain(trims) {
        world.apply(&op).map_err(|e| format!("{op:?}: {e}"))?;
    }
    world.compare()?;
    // A group larger than a segment gets one of its own size.
    let segment = (segment_size_bytes as u64).max(request_bytes_max);
    let allowed = disks as u64 * (3 * segment + (16 << 10));
    match world.drive.used_bytes() {
        used if used > allowed => Err(format!("{used} bytes still used, {allowed} allowed")),
        _ => Ok(()),
    }
}

fn story(seed: u64) -> (Shape, Vec<Op>) {
    let mut rng = Rng::new(seed);
    let shape = Shape::of(&mut rng);
    let count = if shape.is_syncing { 150 } else { 5 + rng.below(60) as usize };
    (shape, shape.ops(&mut rng, count))
}

/// Runs the story of `seed`; a failure is told with the shortest story that still fails.
pub fn tell(seed: u64) {
    let (shape, ops) = story(seed);
    let Err(first) = caught(|| run(shape, &ops, seed)) else { return };
    let mut last = first.clone();
    let ops = minimised(ops, |fewer| {
        // Other operations, other moments: a few tries find the failing one again.
        let failure = (0..8).find_map(|i| caught(|| run(shape, fewer, seed ^ i)).err());
        failure.map(|e| last = e).is_some()
    });
    panic!("seed {seed:#x}: {first}\n\nshortest: {shape:?}\n{ops:#?}\n{last}");
}

#[test]
fn random_workloads_survive() {
    let first = first_seed(0x5ea5_0000);
    for seed in first..first + rounds(2000) {
        tell(seed);
    }
}
