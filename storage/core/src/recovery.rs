//! Recovery: from the durable root and the log behind it to a disk in service.
//!
//! 1. Find the segments that may continue the log from the root's position. Sealed ones will be taken from
//!    their summaries; all others are scanned, every record verified.
//! 2. Find the *durable mark*: the highest LSN that anything found (a trailer, a MARK, the root) says was
//!    on stable storage.
//! 3. Walk: records must follow each other by LSN without a gap. The walk ends where the next one is not
//!    there or not valid. Above the durable mark that is the torn end of the log. Up to it, it is damage: a
//!    record with a bad payload is mapped all the same (reads give an error, not old data); one whose
//!    header is gone keeps the disk closed, since nobody can say which blocks it was about.
//! 4. Durably, before the first append: files beyond the end are removed, the last segment is cut behind
//!    its last whole group. So recovery that is interrupted and repeated finds the same, and what was cut
//!    off never comes back between older and newer records.
//! 5. What lies above the durable mark is written once more, as it is: if a sync failed before the crash,
//!    the kernel holds these pages as clean, and no later sync would write them.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::disk_map::{Cut, Frozen, apply};
use crate::error::{Error, Result};
use crate::fetch::Fetcher;
use crate::format::segment::SEGMENT_HEADER_LEN;
use crate::format::{Kind, RecordHeader, Root, SegmentHeader, SummaryEntry};
use crate::log::{LogStart, Position, Retired};
use crate::map::Delta;
use crate::segment_reader::{Scanned, file_len, read_header, read_summary, read_trailer, scan};
use crate::segments::Segment;
use crate::units::{DiskId, Lsn, align_up};
use crate::usage::{UsageTable, load_usage};

pub struct Recovered {
    pub delta: Delta,
    /// Changes up to each of the cuts, oldest first.
    pub frozen: Vec<Frozen>,
    pub usage: UsageTable,
    pub log: LogStart,
}

/// A segment that may belong to the log.
struct Candidate {
    segment: Arc<Segment>,
    header: SegmentHeader,
    records: Records,
}

enum Records {
    /// Sealed: the summary is read when the walk gets there.
    Sealed(crate::format::Trailer),
    Scanned(Vec<Scanned>),
}

struct Found {
    /// In log order.
    log: Vec<Candidate>,
    /// Files without a valid header: made in advance and not used, or torn while being made.
    strays: Vec<Arc<Segment>>,
    durable: Lsn,
}

/// Reads the log of the fetcher's disk from `root` on; leaves it ready to be appended to. `cuts`, in log
/// order, are those of snapshots whose trees are still to be made: the log is durable up to each.
///
/// Errors: `DriveMissing`, `Corrupt` (nothing was changed), I/O errors.
pub fn recover(
    root: &Root,
    pool: [u8; 16],
    fetcher: &Fetcher,
    cuts: Vec<Cut>,
) -> Result<Recovered> {
    let disk = fetcher.disk;
    if let Some(drive) = fetcher.segments.missing_drive(root.drives) {
        return Err(Error::DriveMissing { disk, drive });
    }
    let found = find(root, pool, fetcher)?;
    let (usage, usage_lsn) = load_usage(root, fetcher)?;
    let cut_lsn = cuts.last().map_or(0, |cut| cut.replay.lsn - 1);
    let mut walk = Walk {
        disk,
        root,
        // The log was flushed behind the usage table before the root became durable.
        durable: found.durable.max(usage_lsn).max(cut_lsn),
        delta: Delta::new(),
        frozen: Vec::new(),
        cuts: cuts.into(),
        usage,
        next_lsn: root.replay_lsn,
        group: Vec::new(),
        retired: Vec::new(),
        volatile: Vec::new(),
    };
    let used = walk.follow(&found.log)?;
    walk.cut_off_before(walk.next_lsn);
    let beyond = found.log[used..].iter().map(|c| &c.segment).chain(&found.strays);
    clear_away(&walk, beyond.cloned().collect(), fetcher)?;
    for (segment, range) in &walk.volatile {
        write_again(segment, range.clone())?;
    }
    let last = found.log[..used].last();
    let next = Position {
        log_index: last.map_or(root.replay_log_index, |c| c.header.log_index + 1),
        lsn: walk.next_lsn,
        ..Position::default()
    };
    let prev = last.map(|c| c.segment.id).unwrap_or_default();
    let unsynced = walk.retired.iter().map(|r| r.segment.clone()).collect();
    let log = LogStart { next, prev, unsynced, retired: walk.retired };
    Ok(Recovered { delta: walk.delta, frozen: walk.frozen, usage: walk.usage, log })
}

