//! Writing and zeroing.
//!
//! Step by step, and what a crash after the step leaves:
//! 1. Cut at block boundaries; the ragged ends are completed with what the disk holds there. Nothing.
//! 2. Zero detection, compression, checksums, outside every lock. Nothing.
//! 3. Under the log's lock: are the blocks behind the ragged ends still what step 1 saw? If not, start
//!    over. So two ragged writes to one block never undo each other, and no block lock is needed.
//! 4. The batch goes to the kernel with its LSNs. A process crash from here on keeps it; a power loss
//!    keeps all of it or none.
//! 5. The map learns it, still under the log's lock. Later reads see it.
//! 6. FUA: flush. Then the reply.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::batch::Batch;
use crate::budget::Chore;
use crate::codec;
use crate::disk::Disk;
use crate::disk_map::Origin;
use crate::error::{Error, Result};
use crate::format::Kind;
use crate::log::{Appended, LogGuard};
use crate::units::{BLOCK_SIZE, BlockIndex, EXTENT_BLOCKS_MAX, GROUP_BYTES_MAX};

/// Blocks of one extent on the write path. One: a random 4 KiB read then fetches, verifies and decodes
/// nothing but its block (ADR 0006). Larger extents are for data that has become cold.
const EXTENT_BLOCKS: usize = 1;
const _: () = assert!(EXTENT_BLOCKS <= EXTENT_BLOCKS_MAX);
/// Blocks trimmed that make a checkpoint worthwhile: 64 MiB, what a segment holds.
const TRIMMED_BLOCKS_MAX: u64 = (64 << 20) / BLOCK_SIZE as u64;
/// A ragged write that lost against others this often goes on under the log's lock.
const RAGGED_TRIES: usize = 16;

thread_local! {
    static BATCH: RefCell<Batch> = RefCell::default();
}

/// What a range of bytes is to hold.
#[derive(Clone, Copy)]
enum Content<'a> {
    Data(&'a [u8]),
    Zeros,
}

/// A range of bytes and what it is to hold: one atomic group.
#[derive(Clone, Copy)]
struct Change<'a> {
    start: u64,
    end: u64,
    content: Content<'a>,
    /// Beyond the end of a disk that is being made smaller.
    is_cut: bool,
}

/// A block that a change covers only partly, completed with the disk's contents.
struct Ragged {
    block: BlockIndex,
    origin: Origin,
    data: [u8; BLOCK_SIZE],
}

impl Change<'_> {
    /// The blocks that are covered wholly; empty when there are none.
    fn whole_blocks(&self) -> Range<BlockIndex> {
        let first = self.start.div_ceil(BLOCK_SIZE as u64);
        first..(self.end / BLOCK_SIZE as u64).max(first)
    }

    /// The blocks that are covered partly: at the start, at the end.
    fn ragged_blocks(&self) -> [Option<BlockIndex>; 2] {
        let is_ragged = |at: &u64| !at.is_multiple_of(BLOCK_SIZE as u64);
        let block_of = |at: u64| at / BLOCK_SIZE as u64;
        let head = Some(self.start).filter(is_ragged).map(block_of);
        let tail = Some(self.end).filter(is_ragged).map(block_of).filter(|b| Some(*b) != head);
        [head, tail]
    }

    /// Changes the part of `block`, whose contents `data` holds, that lies in the range.
    fn apply_to(&self, block: BlockIndex, data: &mut [u8; BLOCK_SIZE]) {
        let block_start = block * BLOCK_SIZE as u64;
        let (from, to) =
            (self.start.max(block_start), self.end.min(block_start + BLOCK_SIZE as u64));
        let part = &mut data[(from - block_start) as usize..(to - block_start) as usize];
        match self.content {
            Content::Data(new) => {
                part.copy_from_slice(&new[(from - self.start) as usize..(to - self.start) as usize])
            }
            Content::Zeros => part.fill(0),
        }
    }
}

