//! Real threads: every slice of 512 bytes is a register with one writer, and blocks are shared between
//! writers, so that their ragged writes meet. Readers never see a value older than one acknowledged before
//! they asked; crashes keep what they must.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use _core::storage::Drive;
use _core::storage::fs::FsDrive;
use _core::storage::recording::RecordingDrive;
use _core::storage::recording::fates::{Rng, Sampler};
use _core::storage::recording::faults::Call;
use _core::storage::recording::image::Image;
use _core::units::DiskId;
use _core::{Disk, Options, Pool};

use crate::workload::RESERVE_BYTES;
use crate::{first_seed, rounds};

const SLICE: usize = 512;
const SLICES: usize = 40 * 8;
const WRITERS: usize = 4;
const DISK: DiskId = DiskId(1);
const SIZE: u64 = (SLICE * SLICES) as u64;

/// Value number `seq` of a slice; every fifth is all zeros, as is number 0, which nobody wrote.
fn fill(slice: usize, seq: u64, out: &mut [u8]) {
    let word = if seq.is_multiple_of(5) { 0 } else { (slice as u64) << 48 | seq };
    out.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&word.to_le_bytes()));
}

/// The number of the value read, or `None` for zeros.
fn decode(slice: usize, bytes: &[u8]) -> Option<u64> {
    let word = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    let is_whole = bytes.chunks_exact(8).all(|chunk| chunk == word.to_le_bytes());
    assert!(is_whole, "slice {slice} is a mixture");
    assert!(word == 0 || word >> 48 == slice as u64, "slice {slice} holds {word:#x}");
    (word != 0).then_some(word & 0xffff_ffff_ffff)
}

/// Could `found` be what the slice held at some time while its value number went from `low` to `high`?
fn is_between(found: Option<u64>, low: u64, high: u64) -> bool {
    match found {
        Some(seq) => (low..=high).contains(&seq),
        None => (low..=high).any(|seq| seq.is_multiple_of(5)),
    }
}

#[derive(Default)]
struct Register {
    issued: AtomicU64,
    acknowledged: AtomicU64,
}

/// A write as the crash check needs it, in the drive's change counts.
#[derive(Clone, Copy, Debug)]
struct Written {
    slice: usize,
    seq: u64,
    begin: usize,
    end: usize,
}

struct Arena {
    disk: Arc<Disk>,
    registers: Vec<Register>,
    is_over: AtomicBool,
    /// Change count of the drive; 0 on a real one.
    changes: Box<dyn Fn() -> usize + Send + Sync>,
}

impl Arena {
    fn new(disk: Arc<Disk>, changes: Box<dyn Fn() -> usize + Send + Sync>) -> Arena {
        let registers = (0..SLICES).map(|_| Register::default()).collect();
        Arena { disk, registers, is_over: AtomicBool::new(false), changes }
    }

    /// Writer `me` owns the slices whose number is `me` modulo `WRITERS`, so every block has all writers.
    fn write(&self, me: usize, seed: u64, count: u64) -> Vec<Written> {
        let mut rng = Rng::new(seed ^ (me as u64) << 32);
        let mut log = Vec::new();
        let mut bytes = [0; SLICE];
        for _ in 0..count {
            // Some are written often and others seldom: segments with a few living blocks remain.
            let slices = (SLICES / WRITERS) as u64 / (1 + rng.below(6));
            let slice = rng.below(slices) as usize * WRITERS + me;
            let register = &self.registers[slice];
            let seq = register.issued.fetch_add(1, Ordering::SeqCst) + 1;
            fill(slice, seq, &mut bytes);
            let begin = (self.changes)();
            let offset = (slice * SLICE) as u64;
            match seq.is_multiple_of(5) && rng.chance(1, 2) {
                true => self.disk.zero(offset, SLICE as u64, false),
                false => self.disk.write(offset, &bytes, rng.chance(1, 50)),
            }
            .expect("no fault was injected");
            register.acknowledged.store(seq, Ordering::SeqCst);
            log.push(Written { slice, seq, begin, end: (self.changes)() });
        }
        log
    }

    fn read(&self, seed: u64) {
        let mut rng = Rng::new(seed);
        while !self.is_over.load(Ordering::Relaxed) {
            let first = rng.below(SLICES as u64) as usize;
            let count = 1 + rng.below((SLICES - first).min(40) as u64) as usize;
            let slices = first..first + count;
            let low: Vec<u64> = self.values(slices.clone(), |r| &r.acknowledged);
            let mut bytes = vec![0; count * SLICE];
            self.disk.read((first * SLICE) as u64, &mut bytes).expect("no fault was injected");
            let high: Vec<u64> = self.values(slices.clone(), |r| &r.issued);
            for (i, slice) in slices.enumerate() {
                let found = decode(slice, &bytes[i * SLICE..(i + 1) * SLICE]);
                let (low, high) = (low[i], high[i]);
                assert!(
                    is_between(found, low, high),
                    "slice {slice}: {found:?}, not {low}..={high}"
                );
            }
        }
    }