/// Steps 1 and 2.
fn find(root: &Root, pool: [u8; 16], fetcher: &Fetcher) -> Result<Found> {
    let durable = root.replay_lsn.saturating_sub(1);
    let mut found = Found { log: Vec::new(), strays: Vec::new(), durable };
    for id in fetcher.segments.of_disk(fetcher.disk) {
        if id < root.replay_segment {
            continue;
        }
        let segment = fetcher.segments.get(id, fetcher.disk)?;
        let records = match read_trailer(&segment)? {
            Some(trailer) => {
                found.durable = found.durable.max(trailer.last_lsn);
                Records::Sealed(trailer)
            }
            None => Records::Scanned(scan(&segment)?),
        };
        if let Records::Scanned(records) = &records {
            let marks = records.iter().filter(|r| r.header.kind == Kind::Mark);
            found.durable = marks.map(|r| r.header.block).fold(found.durable, Lsn::max);
        }
        let is_ours =
            |h: &SegmentHeader| h.disk == fetcher.disk && h.segment == id && h.pool == pool;
        match read_header(&segment)?.filter(is_ours) {
            Some(header) => found.log.push(Candidate { segment, header, records }),
            None => found.strays.push(segment),
        }
    }
    found.log.sort_by_key(|c| c.header.log_index);
    Ok(found)
}

struct Walk<'a> {
    disk: DiskId,
    root: &'a Root,
    durable: Lsn,
    delta: Delta,
    frozen: Vec<Frozen>,
    /// Those not reached yet.
    cuts: VecDeque<Cut>,
    usage: UsageTable,
    next_lsn: Lsn,
    /// Records of a group whose end has not come yet.
    group: Vec<(RecordHeader, usize)>,
    retired: Vec<Retired>,
    /// Parts of segments that nothing vouches for the durability of.
    volatile: Vec<(Arc<Segment>, Range<usize>)>,
}

