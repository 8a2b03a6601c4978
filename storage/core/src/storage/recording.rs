//! A drive in memory that remembers every change, for tests that cut the power wherever they like.
//!
//! The drive starts from an [`Image`] and journals what is done to it. [`RecordingDrive::image_after`] is
//! the drive after any number of changes, with what was synced and what was not; its
//! [`Image::power_loss`] is a drive that a power loss there may leave, and a new [`RecordingDrive`]
//! made from that goes on. Made from the image itself it goes on after a crash of the process alone:
//! what was unsynced still is.
//!
//! Several folders of one recording drive may serve as several drives (see [`RecordingDrive::folder`]):
//! they lose power together. Space may be limited, calls may be made to fail; all of it deterministic.

pub mod fates;
pub mod faults;
pub mod image;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Drive, File, Space};
use faults::{Call, Fault, Faults, Verdict};
use image::{Change, Image, Inode, folder_of, punch_out, write_into};

/// Space is taken and given back in pages of this many bytes.
const PAGE_LEN: usize = 4096;

/// A test that makes more changes than this has met a loop that never ends, and would eat all memory.
const CHANGES_MAX: usize = 100_000;

/// A file as the process sees it.
#[derive(Clone, Default)]
struct LiveFile {
    bytes: Arc<Vec<u8>>,
    /// Pages that take space.
    pages: BTreeSet<usize>,
}

struct State {
    base: Image,
    journal: Vec<Change>,
    /// Off: changes happen without being journalled, for looking at a state that is not crashed again.
    is_recording: bool,
    folders: BTreeSet<String>,
    names: BTreeMap<String, Inode>,
    files: HashMap<Inode, LiveFile>,
    next_inode: Inode,
    capacity_bytes: u64,
    used_pages: u64,
    faults: Faults,
}

type Hook = Arc<dyn Fn() + Send + Sync>;

struct Shared {
    state: Mutex<State>,
    hooks: Mutex<HashMap<Call, Hook>>,
}

#[derive(Clone)]
pub struct RecordingDrive {
    shared: Arc<Shared>,
    /// Put before every path; empty, or ends with a slash.
    prefix: String,
}

impl Default for RecordingDrive {
    fn default() -> RecordingDrive {
        RecordingDrive::new(Image::default(), true)
    }
}

impl RecordingDrive {
    /// A drive that holds what `base` holds. `is_recording` is off for one that is only looked at.
    pub fn new(base: Image, is_recording: bool) -> RecordingDrive {
        let (folders, found) = base.live();
        let (mut names, mut files) = (BTreeMap::new(), HashMap::new());
        for (path, inode, bytes) in found {
            names.insert(path, inode);
            files.insert(inode, LiveFile::of(bytes));
        }
        let used_pages = files.values().map(|f: &LiveFile| f.pages.len() as u64).sum();
        let state = State {
            next_inode: base.next_inode(),
            base,
            journal: Vec::new(),
            is_recording,
            folders: folders.into_iter().collect(),
            names,
            files,
            capacity_bytes: 1 << 40,
            used_pages,
            faults: Faults::default(),
        };
        let shared = Shared { state: Mutex::new(state), hooks: Mutex::default() };
        RecordingDrive { shared: Arc::new(shared), prefix: String::new() }
    }

    /// A folder of this drive as a drive of its own, journalled together with the rest.
    pub fn folder(&self, name: &str) -> RecordingDrive {
        let prefix = format!("{}{name}/", self.prefix);
        self.shared.state.lock().make_folders(&prefix, &self.prefix);
        RecordingDrive { shared: self.shared.clone(), prefix }
    }

    /// How many changes were made so far.
    pub fn changes(&self) -> usize {
        self.shared.state.lock().journal.len()
    }

    /// The changes made so far, for a report.
    pub fn journal(&self) -> Vec<Change> {
        self.shared.state.lock().journal.clone()
    }

    /// The drive after the first `changes` changes.
    pub fn image_after(&self, changes: usize) -> Image {
        let state = self.shared.state.lock();
        let mut image = state.base.clone();
        state.journal[..changes].iter().for_each(|change| image.apply(change));
        image
    }

    /// Visits the drive before the first and after each change: `(changes, the last one, image)`.
    pub fn for_each_crash(&self, mut visit: impl FnMut(usize, Option<&Change>, &Image)) {
        let (mut image, journal) = {
            let state = self.shared.state.lock();
            (state.base.clone(), state.journal.clone())
        };
        visit(0, None, &image);
        for (i, change) in journal.iter().enumerate() {
            image.apply(change);
            visit(i + 1, Some(change), &image);
        }
    }

    /// Bytes that all files together may take; calls fail with `ENOSPC` beyond.
    pub fn set_capacity(&self, bytes: u64) {
        self.shared.state.lock().capacity_bytes = bytes;
    }

    pub fn used_bytes(&self) -> u64 {
        self.shared.state.lock().used_pages * PAGE_LEN as u64
    }

