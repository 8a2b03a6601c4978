use super::fates::{EverythingKept, NothingKept, Odometer, Sampler};
use super::*;

fn contents(image: &Image, path: &str) -> Option<Vec<u8>> {
    let drive = RecordingDrive::new(image.clone(), false);
    let found = drive.files().into_iter().find(|(name, _)| name == path);
    found.map(|(_, bytes)| bytes.to_vec())
}

/// Every distinct content of `path` that a power loss now may leave.
fn outcomes(drive: &RecordingDrive, path: &str, torn_max: usize) -> Vec<Option<Vec<u8>>> {
    let image = drive.image_after(drive.changes());
    let mut odometer = Odometer::new(torn_max, None);
    let mut seen = Vec::new();
    loop {
        let found = contents(&image.power_loss(&mut odometer), path);
        if !seen.contains(&found) {
            seen.push(found);
        }
        if !odometer.advance() {
            return seen;
        }
    }
}

#[test]
fn a_new_file_needs_both_syncs() {
    let drive = RecordingDrive::default();
    let file = drive.create("a/b/f").unwrap();
    file.write_at(b"xy", 0).unwrap();
    let (none, empty, long, full) = (None, Some(vec![]), Some(vec![0, 0]), Some(b"xy".to_vec()));
    let all = [none.clone(), empty, long, full.clone()];
    assert!(outcomes(&drive, "a/b/f", 0).iter().all(|o| all.contains(o)));
    assert_eq!(outcomes(&drive, "a/b/f", 0).len(), 4);
    file.sync_data().unwrap();
    assert_eq!(outcomes(&drive, "a/b/f", 0), [none.clone(), full.clone()]);
    drive.sync_dir("a/b").unwrap();
    assert_eq!(outcomes(&drive, "a/b/f", 0), vec![full.clone()]);
    drive.remove("a/b/f").unwrap();
    assert_eq!(outcomes(&drive, "a/b/f", 0), [full, none.clone()]);
    drive.sync_dir("a/b").unwrap();
    assert_eq!(outcomes(&drive, "a/b/f", 0), [none]);
    assert!(drive.list("a/b").unwrap().is_empty() && drive.list("a").unwrap() == ["b"]);
}

#[test]
fn unsynced_writes_survive_in_any_subset_and_torn() {
    let drive = RecordingDrive::default();
    let file = drive.create("f").unwrap();
    drive.sync_dir("").unwrap();
    file.write_at(&[1; 1024], 0).unwrap();
    file.sync_data().unwrap();
    file.write_at(&[2; 700], 100).unwrap();
    file.write_at(&[3; 10], 0).unwrap();
    let found = outcomes(&drive, "f", 1);
    // The long write: absent, whole, first sector, second sector; the short one: absent or there.
    assert_eq!(found.len(), 4 * 2);
    let at = |o: &Option<Vec<u8>>, i: usize| o.as_ref().unwrap()[i];
    assert!(found.iter().any(|o| (at(o, 0), at(o, 511), at(o, 512)) == (3, 1, 2)));
    assert!(found.iter().any(|o| (at(o, 0), at(o, 511), at(o, 512)) == (1, 2, 1)));
    assert!(found.iter().all(|o| at(o, 99) == 1 && at(o, 800) == 1));
    for seed in 0..200 {
        let image = drive.image_after(drive.changes());
        let until = image.next_seq();
        let mut sampler = Sampler::new(seed, image.first_unsynced(), until);
        assert!(found.contains(&contents(&image.power_loss(&mut sampler), "f")), "seed {seed}");
    }
}

#[test]
fn writes_during_a_sync_are_not_covered_by_it() {
    let drive = RecordingDrive::default();
    let file: Arc<dyn File> = drive.create("f").unwrap().into();
    drive.sync_dir("").unwrap();
    file.write_at(b"a", 0).unwrap();
    let late = file.clone();
    drive.set_during(Call::Sync, Some(Arc::new(move || late.write_at(b"b", 1).unwrap())));
    file.sync_data().unwrap();
    drive.set_during(Call::Sync, None);
    let image = drive.image_after(drive.changes());
    assert_eq!(contents(&image.power_loss(&mut NothingKept), "f"), Some(b"a".to_vec()));
    assert_eq!(contents(&image.power_loss(&mut EverythingKept), "f"), Some(b"ab".to_vec()));
}