impl Walk<'_> {
    /// Step 3. Returns how many of the candidates belong to the log.
    fn follow(&mut self, log: &[Candidate]) -> Result<usize> {
        if !self.root.replay_segment.is_none()
            && log.first().is_none_or(|c| c.segment.id != self.root.replay_segment)
        {
            let detail = "the segment where the log goes on is missing or its header is damaged";
            return Err(Error::corrupt(self.disk, self.root.replay_segment, 0, detail));
        }
        let mut used = 0usize;
        for candidate in log {
            let expected_index = self.root.replay_log_index + used as u64;
            let is_next = candidate.header.log_index == expected_index
                && match used {
                    0 => candidate.header.first_lsn <= self.next_lsn,
                    _ => candidate.header.first_lsn == self.next_lsn,
                };
            if !is_next {
                break;
            }
            self.next_lsn = candidate.header.first_lsn;
            used += 1;
            if !self.replay(candidate)? {
                break;
            }
        }
        if self.next_lsn <= self.durable {
            let at =
                log.get(used.saturating_sub(1)).map_or(self.root.replay_segment, |c| c.segment.id);
            let detail = format!("records {} to {} are gone", self.next_lsn, self.durable);
            return Err(Error::corrupt(self.disk, at, 0, detail));
        }
        Ok(used)
    }

    /// Takes over a segment's records; false if they end inside a group, which is given back.
    fn replay(&mut self, candidate: &Candidate) -> Result<bool> {
        let segment = &candidate.segment;
        self.usage.reset_total(segment.id);
        match &candidate.records {
            Records::Sealed(trailer) => {
                if let Some(entries) = read_summary(segment, trailer)? {
                    for entry in entries {
                        let header = entry.to_header(self.disk, self.next_lsn);
                        self.take(segment, header, entry.offset as usize);
                    }
                } else {
                    // The records are whole all the same: the summary only saves reading them.
                    self.replay_scanned(segment, &scan(segment)?);
                }
            }
            Records::Scanned(records) => {
                let first_lsn = self.next_lsn;
                let (records_end, summary) = self.replay_scanned(segment, records);
                let vouched = records.iter().take_while(|r| r.header.lsn <= self.durable);
                let vouched = vouched.last().map_or(0, |r| r.offset + r.header.stride());
                let segment = segment.clone();
                self.volatile.push((segment.clone(), vouched.min(records_end)..records_end));
                self.retired.push(Retired { segment, records_end, first_lsn, summary });
            }
        }
        let unfinished = self.group.len() as u64;
        self.next_lsn -= unfinished;
        self.group.clear();
        Ok(unfinished == 0)
    }

    /// Takes the valid records from the segment's start on; where the last whole group ends, and the
    /// summary up to there.
    fn replay_scanned(&mut self, segment: &Segment, records: &[Scanned]) -> (usize, Vec<u8>) {
        let mut end = align_up(SEGMENT_HEADER_LEN);
        let mut summary = Vec::new();
        let mut whole = (end, 0);
        for record in records {
            let is_next = record.offset == end && record.header.lsn == self.next_lsn;
            if !is_next || !(record.is_payload_valid || record.header.lsn <= self.durable) {
                break;
            }
            self.take(segment, record.header, record.offset);
            SummaryEntry::of(&record.header, record.offset).encode(&mut summary);
            end += record.header.stride();
            if self.group.is_empty() {
                whole = (end, summary.len());
            }
        }
        summary.truncate(whole.1);
        (whole.0, summary)
    }

    /// Cuts the changes off where snapshots were taken, if the next change has this LSN.
    fn cut_off_before(&mut self, lsn: Lsn) {
        while let Some(cut) = self.cuts.front().copied().filter(|cut| cut.replay.lsn <= lsn) {
            self.cuts.pop_front();
            let delta = Arc::new(std::mem::take(&mut self.delta));
            self.frozen.push(Frozen { delta, cut });
        }
    }

    /// One record; the map learns it when its group is whole.
    fn take(&mut self, segment: &Segment, header: RecordHeader, offset: usize) {
        self.next_lsn += 1;
        self.group.push((header, offset));
        if header.continues {
            return;
        }
        let group = std::mem::take(&mut self.group);
        self.cut_off_before(group[0].0.lsn);
        for (header, offset) in group {
            self.usage.replayed(segment.id, &header);
            if header.lsn >= self.root.replay_lsn {
                apply(&mut self.delta, &header, segment.id, offset);
            }
        }
    }
}

/// Step 4.
fn clear_away(walk: &Walk, beyond: Vec<Arc<Segment>>, fetcher: &Fetcher) -> Result<()> {
    for segment in &beyond {
        fetcher.segments.remove(segment.id)?;
    }
    let mut drives: Vec<_> = beyond.iter().map(|s| s.drive).collect();
    drives.sort_unstable();
    drives.dedup();
    for drive in drives {
        fetcher.segments.sync_names(fetcher.disk, drive)?;
    }
    for retired in &walk.retired {
        let segment = &retired.segment;
        if file_len(segment)? > retired.records_end {
            let place = |e| Error::io(format!("segment {:08x}", segment.id.0), e);
            segment.file.set_len(retired.records_end as u64).map_err(place)?;
            segment.file.sync_data().map_err(place)?;
        }
    }
    Ok(())
}

/// Step 5.
fn write_again(segment: &Segment, range: Range<usize>) -> Result<()> {
    let place = |e| Error::io(format!("segment {:08x}", segment.id.0), e);
    let mut bytes = vec![0; range.len().min(1 << 20)];
    for at in range.clone().step_by(bytes.len().max(1)) {
        let part = bytes.len().min(range.end - at);
        let got = segment.file.read_at(&mut bytes[..part], at as u64).map_err(place)?;
        segment.file.write_at(&bytes[..got], at as u64).map_err(place)?;
    }
    Ok(())
}
