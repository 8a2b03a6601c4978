//! The pool's segment files: which exist, on which drive, and room for new ones.
//!
//! Segment ids are given out once per pool and never reused, so that a location never comes to mean
//! something else. Files are opened when used and a bounded number stays open.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};

use hashbrown::HashMap;
use parking_lot::RwLock;
use quick_cache::sync::Cache;

use crate::error::{Error, Result};
use crate::spares::{Spare, Spares};
use crate::storage::{Drive, File, Space};
use crate::units::{DiskId, SEGMENT_SIZE_BYTES_MAX, SegmentId};

/// Open files kept; a server raises its descriptor limit well above this.
const OPEN_FILES_MAX: usize = 768;
/// Data stops this far before a drive is full, so that trims, checkpoints and cleaning still work.
const RESERVE_BYTES: std::ops::RangeInclusive<u64> = (8 << 20)..=(512 << 20);
/// How many bytes may be appended on one look at the file system's free space.
const CREDIT_BYTES_MAX: u64 = 8 << 20;

/// An open segment file.
pub struct Segment {
    pub id: SegmentId,
    /// The disk whose log it belongs to.
    pub owner: DiskId,
    pub drive: u32,
    /// Its folder was synced after it was made.
    pub is_name_durable: AtomicBool,
    pub file: Box<dyn File>,
}

impl Segment {
    fn new(id: SegmentId, owner: DiskId, drive: u32, file: Box<dyn File>) -> Segment {
        Segment { id, owner, drive, is_name_durable: AtomicBool::new(false), file }
    }
}

#[derive(Clone, Copy)]
struct Place {
    drive: u32,
    disk: DiskId,
}

struct PoolDrive {
    drive: Arc<dyn Drive>,
    /// Bytes that may be appended before the free space is looked at again.
    credit: AtomicI64,
}

pub struct Segments {
    drives: HashMap<u32, PoolDrive>,
    missing: Vec<u32>,
    places: RwLock<HashMap<SegmentId, Place>>,
    open: Cache<SegmentId, Arc<Segment>>,
    spares: Spares,
    highest_id: AtomicU32,
}

fn folder_of(disk: DiskId) -> String {
    format!("segments/{:08x}", disk.0)
}

fn path_of(disk: DiskId, segment: SegmentId) -> String {
    format!("segments/{:08x}/{:08x}.seg", disk.0, segment.0)
}

fn parse_hex(name: &str, suffix: &str) -> Option<u32> {
    let digits = name.strip_suffix(suffix).filter(|d| d.len() == 8)?;
    u32::from_str_radix(digits, 16).ok()
}

/// Bytes of a drive that data may not use.
fn reserve_of(space: &Space) -> u64 {
    (space.total_bytes / 32).clamp(*RESERVE_BYTES.start(), *RESERVE_BYTES.end())
}

impl Segments {
    /// Lists the segments on all present drives. `id_floor` is the highest id known to have been used.
    pub fn scan(
        drives: Vec<(u32, Option<Arc<dyn Drive>>)>,
        id_floor: SegmentId,
    ) -> Result<Segments> {
        let (mut present, mut missing, mut places) = (HashMap::new(), Vec::new(), HashMap::new());
        for (index, drive) in drives {
            let Some(drive) = drive else {
                missing.push(index);
                continue;
            };
            let at = |path: &str| format!("drive {index}, {path}");
            for folder in drive.list("segments").map_err(|e| Error::io(at("segments"), e))? {
                let Some(disk) = parse_hex(&folder, "").map(DiskId) else { continue };
                let names = drive.list(&folder_of(disk)).map_err(|e| Error::io(at(&folder), e))?;
                for id in names.iter().filter_map(|n| parse_hex(n, ".seg")) {
                    places.insert(SegmentId(id), Place { drive: index, disk });
                }
            }
            present.insert(index, PoolDrive { drive, credit: AtomicI64::new(0) });
        }
        let high = places.keys().copied().max().unwrap_or_default().max(id_floor);
        Ok(Segments {
            drives: present,
            missing,
            places: RwLock::new(places),
            open: Cache::new(OPEN_FILES_MAX),
            spares: Spares::default(),
            highest_id: AtomicU32::new(high.0),
        })
    }

    /// The first of the drives in `mask` that is not there.
    pub fn missing_drive(&self, mask: u64) -> Option<u32> {
        self.missing.iter().copied().find(|index| mask & (1 << index) != 0)
    }