#[test]
fn what_a_failed_sync_lost_no_later_sync_brings_back() {
    let drive = RecordingDrive::default();
    let file = drive.create("f").unwrap();
    drive.sync_dir("").unwrap();
    file.write_at(b"aaaa", 0).unwrap();
    drive.inject(vec![Fault::once(Call::Sync, 0)]);
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(libc::EIO));
    file.write_at(b"bb", 0).unwrap();
    file.sync_data().unwrap();
    let found = outcomes(&drive, "f", 0);
    assert_eq!(found, [Some(b"bb".to_vec()), Some(b"bb\0\0".to_vec()), Some(b"bbaa".to_vec())]);
}

#[test]
fn a_crash_of_the_process_leaves_unsynced_writes_unsynced() {
    let drive = RecordingDrive::default();
    drive.create("f").unwrap().write_at(b"a", 0).unwrap();
    let again = RecordingDrive::new(drive.image_after(drive.changes()), true);
    let mut byte = [0];
    let file = again.open("f").unwrap();
    assert_eq!((file.read_at(&mut byte, 0).unwrap(), byte), (1, *b"a"));
    let lost = again.image_after(0).power_loss(&mut NothingKept);
    assert_eq!(contents(&lost, "f"), None);
    file.sync_data().unwrap();
    again.sync_dir("").unwrap();
    let lost = again.image_after(again.changes()).power_loss(&mut NothingKept);
    assert_eq!(contents(&lost, "f"), Some(b"a".to_vec()));
    assert_ne!(again.create("g").map(|_| ()).ok(), None);
    assert_ne!(lost.fingerprint(), again.image_after(again.changes()).fingerprint());
}

#[test]
fn space_runs_out_and_comes_back() {
    let drive = RecordingDrive::default();
    drive.set_capacity(2 * 4096);
    let file = drive.create("f").unwrap();
    let error = file.write_at(&[7; 3 * 4096], 0).unwrap_err();
    assert_eq!((error.raw_os_error(), file.len().unwrap()), (Some(libc::ENOSPC), 2 * 4096));
    assert_eq!(drive.space().unwrap().free_bytes, 0);
    file.write_at(&[8; 100], 4000).unwrap();
    file.punch_hole(4096, 4096).unwrap();
    assert_eq!((drive.space().unwrap().free_bytes, file.len().unwrap()), (4096, 8192));
    file.set_len(0).unwrap();
    assert_eq!(drive.used_bytes(), 0);
    file.write_at(&[9; 8192], 0).unwrap();
    drive.remove("f").unwrap();
    assert_eq!(drive.used_bytes(), 0);
}

#[test]
fn chosen_calls_fail() {
    let drive = RecordingDrive::default();
    let file = drive.create("some/f").unwrap();
    let half = Fault { done_per_mille: 500, ..Fault::once(Call::Write, 1) };
    let other = Fault { path: "other".into(), ..Fault::once(Call::Read, 0) };
    drive.inject(vec![half, other, Fault::once(Call::Len, 0)]);
    file.write_at(b"1234", 0).unwrap();
    assert!(file.write_at(b"abcd", 0).is_err() && file.len().is_err());
    let mut bytes = [0; 4];
    assert_eq!((file.read_at(&mut bytes, 0).unwrap(), &bytes), (4, b"ab34"));
    assert_eq!((drive.calls(Call::Write), file.len().unwrap()), (2, 4));
}

#[test]
fn folders_of_one_drive_lose_power_together() {
    let drive = RecordingDrive::default();
    let (one, two) = (drive.folder("one"), drive.folder("two"));
    one.create("f").unwrap();
    two.create("segments/g").unwrap();
    assert_eq!((one.list("").unwrap().len(), two.list("segments").unwrap().len()), (1, 1));
    assert_eq!(drive.files().len(), 2);
    let image = drive.image_after(drive.changes());
    assert!(contents(&image.power_loss(&mut EverythingKept), "two/segments/g").is_some());
}
