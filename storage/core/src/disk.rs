//! A disk: byte addresses in, blocks in the log and the map out.
//!
//! Write, step by step, and what a crash after the step leaves:
//! 1. Cut at block boundaries; the ragged ends are completed with what the disk holds there. Nothing.
//! 2. Zero detection, compression, checksums, outside every lock. Nothing.
//! 3. Under the log's lock: are the blocks behind the ragged ends still what step 1 saw? If not, start
//!    over. So two ragged writes to one block never undo each other, and no block lock is needed.
//! 4. The batch goes to the kernel with its LSNs. A process crash from here on keeps it; a power loss
//!    keeps all of it or none.
//! 5. The map learns it, still under the log's lock. Later reads see it.
//! 6. FUA: flush. Then the reply.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::anchor_file::AnchorFile;
use crate::batch::Batch;
use crate::budget::{Budget, Chore, DiskChores};
use crate::codec;
use crate::disk_map::{DiskMap, Origin};
use crate::error::{Error, Result};
use crate::fetch::Fetcher;
use crate::format::Kind;
use crate::log::{Appended, Log, LogGuard};
use crate::units::{BLOCK_SIZE, BlockIndex, DiskId, EXTENT_BLOCKS_MAX, GROUP_BYTES_MAX, Location};
use crate::usage::UsageTable;

/// Blocks of one extent on the write path. Four: one 16 KiB unit is what a random 4 KiB read still decodes
/// cheaply; larger extents are for data that has become cold.
const EXTENT_BLOCKS: usize = 4;
const _: () = assert!(EXTENT_BLOCKS <= EXTENT_BLOCKS_MAX);
/// Blocks trimmed that make a checkpoint worthwhile: 64 MiB, what a segment holds.
const TRIMMED_BLOCKS_MAX: u64 = (64 << 20) / BLOCK_SIZE as u64;
/// Blocks located at once by long reads.
const LOCATE_BLOCKS: usize = 256;
/// A ragged write that lost against others this often goes on under the log's lock.
const RAGGED_TRIES: usize = 16;

thread_local! {
    static BATCH: RefCell<Batch> = RefCell::default();
}

/// Counters since the disk was opened, in bytes.
#[derive(Default)]
pub struct Counters {
    pub read_bytes: AtomicU64,
    pub written_bytes: AtomicU64,
    /// Payloads of DATA records; what the log holds beyond them is metadata.
    pub stored_bytes: AtomicU64,
}

pub struct Disk {
    pub id: DiskId,
    pub(crate) size_bytes: AtomicU64,
    pub(crate) anchor: Arc<AnchorFile>,
    pub(crate) log: Log,
    pub(crate) map: DiskMap,
    pub(crate) fetcher: Fetcher,
    pub(crate) budget: Arc<Budget>,
    pub(crate) chores: DiskChores,
    /// Held by whoever makes a checkpoint.
    pub(crate) checkpointing: Mutex<()>,
    /// Held by whoever writes summaries.
    pub(crate) sealing: Mutex<()>,
    /// How much had been appended to the log at the last checkpoint.
    pub(crate) checkpointed_bytes: AtomicU64,
    /// Blocks trimmed since that last asked for a checkpoint.
    pub(crate) trimmed_blocks: AtomicU64,
    pub(crate) usage: Mutex<UsageTable>,
    pub(crate) is_closed: AtomicBool,
    pub counters: Counters,
}

/// A block that a ragged request covers only partly, completed with the disk's contents.
struct Ragged {
    block: BlockIndex,
    origin: Origin,
    data: [u8; BLOCK_SIZE],
}

