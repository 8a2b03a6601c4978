//! Every workload of up to three operations, crashed at every moment, with every outcome.
//!
//! At each moment all subsets of the unsynced changes are visited, each also with one write torn in the
//! ways of `torn_masks`. Outcomes that an earlier moment has visited under the same demands are left out:
//! after a write those without it, after a sync all. When an acknowledged flush raises the demands all
//! are visited again. Every so many outcomes the recovery is crashed as well.

use std::collections::HashSet;

use _core::storage::recording::fates::{EverythingKept, Odometer};
use _core::storage::recording::image::{Change, Image};

use crate::content::Style;
use crate::model::Crash;
use crate::workload::{AMPLE, Op, Shape};
use crate::world::{World, brief};

const BLOCK: u64 = 4096;

pub const SHAPE: Shape = Shape {
    disks: 1,
    capacity_bytes: 4 * BLOCK,
    request_bytes_max: 4 * BLOCK,
    drives: 1,
    segment_size_bytes: 16384,
    memory_bytes: 4 << 20,
    drive_bytes: AMPLE,
    is_syncing: false,
};

/// The alphabet. `stamp` makes each use of a letter write different bytes.
fn letters(stamp: u64) -> Vec<Op> {
    let write =
        |offset, length, style, fua| Op::Write { disk: 0, offset, length, stamp, style, fua };
    vec![
        write(0, BLOCK, Style::Noise, false),
        write(1000, 5000, Style::Plain, false),
        write(BLOCK, 2 * BLOCK, Style::Mixed, true),
        // Fills most of a segment: what follows opens the next one.
        write(BLOCK, 3 * BLOCK, Style::Noise, false),
        Op::Zero { disk: 0, offset: 0, length: 2 * BLOCK, fua: false },
        Op::Flush { disk: 0 },
        Op::Checkpoint { disk: 0 },
        Op::Background,
        Op::Crash,
        Op::Restart,
        Op::Resize { disk: 0, size_bytes: BLOCK + 512 },
    ]
}

#[derive(Default)]
struct Tally {
    outcomes: u64,
    recoveries: u64,
    nested: u64,
}

/// Visits all outcomes of crashes in what the last operation did.
struct Visitor<'a> {
    world: &'a World,
    seen: HashSet<(u64, usize, Crash)>,
    tally: &'a mut Tally,
    /// Every so many recoveries are crashed themselves.
    nest_every: u64,
    /// Writes of one outcome that may be torn.
    torn_max: usize,
}

impl Visitor<'_> {
    fn outcome(&mut self, left: &Image, at: usize, crash: Crash) -> Result<(), String> {
        self.tally.outcomes += 1;
        if !self.seen.insert((left.fingerprint(), at, crash)) {
            return Ok(());
        }
        self.tally.recoveries += 1;
        if self.tally.recoveries.is_multiple_of(self.nest_every) {
            self.tally.nested += 1;
            let again = self.world.fork(left.clone(), at, crash)?;
            let seed = self.tally.recoveries;
            return again.probe(seed, 12).map_err(|e| format!("crash of the recovery: {e}"));
        }
        self.world.inspect(left, at, crash)
    }

    fn all(&mut self, image: &Image, at: usize, survivor: Option<u64>) -> Result<(), String> {
        let mut odometer = Odometer::new(self.torn_max, survivor);
        loop {
            let left = image.power_loss(&mut odometer);
            self.outcome(&left, at, Crash::Power)
                .map_err(|e| format!("answers {:?}\n{e}", odometer.answers()))?;
            if !odometer.advance() {
                return Ok(());
            }
        }
    }

    /// Crashes after each change from number `since` on.
    fn visit(&mut self, since: usize) -> Result<(), String> {
        let last = self.world.drive.changes();
        let drive = self.world.drive.clone();
        let mut outcome = Ok(());
        drive.for_each_crash(|at, change, image| {
            if at < since || outcome.is_err() {
                return;
            }
            let visited = match change {
                Some(Change::Sync { .. } | Change::SyncFolder { .. }) if at != last => Ok(()),
                Some(Change::Write { .. }) if at != last => {
                    self.all(image, at, Some(image.next_seq() - 1))
                }
                _ => self.all(image, at, None),
            };
            let kept = image.power_loss(&mut EverythingKept);
            outcome = visited.and_then(|()| self.outcome(&kept, at, Crash::Process)).map_err(|e| {
                format!("crash after {at} of {last} changes, last change: {}\n{e}", brief(change))
            });
        });
        outcome
    }
}

/// A world in which `ops` were done, and its change count before the last of them.
fn world_after(shape: Shape, ops: &[Op]) -> Result<(World, usize), String> {
    let mut world = World::new(shape).map_err(|e| format!("no pool: {e}"))?;
    let mut since = 0;
    for op in ops {
        since = world.drive.changes();
        match op {
            Op::Crash => {
                world.crash(op)?;
                since = 0;
            }
            Op::Restart => world.apply(op).map_err(|e| format!("restart: {e}"))?,
            _ => world.apply(op).map_err(|e| format!("{op:?}: {e}"))?,
        }
    }
    world.compare()?;
    Ok((world, since))
}

/// Visits all crashes in what the last of `ops` did; every `nest_every`th recovery is crashed too.
pub fn check(ops: &[Op], nest_every: u64) {
    tallied(ops, &mut Tally::default(), nest_every);
}

