//! A disk's log: the sequence of segments it appends to.
//!
//! Invariants
//! - LSNs are given out and bytes are handed to the kernel in the same order, under [`Log::lock`]; the
//!   map is updated before that lock is released. So log order is map order.
//! - A batch lies in one segment and is one atomic group.
//! - `durable` only grows after every file that held a record up to it was synced (and its name too).
//! - After a failed sync nothing is acknowledged any more: the kernel may have dropped the pages, a
//!   later sync that succeeds would prove nothing.
//!
//! Lock order: log state, then map (see `disk`), then sync state. The leader of a sync holds none of them
//! while the drive works, so that writers go on and other flushers gather for the next round (group
//! commit).

mod append;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

pub use append::{Appended, LogGuard};
use parking_lot::{Condvar, Mutex};

use crate::anchor_file::AnchorFile;
use crate::error::{Error, Result};
use crate::format::segment::SUMMARY_ENTRY_LEN;
use crate::format::{Trailer, check64};
use crate::segments::{Segment, Segments};
use crate::units::{DiskId, Lsn, SegmentId};

/// What the kernel keeps in memory, and reads and writes, as one.
const PAGE_SIZE: usize = 4096;
/// Bytes between two flushes up to which a client counts as one that syncs every little write.
const SMALL_FLUSH_BYTES_MAX: u64 = 256 << 10;
/// Such flushes in a row before writes start their writeback at once …
const EARLY_WRITEBACK_STREAK: u32 = 4;
/// … as long as no more than this is unflushed …
const EARLY_WRITEBACK_BYTES_MAX: u64 = 64 << 10;
/// … and before the next segment is filled with zeros beforehand.
const PREPARE_STREAK: u32 = 32;

/// Where a log stands: what a checkpoint records and recovery starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Position {
    pub log_index: u64,
    pub segment: SegmentId,
    pub offset: usize,
    /// LSN of the next record.
    pub lsn: Lsn,
}

/// The segment that is appended to.
struct Active {
    segment: Arc<Segment>,
    /// Where the next record goes.
    end: usize,
    /// The file is filled up to here, durably, with zeros or what an earlier segment left: syncing writes
    /// below changes no file metadata.
    filled: usize,
    first_lsn: Lsn,
    log_index: u64,
    /// Encoded summary entries of all records so far.
    summary: Vec<u8>,
}

/// A segment that will not be appended to any more and has no summary yet.
pub struct Retired {
    pub segment: Arc<Segment>,
    pub records_end: usize,
    pub first_lsn: Lsn,
    pub summary: Vec<u8>,
}

/// A segment file made and filled in advance.
pub struct Prepared {
    pub segment: Arc<Segment>,
    pub filled: usize,
}

pub struct LogState {
    active: Option<Active>,
    next: Position,
    prev: SegmentId,
    /// LSN of the last record that a flush has to wait for (MARKs are not).
    last_content: Lsn,
    /// Retired segments that may not be on stable storage.
    unsynced: Vec<Arc<Segment>>,
    /// Waiting for the background to write their summaries, in log order.
    retired: Vec<Retired>,
    prepared: Option<Prepared>,
    failed: Option<String>,
    bytes_since_flush: u64,
}

struct SyncState {
    durable: Lsn,
    is_running: bool,
}

/// What a log works with.
pub struct LogContext {
    pub disk: DiskId,
    pub pool: [u8; 16],
    pub segment_size: usize,
    pub segments: Arc<Segments>,
    pub anchor: Arc<AnchorFile>,
}

pub struct Log {
    context: LogContext,
    state: Mutex<LogState>,
    sync: Mutex<SyncState>,
    sync_done: Condvar,
    small_flushes: AtomicU32,
    /// A round of syncs is under way: what is appended now waits for the next one anyway.
    is_syncing: AtomicBool,
    appended_bytes: AtomicU64,
}

/// What recovery found: where to go on.
pub struct LogStart {
    pub next: Position,
    pub prev: SegmentId,
    pub unsynced: Vec<Arc<Segment>>,
    pub retired: Vec<Retired>,
}

