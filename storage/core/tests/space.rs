//! Space comes back: overwriting for ever fits into a pool little larger than the data, and a full pool
//! heals when something is trimmed or deleted.

use std::sync::Arc;

use _core::storage::Drive;
use _core::storage::recording::RecordingDrive;
use _core::units::{BLOCK_SIZE, DiskId};
use _core::{Disk, Error, Options, Pool};

const MIB: u64 = 1 << 20;

fn pool_of(capacity: u64) -> (Arc<Pool>, RecordingDrive) {
    let drive = RecordingDrive::new(Default::default(), false);
    drive.set_capacity(capacity);
    let shared: Arc<dyn Drive> = Arc::new(drive.clone());
    let options = Options { memory_bytes: 8 << 20, background: false, ..Options::default() };
    (Pool::open(shared.clone(), vec![(0, Some(shared))], options).expect("opens"), drive)
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

fn check(disk: &Disk, stamps: &[u64]) {
    let mut got = vec![0; BLOCK_SIZE];
    for (block, stamp) in stamps.iter().enumerate() {
        disk.read((block * BLOCK_SIZE) as u64, &mut got).expect("readable");
        let wanted = if *stamp == 0 { vec![0; BLOCK_SIZE] } else { noise(*stamp) };
        assert!(got == wanted, "block {block} is not stamp {stamp}");
    }
}

#[test]
fn random_overwrites_go_on_for_ever_in_a_nearly_full_pool() {
    let (pool, drive) = pool_of(96 * MIB);
    pool.create_disk(DiskId(1)).expect("created");
    let blocks = 56 * MIB as usize / BLOCK_SIZE;
    let disk = pool.open_disk(DiskId(1), 56 * MIB).expect("opens");
    let mut stamps = vec![0u64; blocks];
    let mut random = 12345u64;
    for stamp in 1..=8 * blocks as u64 {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let block = if stamp <= blocks as u64 {
            stamp as usize - 1
        } else {
            (random >> 33) as usize % blocks
        };
        stamps[block] = stamp;
        disk.write((block * BLOCK_SIZE) as u64, &noise(stamp), false).expect("there is room");
        if stamp % 64 == 0 {
            pool.run_background().expect("chores");
        }
    }
    check(&disk, &stamps);
    disk.checkpoint().expect("checkpoint");
    assert!(drive.used_bytes() <= 96 * MIB);
    drop((disk, pool));
}

#[test]
fn a_full_pool_heals_when_something_is_trimmed_or_deleted() {
    let (pool, _drive) = pool_of(64 * MIB);
    for disk in [1, 2] {
        pool.create_disk(DiskId(disk)).expect("created");
    }
    let other = pool.open_disk(DiskId(2), 8 * MIB).expect("opens");
    (0..1024u64).for_each(|b| other.write(b * 4096, &noise(b + 1), false).expect("fits"));
    let disk = pool.open_disk(DiskId(1), 128 * MIB).expect("opens");
    let mut stamps = vec![0u64; 128 * MIB as usize / BLOCK_SIZE];
    let full = (0..stamps.len()).find(|block| {
        let outcome = disk.write((block * BLOCK_SIZE) as u64, &noise(*block as u64 + 1), false);
        match outcome {
            Ok(()) => stamps[*block] = *block as u64 + 1,
            Err(Error::NoSpace) => return true,
            Err(other) => panic!("{other}"),
        }
        pool.run_background().expect("chores");
        false
    });
    let full = full.expect("64 MiB do not hold 128");
    assert!(full > 8000, "only {full} blocks fitted");
    disk.flush().expect("a full pool can be flushed");
    check(&disk, &stamps);

    disk.zero(0, 16 * MIB, false).expect("a full pool can be trimmed");
    stamps[..4096].fill(0);
    for (block, stamp) in stamps.iter_mut().enumerate().skip(full).take(2048) {
        disk.write((block * BLOCK_SIZE) as u64, &noise(7), false).expect("trimming made room");
        *stamp = 7;
    }
    check(&disk, &stamps);

    let refilled = (full + 2048..stamps.len()).find(|block| {
        let outcome = disk.write((block * BLOCK_SIZE) as u64, &noise(9), false);
        stamps[*block] = if outcome.is_ok() { 9 } else { 0 };
        outcome.is_err()
    });
    let refilled = refilled.expect("it is full again");
    drop(other);
    pool.delete_disk(DiskId(2)).expect("a full pool can delete");
    for (block, stamp) in stamps.iter_mut().enumerate().skip(refilled).take(512) {
        disk.write((block * BLOCK_SIZE) as u64, &noise(8), false).expect("deleting made room");
        *stamp = 8;
    }
    check(&disk, &stamps);
}
