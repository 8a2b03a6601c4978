//! Changed blocks: what differs between two snapshots, for incremental backups.

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::map::{Side, difference};
use crate::units::{BLOCK_SIZE, BlockIndex};

/// A range of bytes that differs; `is_hole`: it reads as zeros now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    pub offset: u64,
    pub length: u64,
    pub is_hole: bool,
}

impl Disk {
    /// The ranges from byte `from` on where this snapshot's data lies elsewhere than that of `older`, another
    /// snapshot: at most `max` (> 0) of them, and where to go on, `None` at the end. No changed block is left out;
    /// one that was written with what it held before counts as changed. Ranges end at this snapshot's end.
    ///
    /// Time: proportional to the change, whatever the size. Errors: `InvalidRequest` (not a snapshot), those of
    /// reading the map.
    pub fn changed_since(
        &self,
        older: &Disk,
        from: u64,
        max: usize,
    ) -> Result<(Vec<Changed>, Option<u64>)> {
        let both = [older, self];
        both.iter().try_for_each(|disk| disk.check_open())?;
        if both.iter().any(|disk| !disk.anchor.root().is_snapshot) {
            return Err(Error::InvalidRequest("only snapshots are compared".into()));
        }
        let end = self.size_bytes().div_ceil(BLOCK_SIZE as u64);
        let mut found: Vec<Changed> = Vec::new();
        let mut next = None;
        let mut each = |block: BlockIndex, is_hole: bool| {
            let (offset, length) = (block * BLOCK_SIZE as u64, BLOCK_SIZE as u64);
            if block >= end {
                return false;
            }
            let is_full = found.len() == max;
            match found.last_mut() {
                Some(last) if last.offset + last.length == offset && last.is_hole == is_hole => {
                    last.length += length;
                }
                _ if is_full => next = Some(offset),
                _ => found.push(Changed { offset, length, is_hole }),
            }
            next.is_none()
        };
        let older = Side { tree: older.map.tree(), store: older };
        let newer = Side { tree: self.map.tree(), store: self };
        let walked = difference(older, newer, from / BLOCK_SIZE as u64, &mut each);
        // One that was deleted meanwhile has lost its nodes: that is no damage.
        both.iter().try_for_each(|disk| disk.check_open())?;
        walked?;
        if let Some(last) = found.last_mut() {
            last.length = last.length.min(self.size_bytes() - last.offset);
        }
        Ok((found, next))
    }
}
