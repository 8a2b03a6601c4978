//! A pool on a recording drive, its catalog and the model beside it; crashes it and looks what is left.

use std::sync::Arc;

use _core::storage::Drive;
use _core::storage::recording::RecordingDrive;
use _core::storage::recording::fates::{EverythingKept, NothingKept, Rng, Sampler};
use _core::storage::recording::faults::Fault;
use _core::storage::recording::image::Image;
use _core::units::{BLOCK_SIZE, DiskId};
use _core::{Disk, Error, Options, Pool};

use crate::content;
use crate::copies::SNAPSHOTS;
use crate::model::{Crash, DiskModel, Patch, Prefix, groups};
use crate::workload::{Op, Shape};

pub const POOL_UUID: [u8; 16] = *b"nearstone-crash!";

/// A disk as the catalog and the model know it. The catalog is taken to be perfect: what it says, it says
/// durably.
pub struct DiskState {
    pub id: DiskId,
    pub slot: u32,
    /// A snapshot or a clone.
    pub is_copy: bool,
    pub handle: Option<Arc<Disk>>,
    pub model: DiskModel,
    /// Change count when its creation was acknowledged; before that it has no row.
    pub created: usize,
    /// Change count when its row was marked for deletion.
    pub deleted: Option<usize>,
    /// `(change count, size)` of each commit of a size.
    pub sizes: Vec<(usize, u64)>,
}

impl DiskState {
    fn is_there(&self, changes: usize) -> bool {
        self.created <= changes && self.deleted.is_none_or(|begin| begin >= changes)
    }

    pub fn size_at(&self, changes: usize) -> u64 {
        let known = self.sizes.iter().rev().find(|(at, _)| *at <= changes);
        known.or(self.sizes.first()).expect("sizes has the first one").1
    }
}

pub struct World {
    pub shape: Shape,
    pub drive: RecordingDrive,
    pub pool: Option<Arc<Pool>>,
    pub disks: Vec<DiskState>,
    pub next_id: u32,
}

/// What a crash left of one disk.
struct Remains {
    index: usize,
    handle: Arc<Disk>,
    found: Vec<u8>,
    prefix: Prefix,
}

pub fn open_pool(shape: &Shape, drive: &RecordingDrive) -> Result<Arc<Pool>, Error> {
    let anchors: Arc<dyn Drive> = Arc::new(drive.folder("pool"));
    let data = |i: u32| -> Arc<dyn Drive> { Arc::new(drive.folder(&format!("drive{i}"))) };
    let drives = (0..shape.drives).map(|i| (i, Some(data(i)))).collect();
    let options = Options {
        pool_uuid: POOL_UUID,
        memory_bytes: shape.memory_bytes,
        segment_size_bytes: shape.segment_size_bytes,
        background: false,
    };
    Pool::open(anchors, drives, options)
}

pub fn read_all(disk: &Disk) -> Result<Vec<u8>, Error> {
    let mut found = vec![0xee; disk.size_bytes() as usize];
    disk.read(0, &mut found)?;
    Ok(found)
}

impl World {
    /// A pool with one disk a slot, on an empty drive.
    pub fn new(shape: Shape) -> Result<World, Error> {
        let drive = RecordingDrive::default();
        drive.set_capacity(shape.drive_bytes);
        let pool = Some(open_pool(&shape, &drive)?);
        let mut world = World { shape, drive, pool, disks: Vec::new(), next_id: 1 };
        for slot in 0..shape.disks {
            world.create(slot)?;
        }
        Ok(world)
    }

    pub fn pool(&self) -> &Arc<Pool> {
        self.pool.as_ref().expect("the pool is open between operations")
    }

    pub fn index(&self, slot: u32) -> Option<usize> {
        self.disks.iter().position(|d| d.slot == slot && d.deleted.is_none())
    }

    /// What the disk in `slot` must hold.
    pub fn contents(&self, slot: u32) -> &[u8] {
        let disk = &self.disks[self.index(slot).expect("the slot has a disk")];
        &disk.model.now()[..disk.size_at(usize::MAX) as usize]
    }

