//! One memory setting for the whole pool, and the chores that keep within it.
//!
//! Of the setting, a quarter is the node cache's; five eighths are for changes not yet merged into
//! trees. At three eighths a checkpoint of the disk with most changes is asked for; at five, writers wait
//! for it. Nothing polls: chores are queued by what makes them necessary.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::disk::Disk;
use crate::disk_map::Changes;
use crate::error::{Error, Result};
use crate::fetch::Fetcher;
use crate::segments::Segments;
use crate::units::{BLOCK_SIZE, NODE_ENTRIES, SegmentId};

/// Log appended since the last checkpoint, and changes in it, up to which recovery stays well under a
/// second.
const REPLAY_BYTES_MAX: u64 = 16 << 30;
const REPLAY_ENTRIES: usize = 2 << 20;
/// Changes for each leaf of the disk's map below which a checkpoint would write too many nodes for what it
/// takes in: on a very large disk, recovery may take longer instead.
const ENTRIES_PER_LEAF: u64 = 16;
/// Log appended since the last checkpoint that makes one worthwhile when it writes few nodes for what it
/// takes in: what was overwritten then comes back soon, to be used for the next segments.
const DENSE_BYTES: u64 = 512 << 20;
/// Zero-filled segments start this small and double while they are used up within a few seconds.
const PREPARED_BYTES: std::ops::RangeInclusive<usize> = (4 << 20)..=(64 << 20);
const PREPARED_GROWS_WITHIN: Duration = Duration::from_secs(10);

/// Spare segment files are removed when no segment was filled for so long.
const SPARES_KEPT: Duration = Duration::from_secs(10);

/// Work done behind the clients' backs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Chore {
    /// Write the summaries of retired segments.
    Seal = 1,
    /// Fill the next segment with zeros.
    Prepare = 2,
    Checkpoint = 4,
    /// Move the living out of segments that are mostly garbage.
    Clean = 8,
}

/// A disk's side of the queue: which chores are waiting, and how large to prepare segments.
pub struct DiskChores {
    pub me: Weak<Disk>,
    waiting: AtomicU8,
    /// What the pool's total holds for this disk.
    accounted_bytes: AtomicUsize,
    prepared: Mutex<Option<(Instant, usize)>>,
}

impl DiskChores {
    pub fn new(me: Weak<Disk>) -> DiskChores {
        DiskChores {
            me,
            waiting: AtomicU8::new(0),
            accounted_bytes: AtomicUsize::new(0),
            prepared: Mutex::new(None),
        }
    }

    fn next_prepared_len(&self) -> usize {
        let mut last = self.prepared.lock();
        let length = match *last {
            Some((at, length)) if at.elapsed() < PREPARED_GROWS_WITHIN => length * 2,
            _ => 0,
        };
        let length = length.clamp(*PREPARED_BYTES.start(), *PREPARED_BYTES.end());
        *last = Some((Instant::now(), length));
        length
    }
}

/// A queue with one thread, so that a long checkpoint does not keep segments from being sealed.
#[derive(Default)]
struct Lane {
    queue: Mutex<VecDeque<(Weak<Disk>, Chore)>>,
    ready: Condvar,
}

#[derive(Default)]
struct Room {
    /// Counts checkpoints that ended, with the last one's error.
    ended: u64,
    error: Option<Error>,
}

pub struct Budget {
    soft_bytes: usize,
    hard_bytes: usize,
    delta_bytes: AtomicUsize,
    room: Mutex<Room>,
    room_changed: Condvar,
    disks: Mutex<Vec<Weak<Disk>>>,
    lanes: [Lane; 2],
    is_stopping: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
    has_threads: bool,
    segments: Arc<Segments>,
    /// Something was overwritten, trimmed or deleted since space was last reclaimed.
    has_garbage: AtomicBool,
    /// Held while space is reclaimed on behalf of a write; counts how often that was done.
    reclaiming: Mutex<()>,
    reclaimed: AtomicU64,
    /// The largest disk was asked for a checkpoint that has not ended yet.
    has_asked_largest: AtomicBool,
}