fn tallied(ops: &[Op], tally: &mut Tally, nest_every: u64) {
    let outcome = crate::caught(|| {
        let (world, since) = world_after(SHAPE, ops)?;
        let mut visitor =
            Visitor { world: &world, seen: HashSet::new(), tally, nest_every, torn_max: 1 };
        visitor.visit(since)
    });
    if let Err(why) = outcome {
        panic!("after {ops:#?}\n{why}");
    }
}

/// Kills the process after every change of the last of `ops`, starts it again, does `then`, and visits all
/// power losses in that: what the first process had not synced, the second must not take for durable.
fn killed_and_then(ops: &[Op], then: &[Op], tally: &mut Tally) -> Result<(), String> {
    let (world, since) = world_after(SHAPE, ops)?;
    for at in since..=world.drive.changes() {
        let again = |e: String| format!("killed after {at} changes, then {then:?}: {e}");
        let image = world.drive.image_after(at);
        let mut next = world.fork(image, at, Crash::Process).map_err(again)?;
        for op in then {
            next.apply(op).map_err(|e| again(e.to_string()))?;
        }
        // Two torn writes: one of each process, as both slots of an anchor.
        let (seen, nest_every) = (HashSet::new(), 64);
        let mut visitor = Visitor { world: &next, seen, tally, nest_every, torn_max: 2 };
        visitor.visit(0).map_err(again)?;
    }
    Ok(())
}

/// All words of `length` letters after `start`, shard `shard` of `shards`.
fn words(start: &[Op], length: u32, shard: usize, shards: usize) -> Tally {
    let mut tally = Tally::default();
    let letters: Vec<Vec<Op>> = (1..=length as u64).map(letters).collect();
    let count = letters[0].len();
    for number in (shard..count.pow(length)).step_by(shards) {
        let word = (0..length).map(|i| {
            let letter = number / count.pow(length - 1 - i) % count;
            letters[i as usize][letter].clone()
        });
        let ops: Vec<Op> = start.iter().cloned().chain(word).collect();
        tallied(&ops, &mut tally, 16);
    }
    println!(
        "{} outcomes, {} recoveries, {} of them crashed in turn",
        tally.outcomes, tally.recoveries, tally.nested
    );
    tally
}

/// A disk that has a checkpoint, data in it, and data after it.
fn used_disk() -> Vec<Op> {
    let write = |offset, length, stamp| Op::Write {
        disk: 0,
        offset,
        length,
        stamp,
        style: Style::Noise,
        fua: false,
    };
    vec![
        write(0, 4 * BLOCK, 90),
        write(500, BLOCK, 91),
        Op::Checkpoint { disk: 0 },
        write(3 * BLOCK, BLOCK, 92),
        Op::Flush { disk: 0 },
    ]
}

/// What snapshots, clones and deletions do, each beside two others.
#[test]
fn copies_of_a_disk() {
    let write = letters(8).swap_remove(0);
    let ops = [
        Op::Snapshot { disk: 0, number: 0 },
        write,
        Op::Clone { number: 0, disk: 1 },
        Op::Rollback { disk: 0, number: 0 },
        Op::DeleteSnapshot { number: 0 },
        Op::Delete { disk: 0 },
        Op::Checkpoint { disk: 0 },
        Op::Checkpoint { disk: 1 },
        Op::Background,
    ];
    let mut tally = Tally::default();
    for number in 0..ops.len().pow(3) {
        let mut word = used_disk();
        word.push(ops[0].clone());
        word.extend([number / 81, number / 9 % 9, number % 9].map(|i| ops[i].clone()));
        tallied(&word, &mut tally, 16);
    }
    println!("{} outcomes, {} recoveries", tally.outcomes, tally.recoveries);
}

#[test]
fn one_or_two_operations_on_a_new_disk() {
    check(&[], 4);
    words(&[], 1, 0, 1);
    words(&[], 2, 0, 1);
}

#[test]
fn one_or_two_operations_on_a_used_disk() {
    words(&used_disk(), 1, 0, 1);
    words(&used_disk(), 2, 0, 1);
}

#[test]
fn killed_after_any_change_and_started_again() {
    let mut tally = Tally::default();
    let then = [
        vec![Op::Flush { disk: 0 }],
        vec![letters(7)[0].clone(), Op::Flush { disk: 0 }],
        vec![letters(7)[1].clone(), Op::Checkpoint { disk: 0 }],
        vec![Op::Background, letters(7)[2].clone()],
    ];
    for last in letters(5).into_iter().filter(|op| !matches!(op, Op::Crash | Op::Restart)) {
        let mut ops = used_disk();
        ops.extend([letters(6)[4].clone(), last]);
        for then in &then {
            let outcome = crate::caught(|| killed_and_then(&ops, then, &mut tally));
            outcome.unwrap_or_else(|why| panic!("after {ops:#?}\n{why}"));
        }
    }
    println!("{} outcomes, {} recoveries", tally.outcomes, tally.recoveries);
}

#[test]
fn three_operations_on_a_new_disk() {
    words(&[], 3, 0, 1);
}

#[test]
fn three_operations_on_a_used_disk() {
    words(&used_disk(), 3, 0, 1);
}