    fn create(&mut self, slot: u32) -> Result<(), Error> {
        if self.index(slot).is_some() {
            return Ok(());
        }
        let id = DiskId(self.next_id);
        self.next_id += 1;
        self.pool().create_disk(id)?;
        let created = self.drive.changes();
        let size = self.shape.capacity_bytes;
        let handle = Some(self.pool().open_disk(id, size)?);
        let model = DiskModel::new(size);
        let sizes = vec![(created, size)];
        let is_copy = false;
        self.disks.push(DiskState {
            id,
            slot,
            is_copy,
            handle,
            model,
            created,
            deleted: None,
            sizes,
        });
        Ok(())
    }

    pub fn delete(&mut self, slot: u32) -> Result<(), Error> {
        let Some(index) = self.index(slot) else { return Ok(()) };
        self.disks[index].deleted = Some(self.drive.changes());
        self.disks[index].handle = None;
        self.pool().delete_disk(self.disks[index].id).map(|_| ())
    }

    /// Does `op`, which is none of the crashes. After an error the model counts it as failed.
    pub fn apply(&mut self, op: &Op) -> Result<(), Error> {
        match *op {
            Op::Create { disk } => self.create(disk),
            Op::Delete { disk } => self.delete(disk),
            Op::Snapshot { disk, number } => self.snapshot(disk, number),
            Op::Clone { number, disk } => self.clone_disk(number, disk),
            Op::Rollback { disk, number } => self.rollback(disk, number),
            Op::DeleteSnapshot { number } => self.delete(SNAPSHOTS + number),
            Op::Background => self.pool().run_background(),
            Op::Restart => self.restart(),
            Op::Write { disk, .. }
            | Op::Zero { disk, .. }
            | Op::Flush { disk }
            | Op::Checkpoint { disk }
            | Op::Resize { disk, .. } => match self.index(disk) {
                Some(index) => self.apply_to(index, op),
                None => Ok(()),
            },
            Op::Crash | Op::Kill { .. } | Op::PowerLoss { .. } => unreachable!("see `crash`"),
        }
    }

    fn apply_to(&mut self, index: usize, op: &Op) -> Result<(), Error> {
        let size = self.disks[index].handle.as_ref().expect("open").size_bytes();
        match *op {
            Op::Write { offset, length, stamp, style, fua, .. } if offset < size => {
                let data = content::bytes(stamp, style, length.min(size - offset));
                self.write(index, offset, &data, fua)
            }
            Op::Zero { offset, length, fua, .. } if offset < size => {
                self.zero(index, offset, length.min(size - offset), fua)
            }
            Op::Flush { .. } => self.settle(index, |disk| disk.flush()),
            Op::Checkpoint { .. } => self.settle(index, |disk| disk.checkpoint()),
            Op::Resize { size_bytes, .. } => self.resize(index, size_bytes),
            _ => Ok(()),
        }
    }

    /// Does something with a disk that changes contents as `patches` say, and perhaps makes all durable.
    fn change(
        &mut self,
        index: usize,
        patches: Vec<Patch>,
        is_flush: bool,
        act: impl FnOnce(&Disk) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let state = &mut self.disks[index];
        let handle = state.handle.as_ref().expect("open");
        let steps = state.model.begin(patches, self.drive.changes());
        let outcome = act(handle);
        let after = self.drive.changes();
        match &outcome {
            Ok(()) => state.model.acknowledge(steps, after),
            // What a failed request has done shows in what is read; some of its groups may be there.
            Err(_) => state.model.fail(steps, after, &read_all(handle)?),
        }
        if is_flush && outcome.is_ok() {
            state.model.flushed(after);
        }
        outcome
    }

    fn settle(
        &mut self,
        index: usize,
        act: impl FnOnce(&Disk) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.change(index, Vec::new(), true, act)
    }

