//! A disk in service: byte addresses in, blocks of the map and the log out. Writing is in `write`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hashbrown::HashSet;
use parking_lot::Mutex;

use crate::anchor_file::AnchorFile;
use crate::budget::{Budget, DiskChores};
use crate::codec::Compression;
use crate::disk_map::{DiskMap, Origin};
use crate::error::{Error, Result};
use crate::fetch::Fetcher;
use crate::log::Log;
use crate::pending::Pending;
use crate::throttle::Throttle;
use crate::units::{BLOCK_SIZE, BlockIndex, DiskId, Location, SegmentId};
use crate::usage::UsageTable;

/// Blocks located at once by long reads.
const LOCATE_BLOCKS: usize = 256;
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
    /// 0 while only the pool itself uses the disk.
    pub(crate) size_bytes: AtomicU64,
    pub(crate) anchor: Arc<AnchorFile>,
    pub(crate) log: Log,
    pub(crate) map: DiskMap,
    pub(crate) fetcher: Fetcher,
    pub(crate) budget: Arc<Budget>,
    pub(crate) pending: Arc<Pending>,
    pub(crate) chores: DiskChores,
    /// Held by whoever makes a checkpoint.
    pub(crate) checkpointing: Mutex<()>,
    /// Held by whoever writes summaries.
    pub(crate) sealing: Mutex<()>,
    /// How much had been appended to the log at the last checkpoint.
    pub(crate) checkpointed_bytes: AtomicU64,
    /// Blocks trimmed since that last asked for a checkpoint.
    pub(crate) trimmed_blocks: AtomicU64,
    /// Something was changed since a pass of the cleaner that freed nothing.
    pub(crate) may_gain_by_cleaning: AtomicBool,
    pub(crate) usage: Mutex<UsageTable>,
    /// Segments of other disks that the durable root may lead into.
    pub(crate) held: Mutex<HashSet<SegmentId>>,
    pub(crate) is_closed: AtomicBool,
    pub throttle: Throttle,
    /// New data is compressed.
    pub(crate) is_compressed: AtomicBool,
    pub counters: Counters,
}

impl Disk {
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// Fills `out` with the bytes from `offset`.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check_range(offset, out.len() as u64)?;
        self.throttle.admit(out.len() as u64);
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
    pub(crate) fn retry_when_moved<T>(&self, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            let generation = self.map.generation();
            match attempt() {
                Err(_) if self.map.generation() != generation => {}
                outcome => return outcome,
            }
        }
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

    /// How many bytes hold data, and where the last of them ends; 0 for an empty disk. As of the call,
    /// not of a checkpoint: it walks the map.
    pub fn measure_data(&self) -> Result<(u64, u64)> {
        let (mut count, mut end) = (0, 0);
        let blocks = self.size_bytes().div_ceil(BLOCK_SIZE as u64);
        self.retry_when_moved(|| {
            (count, end) = (0, 0);
            self.map.runs(self, 0..blocks, |is_hole, run| {
                if !is_hole {
                    count += run.end - run.start;
                    end = run.end;
                }
                true
            })
        })?;
        Ok((count * BLOCK_SIZE as u64, (end * BLOCK_SIZE as u64).min(self.size_bytes())))
    }

    /// Changes the size. What lies beyond a smaller one is gone, durably, before this returns: growing
    /// again finds zeros.
    pub fn resize(&self, size_bytes: u64) -> Result<()> {
        self.check_open()?;
        self.check_writable()?;
        let old = self.size_bytes.swap(size_bytes, Ordering::AcqRel);
        if size_bytes < old {
            // The last block whole: what a disk of odd size has behind its end is blank too.
            let end = old.next_multiple_of(BLOCK_SIZE as u64);
            let cut = self.cut(size_bytes, end).and_then(|()| self.flush());
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
            ("live_blocks", live),
            ("garbage_blocks", total - live.min(total)),
            ("segments", self.segments_in_use() as u64),
            ("read_bytes", count(&self.counters.read_bytes)),
            ("written_bytes", count(&self.counters.written_bytes)),
            ("appended_bytes", appended),
            ("metadata_bytes", appended - stored.min(appended)),
            ("delta_bytes", self.map.delta_bytes() as u64),
        ]
    }

    pub fn is_snapshot(&self) -> bool {
        self.anchor.root().is_snapshot
    }

    /// How data written or moved from now on is stored.
    pub fn set_compression(&self, compression: Compression) {
        self.is_compressed.store(compression == Compression::Lz4, Ordering::Relaxed);
    }

    pub(crate) fn compression(&self) -> Compression {
        match self.is_compressed.load(Ordering::Relaxed) {
            true => Compression::Lz4,
            false => Compression::None,
        }
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.is_snapshot() { Err(Error::ReadOnly(self.id)) } else { Ok(()) }
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