impl Disk {
    /// Writes `data` at `offset`; with `fua` it is durable on return.
    ///
    /// Requests of up to 1 MiB (counted from a block boundary) survive a power loss wholly or not at all.
    pub fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<()> {
        self.check_range(offset, data.len() as u64)?;
        self.check_writable()?;
        self.throttle.admit(data.len() as u64);
        self.counters.written_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let ragged = (at % BLOCK_SIZE as u64) as usize;
            let (part, next) = rest.split_at(rest.len().min(GROUP_BYTES_MAX - ragged));
            let end = at + part.len() as u64;
            let change = Change { start: at, end, content: Content::Data(part), is_cut: false };
            match self.make(&change) {
                // What was overwritten or trimmed since may make room.
                Err(Error::NoSpace) if self.budget.reclaim() => self.make(&change)?,
                outcome => outcome?,
            }
            (at, rest) = (end, next);
        }
        if fua { self.flush() } else { Ok(()) }
    }

    /// Makes `length` bytes from `offset` read as zeros; metadata only, whatever the length. Survives a
    /// power loss wholly or not at all.
    pub fn zero(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        self.check_range(offset, length)?;
        self.check_writable()?;
        self.throttle.admit(0);
        self.make_zeros(offset, offset + length, false)?;
        if fua { self.flush() } else { Ok(()) }
    }

    /// Blanks what lies beyond the end of a disk that has become smaller.
    pub(crate) fn cut(&self, start: u64, end: u64) -> Result<()> {
        self.make_zeros(start, end, true)
    }

    fn make_zeros(&self, start: u64, end: u64, is_cut: bool) -> Result<()> {
        if start == end {
            return Ok(());
        }
        let change = Change { start, end, content: Content::Zeros, is_cut };
        self.make(&change)?;
        // Trimmed space comes back with a checkpoint, soon rather than whenever one is due.
        let blocks = change.whole_blocks();
        let count = blocks.end - blocks.start;
        if self.trimmed_blocks.fetch_add(count, Ordering::Relaxed) + count >= TRIMMED_BLOCKS_MAX {
            self.trimmed_blocks.store(0, Ordering::Relaxed);
            self.budget.request(self, Chore::Checkpoint);
        }
        Ok(())
    }

    /// Steps 1 to 5.
    fn make(&self, change: &Change) -> Result<()> {
        self.budget.wait_for_room(self)?;
        for attempt in 0.. {
            // Giving up the lock between reading and appending is what makes an attempt fail; the last
            // one keeps it.
            let held = (attempt >= RAGGED_TRIES).then(|| self.log.lock());
            let appended = BATCH.with_borrow_mut(|batch| {
                batch.clear();
                let ragged = self.fill_batch(batch, change)?;
                let mut log = held.unwrap_or_else(|| self.log.lock());
                if !change.is_cut {
                    // Again, now that no shrinking can come in between.
                    self.check_range(change.start, change.end - change.start)?;
                }
                let is_current = |r: &Ragged| self.map.is_unchanged(r.block, r.origin);
                if !ragged.iter().flatten().all(is_current) {
                    return Ok(None);
                }
                // A trim must work when the pool is full, since it is what makes room.
                let appended = log.append(batch, matches!(change.content, Content::Zeros))?;
                self.publish(batch, &appended, &log);
                Ok(Some(appended))
            })?;
            if let Some(appended) = appended {
                if !self.may_gain_by_cleaning.load(Ordering::Relaxed) {
                    self.may_gain_by_cleaning.store(true, Ordering::Relaxed);
                }
                self.log.start_writeback(&appended);
                return Ok(());
            }
        }
        unreachable!("the attempt under the lock succeeds");
    }

    /// Lays the change out as records, in block order; returns what the ragged ends were completed with.
    fn fill_batch(&self, batch: &mut Batch, change: &Change) -> Result<[Option<Ragged>; 2]> {
        let [head, tail] = change.ragged_blocks();
        let head = head.map(|block| self.complete(block, change)).transpose()?;
        let tail = tail.map(|block| self.complete(block, change)).transpose()?;
        if let Some(head) = &head {
            self.push_blocks(batch, head.block, &head.data);
        }
        let whole = change.whole_blocks();
        match change.content {
            Content::Data(data) if !whole.is_empty() => {
                let skip = (whole.start * BLOCK_SIZE as u64 - change.start) as usize;
                let len = (whole.end - whole.start) as usize * BLOCK_SIZE;
                self.push_blocks(batch, whole.start, &data[skip..skip + len]);
            }
            Content::Data(_) => {}
            Content::Zeros => self.push_holes(batch, whole),
        }
        if let Some(tail) = &tail {
            self.push_blocks(batch, tail.block, &tail.data);
        }
        Ok([head, tail])
    }

    fn complete(&self, block: BlockIndex, change: &Change) -> Result<Ragged> {
        let mut data = [0; BLOCK_SIZE];
        let origin = self.read_block(block, &mut data)?;
        change.apply_to(block, &mut data);
        Ok(Ragged { block, origin, data })
    }

    fn push_holes(&self, batch: &mut Batch, mut blocks: Range<BlockIndex>) {
        while !blocks.is_empty() {
            let count = (blocks.end - blocks.start).min(u64::from(u32::MAX));
            batch.push_hole(self.id, blocks.start, count as u32);
            blocks.start += count;
        }
    }

    /// Zero blocks become holes, the others extents of up to `EXTENT_BLOCKS`.
    fn push_blocks(&self, batch: &mut Batch, mut block: BlockIndex, mut data: &[u8]) {
        let compression = self.compression();
        while !data.is_empty() {
            let is_hole = codec::is_zero(&data[..BLOCK_SIZE]);
            let limit = if is_hole { usize::MAX } else { EXTENT_BLOCKS };
            let run = data.chunks_exact(BLOCK_SIZE).take(limit);
            let blocks = 1 + run.skip(1).take_while(|b| codec::is_zero(b) == is_hole).count();
            let (run, rest) = data.split_at(blocks * BLOCK_SIZE);
            if is_hole {
                batch.push_hole(self.id, block, blocks as u32);
            } else {
                batch.push_data(self.id, block, run, compression);
            }
            block += blocks as u64;
            data = rest;
        }
    }

    /// Enters an appended batch into map and accounts.
    pub(crate) fn publish(&self, batch: &Batch, appended: &Appended, log: &LogGuard) {
        let changes = self.map.publish(appended.segment.id, batch.drafts());
        self.budget.note(self, changes);
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
}