    /// Makes calls fail from now on; replaces earlier faults.
    pub fn inject(&self, faults: Vec<Fault>) {
        self.shared.state.lock().faults.set(faults);
    }

    /// How many calls of this kind were made since the drive was made.
    pub fn calls(&self, call: Call) -> u64 {
        self.shared.state.lock().faults.calls(call)
    }

    /// Runs in the middle of every read or sync, without any lock. A read has its bytes by then; a sync
    /// does not cover what is written from then on.
    pub fn set_during(&self, call: Call, hook: Option<Hook>) {
        let mut hooks = self.shared.hooks.lock();
        match hook {
            Some(hook) => hooks.insert(call, hook),
            None => hooks.remove(&call),
        };
    }

    /// Paths of all files with their bytes.
    pub fn files(&self) -> Vec<(String, Arc<Vec<u8>>)> {
        let state = self.shared.state.lock();
        let file = |(path, inode): (&String, &Inode)| {
            let path = path.strip_prefix(&self.prefix)?;
            Some((path.to_string(), state.files[inode].bytes.clone()))
        };
        state.names.iter().filter_map(file).collect()
    }

    fn path(&self, path: &str) -> String {
        format!("{}{path}", self.prefix).trim_end_matches('/').to_string()
    }

    fn file(&self, inode: Inode, path: String) -> Box<dyn File> {
        Box::new(RecordingFile { shared: self.shared.clone(), inode, path })
    }
}

fn missing() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSPC)
}

impl Shared {
    fn run_hook(&self, call: Call) {
        let hook = self.hooks.lock().get(&call).cloned();
        if let Some(hook) = hook {
            hook();
        }
    }
}

impl LiveFile {
    fn of(bytes: Arc<Vec<u8>>) -> LiveFile {
        let pages = bytes.chunks(PAGE_LEN).enumerate();
        let pages = pages.filter(|(_, page)| page.iter().any(|b| *b != 0)).map(|(i, _)| i);
        LiveFile { pages: pages.collect(), bytes }
    }
}

impl State {
    fn record(&mut self, change: Change) {
        if self.is_recording {
            assert!(self.journal.len() < CHANGES_MAX, "something writes without end");
            self.journal.push(change);
        }
    }

    fn seq(&self) -> u64 {
        self.base.next_seq() + self.journal.len() as u64
    }

    /// As [`super::fs::FsDrive`] does: missing folders above `path` are made, and their names synced.
    /// `root`, empty or with a slash at its end, is there already.
    fn make_folders(&mut self, path: &str, root: &str) {
        let folder = folder_of(path);
        if folder.len() < root.len() || folder.is_empty() || self.folders.contains(folder) {
            return;
        }
        self.make_folders(folder, root);
        self.folders.insert(folder.to_string());
        self.record(Change::MakeFolder { path: folder.to_string() });
        self.record(Change::SyncFolder { path: folder_of(folder).to_string() });
    }

    /// How many bytes of a write at `offset` fit; takes the space for them.
    fn allocate(&mut self, inode: Inode, offset: usize, length: usize) -> usize {
        let capacity_pages = self.capacity_bytes / PAGE_LEN as u64;
        let file = self.files.get_mut(&inode).expect("open files have a live file");
        for page in offset / PAGE_LEN..(offset + length).div_ceil(PAGE_LEN) {
            if file.pages.contains(&page) {
                continue;
            }
            if self.used_pages >= capacity_pages {
                return (page * PAGE_LEN).saturating_sub(offset);
            }
            file.pages.insert(page);
            self.used_pages += 1;
        }
        length
    }

    fn free(&mut self, inode: Inode, pages: std::ops::Range<usize>) {
        let file = self.files.get_mut(&inode).expect("open files have a live file");
        let before = file.pages.len();
        file.pages.retain(|page| !pages.contains(page));
        self.used_pages -= (before - file.pages.len()) as u64;
    }

    fn bytes_mut(&mut self, inode: Inode) -> &mut Vec<u8> {
        Arc::make_mut(&mut self.files.get_mut(&inode).expect("open files have a live file").bytes)
    }
}

