//! Snapshots, clones and rollback: each stands for itself, in any order, and none costs more than its
//! changes.

use std::sync::Arc;

use _core::storage::Drive;
use _core::storage::recording::RecordingDrive;
use _core::storage::recording::faults::{Call, Fault};
use _core::units::{BLOCK_SIZE, DiskId};
use _core::{Disk, Error, Options, Pool};
use proptest::prelude::*;

const BLOCKS: u64 = 1024;
const SIZE: u64 = BLOCKS * BLOCK_SIZE as u64;

fn open(drive: &RecordingDrive) -> Arc<Pool> {
    let shared: Arc<dyn Drive> = Arc::new(drive.clone());
    let options = Options {
        memory_bytes: 8 << 20,
        background: false,
        segment_size_bytes: 128 << 10,
        ..Options::default()
    };
    Pool::open(shared.clone(), vec![(0, Some(shared))], options).expect("opens")
}

/// A pool with disk 1.
fn new_pool() -> (Arc<Pool>, Arc<Disk>, RecordingDrive) {
    let drive = RecordingDrive::new(Default::default(), false);
    drive.set_capacity(1 << 30);
    let pool = open(&drive);
    pool.create_disk(DiskId(1)).expect("created");
    let disk = pool.open_disk(DiskId(1), SIZE).expect("opens");
    (pool, disk, drive)
}

/// A block that does not compress, different for every stamp.
fn noise(stamp: u64) -> Vec<u8> {
    let mut state = stamp.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..BLOCK_SIZE / 8).flat_map(|_| next()).collect()
}

fn put(disk: &Disk, block: u64, stamp: u64) {
    disk.write(block * BLOCK_SIZE as u64, &noise(stamp), false).expect("written");
}

fn holds(disk: &Disk, block: u64, stamp: u64) -> bool {
    let mut got = vec![0; BLOCK_SIZE];
    disk.read(block * BLOCK_SIZE as u64, &mut got).expect("readable");
    got == if stamp == 0 { vec![0; BLOCK_SIZE] } else { noise(stamp) }
}

#[test]
fn a_snapshot_stands_still_and_refuses_writes() {
    let (pool, disk, _drive) = new_pool();
    put(&disk, 1, 1);
    pool.snapshot(&[(DiskId(1), DiskId(2))]).expect("taken");
    put(&disk, 1, 2);
    disk.checkpoint().expect("checkpoint");
    let snapshot = pool.open_disk(DiskId(2), SIZE).expect("opens");
    assert!(snapshot.is_snapshot() && holds(&snapshot, 1, 1) && holds(&disk, 1, 2));
    assert!(matches!(snapshot.write(0, &noise(1), false), Err(Error::ReadOnly(DiskId(2)))));
    assert!(matches!(snapshot.zero(0, 4096, false), Err(Error::ReadOnly(DiskId(2)))));
    assert!(matches!(snapshot.resize(4096), Err(Error::ReadOnly(DiskId(2)))));
}

#[test]
fn what_is_not_a_snapshot_is_neither_cloned_nor_rolled_back_to() {
    let (pool, _disk, drive) = new_pool();
    pool.create_disk(DiskId(2)).expect("created");
    let before = drive.files();
    assert!(matches!(pool.clone_disk(DiskId(1), DiskId(3)), Err(Error::InvalidRequest(_))));
    assert!(matches!(pool.clone_disk(DiskId(7), DiskId(3)), Err(Error::DiskNotFound(DiskId(7)))));
    let twice = [(DiskId(1), DiskId(4)), (DiskId(1), DiskId(5))];
    assert!(matches!(pool.snapshot(&twice), Err(Error::InvalidRequest(_))));
    let unknown = pool.snapshot(&[(DiskId(1), DiskId(4)), (DiskId(9), DiskId(5))]);
    assert!(matches!(unknown, Err(Error::DiskNotFound(DiskId(9)))));
    assert!(drive.files() == before, "a refused call must change nothing");
}

#[test]
fn a_thousand_snapshots_cost_their_changes() {
    let (pool, disk, drive) = new_pool();
    (0..BLOCKS).for_each(|block| put(&disk, block, block + 1));
    disk.checkpoint().expect("checkpoint");
    let before = drive.used_bytes();
    for number in 0..1000u64 {
        put(&disk, number % BLOCKS, 5000 + number);
        pool.snapshot(&[(DiskId(1), DiskId(10 + number as u32))]).expect("taken");
    }
    // A block, a leaf with an inner node, usage table, root, mark and anchor: 24 KiB at most.
    let each = (drive.used_bytes() - before) / 1000;
    assert!(each < 24 << 10, "{each} bytes a snapshot");
    for number in [0u64, 1, 499, 999] {
        let snapshot = pool.open_disk(DiskId(10 + number as u32), SIZE).expect("opens");
        assert!(holds(&snapshot, number, 5000 + number));
        let next = (number + 1) % BLOCKS;
        assert!(holds(&snapshot, next, next + 1));
    }
    for number in 0..1000 {
        assert!(pool.delete_disk(DiskId(10 + number)).expect("deleted"));
    }
    pool.run_background().expect("chores done");
    let after = drive.used_bytes();
    assert!(after < before * 5 / 2, "{after} bytes are left of {before}");
}

