//! The cleaner: takes what is still alive out of segments that are mostly garbage, so that the next
//! checkpoint can remove them.
//!
//! Moving is an ordinary append with the same contents, made only if the map still says what it said when
//! the block was read. So the cleaner never undoes a write, and a crash at any moment leaves both copies
//! or one. A segment is removed by a checkpoint that no longer needs it, never by the cleaner.
//!
//! It is lazy while the drives have room: garbage costs nothing until space is wanted, and moving the
//! living is dear as long as they are many. What is allowed is as much garbage as there is living data, but
//! no more than a quarter of the free space, and 30 % of the living data in any case.

use std::sync::atomic::Ordering;

use crate::batch::Batch;
use crate::budget::Chore;
use crate::disk::Disk;
use crate::disk_map::Origin;
use crate::error::{Error, Result};
use crate::format::{Kind, SummaryEntry};
use crate::segment_reader::{read_summary, read_trailer};
use crate::units::{BLOCK_SIZE, BlockIndex, EXTENT_BLOCKS_MAX, Location, SegmentId};

/// Bytes moved in one pass, before a checkpoint gives back what has become free: bounded by the space
/// that is kept in reserve for this.
const MOVED_BYTES_MAX: u64 = 128 << 20;

impl Disk {
    /// Is there more garbage than the drives can spare?
    pub(crate) fn wants_cleaning(&self) -> bool {
        let (live, total) = self.live_and_total();
        let free_bytes = self.fetcher.segments.space().map_or(0, |space| space.free_bytes);
        let share =
            free_bytes / BLOCK_SIZE as u64 / 4 / self.budget.open_disks().len().max(1) as u64;
        // The last two segments' worth is never worth it: a checkpoint leaves garbage of its own.
        let least = 2 * (self.log.segment_size() / BLOCK_SIZE) as u64;
        total - live.min(total) > share.min(live).max(live / 10 * 3).max(least)
    }

    /// How many of the disk's segments hold anything that it uses.
    pub(crate) fn segments_in_use(&self) -> usize {
        let usage = self.usage.lock();
        usage.iter().filter(|(id, u)| u.live > 0 && self.fetcher.is_own(*id)).count()
    }

    /// Blocks and nodes in use, and ever appended, in those of the disk's segments that hold anything in
    /// use and that nobody else holds.
    pub(crate) fn live_and_total(&self) -> (u64, u64) {
        let usage = self.usage.lock();
        let own = usage.iter().filter(|(id, u)| u.live > 0 && self.is_cleanable(*id));
        own.fold((0, 0), |(live, total), (_, u)| {
            (live + u64::from(u.live), total + u64::from(u.total))
        })
    }

    /// Moving out of a segment that a snapshot or clone holds would free nothing.
    fn is_cleanable(&self, id: SegmentId) -> bool {
        self.fetcher.is_own(id) && !self.fetcher.holds.is_held(id)
    }

    /// Moves the living out of the segments with least of them, and makes the checkpoint that removes those.
    pub(crate) fn clean(&self) -> Result<()> {
        let segments_before = self.segments_in_use();
        self.may_gain_by_cleaning.store(false, Ordering::Relaxed);
        let mut has_moved = false;
        for id in self.victims() {
            has_moved |= self.empty_segment(id)?;
        }
        if has_moved {
            self.checkpoint()?;
        }
        // Where a pass gains nothing, the next would not either, until something is written.
        if self.segments_in_use() < segments_before {
            self.may_gain_by_cleaning.store(true, Ordering::Relaxed);
            self.request_cleaning();
        }
        Ok(())
    }

    fn victims(&self) -> Vec<SegmentId> {
        let replay_segment = self.anchor.root().replay_segment;
        let mut candidates: Vec<_> = {
            let usage = self.usage.lock();
            // Those without any are removed by the next checkpoint as they are.
            let is_worth_it =
                |live: u32, total: u32| live > 0 && u64::from(live) * 10 < u64::from(total) * 9;
            let old = usage.iter().filter(|(id, _)| *id < replay_segment && self.is_cleanable(*id));
            old.filter(|(_, u)| is_worth_it(u.live, u.total)).collect()
        };
        candidates.sort_by_key(|(_, u)| u64::from(u.live) * 1000 / u64::from(u.total.max(1)));
        let budget = MOVED_BYTES_MAX.min(self.fetcher.segments.reserve_bytes() / 2);
        let mut moved = 0;
        let fits = |(_, usage): &(SegmentId, crate::usage::Usage)| {
            moved += u64::from(usage.live) * BLOCK_SIZE as u64;
            moved <= budget
        };
        // The first one always: a pass that moves nothing would be repeated for ever.
        let first = candidates.first().copied();
        let rest = candidates.into_iter().skip(1);
        first.into_iter().chain(rest.take_while(fits)).map(|(id, _)| id).collect()
    }

