//! How much of each segment of a disk is still in use.
//!
//! `live` counts the map entries that point into a segment as of the last checkpoint: leaf entries, and
//! nodes as one each. A segment with none, and behind the replay position, is garbage. `total` counts
//! everything appended there; the two together tell the cleaner what is worth moving.

use hashbrown::HashMap;

use crate::batch::Draft;
use crate::error::{Error, Result};
use crate::fetch::Fetcher;
use crate::format::{Kind, RecordHeader, Root, get_u32};
use crate::units::{Lsn, SegmentId};

const ENTRY_LEN: usize = 16;

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Usage {
    pub live: u32,
    pub total: u32,
}

#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct UsageTable {
    segments: HashMap<SegmentId, Usage>,
}

/// Blocks and nodes that a record adds to its segment.
fn weight(header: &RecordHeader) -> u32 {
    match header.kind {
        Kind::Data => header.count,
        Kind::Node => 1,
        _ => 0,
    }
}

impl UsageTable {
    pub fn appended(&mut self, segment: SegmentId, drafts: &[Draft]) {
        let weight = drafts.iter().map(|d| weight(&d.header)).sum::<u32>();
        self.segments.entry(segment).or_default().total += weight;
    }

    pub fn replayed(&mut self, segment: SegmentId, header: &RecordHeader) {
        self.segments.entry(segment).or_default().total += weight(header);
    }

    /// Recovery counts a segment's total anew.
    pub fn reset_total(&mut self, segment: SegmentId) {
        self.segments.entry(segment).or_default().total = 0;
    }

    /// A checkpoint's changes to the number of map entries that point into a segment.
    pub fn change_live(&mut self, segment: SegmentId, change: i64) {
        let usage = self.segments.entry(segment).or_default();
        // A wrong count may cost space, never data: it must not wrap to "full of life".
        usage.live = (usage.live as i64 + change).clamp(0, u32::MAX as i64) as u32;
    }

    pub fn retain(&mut self, mut is_kept: impl FnMut(SegmentId, Usage) -> bool) {
        self.segments.retain(|id, usage| is_kept(*id, *usage));
    }

    pub fn remove(&mut self, segment: SegmentId) {
        self.segments.remove(&segment);
    }

    #[cfg(test)]
    fn get(&self, segment: SegmentId) -> Usage {
        self.segments.get(&segment).copied().unwrap_or_default()
    }

    pub fn iter(&self) -> impl Iterator<Item = (SegmentId, Usage)> {
        self.segments.iter().map(|(id, usage)| (*id, *usage))
    }

    /// The payload of a USAGE record.
    pub fn encode(&self) -> Vec<u8> {
        let mut sorted: Vec<_> = self.iter().collect();
        sorted.sort_unstable_by_key(|(id, _)| *id);
        let mut out = Vec::with_capacity(8 + sorted.len() * ENTRY_LEN);
        out.extend_from_slice(&(sorted.len() as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for (id, usage) in sorted {
            for word in [id.0, usage.live, usage.total, 0] {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
        out
    }

    pub fn decode(payload: &[u8]) -> Option<UsageTable> {
        let entries = payload.get(8..)?;
        let count = get_u32(payload, 0) as usize;
        if entries.len() != count.checked_mul(ENTRY_LEN)? {
            return None;
        }
        let one = |e: &[u8]| {
            (SegmentId(get_u32(e, 0)), Usage { live: get_u32(e, 4), total: get_u32(e, 8) })
        };
        Some(UsageTable { segments: entries.chunks_exact(ENTRY_LEN).map(one).collect() })
    }
}

/// The usage table as of the root, and the LSN of its record if that is in the disk's own log.
pub fn load_usage(root: &Root, fetcher: &Fetcher) -> Result<(UsageTable, Lsn)> {
    let (id, offset) = (root.usage_segment, root.usage_offset as usize);
    let (mut usage, lsn) = match id.is_none() {
        true => (UsageTable::default(), 0),
        false => read_usage(id, offset, fetcher)?,
    };
    let is_ours = |id: SegmentId| fetcher.segments.owner(id) == Some(root.disk);
    usage.retain(|id, u| u.live > 0 || is_ours(id));
    // What the table leaves out (that of a snapshot the disk was rolled back to) holds nothing.
    for id in fetcher.segments.of_disk(root.disk) {
        if id < root.replay_segment {
            usage.change_live(id, 0);
        }
    }
    // A snapshot's or new clone's table is a record of another disk's log.
    Ok((usage, if is_ours(id) { lsn } else { 0 }))
}

fn read_usage(id: SegmentId, offset: usize, fetcher: &Fetcher) -> Result<(UsageTable, Lsn)> {
    let (header, payload) = fetcher.metadata(id, offset, Kind::Usage)?;
    let damage = || Error::corrupt(fetcher.disk, id, offset, "the usage table is nonsense");
    Ok((UsageTable::decode(&payload).ok_or_else(damage)?, header.lsn))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_survive_the_round_trip() {
        let mut table = UsageTable::default();
        for (segment, times) in [(3, 2), (1, 5)] {
            table.change_live(SegmentId(segment), times);
        }
        table.change_live(SegmentId(3), -1);
        table.change_live(SegmentId(4), -1);
        assert_eq!(table.get(SegmentId(4)), Usage::default());
        assert_eq!(table.get(SegmentId(3)), Usage { live: 1, total: 0 });
        let payload = table.encode();
        assert_eq!(UsageTable::decode(&payload), Some(table));
        assert_eq!(UsageTable::decode(&payload[..payload.len() - 1]), None);
        assert_eq!(UsageTable::decode(&[]), None);
    }
}