    fn write(&mut self, index: usize, offset: u64, data: &[u8], fua: bool) -> Result<(), Error> {
        let patch = |(at, length): (u64, u64)| {
            let from = (at - offset) as usize;
            Patch::Bytes { offset: at, data: data[from..from + length as usize].into() }
        };
        let patches = groups(offset, data.len() as u64).into_iter().map(patch).collect();
        self.change(index, patches, fua, |disk| disk.write(offset, data, fua))
    }

    fn zero(&mut self, index: usize, offset: u64, length: u64, fua: bool) -> Result<(), Error> {
        let patches = vec![Patch::Zeros { offset, length }];
        self.change(index, patches, fua, |disk| disk.zero(offset, length, fua))
    }

    fn resize(&mut self, index: usize, size_bytes: u64) -> Result<(), Error> {
        let old = self.disks[index].handle.as_ref().expect("open").size_bytes();
        let before = self.drive.changes();
        if size_bytes >= old {
            self.disks[index].sizes.push((before, size_bytes));
            return self.change(index, Vec::new(), false, |disk| disk.resize(size_bytes));
        }
        let cut = Patch::Zeros { offset: size_bytes, length: old - size_bytes };
        let outcome = self.change(index, vec![cut], true, |disk| disk.resize(size_bytes));
        if outcome.is_err() {
            let size = self.disks[index].handle.as_ref().expect("open").size_bytes();
            assert_eq!(size, old, "a disk that could not be cut has its old size");
            return outcome;
        }
        let after = self.drive.changes();
        self.disks[index].sizes.push((after, size_bytes));
        Ok(())
    }

    fn restart(&mut self) -> Result<(), Error> {
        self.disks.iter_mut().for_each(|d| d.handle = None);
        let pool = self.pool.take().expect("open");
        pool.close()?;
        drop(pool);
        let closed = self.drive.changes();
        let pool = open_pool(&self.shape, &self.drive)?;
        // What others still held of a deleted disk: its row says that it is to go.
        for id in pool.stored_disks()? {
            if !self.disks.iter().any(|d| d.id == id && d.deleted.is_none()) {
                pool.delete_disk(id)?;
            }
        }
        for disk in self.disks.iter_mut().filter(|d| d.deleted.is_none()) {
            disk.model.flushed(closed);
            disk.handle = Some(pool.open_disk(disk.id, disk.size_at(usize::MAX))?);
        }
        self.pool = Some(pool);
        Ok(())
    }

    /// Compares every open disk with the model: contents, and what `extents` says of them.
    pub fn compare(&self) -> Result<(), String> {
        for disk in self.disks.iter().filter(|d| d.deleted.is_none()) {
            let handle = match &disk.handle {
                Some(handle) => handle.clone(),
                None => match self.pool().open_disk(disk.id, disk.size_at(usize::MAX)) {
                    Ok(handle) => handle,
                    // Not even the reserve has room for the tree of a snapshot just taken. It opens later.
                    Err(Error::NoSpace) => continue,
                    Err(e) => return Err(format!("{:?} does not open: {e}", disk.id)),
                },
            };
            let found = read_all(&handle).map_err(|e| format!("{:?} unreadable: {e}", disk.id))?;
            let wanted = &disk.model.now()[..found.len()];
            if let Some(at) = (0..found.len()).find(|i| found[*i] != wanted[*i]) {
                let block = at / BLOCK_SIZE;
                return Err(format!("{:?} reads wrong data at {at} (block {block})", disk.id));
            }
            check_extents(&handle, wanted).map_err(|e| format!("{:?}: {e}", disk.id))?;
        }
        Ok(())
    }

    /// No file may belong to a disk that is gone, unless a snapshot or clone may need it.
    pub fn check_leftovers(&self) -> Result<(), String> {
        let is_shared = |d: &DiskState| d.deleted.is_none() && d.is_copy;
        if self.disks.iter().any(is_shared) {
            return Ok(());
        }
        let ids: Vec<String> = self
            .disks
            .iter()
            .filter(|d| d.deleted.is_none())
            .map(|d| format!("{:08x}", d.id.0))
            .collect();
        let is_left = |path: &str| !ids.iter().any(|id| path.contains(id));
        match self.drive.files().iter().find(|(path, _)| is_left(path)) {
            Some((path, _)) => Err(format!("{path} belongs to no disk")),
            None => Ok(()),
        }
    }