    fn values(&self, of: std::ops::Range<usize>, which: fn(&Register) -> &AtomicU64) -> Vec<u64> {
        self.registers[of].iter().map(|r| which(r).load(Ordering::SeqCst)).collect()
    }

    /// Flushes again and again; returns what each flush covered, with the change count at its end.
    fn flush(&self, pause: Duration) -> Vec<(usize, Vec<u64>)> {
        let mut flushes = Vec::new();
        while !self.is_over.load(Ordering::Relaxed) {
            let covered = self.values(0..SLICES, |r| &r.acknowledged);
            self.disk.flush().expect("no fault was injected");
            flushes.push(((self.changes)(), covered));
            thread::sleep(pause);
        }
        flushes
    }

    fn checkpoint(&self, pool: &Pool) {
        while !self.is_over.load(Ordering::Relaxed) {
            self.disk.checkpoint().expect("no fault was injected");
            pool.run_background().expect("no fault was injected");
            thread::sleep(Duration::from_micros(300));
        }
    }

    /// All of it at once; the writers end it.
    fn run(&self, pool: &Pool, seed: u64, count: u64) -> (Vec<Written>, Vec<(usize, Vec<u64>)>) {
        thread::scope(|scope| {
            let writers: Vec<_> =
                (0..WRITERS).map(|me| scope.spawn(move || self.write(me, seed, count))).collect();
            let others = [
                scope.spawn(|| self.read(seed + 1)),
                scope.spawn(|| self.read(seed + 2)),
                scope.spawn(|| self.checkpoint(pool)),
            ];
            let flushers: Vec<_> = (0..2)
                .map(|i| scope.spawn(move || self.flush(Duration::from_micros(200 * i))))
                .collect();
            let outcomes: Vec<_> = writers.into_iter().map(|w| w.join()).collect();
            self.is_over.store(true, Ordering::Relaxed);
            others.into_iter().for_each(|t| t.join().expect("a reader or the checkpointer"));
            let flushes = flushers.into_iter().flat_map(|f| f.join().expect("a flusher")).collect();
            let written = outcomes.into_iter().flat_map(|w| w.expect("a writer")).collect();
            (written, flushes)
        })
    }
}

/// A folder that is removed when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("nearstone-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Left behind at worst.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(drive: Arc<dyn Drive>, segment_size_bytes: usize, background: bool) -> Arc<Pool> {
    let options =
        Options { pool_uuid: [7; 16], memory_bytes: 8 << 20, segment_size_bytes, background };
    Pool::open(drive.clone(), vec![(0, Some(drive))], options).expect("a pool")
}

fn check_all(disk: &Disk, registers: &[Register]) {
    let mut bytes = vec![0; SIZE as usize];
    disk.read(0, &mut bytes).expect("no fault was injected");
    for (slice, register) in registers.iter().enumerate() {
        let found = decode(slice, &bytes[slice * SLICE..(slice + 1) * SLICE]);
        let wanted = register.acknowledged.load(Ordering::SeqCst);
        assert!(is_between(found, wanted, wanted), "slice {slice}: {found:?}, not {wanted}");
    }
}

#[test]
fn a_real_drive_under_all_threads_at_once() {
    let folder = Folder::new("threads");
    for seed in first_seed(0x7ead)..first_seed(0x7ead) + rounds(2) {
        let path = folder.0.join(format!("{seed:x}"));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        let drive = || Arc::new(FsDrive::new(path.clone()));
        let pool = open(drive(), 256 << 10, true);
        pool.create_disk(DISK).expect("a disk");
        let disk = pool.open_disk(DISK, SIZE).expect("a disk");
        let arena = Arena::new(disk, Box::new(|| 0));
        arena.run(&pool, seed, 2500);
        check_all(&arena.disk, &arena.registers);
        let Arena { registers, disk, .. } = arena;
        drop((disk, pool));
        // The process has died; its successor finds everything that was acknowledged.
        let pool = open(drive(), 256 << 10, true);
        check_all(&pool.open_disk(DISK, SIZE).expect("recovers"), &registers);
        pool.close().expect("closes");
    }
}