impl Budget {
    pub fn new(memory_bytes: usize, background: bool, segments: Arc<Segments>) -> Arc<Budget> {
        let budget = Arc::new(Budget {
            soft_bytes: memory_bytes / 8 * 3,
            hard_bytes: memory_bytes / 8 * 5,
            delta_bytes: AtomicUsize::new(0),
            room: Mutex::default(),
            room_changed: Condvar::new(),
            disks: Mutex::default(),
            lanes: Default::default(),
            is_stopping: AtomicBool::new(false),
            threads: Mutex::default(),
            has_threads: background,
            segments,
            has_garbage: AtomicBool::new(false),
            reclaiming: Mutex::new(()),
            reclaimed: AtomicU64::new(0),
            has_asked_largest: AtomicBool::new(false),
        });
        if background {
            let spawn = |lane: usize| {
                let budget = budget.clone();
                std::thread::spawn(move || while budget.run_one(lane, true) {})
            };
            *budget.threads.lock() = vec![spawn(0), spawn(1)];
        }
        budget
    }

    /// Node cache's share of the memory setting.
    pub fn node_cache_bytes(memory_bytes: usize) -> usize {
        memory_bytes / 4
    }

    pub fn delta_bytes(&self) -> usize {
        self.delta_bytes.load(Ordering::Relaxed)
    }

    pub fn register(&self, disk: &Arc<Disk>) {
        let mut disks = self.disks.lock();
        disks.retain(|d| d.strong_count() > 0);
        disks.push(Arc::downgrade(disk));
        self.account(disk, disk.map.delta_bytes());
    }

    pub fn unregister(&self, disk: &Disk) {
        self.disks.lock().retain(|d| !std::ptr::eq(d.as_ptr(), disk));
        self.account(disk, 0);
    }

    /// The disk's changes take `bytes` now; the pool's total.
    pub fn account(&self, disk: &Disk, bytes: usize) -> usize {
        let grown = bytes.wrapping_sub(disk.chores.accounted_bytes.swap(bytes, Ordering::Relaxed));
        self.delta_bytes.fetch_add(grown, Ordering::Relaxed).wrapping_add(grown)
    }

    /// Called after every change of the map.
    pub fn note(&self, disk: &Disk, changes: Changes) {
        let Changes { bytes, entries, is_dense } = changes;
        let total = self.account(disk, bytes);
        if !self.has_garbage.load(Ordering::Relaxed) {
            self.has_garbage.store(true, Ordering::Relaxed);
        }
        let is_full = total > self.soft_bytes;
        let leaves = disk.size_bytes() / (BLOCK_SIZE * NODE_ENTRIES) as u64;
        let is_due = entries > REPLAY_ENTRIES && entries as u64 > leaves * ENTRIES_PER_LEAF
            || is_dense && disk.bytes_since_checkpoint() > DENSE_BYTES
            || disk.bytes_since_checkpoint() > REPLAY_BYTES_MAX;
        if is_due || is_full && bytes >= total / 8 {
            self.request(disk, Chore::Checkpoint);
        } else if is_full && !self.has_asked_largest.swap(true, Ordering::Relaxed) {
            // Many disks with few changes each.
            if let Some(largest) = self.largest() {
                self.request(&largest, Chore::Checkpoint);
            }
        }
    }

    /// Segments that nobody holds any more: removes those of deleted disks, and asks the others' owners for a
    /// checkpoint. A disk that is not in service frees its own when it is next.
    pub fn give_back(&self, fetcher: &Fetcher, freed: &[SegmentId]) -> Result<()> {
        let disks = self.open_disks();
        for id in freed {
            let Some(owner) = fetcher.segments.owner(*id) else { continue };
            if fetcher.holds.is_deleted(owner) {
                fetcher.segments.remove(*id)?;
            } else if let Some(disk) = disks.iter().find(|disk| disk.id == owner) {
                self.has_garbage.store(true, Ordering::Relaxed);
                self.request(disk, Chore::Checkpoint);
            }
        }
        Ok(())
    }

    pub fn note_flush(&self, disk: &Disk) {
        if disk.log.wants_prepared() {
            self.request(disk, Chore::Prepare);
        }
    }

    /// Files may have been kept for new segments: if those do not come, they are removed again.
    pub fn note_spares(&self) {
        if self.segments.has_spares() {
            self.lanes[0].ready.notify_one();
        }
    }

    /// Tells writers that wait for room how a checkpoint ended.
    pub fn checkpoint_ended(&self, outcome: &Result<()>) {
        self.has_asked_largest.store(false, Ordering::Relaxed);
        let mut room = self.room.lock();
        room.ended += 1;
        room.error = outcome.as_ref().err().cloned();
        drop(room);
        self.room_changed.notify_all();
    }