    /// Looks what a crash after `changes` changes, that left `image`, has kept.
    pub fn inspect(&self, image: &Image, changes: usize, crash: Crash) -> Result<(), String> {
        let drive = RecordingDrive::new(image.clone(), false);
        self.recover(&drive, changes, crash).map(|_| ())
    }

    fn recover(
        &self,
        drive: &RecordingDrive,
        changes: usize,
        crash: Crash,
    ) -> Result<(Arc<Pool>, Vec<Remains>), String> {
        let pool = open_pool(&self.shape, drive).map_err(|e| format!("pool does not open: {e}"))?;
        let disks = self.disks.iter().enumerate().filter(|(_, d)| d.is_there(changes));
        let disks: Vec<(usize, &DiskState)> = disks.collect();
        for id in pool.stored_disks().map_err(|e| format!("no list of disks: {e}"))? {
            if !disks.iter().any(|(_, d)| d.id == id) {
                pool.delete_disk(id).map_err(|e| format!("leftover {id:?} stays: {e}"))?;
            }
        }
        let mut remains = Vec::new();
        for (index, disk) in disks {
            let fail = |what: &str, e: Error| format!("{:?} {what}: {e}", disk.id);
            let size = disk.size_at(changes);
            let handle = pool.open_disk(disk.id, size).map_err(|e| fail("does not open", e))?;
            let found = read_all(&handle).map_err(|e| fail("does not read", e))?;
            let bounds = disk.model.bounds(changes, crash);
            let prefix = disk.model.matching(&found, bounds.clone()).ok_or_else(|| {
                let why = disk.model.explain(&found, bounds);
                format!("{:?} holds no allowed prefix after a {crash:?} crash; {why}", disk.id)
            })?;
            remains.push(Remains { index, handle, found, prefix });
        }
        Ok((pool, remains))
    }

    /// Recovers with a fault, which may fail, then again without: both find what they must, and what the
    /// second has found a power loss does not take away.
    pub fn recover_twice(&self, left: &Image, changes: usize, fault: Fault) -> Result<(), String> {
        let drive = RecordingDrive::new(left.clone(), true);
        drive.inject(vec![fault]);
        drop(open_pool(&self.shape, &drive).map(|pool| {
            let there = self.disks.iter().filter(|d| d.is_there(changes));
            there.for_each(|d| drop(pool.open_disk(d.id, d.size_at(changes))));
        }));
        drive.inject(Vec::new());
        drop(self.recover(&drive, changes, Crash::Power)?);
        let image = drive.image_after(drive.changes());
        self.inspect(&image.power_loss(&mut NothingKept), changes, Crash::Power)?;
        self.inspect(&image.power_loss(&mut EverythingKept), changes, Crash::Power)
    }

    /// Crashes for good and goes on with what is left.
    pub fn crash(&mut self, op: &Op) -> Result<(), String> {
        let changes = self.drive.changes();
        let (at, image, crash) = match *op {
            Op::Crash => (changes, self.drive.image_after(changes), Crash::Process),
            Op::Kill { seed } => {
                let at = moment(&mut Rng::new(seed), changes);
                (at, self.drive.image_after(at), Crash::Process)
            }
            Op::PowerLoss { seed } => {
                let at = moment(&mut Rng::new(seed), changes);
                let image = self.drive.image_after(at);
                let mut fates = Sampler::new(seed, image.first_unsynced(), image.next_seq());
                (at, image.power_loss(&mut fates), Crash::Power)
            }
            _ => unreachable!("not a crash"),
        };
        self.survive(image, at, crash)
    }