#[test]
fn a_group_that_fails_keeps_no_checkpoint_waiting() {
    let (pool, first, drive) = new_pool();
    pool.create_disk(DiskId(2)).expect("created");
    let second = pool.open_disk(DiskId(2), SIZE).expect("opens");
    [&first, &second].into_iter().for_each(|disk| put(disk, 0, 1));
    // Neither are the anchors durable, nor can the first of them be taken back.
    let path = "anchors".to_string();
    let fault = Fault { path, times: 2, ..Fault::once(Call::SyncDir, 0) };
    drive.inject(vec![fault]);
    let pairs = [(DiskId(1), DiskId(3)), (DiskId(2), DiskId(4))];
    assert!(pool.snapshot(&pairs).is_err());
    let (tell, done) = std::sync::mpsc::channel();
    let disks = [first.clone(), second.clone()];
    std::thread::spawn(move || {
        tell.send(disks.iter().try_for_each(|disk| disk.checkpoint())).expect("somebody listens")
    });
    let patience = std::time::Duration::from_secs(60);
    done.recv_timeout(patience).expect("a checkpoint waits for ever").expect("a checkpoint");
    drop((first, second, pool));
    let pool = open(&drive);
    for id in [3, 4] {
        pool.delete_disk(DiskId(id)).expect("what is left of it goes");
    }
    for id in [1, 2] {
        let disk = pool.open_disk(DiskId(id), SIZE).expect("opens");
        assert!(holds(&disk, 0, 1));
    }
}

#[test]
fn a_group_is_frozen_at_one_instant() {
    let (pool, first, _drive) = new_pool();
    pool.create_disk(DiskId(2)).expect("created");
    let second = pool.open_disk(DiskId(2), SIZE).expect("opens");
    std::thread::scope(|scope| {
        let (a, b) = (&first, &second);
        // The first disk is always written before the second.
        scope.spawn(move || {
            for stamp in 1..=5000 {
                put(a, 0, stamp);
                put(b, 0, stamp);
            }
        });
        for round in 0..50 {
            let ids = (DiskId(100 + round), DiskId(200 + round));
            pool.snapshot(&[(DiskId(2), ids.1), (DiskId(1), ids.0)]).expect("taken");
            let read = |id| {
                let mut got = vec![0; BLOCK_SIZE];
                pool.open_disk(id, SIZE).and_then(|d| d.read(0, &mut got)).expect("readable");
                got
            };
            let (one, two) = (read(ids.0), read(ids.1));
            let wanted = |stamp| if stamp == 0 { vec![0; BLOCK_SIZE] } else { noise(stamp) };
            let stamp = (0..=5000).find(|stamp| two == wanted(*stamp)).expect("a whole block");
            let is_ahead = one != two && one != wanted(stamp + 1);
            assert!(!is_ahead, "the disk written second has what the first one lacks");
        }
    });
}

#[derive(Clone, Debug)]
enum Op {
    Write { slot: usize, block: u64 },
    Trim { slot: usize, block: u64 },
    Snapshot { slot: usize },
    Clone { slot: usize },
    Rollback { slot: usize },
    Delete { slot: usize },
    Checkpoint { slot: usize },
    Background,
    Restart,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let slot = || 0usize..6;
    let block = || 0u64..64;
    prop::collection::vec(
        prop_oneof![
            12 => (slot(), block()).prop_map(|(slot, block)| Op::Write { slot, block }),
            2 => (slot(), block()).prop_map(|(slot, block)| Op::Trim { slot, block }),
            4 => slot().prop_map(|slot| Op::Snapshot { slot }),
            2 => slot().prop_map(|slot| Op::Clone { slot }),
            2 => slot().prop_map(|slot| Op::Rollback { slot }),
            3 => slot().prop_map(|slot| Op::Delete { slot }),
            3 => slot().prop_map(|slot| Op::Checkpoint { slot }),
            2 => Just(Op::Background),
            1 => Just(Op::Restart),
        ],
        1..120,
    )
}

struct Known {
    id: u32,
    /// Of which disk it is a snapshot.
    of: Option<u32>,
    stamps: Vec<u64>,
}