impl Disk {
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// Fills `out` with the bytes from `offset`.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check_range(offset, out.len() as u64)?;
        self.counters.read_bytes.fetch_add(out.len() as u64, Ordering::Relaxed);
        let head = (offset.next_multiple_of(BLOCK_SIZE as u64) - offset).min(out.len() as u64);
        let (head, rest) = out.split_at_mut(head as usize);
        let whole = rest.len() / BLOCK_SIZE * BLOCK_SIZE;
        let (middle, tail) = rest.split_at_mut(whole);
        if !head.is_empty() {
            self.read_part(offset, head)?;
        }
        let mut at = offset + head.len() as u64;
        for part in middle.chunks_mut(LOCATE_BLOCKS * BLOCK_SIZE) {
            self.read_blocks(at / BLOCK_SIZE as u64, part)?;
            at += part.len() as u64;
        }
        if !tail.is_empty() {
            self.read_part(at, tail)?;
        }
        Ok(())
    }

    /// Reads bytes that lie within one block.
    fn read_part(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut block = [0; BLOCK_SIZE];
        self.read_blocks(offset / BLOCK_SIZE as u64, &mut block)?;
        let from = (offset % BLOCK_SIZE as u64) as usize;
        out.copy_from_slice(&block[from..from + out.len()]);
        Ok(())
    }

    fn read_blocks(&self, first: BlockIndex, out: &mut [u8]) -> Result<()> {
        if out.len() == BLOCK_SIZE {
            return self.read_block(first, out).map(|_| ());
        }
        let mut locations = [Location::HOLE; LOCATE_BLOCKS];
        let locations = &mut locations[..out.len() / BLOCK_SIZE];
        self.retry_when_moved(|| {
            self.map.locate(self, first, locations)?;
            self.fetcher.read(first, locations, out)
        })
    }

    pub(crate) fn read_block(&self, block: BlockIndex, out: &mut [u8]) -> Result<Origin> {
        self.retry_when_moved(|| {
            let (location, origin) = self.map.locate_one(self, block)?;
            self.fetcher.read(block, &[location], out)?;
            Ok(origin)
        })
    }

    /// Runs `attempt`, again if it failed while a checkpoint replaced what it may have been reading.
    fn retry_when_moved<T>(&self, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            let generation = self.map.generation();
            match attempt() {
                Err(_) if self.map.generation() != generation => {}
                outcome => return outcome,
            }
        }
    }

    /// Writes `data` at `offset`; with `fua` it is durable on return.
    ///
    /// Requests of up to 1 MiB (counted from a block boundary) survive a power loss wholly or not at all.
    pub fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<()> {
        self.check_range(offset, data.len() as u64)?;
        self.counters.written_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let ragged = (at % BLOCK_SIZE as u64) as usize;
            let (part, next) = rest.split_at(rest.len().min(GROUP_BYTES_MAX - ragged));
            match self.write_group(at, part, false) {
                // What was overwritten or trimmed since may make room.
                Err(Error::NoSpace) if self.budget.reclaim() => {
                    self.write_group(at, part, false)?
                }
                outcome => outcome?,
            }
            at += part.len() as u64;
            rest = next;
        }
        if fua { self.flush() } else { Ok(()) }
    }

    /// `is_cut` when a shrinking disk blanks what lies beyond its end.
    fn write_group(&self, offset: u64, data: &[u8], is_cut: bool) -> Result<()> {
        self.budget.wait_for_room(self)?;
        for attempt in 0.. {
            // Giving up the lock between reading and appending is what makes an attempt fail; the last
            // one keeps it.
            let held = (attempt >= RAGGED_TRIES).then(|| self.log.lock());
            let (head, tail) = self.ragged_ends(offset, data)?;
            let appended = BATCH.with_borrow_mut(|batch| {
                batch.clear();
                self.fill_batch(batch, offset, data, head.as_ref(), tail.as_ref());
                let mut log = held.unwrap_or_else(|| self.log.lock());
                // Again, now that no shrinking can come in between.
                if !is_cut {
                    self.check_range(offset, data.len() as u64)?;
                }
                let is_current = |r: &Ragged| self.map.is_unchanged(r.block, r.origin);
                if !head.iter().chain(&tail).all(is_current) {
                    return Ok(None);
                }
                let appended = log.append(batch, false)?;
                self.publish(batch, &appended, &log);
                Ok(Some(appended))
            })?;
            if let Some(appended) = appended {
                self.start_writeback(&appended);
                return Ok(());
            }
        }
        unreachable!("the attempt under the lock succeeds");
    }

    /// The first and last block of the request, completed, where it covers them only partly.
    fn ragged_ends(&self, offset: u64, data: &[u8]) -> Result<(Option<Ragged>, Option<Ragged>)> {
        let end = offset + data.len() as u64;
        let (first, last) = (offset / BLOCK_SIZE as u64, end / BLOCK_SIZE as u64);
        let complete = |block: BlockIndex| -> Result<Ragged> {
            let mut old = [0; BLOCK_SIZE];
            let origin = self.read_block(block, &mut old)?;
            let start = block * BLOCK_SIZE as u64;
            let (from, to) = (offset.max(start), end.min(start + BLOCK_SIZE as u64));
            old[(from - start) as usize..(to - start) as usize]
                .copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
            Ok(Ragged { block, origin, data: old })
        };
        let is_head = !offset.is_multiple_of(BLOCK_SIZE as u64);
        let is_one_block = is_head && first == last;
        let is_tail = !is_one_block && !end.is_multiple_of(BLOCK_SIZE as u64);
        let head = is_head.then(|| complete(first)).transpose()?;
        let tail = is_tail.then(|| complete(last)).transpose()?;
        Ok((head, tail))
    }

    fn fill_batch(
        &self,
        batch: &mut Batch,
        offset: u64,
        data: &[u8],
        head: Option<&Ragged>,
        tail: Option<&Ragged>,
    ) {
        if let Some(head) = head {
            self.push_blocks(batch, head.block, &head.data);
        }
        let skip = (offset.next_multiple_of(BLOCK_SIZE as u64) - offset) as usize;
        if skip < data.len() {
            let whole = (data.len() - skip) / BLOCK_SIZE * BLOCK_SIZE;
            let first = (offset + skip as u64) / BLOCK_SIZE as u64;
            self.push_blocks(batch, first, &data[skip..skip + whole]);
        }
        if let Some(tail) = tail {
            self.push_blocks(batch, tail.block, &tail.data);
        }
    }

    /// Zero blocks become holes, the others extents of up to `EXTENT_BLOCKS`.
    fn push_blocks(&self, batch: &mut Batch, mut block: BlockIndex, mut data: &[u8]) {
        while !data.is_empty() {
            let is_hole = codec::is_zero(&data[..BLOCK_SIZE]);
            let limit = if is_hole { usize::MAX } else { EXTENT_BLOCKS };
            let run = data.chunks_exact(BLOCK_SIZE).take(limit);
            let blocks = 1 + run.skip(1).take_while(|b| codec::is_zero(b) == is_hole).count();
            let (run, rest) = data.split_at(blocks * BLOCK_SIZE);
            if is_hole {
                batch.push_hole(self.id, block, blocks as u32);
            } else {
                batch.push_data(self.id, block, run);
            }
            block += blocks as u64;
            data = rest;
        }
    }

    /// Enters an appended batch into map and accounts.
    pub(crate) fn publish(&self, batch: &Batch, appended: &Appended, log: &LogGuard) {
        let (delta_bytes, entries) = self.map.publish(appended.segment.id, batch.drafts());
        self.budget.note(self, delta_bytes, entries);
        self.note_appended(batch, appended, log);
    }

    /// Enters an appended batch into the accounts; all that metadata needs.
    pub(crate) fn note_appended(&self, batch: &Batch, appended: &Appended, log: &LogGuard) {
        self.usage.lock().appended(appended.segment.id, batch.drafts());
        let data = batch.drafts().iter().filter(|d| d.header.kind == Kind::Data);
        let stored = data.map(|d| d.header.stored_len as u64).sum();
        self.counters.stored_bytes.fetch_add(stored, Ordering::Relaxed);
        if log.has_retired() {
            self.budget.request(self, Chore::Seal);
        }
    }

    fn start_writeback(&self, appended: &Appended) {
        if self.log.wants_early_writeback() {
            let from = appended.offset as u64 & !4095;
            let to = (appended.offset + appended.len) as u64;
            appended.segment.file.start_writeback(from, to - from);
        }
    }

    /// Makes `length` bytes from `offset` read as zeros; metadata only, whatever the length.
    pub fn zero(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        self.check_range(offset, length)?;
        self.zero_range(offset, offset + length, false)?;
        if fua { self.flush() } else { Ok(()) }
    }

    fn zero_range(&self, offset: u64, end: u64, is_cut: bool) -> Result<()> {
        let block = BLOCK_SIZE as u64;
        let whole = offset.next_multiple_of(block)..end / block * block;
        let zeros = [0; BLOCK_SIZE];
        let head_end = whole.start.min(end);
        if offset < head_end {
            self.write_group(offset, &zeros[..(head_end - offset) as usize], is_cut)?;
        }
        let (mut at, last) = (whole.start / block, whole.end / block);
        while at < last {
            let count = (last - at).min(u32::MAX as u64) as u32;
            self.append_hole(at, count)?;
            at += count as u64;
        }
        let tail_start = whole.end.max(head_end);
        if tail_start < end {
            self.write_group(tail_start, &zeros[..(end - tail_start) as usize], is_cut)?;
        }
        Ok(())
    }

    fn append_hole(&self, block: BlockIndex, count: u32) -> Result<()> {
        self.budget.wait_for_room(self)?;
        BATCH.with_borrow_mut(|batch| {
            batch.clear();
            batch.push_hole(self.id, block, count);
            let mut log = self.log.lock();
            // Metadata: a trim must work when the pool is full, since it is what makes room.
            let appended = log.append(batch, true)?;
            self.publish(batch, &appended, &log);
            Ok(())
        })?;
        // Trimmed space comes back with a checkpoint, within seconds rather than whenever one is due.
        let trimmed = self.trimmed_blocks.fetch_add(u64::from(count), Ordering::Relaxed);
        if trimmed + u64::from(count) >= TRIMMED_BLOCKS_MAX {
            self.trimmed_blocks.store(0, Ordering::Relaxed);
            self.budget.request(self, Chore::Checkpoint);
        }
        Ok(())
    }

    /// Makes every write answered before the call durable.
    pub fn flush(&self) -> Result<()> {
        self.check_open()?;
        self.log.flush()?;
        self.budget.note_flush(self);
        Ok(())
    }

    /// Starts bringing the range into the page cache.
    pub fn prefetch(&self, offset: u64, length: u64) -> Result<()> {
        self.check_range(offset, length)?;
        let block = BLOCK_SIZE as u64;
        let (mut at, end) = (offset / block, (offset + length).div_ceil(block));
        let mut locations = [Location::HOLE; LOCATE_BLOCKS];
        while at < end {
            let part = &mut locations[..(end - at).min(LOCATE_BLOCKS as u64) as usize];
            self.retry_when_moved(|| {
                self.map.locate(self, at, part)?;
                self.fetcher.prefetch(part)
            })?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// The runs of data and holes from `offset`, at most `runs_max` of them: `(offset, length, is_hole)`,
    /// gapless, starting at `offset`, within `length`.
    pub fn extents(
        &self,
        offset: u64,
        length: u64,
        runs_max: usize,
    ) -> Result<Vec<(u64, u64, bool)>> {
        self.check_range(offset, length)?;
        let block = BLOCK_SIZE as u64;
        let end = offset + length;
        self.retry_when_moved(|| {
            let mut runs: Vec<(u64, u64, bool)> = Vec::new();
            self.map.runs(self, offset / block..end.div_ceil(block), |is_hole, blocks| {
                let from = (blocks.start * block).max(offset);
                let to = (blocks.end * block).min(end);
                let is_full = runs.len() == runs_max;
                match runs.last_mut() {
                    Some(last) if last.2 == is_hole => last.1 = to - last.0,
                    _ if is_full => return false,
                    _ => runs.push((from, to - from, is_hole)),
                }
                true
            })?;
            Ok(runs)
        })
    }

    /// Where the last mapped block ends, in bytes; 0 for an empty disk.
    pub fn end_of_data(&self) -> Result<u64> {
        let mut end = 0;
        let blocks = self.size_bytes().div_ceil(BLOCK_SIZE as u64);
        self.retry_when_moved(|| {
            self.map.runs(self, 0..blocks, |is_hole, run| {
                end = if is_hole { end } else { run.end * BLOCK_SIZE as u64 };
                true
            })
        })?;
        Ok(end.min(self.size_bytes()))
    }

    /// Changes the size. What lies beyond a smaller one is gone, durably, before this returns: growing
    /// again finds zeros.
    pub fn resize(&self, size_bytes: u64) -> Result<()> {
        self.check_open()?;
        let old = self.size_bytes.swap(size_bytes, Ordering::AcqRel);
        if size_bytes < old {
            // The last block whole: what a disk of odd size has behind its end is blank too.
            let end = old.next_multiple_of(BLOCK_SIZE as u64);
            let cut = self.zero_range(size_bytes, end, true).and_then(|()| self.flush());
            cut.inspect_err(|_| self.size_bytes.store(old, Ordering::Release))?;
        }
        Ok(())
    }

    /// Takes the disk out of service after something that must not happen; the error to answer with.
    pub fn fail(&self, cause: &str) -> Error {
        self.log.fail(cause);
        Error::DiskFailed { disk: self.id, cause: cause.to_string() }
    }

    /// What there is to tell about the disk: name and value, bytes unless the name says otherwise.
    pub fn stats(&self) -> Vec<(&'static str, u64)> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let appended = self.log.appended_bytes();
        let (live, total) = self.live_and_total();
        let stored = count(&self.counters.stored_bytes);
        vec![
            ("mapped_bytes", self.anchor.root().mapped_blocks * BLOCK_SIZE as u64),
            ("live_blocks", live),
            ("garbage_blocks", total - live.min(total)),
            ("segments", self.usage.lock().iter().count() as u64),
            ("read_bytes", count(&self.counters.read_bytes)),
            ("written_bytes", count(&self.counters.written_bytes)),
            ("appended_bytes", appended),
            ("metadata_bytes", appended - stored.min(appended)),
            ("delta_bytes", self.map.delta_bytes() as u64),
        ]
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closed.load(Ordering::Acquire) { Err(Error::PoolClosed) } else { Ok(()) }
    }

    pub(crate) fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        self.check_open()?;
        let size = self.size_bytes();
        if offset.checked_add(length).is_some_and(|end| end <= size) {
            return Ok(());
        }
        Err(Error::InvalidRequest(format!(
            "bytes {offset} to {} of a disk of {size} bytes",
            offset.saturating_add(length)
        )))
    }
}
