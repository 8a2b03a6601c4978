//! Calls that fail: a full drive, I/O errors of every call at every moment, syncs that fail.

use _core::Error;
use _core::storage::recording::fates::{EverythingKept, NothingKept, Rng, Sampler};
use _core::storage::recording::faults::{CALLS, Call, Fault};

use crate::content::{STYLES, Style};
use crate::model::Crash;
use crate::workload::{AMPLE, Op, RESERVE_BYTES, Shape};
use crate::world::World;
use crate::{caught, first_seed, rounds};

const MIB: u64 = 1 << 20;

const SMALL: Shape = Shape {
    disks: 2,
    capacity_bytes: 16 * 4096,
    request_bytes_max: 16384,
    drives: 1,
    segment_size_bytes: 32768,
    memory_bytes: 4 << 20,
    drive_bytes: AMPLE,
    is_syncing: false,
};

fn noise(offset: u64, length: u64, stamp: u64) -> Op {
    Op::Write { disk: 0, offset, length, stamp, style: Style::Noise, fua: false }
}

/// Writes until the drive is full; how many requests were served.
fn fill(world: &mut World, stamp: u64) -> u64 {
    for number in 0.. {
        let offset = number * 64 * 1024 % (8 * MIB);
        match world.apply(&noise(offset, 64 * 1024, stamp + number)) {
            Ok(()) => assert!(number < 1000, "the drive never gets full"),
            Err(Error::NoSpace) => return number,
            Err(other) => panic!("a full drive must say NoSpace, not {other}"),
        }
    }
    unreachable!()
}

fn full_world() -> World {
    let shape = Shape { disks: 2, capacity_bytes: 8 * MIB, segment_size_bytes: 256 << 10, ..SMALL };
    let mut world = World::new(shape).expect("a pool");
    world.drive.set_capacity(RESERVE_BYTES + 6 * MIB);
    assert!(fill(&mut world, 1) > 20);
    world
}

/// After so many rounds of background work writes must be served again.
fn heals(world: &mut World) {
    for round in 0..4 {
        if world.apply(&noise(0, 64 * 1024, 77 + round)).is_ok() {
            world.compare().expect("right data");
            return;
        }
        world.apply(&Op::Background).expect("chores give no error");
    }
    panic!("space was freed, but writes still fail");
}

#[test]
fn a_full_drive_serves_everything_but_writes() {
    let mut world = full_world();
    world.compare().expect("reads go on");
    for op in [
        Op::Flush { disk: 0 },
        Op::Flush { disk: 1 },
        Op::Zero { disk: 0, offset: 4096, length: 4096, fua: true },
        Op::Zero { disk: 0, offset: 1000, length: 9000, fua: false },
        Op::Checkpoint { disk: 0 },
        Op::Background,
        Op::Delete { disk: 1 },
        Op::Create { disk: 1 },
        Op::Flush { disk: 0 },
    ] {
        world.apply(&op).unwrap_or_else(|e| panic!("{op:?}: {e}"));
        world.compare().unwrap_or_else(|e| panic!("after {op:?}: {e}"));
    }
    world.probe(1, 100).expect("crashes of a full pool");
}

#[test]
fn trimming_heals_a_full_drive() {
    let mut world = full_world();
    let all = Op::Zero { disk: 0, offset: 0, length: 8 * MIB, fua: false };
    world.apply(&all).expect("trims work on a full drive");
    heals(&mut world);
}

#[test]
fn overwriting_heals_a_full_drive_again_and_again() {
    let mut world = full_world();
    let mut served = 0;
    for round in 0..20 {
        let quarter = Op::Zero { disk: 0, offset: round % 4 * MIB, length: MIB, fua: false };
        world.apply(&quarter).expect("trims work on a full drive");
        world.apply(&Op::Background).expect("chores give no error");
        served += fill(&mut world, round << 32);
    }
    assert!(served >= 20, "trimmed space is not given back: {served} requests served");
    world.compare().expect("right data");
    world.probe(2, 50).expect("crashes of a full pool");
}

#[test]
fn deleting_a_disk_heals_a_full_drive() {
    let mut world = World::new(Shape { capacity_bytes: 8 * MIB, ..SMALL }).expect("a pool");
    world.drive.set_capacity(RESERVE_BYTES + 6 * MIB);
    for at in 0..32 {
        let length = 64 * 1024;
        let (offset, stamp, style) = (at * length, at, Style::Noise);
        let op = Op::Write { disk: 1, offset, length, stamp, style, fua: false };
        world.apply(&op).expect("there is room");
    }
    fill(&mut world, 9);
    world.apply(&Op::Delete { disk: 1 }).expect("deletion works on a full drive");
    heals(&mut world);
}