    /// Ids of the segments that belong to the log of `disk`, ascending.
    pub fn of_disk(&self, disk: DiskId) -> Vec<SegmentId> {
        let places = self.places.read();
        let mut ids: Vec<_> =
            places.iter().filter(|(_, p)| p.disk == disk).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// The disk that wrote the segment; `None` if there is no such file.
    pub fn owner(&self, id: SegmentId) -> Option<DiskId> {
        self.places.read().get(&id).map(|place| place.disk)
    }

    /// Disks that have at least one segment file.
    pub fn disks(&self) -> Vec<DiskId> {
        let mut disks: Vec<_> = self.places.read().values().map(|p| p.disk).collect();
        disks.sort_unstable();
        disks.dedup();
        disks
    }

    /// The highest segment id given out.
    pub fn highest(&self) -> SegmentId {
        SegmentId(self.highest_id.load(Ordering::Relaxed))
    }

    pub fn count(&self) -> usize {
        self.places.read().len()
    }

    /// The open file of a segment. `InvalidRequest`-free: a missing one is damage of `disk`.
    pub fn get(&self, id: SegmentId, disk: DiskId) -> Result<Arc<Segment>> {
        if let Some(segment) = self.open.get(&id) {
            return Ok(segment);
        }
        let place = self.places.read().get(&id).copied();
        let Some(place) = place else {
            return Err(Error::corrupt(disk, id, 0, "the segment file is missing"));
        };
        let path = path_of(place.disk, id);
        let file = self.drive(place.drive)?.open(&path).map_err(|e| Error::io(path, e))?;
        let segment = Arc::new(Segment::new(id, place.disk, place.drive, file));
        self.open.insert(id, segment.clone());
        Ok(segment)
    }

    /// Makes a segment file on the drive with most room, if that has room for `bytes`; also tells up to
    /// where it is filled already, with what means nothing. The name is durable after `sync_names`.
    pub fn create(
        &self,
        disk: DiskId,
        bytes: usize,
        is_metadata: bool,
    ) -> Result<(Arc<Segment>, usize)> {
        let index = self.roomiest(bytes as u64, is_metadata)?;
        let next = |id: u32| id.checked_add(1);
        let last = self.highest_id.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let exhausted = |_| Error::InvalidRequest("the pool has used up its segment ids".into());
        let id = SegmentId(last.map_err(exhausted)? + 1);
        let path = path_of(disk, id);
        let drive = self.drive(index)?;
        let (file, filled) = match self.reuse(disk, index, &path) {
            Some(reused) => reused,
            None => (drive.create(&path).map_err(|e| Error::io(path, e))?, 0),
        };
        let segment = Arc::new(Segment::new(id, disk, index, file));
        self.places.write().insert(id, Place { drive: index, disk });
        self.open.insert(id, segment.clone());
        Ok((segment, filled))
    }

    /// Gives a spare file the name `path`. Any failure is answered by a new file.
    fn reuse(&self, disk: DiskId, drive: u32, path: &str) -> Option<(Box<dyn File>, usize)> {
        let spare = self.spares.take(disk, drive)?;
        let drive = self.drive(drive).ok()?;
        if drive.rename(&path_of(disk, spare.id), path).is_err() {
            self.restore(&spare);
            return None;
        }
        match drive.open(path) {
            Ok(file) => Some((file, spare.length as usize)),
            // The name has to be free for the new file.
            Err(_) => drive.remove(path).ok().and(None),
        }
    }

    /// A spare file that could be neither used nor removed: a segment again, for the next checkpoint to remove.
    fn restore(&self, spare: &Spare) {
        self.places.write().insert(spare.id, Place { drive: spare.drive, disk: spare.disk });
    }

    /// Makes the names of `disk`'s segments on `drive` durable.
    pub fn sync_names(&self, disk: DiskId, drive: u32) -> Result<()> {
        let folder = folder_of(disk);
        self.drive(drive)?.sync_dir(&folder).map_err(|e| Error::io(folder, e))
    }

    /// Removes a segment nobody refers to any more; durable some time later (it may come back empty of
    /// meaning after a power loss, recovery removes it again).
    pub fn remove(&self, id: SegmentId) -> Result<()> {
        let Some(place) = self.places.write().remove(&id) else { return Ok(()) };
        self.open.remove(&id);
        let path = path_of(place.disk, id);
        self.drive(place.drive)?.remove(&path).map_err(|e| Error::io(path, e))
    }

    /// Does the file of a segment that is gone wait to be used again?
    pub fn is_spare(&self, id: SegmentId) -> bool {
        self.spares.contains(id)
    }

    pub fn contains(&self, id: SegmentId) -> bool {
        self.places.read().contains_key(&id)
    }

    /// As `remove`, but the file, `length` bytes long, may be kept under its old name for another segment:
    /// true then. Only for one that nobody will write to any more.
    pub fn recycle(&self, id: SegmentId, length: u64) -> Result<bool> {
        let Some(Place { drive, disk }) = self.places.read().get(&id).copied() else {
            return Ok(false);
        };
        let space =
            self.drive(drive)?.space().map_err(|e| Error::io(format!("drive {drive}"), e))?;
        let free_bytes = space.free_bytes.saturating_sub(reserve_of(&space));
        if !self.spares.keep(Spare { id, disk, drive, length }, free_bytes) {
            return self.remove(id).map(|()| false);
        }
        self.places.write().remove(&id);
        self.open.remove(&id);
        Ok(true)
    }

    pub fn has_spares(&self) -> bool {
        !self.spares.is_empty()
    }

    /// Removes the files kept for new segments; true if there were any.
    pub fn drop_spares(&self) -> Result<bool> {
        self.drop_chosen_spares(|_| true)
    }

    fn drop_chosen_spares(&self, is_chosen: impl Fn(&Spare) -> bool) -> Result<bool> {
        let spares = self.spares.take_all(is_chosen);
        let has_any = !spares.is_empty();
        let removed = spares.into_iter().map(|spare| {
            let path = path_of(spare.disk, spare.id);
            let removed = self.drive(spare.drive)?.remove(&path);
            if removed.is_err() {
                self.restore(&spare);
            }
            removed.map_err(|e| Error::io(path, e))
        });
        removed.fold(Ok(()), Result::and).map(|()| has_any)
    }

    /// Removes the files of `disk` that are kept for new segments.
    pub fn drop_spares_of(&self, disk: DiskId) -> Result<()> {
        self.drop_chosen_spares(|s| s.disk == disk).map(|_| ())
    }

    /// Removes the folders of `disk`, which has no segments any more, durably.
    pub fn remove_folders(&self, disk: DiskId) -> Result<()> {
        for (index, at) in &self.drives {
            let folder = folder_of(disk);
            let place = || format!("drive {index}, {folder}");
            at.drive.remove_dir(&folder).map_err(|e| Error::io(place(), e))?;
            at.drive.sync_dir("segments").or_else(|e| match e.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(Error::io(place(), e)),
            })?;
        }
        Ok(())
    }