/// After a power loss at `at`: everything flushed, and nothing without what was acknowledged before it began.
fn check_power_loss(
    left: Image,
    at: usize,
    written: &[Written],
    flushes: &[(usize, Vec<u64>)],
) -> Result<(), String> {
    let drive = Arc::new(RecordingDrive::new(left, false));
    let pool = open(drive, 16 << 10, false);
    let disk = pool.open_disk(DISK, SIZE).map_err(|e| format!("does not open: {e}"))?;
    let mut bytes = vec![0; SIZE as usize];
    disk.read(0, &mut bytes).map_err(|e| format!("does not read: {e}"))?;
    let mut least = vec![0; SLICES];
    for (_, covered) in flushes.iter().filter(|(end, _)| *end <= at) {
        least.iter_mut().zip(covered).for_each(|(l, c)| *l = (*c).max(*l));
    }
    let begun = |slice: usize| {
        let of_slice = written.iter().filter(|w| w.slice == slice && w.begin < at);
        of_slice.map(|w| w.seq).max().unwrap_or(0)
    };
    let mut found = vec![0; SLICES];
    for slice in 0..SLICES {
        let value = decode(slice, &bytes[slice * SLICE..(slice + 1) * SLICE]);
        if !is_between(value, least[slice], begun(slice)) {
            return Err(format!("slice {slice}: {value:?}, flushed {}", least[slice]));
        }
        // Zeros do not tell which of several values they are; the oldest is the safe guess.
        found[slice] = value.unwrap_or(least[slice].next_multiple_of(5));
    }
    let newest = written.iter().filter(|w| found[w.slice] == w.seq && !w.seq.is_multiple_of(5));
    let after = newest.map(|w| w.begin).max().unwrap_or(0);
    for w in written.iter().filter(|w| w.end <= after) {
        let value = decode(w.slice, &bytes[w.slice * SLICE..(w.slice + 1) * SLICE]);
        if !is_between(value, w.seq, begun(w.slice)) {
            return Err(format!("{w:?} is lost, though something begun at {after} is there"));
        }
    }
    Ok(())
}

#[test]
fn power_loss_under_all_threads_at_once() {
    for seed in first_seed(0x10557)..first_seed(0x10557) + rounds(12) {
        let drive = RecordingDrive::default();
        // So little room that the cleaner moves blocks about while they are written.
        drive.set_capacity(RESERVE_BYTES + 2 * SIZE);
        // Time for others to come in between: syncs, and reads before what depends on them.
        for call in [Call::Sync, Call::Read] {
            drive.set_during(call, Some(Arc::new(|| thread::sleep(Duration::from_micros(40)))));
        }
        let pool = open(Arc::new(drive.clone()), 16 << 10, false);
        pool.create_disk(DISK).expect("a disk");
        let disk = pool.open_disk(DISK, SIZE).expect("a disk");
        let created = drive.changes();
        let counter = drive.clone();
        let arena = Arena::new(disk, Box::new(move || counter.changes()));
        let (written, flushes) = arena.run(&pool, seed, 300);
        check_all(&arena.disk, &arena.registers);
        let changes = drive.changes();
        let mut rng = Rng::new(seed);
        let span = (changes - created) as u64 + 1;
        let moments: Vec<usize> = (0..300).map(|_| created + rng.below(span) as usize).collect();
        drive.for_each_crash(|at, _, image| {
            for _ in moments.iter().filter(|m| **m == at) {
                let crash = rng.next_u64();
                let mut fates = Sampler::new(crash, image.first_unsynced(), image.next_seq());
                let left = image.power_loss(&mut fates);
                check_power_loss(left, at, &written, &flushes).unwrap_or_else(|why| {
                    panic!("seed {seed:#x}, {at} of {changes} changes, crash {crash:#x}: {why}")
                });
            }
        });
    }
}

/// Writers that overwrite one another's whole blocks: the block ends as the last write of one of them.
#[test]
fn the_last_write_wins() {
    const BLOCKS: u64 = 3;
    let pool = open(Arc::new(RecordingDrive::default()), 16 << 10, false);
    pool.create_disk(DISK).expect("a disk");
    let disk = pool.open_disk(DISK, SIZE).expect("a disk");
    for round in 0..rounds(40) {
        thread::scope(|scope| {
            for writer in 0..WRITERS as u64 {
                let disk = &disk;
                scope.spawn(move || {
                    for number in 0..20 {
                        let block = number % BLOCKS;
                        let word = round << 32 | writer << 16 | number;
                        let bytes = word.to_le_bytes().repeat(512);
                        disk.write(block * 4096, &bytes, false).expect("no fault was injected");
                    }
                });
            }
        });
        for block in 0..BLOCKS {
            let mut bytes = vec![0; 4096];
            disk.read(block * 4096, &mut bytes).expect("no fault was injected");
            let word = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
            assert_eq!(bytes, word.to_le_bytes().repeat(512), "a mixture");
            let last = (0..20).rev().find(|n| n % BLOCKS == block);
            assert_eq!(
                (word >> 32, Some(word & 0xffff)),
                (round, last),
                "not anybody's last write"
            );
        }
    }
}