#[test]
fn room_made_by_others_heals_a_full_drive() {
    let mut world = full_world();
    world.drive.set_capacity(RESERVE_BYTES + 16 * MIB);
    heals(&mut world);
}

/// A drive that is now full and now not, down to the last byte: only writes fail, only with `NoSpace`, and
/// once there is room everything works.
pub fn squeeze(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let shape = Shape { request_bytes_max: 32768, ..SMALL };
    let mut world = World::new(shape).map_err(|e| e.to_string())?;
    for number in 0..60 {
        if rng.chance(1, 4) {
            let reserve = RESERVE_BYTES * rng.below(2);
            let room = world.drive.used_bytes() + reserve + rng.below(20) * 4096;
            world.drive.set_capacity(room);
        }
        let op = shape.op(&mut rng);
        if matches!(op, Op::Create { .. } | Op::Delete { .. } | Op::Restart) {
            continue;
        }
        if matches!(op, Op::Crash | Op::Kill { .. } | Op::PowerLoss { .. }) {
            world.probe(rng.next_u64(), 10)?;
            world.crash(&op)?;
            continue;
        }
        match world.apply(&op) {
            Ok(()) | Err(Error::NoSpace) => {}
            Err(other) => return Err(format!("operation {number} {op:?}: {other}")),
        }
        world.compare().map_err(|e| format!("after operation {number} {op:?}: {e}"))?;
    }
    world.drive.set_capacity(AMPLE);
    for op in [noise(0, 16384, seed), Op::Checkpoint { disk: 0 }, Op::Background, Op::Restart] {
        world.apply(&op).map_err(|e| format!("with room again, {op:?}: {e}"))?;
    }
    world.compare()?;
    world.probe(seed, 10)
}

#[test]
fn drives_that_fill_up_now_and_then() {
    let first = first_seed(0x59ee_2e00);
    for seed in first..first + rounds(300) {
        caught(|| squeeze(seed)).unwrap_or_else(|why| panic!("seed {seed:#x}: {why}"));
    }
}

/// A bit of everything, on both disks.
fn errands() -> Vec<Op> {
    let write = |disk, offset, length, style: usize, fua| Op::Write {
        disk,
        offset,
        length,
        stamp: offset + length,
        style: STYLES[style],
        fua,
    };
    vec![
        write(0, 0, 16384, 1, false),
        write(1, 100, 9000, 0, false),
        Op::Flush { disk: 0 },
        write(0, 5000, 700, 0, true),
        Op::Zero { disk: 0, offset: 4096, length: 8192, fua: false },
        write(0, 8192, 16384, 1, false),
        Op::Background,
        Op::Checkpoint { disk: 0 },
        write(0, 20000, 3000, 3, false),
        write(1, 8192, 12288, 1, true),
        Op::Checkpoint { disk: 1 },
        Op::Zero { disk: 0, offset: 0, length: 65536, fua: true },
        Op::Resize { disk: 1, size_bytes: 10000 },
        Op::Checkpoint { disk: 0 },
        Op::Background,
        write(0, 4096, 16384, 1, false),
        Op::Flush { disk: 0 },
        Op::Flush { disk: 1 },
    ]
}

/// Nothing that was promised is lost if the power fails now, nor after the process has died and come back.
fn settle_up(world: &mut World, seed: u64) -> Result<(), String> {
    let changes = world.drive.changes();
    let image = world.drive.image_after(changes);
    world.inspect(&image.power_loss(&mut NothingKept), changes, Crash::Power)?;
    world.inspect(&image.power_loss(&mut EverythingKept), changes, Crash::Process)?;
    for seed in seed..seed + 4 {
        let mut fates = Sampler::new(seed, image.first_unsynced(), image.next_seq());
        world.inspect(&image.power_loss(&mut fates), changes, Crash::Power)?;
    }
    Ok(())
}

/// The errands with one fault. Requests may fail, contents stay right, promises are kept.
pub fn run_errands(fault: Fault) -> Result<(), String> {
    let mut world = World::new(SMALL).map_err(|e| e.to_string())?;
    world.drive.inject(vec![fault]);
    for op in errands() {
        // What fails is modelled as failed; whether it had to is checked below.
        let _ = world.apply(&op);
        // Comparing may meet the fault itself, which then is gone.
        let again = |_| world.compare();
        world.compare().or_else(again).map_err(|e| format!("after {op:?}: {e}"))?;
    }
    world.drive.inject(Vec::new());
    settle_up(&mut world, 1)?;
    world.crash(&Op::Crash).map_err(|e| format!("restart: {e}"))?;
    world.compare().map_err(|e| format!("restarted: {e}"))?;
    for op in [
        noise(4096, 9000, 5),
        Op::Flush { disk: 0 },
        Op::Flush { disk: 1 },
        Op::Checkpoint { disk: 0 },
        Op::Background,
        noise(0, 5000, 6),
        Op::Checkpoint { disk: 0 },
        Op::Checkpoint { disk: 1 },
    ] {
        world.apply(&op).map_err(|e| format!("restarted, {op:?}: {e}"))?;
        settle_up(&mut world, 2).map_err(|e| format!("restarted, after {op:?}: {e}"))?;
    }
    world.probe(3, 40).map_err(|e| format!("restarted: {e}"))?;
    world.apply(&Op::Restart).map_err(|e| format!("close: {e}"))?;
    world.compare()
}