impl Log {
    pub fn new(context: LogContext, start: LogStart) -> Log {
        let last = start.next.lsn - 1;
        let durable = if start.unsynced.is_empty() { last } else { 0 };
        let state = LogState {
            active: None,
            next: start.next,
            prev: start.prev,
            last_content: last,
            unsynced: start.unsynced,
            retired: start.retired,
            prepared: None,
            failed: None,
            bytes_since_flush: 0,
        };
        Log {
            context,
            state: Mutex::new(state),
            sync: Mutex::new(SyncState { durable, is_running: false }),
            sync_done: Condvar::new(),
            small_flushes: AtomicU32::new(0),
            is_syncing: AtomicBool::new(false),
            appended_bytes: AtomicU64::new(0),
        }
    }

    /// Stops all other appends until dropped.
    pub fn lock(&self) -> LogGuard<'_> {
        LogGuard { log: self, state: self.state.lock() }
    }

    pub fn segment_size(&self) -> usize {
        self.context.segment_size
    }

    /// Bytes appended since the log was opened, headers included.
    pub fn appended_bytes(&self) -> u64 {
        self.appended_bytes.load(Ordering::Relaxed)
    }

    /// Starts the writeback of a small write whose client is about to flush it, so that the drive works
    /// while the reply and the flush request travel. Half again as many commits a second by one client.
    pub fn start_writeback(&self, appended: &Appended) {
        let is_awaited = self.small_flushes.load(Ordering::Relaxed) >= EARLY_WRITEBACK_STREAK
            && appended.bytes_since_flush <= EARLY_WRITEBACK_BYTES_MAX;
        if is_awaited && !self.is_syncing.load(Ordering::Relaxed) {
            let from = (appended.offset & !(PAGE_SIZE - 1)) as u64;
            let to = (appended.offset + appended.len) as u64;
            appended.segment.file.start_writeback(from, to - from);
        }
    }

    /// Makes everything appended before the call durable.
    ///
    /// Concurrency: one caller syncs for all that wait. Errors: once a sync fails the log has failed for
    /// good, and this and every later append and flush says so.
    pub fn flush(&self) -> Result<()> {
        let target = {
            let mut state = self.state.lock();
            self.check_failed(&state)?;
            self.note_flush(&mut state);
            state.last_content
        };
        self.flush_to(target)
    }

    fn flush_to(&self, target: Lsn) -> Result<()> {
        let mut sync = self.sync.lock();
        while sync.durable < target && sync.is_running {
            self.sync_done.wait(&mut sync);
        }
        if sync.durable >= target {
            return Ok(());
        }
        sync.is_running = true;
        drop(sync);
        self.is_syncing.store(true, Ordering::Relaxed);
        let outcome = self.sync_round();
        self.is_syncing.store(false, Ordering::Relaxed);
        let mut sync = self.sync.lock();
        sync.is_running = false;
        if let Ok(durable) = &outcome {
            sync.durable = sync.durable.max(*durable);
        }
        drop(sync);
        self.sync_done.notify_all();
        outcome.map(|_| ())
    }

    /// Syncs every file that holds records; the LSN up to which all is now durable.
    fn sync_round(&self) -> Result<Lsn> {
        let (upto, active, retired) = {
            let state = self.state.lock();
            // Waiters of a round that failed come here next and must not be told that all is well.
            self.check_failed(&state)?;
            let active = state.active.as_ref().map(|a| a.segment.clone());
            (state.last_content, active, state.unsynced.clone())
        };
        for segment in retired.iter().chain(&active) {
            let synced = self.sync_segment(segment);
            if let Err(error) = synced {
                self.state.lock().failed.get_or_insert(format!("sync failed: {error}"));
                return Err(error);
            }
        }
        let mut guard = self.lock();
        guard.state.unsynced.retain(|s| !retired.iter().any(|r| r.id == s.id));
        guard.append_mark(upto);
        Ok(upto)
    }

    /// Makes a segment's records and its name durable.
    fn sync_segment(&self, segment: &Segment) -> Result<()> {
        let place = || format!("segment {:08x}", segment.id.0);
        segment.file.sync_data().map_err(|e| Error::Io {
            place: place(),
            errno: e.raw_os_error().unwrap_or(libc::EIO),
        })?;
        if !segment.is_name_durable.load(Ordering::Acquire) {
            self.context.segments.sync_names(self.context.disk, segment.drive)?;
            segment.is_name_durable.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Refuses all further appends and flushes.
    pub fn fail(&self, cause: &str) {
        self.state.lock().failed.get_or_insert(cause.to_string());
    }

    fn check_failed(&self, state: &LogState) -> Result<()> {
        match &state.failed {
            Some(cause) => Err(Error::DiskFailed { disk: self.context.disk, cause: cause.clone() }),
            None => Ok(()),
        }
    }

    fn note_flush(&self, state: &mut LogState) {
        let bytes = std::mem::take(&mut state.bytes_since_flush);
        if (1..=SMALL_FLUSH_BYTES_MAX).contains(&bytes) {
            self.small_flushes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Should the background fill the next segment with zeros now?
    pub fn wants_prepared(&self) -> bool {
        if self.small_flushes.load(Ordering::Relaxed) < PREPARE_STREAK {
            return false;
        }
        let state = self.state.lock();
        let is_low = state.active.as_ref().is_some_and(|a| a.end + a.filled / 2 >= a.filled);
        state.prepared.is_none() && is_low && state.failed.is_none()
    }

    /// Makes the next segment: at least `length` bytes that mean nothing, durable together with its name.
    pub fn prepare(&self, length: usize) -> Result<()> {
        // Asked for twice while the first was being filled.
        if self.state.lock().prepared.is_some() {
            return Ok(());
        }
        let length = length.min(self.context.segment_size);
        let (segment, filled) = self.context.segments.create(self.context.disk, length, false)?;
        let fill = || -> Result<()> {
            self.context.segments.admit(segment.drive, length)?;
            let zeros = vec![0u8; length.min(1 << 20)];
            let place = || format!("segment {:08x}", segment.id.0);
            for at in (filled..length).step_by(zeros.len()) {
                let part = &zeros[..zeros.len().min(length - at)];
                segment.file.write_at(part, at as u64).map_err(|e| Error::io(place(), e))?;
            }
            self.sync_segment(&segment)
        };
        if let Err(error) = fill() {
            self.context.segments.remove(segment.id)?;
            return Err(error);
        }
        let mut state = self.state.lock();
        // Recovery walks a log by ascending segment id: a file that was overtaken by a roll is of no use.
        let is_overtaken = state.active.as_ref().is_some_and(|a| a.segment.id > segment.id);
        if is_overtaken || state.prepared.is_some() {
            drop(state);
            return self.context.segments.remove(segment.id);
        }
        state.prepared = Some(Prepared { segment, filled: length.max(filled) });
        Ok(())
    }

    /// Takes the segments that wait for their summary, oldest first.
    pub fn take_retired(&self) -> Vec<Retired> {
        std::mem::take(&mut self.state.lock().retired)
    }

    /// Writes a retired segment's summary and trailer. Its records are made durable first, since that is
    /// what a trailer says; callers seal in log order, since it says so of earlier segments too.
    pub fn seal(&self, retired: &Retired) -> Result<()> {
        let segment = &retired.segment;
        let place = |e| Error::io(format!("segment {:08x}", segment.id.0), e);
        if let Err(error) = self.sync_segment(segment) {
            self.state.lock().failed.get_or_insert(format!("sync failed: {error}"));
            return Err(error);
        }
        self.state.lock().unsynced.retain(|s| s.id != segment.id);
        let entries = (retired.summary.len() / SUMMARY_ENTRY_LEN) as u32;
        let trailer = Trailer {
            segment: segment.id,
            records_end: retired.records_end as u32,
            entries,
            first_lsn: retired.first_lsn,
            last_lsn: retired.first_lsn + entries as u64 - 1,
            summary_check: check64(&retired.summary),
        };
        let tail = [&retired.summary[..], &trailer.encode()].concat();
        segment.file.write_at(&tail, retired.records_end as u64).map_err(place)?;
        segment.file.set_len((retired.records_end + tail.len()) as u64).map_err(place)
    }

    /// Retires the active segment, so that a clean close leaves only sealed ones; drops a prepared one.
    pub fn retire(&self) -> Result<()> {
        let mut guard = self.lock();
        guard.retire_active();
        match guard.state.prepared.take() {
            Some(prepared) => self.context.segments.remove(prepared.segment.id),
            None => Ok(()),
        }
    }
}