    /// Waits while changes fill the budget. Call without any lock. Errors: what kept the checkpoint from
    /// making room.
    pub fn wait_for_room(&self, disk: &Disk) -> Result<()> {
        if self.delta_bytes() <= self.hard_bytes {
            return Ok(());
        }
        if !self.has_threads {
            return disk.checkpoint();
        }
        let mut room = self.room.lock();
        while self.delta_bytes() > self.hard_bytes {
            let ended = room.ended;
            if let Some(largest) = self.largest() {
                self.request(&largest, Chore::Checkpoint);
            }
            while room.ended == ended && !self.is_stopping.load(Ordering::Relaxed) {
                self.room_changed.wait(&mut room);
            }
            if let Some(error) = &room.error {
                return Err(error.clone());
            }
            disk.check_open()?;
        }
        Ok(())
    }

    fn largest(&self) -> Option<Arc<Disk>> {
        let disks = self.open_disks();
        disks.into_iter().max_by_key(|d| d.map.delta_bytes())
    }

    pub fn open_disks(&self) -> Vec<Arc<Disk>> {
        self.disks.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Tries to make space after a write found none: checkpoints free what is garbage, the cleaner makes
    /// more of it. True if the write may try again.
    pub fn reclaim(&self) -> bool {
        let seen = self.reclaimed.load(Ordering::Acquire);
        let _one = self.reclaiming.lock();
        if self.reclaimed.load(Ordering::Acquire) != seen {
            return true; // somebody has just done it
        }
        if !self.has_garbage.swap(false, Ordering::AcqRel) {
            return false;
        }
        for disk in self.open_disks() {
            // A disk that cannot be checkpointed frees nothing; the others may.
            let _ = disk.checkpoint().and_then(|()| disk.clean());
        }
        // Cleaning appends too; that is not what makes the next attempt worthwhile.
        self.has_garbage.store(false, Ordering::Release);
        self.reclaimed.fetch_add(1, Ordering::AcqRel);
        true
    }

    pub fn request(&self, disk: &Disk, chore: Chore) {
        if disk.chores.waiting.fetch_or(chore as u8, Ordering::AcqRel) & chore as u8 != 0 {
            return;
        }
        let lane = &self.lanes[usize::from(matches!(chore, Chore::Checkpoint | Chore::Clean))];
        lane.queue.lock().push_back((disk.chores.me.clone(), chore));
        lane.ready.notify_one();
    }

    /// Does the next chore of a lane. False when there is none (or, waiting, when the pool closes).
    fn run_one(&self, lane: usize, wait: bool) -> bool {
        // The lane that has something to do with every segment that fills.
        let keeps_spares = lane == 0;
        let lane = &self.lanes[lane];
        let (disk, chore) = {
            let mut queue = lane.queue.lock();
            loop {
                if let Some(next) = queue.pop_front() {
                    break next;
                }
                if !wait || self.is_stopping.load(Ordering::Relaxed) {
                    return false;
                }
                if !keeps_spares || !self.segments.has_spares() {
                    lane.ready.wait(&mut queue);
                } else if lane.ready.wait_for(&mut queue, SPARES_KEPT).timed_out() {
                    // What could not be removed, the next checkpoint of its disk tries again.
                    let _ = self.segments.drop_spares();
                }
            }
        };
        if let Some(disk) = disk.upgrade() {
            disk.chores.waiting.fetch_and(!(chore as u8), Ordering::AcqRel);
            // Failures show where they matter: a sync that failed fails the log, a missing summary makes
            // recovery scan, a checkpoint's error is told to the writers that wait for it.
            let _ = match chore {
                Chore::Seal => disk.seal_retired(),
                Chore::Prepare => disk.log.prepare(disk.chores.next_prepared_len()),
                Chore::Checkpoint => disk.checkpoint(),
                Chore::Clean => disk.clean(),
            };
        }
        true
    }

    /// Does all waiting chores now, on this thread.
    pub fn run_waiting(&self) {
        while self.run_one(0, false) || self.run_one(1, false) {}
    }

    /// Stops the threads after the chore at hand.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        for lane in &self.lanes {
            let _queue = lane.queue.lock();
            lane.ready.notify_all();
        }
        self.room_changed.notify_all();
        for thread in self.threads.lock().drain(..) {
            let is_self = thread.thread().id() == std::thread::current().id();
            if !is_self && thread.join().is_err() {
                eprintln!("nearstone: a background thread has panicked");
            }
        }
    }
}
