//! Snapshots, clones and rollback of disks that are models: a copy holds what its origin held.

use _core::Error;
use _core::units::DiskId;

use crate::model::{DiskModel, Patch};
use crate::world::{DiskState, World, read_all};

/// Slots of snapshots: the snapshot's number on top.
pub const SNAPSHOTS: u32 = 100;

impl World {
    /// Takes up a disk that has just been made as a copy of disk `origin`. It is opened when it is looked at:
    /// until then a snapshot may be without a tree.
    fn take_up(&mut self, id: DiskId, slot: u32, origin: usize) -> Result<(), Error> {
        let created = self.drive.changes();
        let origin = &self.disks[origin];
        let size = origin.size_at(usize::MAX);
        let model = DiskModel::holding(origin.model.now().to_vec());
        let handle = match slot < SNAPSHOTS {
            true => Some(self.pool().open_disk(id, size)?),
            false => None,
        };
        let sizes = vec![(created, size)];
        let is_copy = true;
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

    fn next_id(&mut self) -> DiskId {
        self.next_id += 1;
        DiskId(self.next_id - 1)
    }

    pub fn snapshot(&mut self, slot: u32, number: u32) -> Result<(), Error> {
        self.delete(SNAPSHOTS + number)?;
        let Some(origin) = self.index(slot) else { return Ok(()) };
        let id = self.next_id();
        self.pool().snapshot(&[(self.disks[origin].id, id)])?;
        let now = self.drive.changes();
        self.disks[origin].model.flushed(now);
        self.take_up(id, SNAPSHOTS + number, origin)
    }

    pub fn clone_disk(&mut self, number: u32, slot: u32) -> Result<(), Error> {
        if self.index(SNAPSHOTS + number).is_none() {
            return Ok(());
        }
        self.delete(slot)?;
        let origin = self.index(SNAPSHOTS + number).expect("it is there");
        let id = self.next_id();
        self.pool().clone_disk(self.disks[origin].id, id)?;
        self.take_up(id, slot, origin)
    }

    pub fn rollback(&mut self, slot: u32, number: u32) -> Result<(), Error> {
        let indexes = (self.index(slot), self.index(SNAPSHOTS + number));
        let (Some(index), Some(origin)) = indexes else { return Ok(()) };
        let size = self.disks[index].size_at(usize::MAX);
        if self.disks[origin].size_at(usize::MAX) != size {
            return Ok(());
        }
        let (id, snapshot) = (self.disks[index].id, self.disks[origin].id);
        let data = self.disks[origin].model.now().into();
        let begin = self.drive.changes();
        let steps = self.disks[index].model.begin(vec![Patch::Bytes { offset: 0, data }], begin);
        self.disks[index].handle = None;
        let outcome = self.pool().rollback_disk(id, size, snapshot);
        let handle = self.pool().open_disk(id, size)?;
        let after = self.drive.changes();
        let model = &mut self.disks[index].model;
        match &outcome {
            Ok(()) => {
                model.acknowledge(steps, after);
                model.flushed(after);
            }
            Err(_) => model.fail(steps, after, &read_all(&handle)?),
        }
        self.disks[index].handle = Some(handle);
        outcome
    }
}