fn calls_of_errands() -> Vec<(Call, u64)> {
    let mut world = World::new(SMALL).expect("a pool");
    let before = CALLS.map(|call| world.drive.calls(call));
    for op in errands() {
        world.apply(&op).expect("no fault was injected");
        world.compare().expect("no fault was injected");
    }
    let made = |(i, call): (usize, &Call)| (*call, world.drive.calls(*call) - before[i]);
    CALLS.iter().enumerate().map(made).collect()
}

fn each_fault(wanted: &[Call], errno: i32, done_per_mille: &[usize]) {
    let mut failures = Vec::new();
    for (call, made) in calls_of_errands().into_iter().filter(|(call, _)| wanted.contains(call)) {
        for skip in 0..made {
            for &done_per_mille in done_per_mille {
                let fault = Fault { errno, done_per_mille, ..Fault::once(call, skip) };
                if let Err(why) = caught(|| run_errands(fault.clone())) {
                    failures.push(format!("{fault:?}\n{why}"));
                }
            }
        }
    }
    let first = failures.first().cloned().unwrap_or_default();
    assert!(failures.is_empty(), "{} faults do harm, the first:\n{first}", failures.len());
}

#[test]
fn any_write_may_fail() {
    each_fault(&[Call::Write], libc::EIO, &[0, 400, 999]);
    each_fault(&[Call::Write], libc::ENOSPC, &[0, 400, 999]);
}

#[test]
fn any_sync_may_fail() {
    each_fault(&[Call::Sync], libc::EIO, &[0]);
    each_fault(&[Call::SyncDir], libc::EIO, &[0]);
}

#[test]
fn any_read_may_fail() {
    each_fault(&[Call::Read, Call::Open, Call::Len, Call::List], libc::EIO, &[0]);
}

#[test]
fn any_other_call_may_fail() {
    let other = [Call::Create, Call::Remove, Call::RemoveDir, Call::SetLen, Call::Punch];
    each_fault(&other, libc::EIO, &[0]);
    each_fault(&other, libc::ENOSPC, &[0]);
}

/// A recovery that meets an error fails or goes on; the next one finds what the first should have.
#[test]
fn recovery_may_fail_and_be_repeated() {
    let mut world = World::new(SMALL).expect("a pool");
    for op in errands() {
        world.apply(&op).expect("no fault was injected");
    }
    world.apply(&noise(0, 5000, 3)).expect("no fault was injected");
    let changes = world.drive.changes();
    for seed in 0..rounds(40) {
        let image = world.drive.image_after(changes - seed as usize % changes.min(20));
        let at = changes - seed as usize % changes.min(20);
        let mut fates = Sampler::new(seed, image.first_unsynced(), image.next_seq());
        let left = image.power_loss(&mut fates);
        let base = world.fork(left.clone(), at, Crash::Power).expect("recovers without faults");
        for call in CALLS {
            for skip in 0..base.drive.calls(call) {
                let fault = Fault::once(call, skip);
                let outcome = caught(|| world.recover_twice(&left, at, fault.clone()));
                outcome.unwrap_or_else(|why| panic!("seed {seed}, {fault:?}: {why}"));
            }
        }
    }
}

/// Creation and deletion under faults leave nothing that a restart does not clean up.
#[test]
fn creating_and_deleting_may_fail() {
    for call in CALLS {
        for skip in 0..12 {
            let outcome = caught(|| {
                let mut world = World::new(SMALL).map_err(|e| e.to_string())?;
                world.apply(&noise(0, 16384, 1)).map_err(|e| e.to_string())?;
                world.drive.inject(vec![Fault::once(call, skip)]);
                let _ = world.apply(&Op::Delete { disk: 0 });
                let _ = world.apply(&Op::Create { disk: 0 });
                let _ = world.apply(&Op::Delete { disk: 1 });
                world.drive.inject(Vec::new());
                settle_up(&mut world, 3)?;
                world.crash(&Op::Crash)?;
                world.check_leftovers()
            });
            outcome.unwrap_or_else(|why| panic!("{call:?} after {skip}: {why}"));
        }
    }
}