    /// Goes on from `image`, which a crash after `changes` changes has left.
    pub fn survive(&mut self, image: Image, changes: usize, crash: Crash) -> Result<(), String> {
        self.disks.iter_mut().for_each(|d| d.handle = None);
        let before = self.drive.changes();
        self.pool = None;
        if self.drive.changes() != before {
            return Err("a pool that is dropped without being closed must not write".into());
        }
        *self = self.fork(image, changes, crash)?;
        Ok(())
    }

    /// The world after a crash after `changes` changes, that left `image`; this one stays as it is.
    pub fn fork(&self, image: Image, changes: usize, crash: Crash) -> Result<World, String> {
        let drive = RecordingDrive::new(image, true);
        drive.set_capacity(self.shape.drive_bytes);
        let (pool, remains) = self.recover(&drive, changes, crash)?;
        let mut disks = Vec::new();
        for Remains { index, handle, found, prefix } in remains {
            let disk = &self.disks[index];
            let mut model = disk.model.clone();
            model.survive(&found, &prefix, changes, crash);
            disks.push(DiskState {
                id: disk.id,
                slot: disk.slot,
                is_copy: disk.is_copy,
                sizes: vec![(0, disk.size_at(changes))],
                handle: Some(handle),
                model,
                created: 0,
                deleted: None,
            });
        }
        Ok(World { shape: self.shape, drive, pool: Some(pool), disks, next_id: self.next_id })
    }

    /// Visits `count` crashes at random moments since the start, half of them of the process alone.
    pub fn probe(&self, seed: u64, count: usize) -> Result<(), String> {
        let mut rng = Rng::new(seed);
        let changes = self.drive.changes();
        let mut moments: Vec<usize> =
            (0..count).map(|_| rng.below(changes as u64 + 1) as usize).collect();
        moments.sort_unstable();
        let mut outcome = Ok(());
        self.drive.for_each_crash(|at, last, image| {
            let here = moments.iter().filter(|m| **m == at).count();
            for _ in 0..here {
                if outcome.is_err() {
                    return;
                }
                let seed = rng.next_u64();
                let (left, crash) = match rng.chance(1, 5) {
                    true => (image.power_loss(&mut EverythingKept), Crash::Process),
                    false => {
                        let (since, until) = (image.first_unsynced(), image.next_seq());
                        let mut fates = Sampler::new(seed, since, until);
                        (image.power_loss(&mut fates), Crash::Power)
                    }
                };
                outcome = self.inspect(&left, at, crash).map_err(|e| {
                    format!(
                        "{crash:?} crash after {at} of {changes} changes, seed {seed:#x}\n\
                             last change: {}\n{e}",
                        brief(last)
                    )
                });
            }
        });
        outcome
    }
}

/// A moment within a life, more likely near its end.
fn moment(rng: &mut Rng, changes: usize) -> usize {
    let back = match rng.below(2) {
        0 => rng.below(changes.min(12) as u64 + 1),
        _ => rng.below(changes as u64 + 1),
    };
    changes - back as usize
}

/// A change without its bytes.
pub fn brief(change: Option<&_core::storage::recording::image::Change>) -> String {
    let mut text = format!("{change:?}");
    if let Some(data) = text.find("data: ") {
        text.replace_range(data.., "…");
    }
    text
}

fn check_extents(disk: &Disk, wanted: &[u8]) -> Result<(), String> {
    let mut at = 0;
    while at < wanted.len() as u64 {
        let runs = disk.extents(at, wanted.len() as u64 - at, 8);
        for (offset, length, is_hole) in runs.map_err(|e| format!("extents: {e}"))? {
            if offset != at || length == 0 {
                return Err(format!("extents leave a gap at {at}"));
            }
            at += length;
            let part = wanted.get(offset as usize..at as usize).ok_or("extents reach too far")?;
            if is_hole && part.iter().any(|b| *b != 0) {
                return Err(format!("extents call data at {offset} a hole"));
            }
        }
    }
    Ok(())
}
