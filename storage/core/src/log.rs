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

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::anchor_file::AnchorFile;
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::format::segment::{SEGMENT_HEADER_LEN, SUMMARY_ENTRY_LEN, TRAILER_LEN};
use crate::format::{Kind, SegmentHeader, SummaryEntry, Trailer, check64};
use crate::segments::{Segment, Segments};
use crate::units::{DiskId, GROUP_BYTES_MAX, Lsn, SegmentId, align_up};

/// Bytes between two flushes up to which a client counts as one that syncs every little write.
const SMALL_FLUSH_BYTES_MAX: u64 = 256 << 10;
/// Such flushes in a row before writes start their writeback at once …
const EARLY_WRITEBACK_STREAK: u32 = 4;
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
    /// The file is filled with zeros, durably, up to here: syncing writes below changes no file metadata.
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

/// A segment file made and filled with zeros in advance.
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

    /// Does the client sync every little write, so that a write should start its own writeback?
    pub fn wants_early_writeback(&self) -> bool {
        self.small_flushes.load(Ordering::Relaxed) >= EARLY_WRITEBACK_STREAK
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
        let outcome = self.sync_round();
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
        if bytes > SMALL_FLUSH_BYTES_MAX {
            self.small_flushes.store(0, Ordering::Relaxed);
        } else if bytes > 0 {
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

    /// Makes the next segment: `length` zero bytes, durable together with its name.
    pub fn prepare(&self, length: usize) -> Result<()> {
        // Asked for twice while the first was being filled.
        if self.state.lock().prepared.is_some() {
            return Ok(());
        }
        let length = length.min(self.context.segment_size);
        let segment = self.context.segments.create(self.context.disk, length, false)?;
        let fill = || -> Result<()> {
            self.context.segments.admit(segment.drive, length)?;
            let zeros = vec![0u8; length.min(1 << 20)];
            let place = || format!("segment {:08x}", segment.id.0);
            for at in (0..length).step_by(zeros.len()) {
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
        state.prepared = Some(Prepared { segment, filled: length });
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

/// Where a batch went, for those who start its writeback.
pub struct Appended {
    pub segment: Arc<Segment>,
    pub offset: usize,
    pub len: usize,
}

pub struct LogGuard<'a> {
    log: &'a Log,
    state: MutexGuard<'a, LogState>,
}

impl LogGuard<'_> {
    /// Where the next record goes; everything before it is in the map. When it opens a new segment, that
    /// is the end of the one before (offset 0 stands for it), or no segment for a log without any.
    pub fn position(&self) -> Position {
        let mut next = self.state.next;
        if let Some(active) = &self.state.active {
            next.log_index = active.log_index;
            next.segment = active.segment.id;
            next.offset = active.end;
        } else if !self.state.prev.is_none() {
            next.log_index -= 1;
            next.segment = self.state.prev;
        }
        next
    }

    pub fn has_retired(&self) -> bool {
        !self.state.retired.is_empty()
    }

    /// Appends a batch; its drafts then know their places.
    ///
    /// Durability: the bytes are in the kernel on return; `flush` makes them durable. Errors: `NoSpace`
    /// and I/O errors leave the log as it was. `is_metadata` may use the space kept in reserve.
    pub fn append(&mut self, batch: &mut Batch, is_metadata: bool) -> Result<Appended> {
        self.log.check_failed(&self.state)?;
        let (len, records) = (batch.len_bytes(), batch.drafts().len());
        debug_assert!(len <= GROUP_BYTES_MAX * 2);
        if !self.active_has_room(len, records) {
            self.roll(len, is_metadata)?;
        } else if !is_metadata && let Some(active) = &self.state.active {
            match self.log.context.segments.admit(active.segment.drive, len) {
                Err(Error::NoSpace) => self.roll(len, false)?, // perhaps on another drive
                admitted => admitted?,
            }
        }
        let lsn = self.state.next.lsn;
        let active = self.state.active.as_mut().expect("roll leaves an active segment");
        let bytes = batch.place(active.segment.id, active.end, lsn);
        if let Err(error) = active.segment.file.write_at(bytes, active.end as u64) {
            self.undo_write();
            return Err(Error::io(format!("disk {:08x}", self.log.context.disk.0), error));
        }
        let appended = Appended { segment: active.segment.clone(), offset: active.end, len };
        for draft in batch.drafts() {
            SummaryEntry::of(&draft.header, draft.offset).encode(&mut active.summary);
        }
        active.end += len;
        self.state.next.lsn += records as u64;
        self.state.last_content = self.state.next.lsn - 1;
        self.state.bytes_since_flush += len as u64;
        self.log.appended_bytes.fetch_add(len as u64, Ordering::Relaxed);
        Ok(appended)
    }

    /// Notes in the log that everything up to `durable` is on stable storage. Lets recovery tell damage
    /// from a torn tail; nothing waits for it, and it is left out when there is no room.
    fn append_mark(&mut self, durable: Lsn) {
        if !self.active_has_room(64, 1) || self.state.failed.is_some() {
            return;
        }
        let mut batch = Batch::default();
        batch.push_metadata(self.log.context.disk, Kind::Mark, durable, &[]);
        let (content, bytes) = (self.state.last_content, self.state.bytes_since_flush);
        if self.append(&mut batch, true).is_ok() {
            self.state.last_content = content;
            self.state.bytes_since_flush = bytes;
        }
    }

    fn active_has_room(&self, len: usize, records: usize) -> bool {
        self.state.active.as_ref().is_some_and(|active| {
            let summary = active.summary.len() + records * SUMMARY_ENTRY_LEN;
            let is_better_prepared = self.state.prepared.is_some() && active.filled == 0;
            let fits = active.end + len + summary + TRAILER_LEN <= self.log.context.segment_size;
            let is_past_filled = active.filled > 0 && active.end + len > active.filled;
            fits && !is_better_prepared && !(is_past_filled && self.state.prepared.is_some())
        })
    }

    /// A write may have left part of itself behind: cut it off, so that no scan ever meets it.
    fn undo_write(&mut self) {
        let Some(active) = &mut self.state.active else { return };
        active.filled = 0;
        if active.segment.file.set_len(active.end as u64).is_err() {
            self.retire_active();
        }
    }

    fn retire_active(&mut self) {
        let Some(active) = self.state.active.take() else { return };
        self.state.prev = active.segment.id;
        self.state.unsynced.push(active.segment.clone());
        self.state.retired.push(Retired {
            segment: active.segment,
            records_end: active.end,
            first_lsn: active.first_lsn,
            summary: active.summary,
        });
    }

    /// Goes on in a new segment, with room for `len` bytes at least. On an error the old one stays active.
    fn roll(&mut self, len: usize, is_metadata: bool) -> Result<()> {
        let (segment, filled) = match self.state.prepared.take() {
            Some(prepared) => (prepared.segment, prepared.filled),
            None => (self.log.context.segments.create(self.log.context.disk, len, is_metadata)?, 0),
        };
        if let Err(error) = self.log.context.anchor.add_drive(segment.drive) {
            self.log.context.segments.remove(segment.id)?;
            return Err(error);
        }
        let log_index = self.state.next.log_index;
        let prev = self.state.active.as_ref().map_or(self.state.prev, |a| a.segment.id);
        let header = SegmentHeader {
            disk: self.log.context.disk,
            segment: segment.id,
            prev,
            log_index,
            first_lsn: self.state.next.lsn,
            epoch: 0,
            pool: self.log.context.pool,
        };
        if let Err(error) = segment.file.write_at(&header.encode(), 0) {
            self.log.context.segments.remove(segment.id)?;
            return Err(Error::io(format!("segment {:08x}", segment.id.0), error));
        }
        self.retire_active();
        self.state.next.log_index = log_index + 1;
        self.state.active = Some(Active {
            segment,
            end: align_up(SEGMENT_HEADER_LEN),
            filled,
            first_lsn: self.state.next.lsn,
            log_index,
            summary: Vec::new(),
        });
        Ok(())
    }
}
