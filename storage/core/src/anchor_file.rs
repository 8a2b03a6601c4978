//! A disk's anchor: the one small file that is written in place.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::error::{Error, Result};
use crate::format::anchor::ANCHOR_LEN;
use crate::format::{Anchor, Root};
use crate::storage::{Drive, File};
use crate::units::DiskId;

pub struct AnchorFile {
    file: Box<dyn File>,
    pool: [u8; 16],
    disk: DiskId,
    root: Mutex<Root>,
}

pub fn path_of(disk: DiskId) -> String {
    format!("anchors/{:08x}.anchor", disk.0)
}

/// Disks that have an anchor.
pub fn list(anchors: &dyn Drive) -> Result<Vec<DiskId>> {
    let names = anchors.list("anchors").map_err(|e| Error::io("anchors", e))?;
    let parse = |name: &String| {
        let digits = name.strip_suffix(".anchor").filter(|d| d.len() == 8)?;
        u32::from_str_radix(digits, 16).ok().map(DiskId)
    };
    let mut disks: Vec<_> = names.iter().filter_map(parse).collect();
    disks.sort_unstable();
    Ok(disks)
}

impl AnchorFile {
    /// Makes the anchors of new disks that begin as `roots` say; durable on return.
    pub fn create(anchors: &Arc<dyn Drive>, pool: [u8; 16], roots: &[Root]) -> Result<()> {
        for root in roots {
            let path = path_of(root.disk);
            let place = |e| Error::io(path.clone(), e);
            let file = anchors.create(&path).map_err(place)?;
            let anchor = Anchor { pool, root: *root };
            file.write_at(&anchor.encode(), anchor.slot_offset()).map_err(place)?;
            file.set_len(ANCHOR_LEN as u64).map_err(place)?;
            file.sync_data().map_err(place)?;
        }
        anchors.sync_dir("anchors").map_err(|e| Error::io("anchors", e))
    }

    /// Reads and verifies the anchor of `disk`.
    pub fn open(anchors: &Arc<dyn Drive>, pool: [u8; 16], disk: DiskId) -> Result<AnchorFile> {
        let path = path_of(disk);
        let file = anchors.open(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::DiskNotFound(disk),
            _ => Error::io(path.clone(), e),
        })?;
        let mut bytes = vec![0; ANCHOR_LEN];
        let got = file.read_at(&mut bytes, 0).map_err(|e| Error::io(path.clone(), e))?;
        let corrupt =
            |detail: &str| Error::Corrupt { disk, place: path.clone(), detail: detail.to_string() };
        let anchor = Anchor::decode(&bytes[..got], disk);
        let anchor = anchor.ok_or_else(|| corrupt("neither slot holds a valid root"))?;
        if anchor.pool != pool {
            return Err(corrupt("the anchor belongs to another pool"));
        }
        Ok(AnchorFile { file, pool, disk, root: Mutex::new(anchor.root) })
    }

    /// Makes sure that the root read is the durable one: a crash may have left it in the page cache only,
    /// and a failed sync may have left it there for ever. The next commit overwrites the other slot, so
    /// this one has to hold first.
    pub fn settle(&self) -> Result<()> {
        let root = self.root.lock();
        let anchor = Anchor { pool: self.pool, root: *root };
        self.write_slot(&anchor)
    }

    /// Removes the anchor of a disk, durably; a missing one is no error.
    pub fn remove(anchors: &Arc<dyn Drive>, disk: DiskId) -> Result<()> {
        let path = path_of(disk);
        match anchors.remove(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|e| Error::io(path.clone(), e))?,
        }
        anchors.sync_dir("anchors").map_err(|e| Error::io(path, e))
    }

    /// The durable root.
    pub fn root(&self) -> Root {
        *self.root.lock()
    }

    /// Makes `next` the durable root. Its `seq` and `drives` are filled in here.
    pub fn commit(&self, next: Root) -> Result<Root> {
        let root = self.root.lock();
        self.write(root, next)
    }

    /// Notes, durably, that the disk has segments on this drive, before the first one is made there: a disk
    /// that lost a drive must know it.
    pub fn add_drive(&self, drive: u32) -> Result<()> {
        let root = self.root.lock();
        if root.drives & (1 << drive) != 0 {
            return Ok(());
        }
        let mut next = *root;
        next.drives |= 1 << drive;
        next.clean = false;
        self.write(root, next).map(|_| ())
    }

    fn write(&self, mut root: MutexGuard<'_, Root>, mut next: Root) -> Result<Root> {
        next.seq = root.seq + 1;
        next.drives |= root.drives;
        self.write_slot(&Anchor { pool: self.pool, root: next })?;
        *root = next;
        Ok(next)
    }

    fn write_slot(&self, anchor: &Anchor) -> Result<()> {
        let place = |e| Error::io(path_of(self.disk), e);
        self.file.write_at(&anchor.encode(), anchor.slot_offset()).map_err(place)?;
        self.file.sync_data().map_err(place)
    }
}
