//! The scrub: reads what a disk's map leads to and verifies it, a piece at a time.
//!
//! Only what is alive is read: garbage may be damaged as it likes, since nobody will ever ask for it. Reads
//! do not count against the disk's limits; the caller paces the pieces, and holds no lock between them.

use std::sync::atomic::Ordering;

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::units::{BLOCK_SIZE, BlockIndex, EXTENT_BLOCKS_MAX, Location, NODE_ENTRIES};

/// Blocks read with one call.
const READ_BLOCKS: usize = 256;

/// Consecutive bytes of a disk that cannot be read, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub offset: u64,
    pub length: u64,
    pub detail: String,
}

/// What one piece of a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Where to go on; the disk's end, rounded up to a block, when all is done.
    pub next: u64,
    /// Bytes of data passed, whether they had to be read or not …
    pub data_bytes: u64,
    /// … and of those, bytes that were read and verified.
    pub read_bytes: u64,
    pub damages: Vec<Damage>,
}

impl Scrubbed {
    fn note(&mut self, blocks: std::ops::Range<BlockIndex>, detail: String) {
        let (offset, end) = (blocks.start * BLOCK_SIZE as u64, blocks.end * BLOCK_SIZE as u64);
        match self.damages.last_mut() {
            Some(last) if last.offset + last.length == offset && last.detail == detail => {
                last.length += end - offset;
            }
            _ => self.damages.push(Damage { offset, length: end - offset, detail }),
        }
    }
}

impl Disk {
    /// Verifies data from byte `from` (a multiple of the block size) on, until `data_bytes_max` bytes of data
    /// have been passed. What lies where it lies on `verified` too, a disk that was scrubbed before, is not
    /// read again. Damage is what is reported; an error means that the disk went out of service.
    pub fn scrub(
        &self,
        from: u64,
        data_bytes_max: u64,
        verified: Option<&Disk>,
    ) -> Result<Scrubbed> {
        self.check_open()?;
        let mut found = Scrubbed::default();
        let end = self.size_bytes().div_ceil(BLOCK_SIZE as u64);
        let mut at = from / BLOCK_SIZE as u64;
        while at < end && found.data_bytes < data_bytes_max {
            let mut run = None;
            let walked = self.retry_when_moved(|| {
                run = None;
                self.map.runs(self, at..end, |is_hole, blocks| {
                    run = (!is_hole).then_some(blocks);
                    is_hole
                })
            });
            at = match (walked, run) {
                (Ok(()), None) => end,
                (Ok(()), Some(run)) => {
                    let end = run.end.min(run.start + READ_BLOCKS as u64);
                    self.scrub_blocks(run.start, end, verified, &mut found)?;
                    end
                }
                // A damaged node of the map: what is under it cannot be read. On with the next leaf.
                (Err(error), _) => {
                    let leaf_end = (at + 1).next_multiple_of(NODE_ENTRIES as u64).min(end);
                    found.note(at..leaf_end, self.as_damage(error)?);
                    leaf_end
                }
            };
        }
        found.next = at * BLOCK_SIZE as u64;
        Ok(found)
    }

    /// Verifies blocks that hold data, or did when the map was looked at.
    fn scrub_blocks(
        &self,
        first: BlockIndex,
        end: BlockIndex,
        verified: Option<&Disk>,
        found: &mut Scrubbed,
    ) -> Result<()> {
        let blocks = (end - first) as usize;
        found.data_bytes += (blocks * BLOCK_SIZE) as u64;
        let mut data = vec![0; blocks * BLOCK_SIZE];
        if let Ok(read) = self.verify(first, &mut data, verified) {
            found.read_bytes += read;
            return Ok(());
        }
        // An extent at most at a time, then block by block, to say which they are.
        for (part, blank) in data.chunks_mut(EXTENT_BLOCKS_MAX * BLOCK_SIZE).enumerate() {
            let part = first + (part * EXTENT_BLOCKS_MAX) as u64;
            if let Ok(read) = self.verify(part, blank, verified) {
                found.read_bytes += read;
                continue;
            }
            for (block, blank) in blank.chunks_mut(BLOCK_SIZE).enumerate() {
                let block = part + block as u64;
                match self.verify(block, blank, verified) {
                    Ok(read) => found.read_bytes += read,
                    Err(error) => found.note(block..block + 1, self.as_damage(error)?),
                }
            }
        }
        Ok(())
    }

    /// Reads the blocks into `out`, apart from those that lie at the same place on `verified`. Returns: the
    /// bytes that were read.
    fn verify(&self, first: BlockIndex, out: &mut [u8], verified: Option<&Disk>) -> Result<u64> {
        let count = out.len() / BLOCK_SIZE;
        let mut locations = vec![Location::HOLE; count];
        let mut others = vec![Location::HOLE; count];
        self.retry_when_moved(|| {
            self.map.locate(self, first, &mut locations)?;
            // Where the other disk's map is damaged, nothing of it counts as verified.
            if let Some(verified) = verified
                && verified.map.locate(verified, first, &mut others).is_ok()
            {
                let pairs = locations.iter_mut().zip(&others);
                pairs.filter(|(l, o)| l == o).for_each(|(l, _)| *l = Location::HOLE);
            }
            self.fetcher.read(first, &locations, out)?;
            Ok((locations.iter().filter(|l| !l.is_hole()).count() * BLOCK_SIZE) as u64)
        })
    }

    /// What to say of an error that means damage; any other goes on to the caller.
    fn as_damage(&self, error: Error) -> Result<String> {
        // The segments of a disk that is being deleted go while it is read.
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Error::PoolClosed);
        }
        match error {
            Error::Corrupt { place, detail, .. } => Ok(format!("{place}: {detail}")),
            Error::Io { .. } => Ok(error.to_string()),
            other => Err(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_with_one_cause_are_one_place() {
        let mut found = Scrubbed::default();
        for (blocks, detail) in [(3..4, "a"), (4..6, "a"), (6..7, "b"), (8..9, "b")] {
            found.note(blocks, detail.into());
        }
        let places: Vec<_> = found.damages.iter().map(|d| (d.offset, d.length)).collect();
        assert_eq!(places, [(3 * 4096, 3 * 4096), (6 * 4096, 4096), (8 * 4096, 4096)]);
    }
}
