//! Appending: placing batches, going on in the next segment, taking back what failed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::{Active, Log, LogState, PAGE_SIZE, Position, Retired, SMALL_FLUSH_BYTES_MAX};
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::format::segment::{SEGMENT_HEADER_LEN, SUMMARY_ENTRY_LEN, TRAILER_LEN};
use crate::format::{Kind, SegmentHeader, SummaryEntry};
use crate::segments::Segment;
use crate::units::{GROUP_BYTES_MAX, Lsn, align_up};

/// Where a batch went, for those who start its writeback.
pub struct Appended {
    pub segment: Arc<Segment>,
    pub offset: usize,
    pub len: usize,
    /// Appended since the last flush began, this included.
    pub bytes_since_flush: u64,
}

pub struct LogGuard<'a> {
    pub(super) log: &'a Log,
    pub(super) state: MutexGuard<'a, LogState>,
}

/// Zeros to write after a batch that ends at `end`, up to the end of its last page. The kernel reads a page
/// that is written in part and not in memory from the drive first, under the log's lock: so it is with a
/// file used again long after. Beyond what is filled nothing needs reading.
fn padding(end: usize, filled: usize) -> usize {
    let page_end = end.next_multiple_of(PAGE_SIZE);
    if page_end <= filled { page_end - end } else { 0 }
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

    /// Has the next flush wait for MARKs too: whoever notes the position as durable needs all before it.
    pub fn cover_marks(&mut self) {
        self.state.last_content = self.state.next.lsn - 1;
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
        let bytes_since_flush = self.state.bytes_since_flush + len as u64;
        let active = self.state.active.as_mut().expect("roll leaves an active segment");
        let padding = padding(active.end + len, active.filled);
        let bytes = batch.place(active.segment.id, active.end, lsn, padding);
        if let Err(error) = active.segment.file.write_at(bytes, active.end as u64) {
            self.undo_write();
            return Err(Error::io(format!("disk {:08x}", self.log.context.disk.0), error));
        }
        let segment = active.segment.clone();
        let appended = Appended { segment, offset: active.end, len, bytes_since_flush };
        for draft in batch.drafts() {
            SummaryEntry::of(&draft.header, draft.offset).encode(&mut active.summary);
        }
        active.end += len;
        self.state.next.lsn += records as u64;
        self.state.last_content = self.state.next.lsn - 1;
        self.state.bytes_since_flush = bytes_since_flush;
        if bytes_since_flush > SMALL_FLUSH_BYTES_MAX {
            self.log.small_flushes.store(0, Ordering::Relaxed);
        }
        self.log.appended_bytes.fetch_add(len as u64, Ordering::Relaxed);
        Ok(appended)
    }

    /// Notes in the log that everything up to `durable` is on stable storage. Lets recovery tell damage
    /// from a torn tail. It begins a segment when the active one is full: what a flush covered at the end
    /// of that one could else be taken for torn. Nothing waits for it, and a full drive goes without.
    pub(super) fn append_mark(&mut self, durable: Lsn) {
        if self.state.failed.is_some() {
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

    pub(super) fn retire_active(&mut self) {
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
            None => self.log.context.segments.create(self.log.context.disk, len, is_metadata)?,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_padded_to_whole_pages_in_the_filled_part_of_a_file_only() {
        assert_eq!([padding(4000, 0), padding(4000, 4095), padding(4096, 4096)], [0; 3]);
        assert_eq!([padding(4000, 4096), padding(4097, 8192)], [96, 4095]);
    }
}