impl Drive for RecordingDrive {
    fn create(&self, path: &str) -> io::Result<Box<dyn File>> {
        let full = self.path(path);
        let mut state = self.shared.state.lock();
        state.faults.check(Call::Create, &full)?;
        if state.names.contains_key(&full) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.make_folders(&full, &self.prefix);
        let inode = state.next_inode;
        state.next_inode += 1;
        state.names.insert(full.clone(), inode);
        state.files.insert(inode, LiveFile::default());
        state.record(Change::Create { path: full.clone(), inode });
        Ok(self.file(inode, full))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn File>> {
        let full = self.path(path);
        let mut state = self.shared.state.lock();
        state.faults.check(Call::Open, &full)?;
        let inode = *state.names.get(&full).ok_or_else(missing)?;
        Ok(self.file(inode, full))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let full = self.path(path);
        let mut state = self.shared.state.lock();
        state.faults.check(Call::Remove, &full)?;
        let inode = state.names.remove(&full).ok_or_else(missing)?;
        // Who has it open may go on reading it; its space is given back at once all the same.
        state.free(inode, 0..usize::MAX);
        state.record(Change::Remove { path: full });
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.path(from), self.path(to));
        let mut state = self.shared.state.lock();
        state.faults.check(Call::Rename, &from)?;
        if state.names.contains_key(&to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.names.remove(&from).ok_or_else(missing)?;
        state.names.insert(to.clone(), inode);
        state.record(Change::Rename { from, to, inode });
        Ok(())
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        let full = self.path(path);
        let mut state = self.shared.state.lock();
        state.faults.check(Call::RemoveDir, &full)?;
        if state.names.keys().chain(&state.folders).any(|name| folder_of(name) == full) {
            return Err(io::Error::from_raw_os_error(libc::ENOTEMPTY));
        }
        if state.folders.remove(&full) {
            state.record(Change::RemoveFolder { path: full });
        }
        Ok(())
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let full = self.path(path);
        let mut state = self.shared.state.lock();
        state.faults.check(Call::List, &full)?;
        let names = state.names.keys().chain(&state.folders);
        let here = names.filter(|name| folder_of(name) == full && **name != full);
        Ok(here.map(|name| name[full.len()..].trim_start_matches('/').to_string()).collect())
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let full = self.path(path);
        let mut state = self.shared.state.lock();
        state.faults.check(Call::SyncDir, &full)?;
        if !full.is_empty() && !state.folders.contains(&full) {
            return Err(missing());
        }
        state.record(Change::SyncFolder { path: full });
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let state = self.shared.state.lock();
        let used_bytes = state.used_pages * PAGE_LEN as u64;
        let free_bytes = state.capacity_bytes.saturating_sub(used_bytes);
        Ok(Space { free_bytes, total_bytes: state.capacity_bytes })
    }
}

struct RecordingFile {
    shared: Arc<Shared>,
    inode: Inode,
    path: String,
}

impl File for RecordingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.shared.state.lock();
        state.faults.check(Call::Read, &self.path)?;
        let bytes = &state.files[&self.inode].bytes;
        let start = (offset as usize).min(bytes.len());
        let end = (start + buf.len()).min(bytes.len());
        buf[..end - start].copy_from_slice(&bytes[start..end]);
        drop(state);
        self.shared.run_hook(Call::Read);
        Ok(end - start)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let offset = offset as usize;
        let mut state = self.shared.state.lock();
        let verdict = state.faults.judge(Call::Write, &self.path);
        let wanted = match &verdict {
            Verdict::Pass => data.len(),
            Verdict::Fail { done_per_mille, .. } => data.len() * done_per_mille / 1000,
        };
        let fits = state.allocate(self.inode, offset, wanted);
        if fits > 0 {
            write_into(state.bytes_mut(self.inode), offset, &data[..fits]);
            state.record(Change::Write { inode: self.inode, offset, data: data[..fits].into() });
        }
        verdict.result()?;
        if fits < data.len() { Err(no_space()) } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        let covers = self.shared.state.lock().seq();
        self.shared.run_hook(Call::Sync);
        let mut state = self.shared.state.lock();
        let checked = state.faults.check(Call::Sync, &self.path);
        let change = match checked {
            Ok(()) => Change::Sync { inode: self.inode, covers },
            Err(_) => Change::SyncFailed { inode: self.inode, covers },
        };
        state.record(change);
        checked
    }

    fn len(&self) -> io::Result<u64> {
        let mut state = self.shared.state.lock();
        state.faults.check(Call::Len, &self.path)?;
        Ok(state.files[&self.inode].bytes.len() as u64)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let length = length as usize;
        let mut state = self.shared.state.lock();
        state.faults.check(Call::SetLen, &self.path)?;
        state.bytes_mut(self.inode).resize(length, 0);
        state.free(self.inode, length.div_ceil(PAGE_LEN)..usize::MAX);
        state.record(Change::SetLen { inode: self.inode, length });
        Ok(())
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        let (offset, length) = (offset as usize, length as usize);
        let mut state = self.shared.state.lock();
        state.faults.check(Call::Punch, &self.path)?;
        punch_out(state.bytes_mut(self.inode), offset, length);
        let whole_pages = offset.div_ceil(PAGE_LEN)..(offset + length) / PAGE_LEN;
        state.free(self.inode, whole_pages);
        state.record(Change::Punch { inode: self.inode, offset, length });
        Ok(())
    }

    fn start_writeback(&self, _: u64, _: u64) {}

    fn prefetch(&self, _: u64, _: u64) {}
}

#[cfg(test)]
#[path = "recording/tests.rs"]
mod tests;