    /// True if it moved anything.
    fn empty_segment(&self, id: SegmentId) -> Result<bool> {
        let segment = self.fetcher.segments.get(id, self.id)?;
        // Not sealed yet, or its end is damaged: left alone, its records stay where they are.
        let Some(trailer) = read_trailer(&segment)? else { return Ok(false) };
        let Some(entries) = read_summary(&segment, &trailer)? else { return Ok(false) };
        let mut has_moved = false;
        for entry in entries {
            let moved = match entry.kind {
                Kind::Data => {
                    let is_here =
                        |at: Location| at.segment() == id && at.offset() == entry.offset as usize;
                    self.move_blocks(entry.block, entry.count as usize, is_here)
                }
                Kind::Node => self.move_node(id, &entry),
                Kind::Hole | Kind::Usage | Kind::Root | Kind::Mark => Ok(false),
            };
            has_moved |= match moved {
                // Damaged blocks stay where they are, for whoever can repair them.
                Err(Error::Corrupt { .. }) => false,
                other => other?,
            };
        }
        Ok(has_moved)
    }

    /// Has a node written anew if the tree still uses it, by moving one block below it.
    fn move_node(&self, id: SegmentId, entry: &SummaryEntry) -> Result<bool> {
        let tree = self.map.tree();
        let at = tree.node_at(self, entry.count as u8, entry.block)?;
        if at.segment() != id || at.offset() != entry.offset as usize {
            return Ok(false);
        }
        let first = entry.block;
        let (is_hole, end) = tree.next_run(self, first, u64::MAX >> 16)?;
        let block = if is_hole { end } else { first };
        self.move_blocks(block, 1, |_| true)
    }

    /// Appends anew those of the `count` blocks from `first` whose location is chosen; true if there are any.
    fn move_blocks(
        &self,
        first: BlockIndex,
        count: usize,
        is_chosen: impl Fn(Location) -> bool,
    ) -> Result<bool> {
        debug_assert!(count <= EXTENT_BLOCKS_MAX);
        let mut batch = Batch::default();
        loop {
            batch.clear();
            let mut origins: Vec<(BlockIndex, Origin)> = Vec::new();
            let mut data = vec![0; count * BLOCK_SIZE];
            let mut run: Option<usize> = None;
            for i in 0..=count {
                let chosen = match i < count {
                    true => self.chosen_origin(first + i as u64, &is_chosen)?,
                    false => None,
                };
                if let Some(origin) = chosen {
                    let block = &mut data[i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE];
                    self.read_block(first + i as u64, block)?;
                    origins.push((first + i as u64, origin));
                    run.get_or_insert(i);
                } else if let Some(start) = run.take() {
                    let blocks = &data[start * BLOCK_SIZE..i * BLOCK_SIZE];
                    batch.push_data(self.id, first + start as u64, blocks, self.compression());
                }
            }
            if origins.is_empty() {
                return Ok(false);
            }
            if self.append_moved(&mut batch, &origins)? {
                return Ok(true);
            }
        }
    }

    fn chosen_origin(
        &self,
        block: BlockIndex,
        is_chosen: &impl Fn(Location) -> bool,
    ) -> Result<Option<Origin>> {
        let (location, origin) = self.map.locate_one(self, block)?;
        Ok((!location.is_hole() && is_chosen(location)).then_some(origin))
    }

    /// False if one of the blocks has changed since it was read.
    fn append_moved(&self, batch: &mut Batch, origins: &[(BlockIndex, Origin)]) -> Result<bool> {
        let mut log = self.log.lock();
        if !origins.iter().all(|(block, origin)| self.map.is_unchanged(*block, *origin)) {
            return Ok(false);
        }
        let appended = log.append(batch, true)?;
        self.publish(batch, &appended, &log);
        Ok(true)
    }

    /// After a checkpoint: goes on cleaning while there is too much garbage.
    pub(crate) fn request_cleaning(&self) {
        if self.may_gain_by_cleaning.load(Ordering::Relaxed) && self.wants_cleaning() {
            self.budget.request(self, Chore::Clean);
        }
    }
}