fn run(ops: Vec<Op>) {
    let (mut pool, _, drive) = new_pool();
    let mut disks = vec![Known { id: 1, of: None, stamps: vec![0; 64] }];
    let (mut next_id, mut stamp, mut doomed) = (2, 0, Vec::new());
    for op in ops {
        let count = disks.len().max(1);
        let at = |slot: usize| slot % count;
        let handle = |id: u32| pool.open_disk(DiskId(id), SIZE).expect("opens");
        match op {
            Op::Background => pool.run_background().expect("chores done"),
            Op::Restart => {
                pool.close().expect("closes");
                pool = open(&drive);
                for id in &doomed {
                    pool.delete_disk(DiskId(*id)).expect("deleted again");
                }
            }
            _ if disks.is_empty() => {}
            Op::Write { slot, block } if disks[at(slot)].of.is_none() => {
                let disk = &mut disks[at(slot)];
                stamp += 1;
                put(&handle(disk.id), block, stamp);
                disk.stamps[block as usize] = stamp;
            }
            Op::Trim { slot, block } if disks[at(slot)].of.is_none() => {
                let disk = &mut disks[at(slot)];
                handle(disk.id).zero(block * 4096, 4096, false).expect("trimmed");
                disk.stamps[block as usize] = 0;
            }
            Op::Snapshot { slot } if disks[at(slot)].of.is_none() => {
                let (id, stamps) = (disks[at(slot)].id, disks[at(slot)].stamps.clone());
                handle(id);
                pool.snapshot(&[(DiskId(id), DiskId(next_id))]).expect("taken");
                disks.push(Known { id: next_id, of: Some(id), stamps });
                next_id += 1;
            }
            Op::Clone { slot } if disks[at(slot)].of.is_some() => {
                let (id, stamps) = (disks[at(slot)].id, disks[at(slot)].stamps.clone());
                pool.clone_disk(DiskId(id), DiskId(next_id)).expect("cloned");
                disks.push(Known { id: next_id, of: None, stamps });
                next_id += 1;
            }
            Op::Rollback { slot } => {
                let Some(of) = disks[at(slot)].of else { continue };
                let (id, stamps) = (disks[at(slot)].id, disks[at(slot)].stamps.clone());
                if let Some(head) = disks.iter_mut().find(|d| d.id == of) {
                    pool.rollback_disk(DiskId(of), SIZE, DiskId(id)).expect("rolled back");
                    head.stamps = stamps;
                }
            }
            Op::Delete { slot } => {
                let gone = disks.remove(at(slot));
                if !pool.delete_disk(DiskId(gone.id)).expect("deleted") {
                    doomed.push(gone.id);
                }
            }
            Op::Checkpoint { slot } => handle(disks[at(slot)].id).checkpoint().expect("made"),
            _ => {}
        }
    }
    for disk in &disks {
        let handle = pool.open_disk(DiskId(disk.id), SIZE).expect("opens");
        for (block, stamp) in disk.stamps.iter().enumerate() {
            assert!(holds(&handle, block as u64, *stamp), "disk {} block {block}", disk.id);
        }
    }
    for disk in disks {
        pool.delete_disk(DiskId(disk.id)).expect("deleted");
    }
    let files = drive.files();
    assert!(files.is_empty(), "left behind: {:?}", files.iter().map(|f| &f.0).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn copies_stand_for_themselves_and_leave_nothing_behind(ops in ops()) {
        run(ops);
    }
}

/// What `newer` says that changed since `older`, in pieces of three ranges.
fn changed(older: &Disk, newer: &Disk) -> Vec<(u64, bool)> {
    let (mut blocks, mut from) = (Vec::new(), Some(0));
    while let Some(offset) = from {
        let (ranges, next) = newer.changed_since(older, offset, 3).expect("compared");
        assert!(ranges.len() <= 3 && (next.is_none() || ranges.len() == 3));
        for range in ranges {
            let first = range.offset / BLOCK_SIZE as u64;
            let count = range.length.div_ceil(BLOCK_SIZE as u64);
            blocks.extend((first..first + count).map(|block| (block, range.is_hole)));
        }
        from = next;
    }
    blocks
}

#[test]
fn changed_blocks_are_those_that_were_written() {
    let (pool, disk, _drive) = new_pool();
    let mut stamps = vec![0u64; BLOCKS as usize];
    let mut snapshots = Vec::new();
    let mut state = 7u64;
    for number in 0..8u32 {
        for step in 0..u64::from(number) * 20 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let block = (state >> 33) % if number < 4 { 300 } else { BLOCKS };
            let stamp = if step % 5 == 4 { 0 } else { u64::from(number) << 32 | (step + 1) };
            match stamp {
                0 => {
                    disk.zero(block * BLOCK_SIZE as u64, BLOCK_SIZE as u64, false).expect("zeroed");
                }
                _ => put(&disk, block, stamp),
            }
            stamps[block as usize] = stamp;
        }
        let id = DiskId(100 + number);
        pool.snapshot(&[(DiskId(1), id)]).expect("taken");
        snapshots.push((pool.open_disk(id, SIZE).expect("opens"), stamps.clone()));
    }
    for (older, before) in &snapshots {
        for (newer, now) in &snapshots {
            let pairs = (0..).zip(before.iter().zip(now));
            let differing = pairs.filter(|(_, (before, now))| before != now);
            let wanted: Vec<_> = differing.map(|(block, (_, now))| (block, *now == 0)).collect();
            assert_eq!(changed(older, newer), wanted);
        }
    }
    let (snapshot, _) = &snapshots[0];
    assert!(matches!(disk.changed_since(snapshot, 0, 3), Err(Error::InvalidRequest(_))));
}