    /// May `bytes` of data be appended on this drive? Metadata may always try: it uses the reserve.
    pub fn admit(&self, drive: u32, bytes: usize) -> Result<()> {
        let at = &self.drives[&drive];
        let left = at.credit.fetch_sub(bytes as i64, Ordering::Relaxed) - bytes as i64;
        if left >= 0 {
            return Ok(());
        }
        let look = || -> Result<u64> {
            let space = at.drive.space().map_err(|e| Error::io(format!("drive {drive}"), e))?;
            Ok(space.free_bytes.saturating_sub(reserve_of(&space)))
        };
        let mut usable = look()?;
        if usable < bytes as u64 && self.drop_chosen_spares(|s| s.drive == drive)? {
            usable = look()?;
        }
        if usable < bytes as u64 {
            at.credit.store(0, Ordering::Relaxed);
            return Err(Error::NoSpace);
        }
        // A quarter, since the file system's own metadata and other disks' appends come on top.
        let credit = (usable / 4).min(CREDIT_BYTES_MAX);
        at.credit.store(credit as i64, Ordering::Relaxed);
        Ok(())
    }

    /// Free and total bytes over all present drives, the reserve taken off; spare files count as free.
    pub fn space(&self) -> Result<Space> {
        let mut sum = Space { free_bytes: 0, total_bytes: 0 };
        for (index, at) in &self.drives {
            let space = at.drive.space().map_err(|e| Error::io(format!("drive {index}"), e))?;
            let free_bytes = space.free_bytes + self.spares.bytes_on(*index);
            sum.free_bytes += free_bytes.saturating_sub(reserve_of(&space));
            sum.total_bytes += space.total_bytes;
        }
        Ok(sum)
    }

    /// Bytes kept in reserve on the drive that keeps fewest.
    pub fn reserve_bytes(&self) -> u64 {
        let spaces = self.drives.values().filter_map(|at| at.drive.space().ok());
        spaces.map(|space| reserve_of(&space)).min().unwrap_or(0)
    }

    /// The segment size that suits the drives: small ones get small segments, or a handful would fill them.
    pub fn segment_size(&self) -> usize {
        let spaces = self.drives.values().filter_map(|at| at.drive.space().ok());
        let smallest = spaces.map(|space| space.total_bytes).min().unwrap_or(u64::MAX);
        (smallest / 64).clamp(1 << 20, SEGMENT_SIZE_BYTES_MAX as u64) as usize
    }

    fn roomiest(&self, bytes: u64, is_metadata: bool) -> Result<u32> {
        match self.find_roomiest(bytes, is_metadata) {
            Err(Error::NoSpace) if self.drop_spares()? => self.find_roomiest(bytes, is_metadata),
            found => found,
        }
    }

    fn find_roomiest(&self, bytes: u64, is_metadata: bool) -> Result<u32> {
        let mut best = None;
        for (index, at) in &self.drives {
            let space = at.drive.space().map_err(|e| Error::io(format!("drive {index}"), e))?;
            let reserve = if is_metadata { 0 } else { reserve_of(&space) };
            if space.free_bytes >= reserve + bytes {
                best = best.max(Some((space.free_bytes - reserve, *index)));
            }
        }
        best.map(|(_, index)| index).ok_or(Error::NoSpace)
    }

    fn drive(&self, index: u32) -> Result<&Arc<dyn Drive>> {
        let missing =
            || Error::Io { place: format!("drive {index} is missing"), errno: libc::ENODEV };
        self.drives.get(&index).map(|at| &at.drive).ok_or_else(missing)
    }
}
