//! The scrub finds what is damaged and alive, all of it and nothing else, and reads shared data once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use _core::storage::Drive;
use _core::storage::fs::FsDrive;
use _core::units::DiskId;
use _core::{Disk, Options, Pool, Scrubbed};

const KIB: u64 = 1 << 10;
const SIZE: u64 = 8 << 20;

fn open(folder: &Path) -> Arc<Pool> {
    let drive: Arc<dyn Drive> = Arc::new(FsDrive::new(folder));
    let options = Options { memory_bytes: 8 << 20, background: false, ..Options::default() };
    Pool::open(drive.clone(), vec![(0, Some(drive))], options).expect("opens")
}

/// Bytes that do not compress, so that they can be found in the segment.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len / 8).flat_map(|_| next()).collect()
}

/// Flips a bit of `data` wherever it lies in the segments of the pool; how many places that were.
fn damage(folder: &Path, data: &[u8]) -> usize {
    let mut hits = 0;
    for disk in std::fs::read_dir(folder.join("segments")).expect("segments") {
        for file in std::fs::read_dir(disk.expect("entry").path()).expect("a folder") {
            let path = file.expect("entry").path();
            let mut bytes = std::fs::read(&path).expect("readable");
            let Some(at) = bytes.windows(64).position(|w| w == &data[..64]) else { continue };
            bytes[at + 7] ^= 4;
            std::fs::write(&path, bytes).expect("writable");
            hits += 1;
        }
    }
    hits
}

/// A folder for one test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Folder {
        let name = format!("nearstone-scrub-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// All pieces of a scrub put together.
fn scrub(disk: &Disk, piece_bytes: u64, verified: Option<&Disk>) -> Scrubbed {
    let mut all = Scrubbed::default();
    while all.next < disk.size_bytes() {
        let piece = disk.scrub(all.next, piece_bytes, verified).expect("in service");
        assert!(piece.next > all.next, "a piece that goes nowhere");
        all.next = piece.next;
        all.data_bytes += piece.data_bytes;
        all.read_bytes += piece.read_bytes;
        all.damages.extend(piece.damages);
    }
    all
}

#[test]
fn living_extents_that_are_damaged_are_named_and_dead_ones_are_not() {
    let folder = Folder::new("damage");
    let (kept, overwritten, trimmed) = (noise(1, 65536), noise(2, 65536), noise(3, 65536));
    {
        let pool = open(folder.path());
        pool.create_disk(DiskId(1)).expect("created");
        let disk = pool.open_disk(DiskId(1), SIZE).expect("opens");
        for (offset, data) in [(0, &kept), (1 << 20, &overwritten), (2 << 20, &trimmed)] {
            disk.write(offset, data, false).expect("written");
        }
        disk.write(1 << 20, &noise(4, 65536), false).expect("written");
        disk.zero(2 << 20, 65536, false).expect("trimmed");
        disk.write(4 << 20, &noise(5, 65536), false).expect("written");
        pool.close().expect("closed");
    }
    let pool = open(folder.path());
    let disk = pool.open_disk(DiskId(1), SIZE).expect("opens");
    for piece in [1, 64 * KIB, SIZE] {
        let sound = scrub(&disk, piece, None);
        assert_eq!((sound.data_bytes, sound.read_bytes), (192 * KIB, 192 * KIB));
        assert_eq!(sound.damages, []);
    }
    for dead in [&overwritten, &trimmed] {
        assert_eq!(damage(folder.path(), dead), 1, "the dead extent is still there");
        assert_eq!(scrub(&disk, 64 * KIB, None).damages, [], "nobody asks for it any more");
    }
    assert_eq!(damage(folder.path(), &kept), 1);
    let found = scrub(&disk, 64 * KIB, None);
    let places: Vec<_> = found.damages.iter().map(|d| (d.offset, d.length)).collect();
    assert_eq!(places, [(0, 4 * KIB)]);
    assert!(found.damages[0].detail.contains("segment 00000001 offset "), "{found:?}");
    assert_eq!((found.data_bytes, found.read_bytes), (192 * KIB, 188 * KIB));
    let mut block = [0; 4096];
    disk.read(0, &mut block).expect_err("what the scrub calls damaged is not served");
    disk.read(1 << 20, &mut block).expect("what it does not is");
}

#[test]
fn what_a_snapshot_shares_is_read_once() {
    let folder = Folder::new("shared");
    let pool = open(folder.path());
    pool.create_disk(DiskId(1)).expect("created");
    let disk = pool.open_disk(DiskId(1), SIZE).expect("opens");
    let old = noise(1, 65536);
    disk.write(0, &old, false).expect("written");
    disk.write(1 << 20, &noise(2, 65536), false).expect("written");
    pool.snapshot(&[(DiskId(1), DiskId(2))]).expect("frozen");
    disk.write(0, &noise(3, 65536), false).expect("written");
    let snapshot = pool.open_disk(DiskId(2), SIZE).expect("opens");
    assert_eq!(scrub(&disk, 64 * KIB, None).read_bytes, 128 * KIB);
    let rest = scrub(&snapshot, 64 * KIB, Some(&disk));
    assert_eq!((rest.data_bytes, rest.read_bytes), (128 * KIB, 64 * KIB));
    assert_eq!(damage(folder.path(), &old), 1);
    assert_eq!(scrub(&disk, 64 * KIB, None).damages, [], "only the snapshot needs it");
    let places: Vec<_> = scrub(&snapshot, 64 * KIB, Some(&disk)).damages;
    assert_eq!((places.len(), places[0].offset, places[0].length), (1, 0, 4 * KIB));
}

#[test]
fn a_disk_that_is_deleted_meanwhile_is_not_called_damaged() {
    let folder = Folder::new("deleted");
    let pool = open(folder.path());
    pool.create_disk(DiskId(1)).expect("created");
    let disk = pool.open_disk(DiskId(1), SIZE).expect("opens");
    disk.write(0, &noise(1, 65536), false).expect("written");
    pool.delete_disk(DiskId(1)).expect("deleted");
    disk.scrub(0, SIZE, None).expect_err("out of service");
}
