//! What a drive holds for certain, and what it may or may not hold after a power loss.
//!
//! A file is its durable bytes and the changes since, in order. A sync marks the changes made before it
//! began as durable. A sync that *fails* loses them for good, as Linux does: the pages count as clean
//! although they were never written, and a later sync that succeeds says nothing about them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::fates::{Fate, Fates, Unsynced};

pub type Inode = usize;
/// A file's path, its inode and its bytes.
pub type LiveFile = (String, Inode, Arc<Vec<u8>>);

/// Bytes that a drive writes wholly or not at all.
pub const SECTOR_LEN: usize = 512;

/// One call that changed the drive, as the journal keeps it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    MakeFolder {
        path: String,
    },
    RemoveFolder {
        path: String,
    },
    Create {
        path: String,
        inode: Inode,
    },
    Remove {
        path: String,
    },
    Rename {
        from: String,
        to: String,
        inode: Inode,
    },
    Write {
        inode: Inode,
        offset: usize,
        data: Arc<[u8]>,
    },
    SetLen {
        inode: Inode,
        length: usize,
    },
    Punch {
        inode: Inode,
        offset: usize,
        length: usize,
    },
    /// `covers`: changes with smaller numbers were made before the sync began.
    Sync {
        inode: Inode,
        covers: u64,
    },
    SyncFailed {
        inode: Inode,
        covers: u64,
    },
    SyncFolder {
        path: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Unsynced,
    /// A sync of it failed; no later sync makes it durable.
    Lost,
    /// Durable, but still behind a change that is not.
    Durable,
}

#[derive(Clone, Debug)]
struct Pending {
    seq: u64,
    change: Change,
    state: State,
}

#[derive(Clone, Default, Debug)]
struct Contents {
    durable: Arc<Vec<u8>>,
    pending: Vec<Pending>,
}

/// A name: what it certainly points to, and what it has pointed to since.
#[derive(Clone, Debug)]
struct Name<T> {
    durable: T,
    since: Vec<T>,
}

impl<T: Clone + Default> Name<T> {
    fn change(names: &mut BTreeMap<String, Name<T>>, path: &str, to: T) {
        let fresh = || Name { durable: T::default(), since: Vec::new() };
        names.entry(path.to_string()).or_insert_with(fresh).since.push(to);
    }

    fn make_durable(&mut self) {
        if let Some(last) = self.since.pop() {
            self.since.clear();
            self.durable = last;
        }
    }

    fn found(&self, fates: &mut dyn Fates) -> T {
        match self.since.len() {
            0 => self.durable.clone(),
            changes => match fates.name(changes + 1) {
                0 => self.durable.clone(),
                state => self.since[state - 1].clone(),
            },
        }
    }
}

#[derive(Clone, Default, Debug)]
pub struct Image {
    contents: BTreeMap<Inode, Contents>,
    names: BTreeMap<String, Name<Option<Inode>>>,
    folders: BTreeMap<String, Name<bool>>,
    /// Number of the next change.
    next_seq: u64,
}

/// The folder that holds a name; `""` is the drive itself.
pub fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Writes `data` at `offset` of a file in memory, which grows as needed.
pub fn write_into(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}

/// Zeroes a range of a file in memory, whose length stays.
pub fn punch_out(bytes: &mut [u8], offset: usize, length: usize) {
    let end = (offset + length).min(bytes.len());
    if offset < end {
        bytes[offset..end].fill(0);
    }
}

fn apply_whole(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { offset, data, .. } => write_into(bytes, *offset, data),
        Change::SetLen { length, .. } => bytes.resize(*length, 0),
        Change::Punch { offset, length, .. } => punch_out(bytes, *offset, *length),
        _ => unreachable!("only these are kept with a file"),
    }
}

/// Applies a write in those of its sectors that survived.
fn apply_torn(bytes: &mut Vec<u8>, change: &Change, mask: &[bool]) {
    let Change::Write { offset, data, .. } = change else {
        return if mask[0] {
            apply_whole(bytes, change)
        };
    };
    let mut start = 0;
    for kept in mask {
        let end = ((offset + start) / SECTOR_LEN + 1) * SECTOR_LEN - offset;
        let end = end.min(data.len());
        if *kept {
            write_into(bytes, offset + start, &data[start..end]);
        }
        start = end;
    }
}

impl Pending {
    fn unsynced(&self, inode: Inode) -> Unsynced {
        let (first_sector, sectors) = match &self.change {
            Change::Write { offset, data, .. } if !data.is_empty() => {
                let first = offset / SECTOR_LEN;
                (first, (offset + data.len() - 1) / SECTOR_LEN - first + 1)
            }
            _ => (0, 0),
        };
        Unsynced { inode, seq: self.seq, first_sector: first_sector as u64, sectors }
    }

    /// The length of the file right after this change, if it was `len` before.
    fn length_after(&self, len: usize) -> usize {
        match &self.change {
            Change::Write { offset, data, .. } => len.max(offset + data.len()),
            Change::SetLen { length, .. } => *length,
            _ => len,
        }
    }
}

impl Contents {
    fn sync(&mut self, covers: u64, to: State) {
        for pending in self.pending.iter_mut().filter(|p| p.seq < covers) {
            if pending.state == State::Unsynced {
                pending.state = to;
            }
        }
        let durable = self.pending.iter().take_while(|p| p.state == State::Durable).count();
        for pending in self.pending.drain(..durable) {
            apply_whole(Arc::make_mut(&mut self.durable), &pending.change);
        }
    }

    fn found(&self, inode: Inode, fates: &mut dyn Fates) -> Arc<Vec<u8>> {
        if self.pending.is_empty() {
            return self.durable.clone();
        }
        let mut bytes = self.durable.to_vec();
        let (mut length, mut longest) = (bytes.len(), bytes.len());
        for pending in &self.pending {
            length = pending.length_after(length);
            longest = longest.max(length);
            let fate = match pending.state {
                State::Durable => Fate::Kept,
                _ => fates.write(&pending.unsynced(inode)),
            };
            match fate {
                Fate::Lost => {}
                Fate::Kept => apply_whole(&mut bytes, &pending.change),
                Fate::Torn(mask) => apply_torn(&mut bytes, &pending.change, &mask),
            }
        }
        if bytes.len() < longest && fates.is_long(inode) {
            bytes.resize(longest, 0);
        }
        Arc::new(bytes)
    }
}

impl Image {
    /// A drive that holds these files, all durable.
    pub fn holding(files: impl IntoIterator<Item = (String, Arc<Vec<u8>>)>) -> Image {
        let mut image = Image::default();
        for (inode, (path, durable)) in files.into_iter().enumerate() {
            let folders = path.match_indices('/').map(|(at, _)| path[..at].to_string());
            let folder = Name { durable: true, since: Vec::new() };
            image.folders.extend(folders.map(|path| (path, folder.clone())));
            image.contents.insert(inode, Contents { durable, pending: Vec::new() });
            image.names.insert(path, Name { durable: Some(inode), since: Vec::new() });
        }
        image
    }

    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    pub fn next_inode(&self) -> Inode {
        self.contents.last_key_value().map_or(0, |(inode, _)| inode + 1)
    }

    /// The first change that may be lost.
    pub fn first_unsynced(&self) -> u64 {
        let pending = self.contents.values().flat_map(|c| &c.pending);
        pending.map(|p| p.seq).min().unwrap_or(self.next_seq)
    }

    pub fn apply(&mut self, change: &Change) {
        let seq = self.next_seq;
        self.next_seq += 1;
        match change {
            Change::MakeFolder { path } => Name::change(&mut self.folders, path, true),
            Change::RemoveFolder { path } => Name::change(&mut self.folders, path, false),
            Change::Create { path, inode } => {
                self.contents.insert(*inode, Contents::default());
                Name::change(&mut self.names, path, Some(*inode));
            }
            Change::Remove { path } => Name::change(&mut self.names, path, None),
            Change::Rename { from, to, inode } => {
                Name::change(&mut self.names, from, None);
                Name::change(&mut self.names, to, Some(*inode));
            }
            Change::Write { inode, .. }
            | Change::SetLen { inode, .. }
            | Change::Punch { inode, .. } => {
                let pending = Pending { seq, change: change.clone(), state: State::Unsynced };
                self.contents.get_mut(inode).expect("created before").pending.push(pending);
            }
            Change::Sync { inode, covers } => self.sync(*inode, *covers, State::Durable),
            Change::SyncFailed { inode, covers } => self.sync(*inode, *covers, State::Lost),
            Change::SyncFolder { path } => self.sync_folder(path),
        }
    }

    fn sync(&mut self, inode: Inode, covers: u64, to: State) {
        self.contents.get_mut(&inode).expect("created before").sync(covers, to);
    }

    fn sync_folder(&mut self, path: &str) {
        let is_here = |name: &str| folder_of(name) == path && name != path;
        for (_, name) in self.names.iter_mut().filter(|(name, _)| is_here(name)) {
            name.make_durable();
        }
        for (name, folder) in self.folders.iter_mut() {
            if name == path || is_here(name) {
                folder.make_durable();
            }
        }
        self.names.retain(|_, name| name.durable.is_some() || !name.since.is_empty());
        let states = self.names.values().flat_map(|n| n.since.iter().chain([&n.durable]));
        let reachable: BTreeSet<Inode> = states.flatten().copied().collect();
        // A removed file may still be open and written to; only its survival is over.
        for (_, contents) in self.contents.iter_mut().filter(|(i, _)| !reachable.contains(i)) {
            contents.durable = Arc::default();
            contents.pending.clear();
        }
    }

    /// The drive as a power loss leaves it, all of it durable.
    pub fn power_loss(&self, fates: &mut dyn Fates) -> Image {
        let mut found = Image { next_seq: self.next_seq, ..Image::default() };
        for (path, folder) in &self.folders {
            if folder.found(fates) && (folder_of(path).is_empty() || found.has(folder_of(path))) {
                found.folders.insert(path.clone(), Name { durable: true, since: Vec::new() });
            }
        }
        for (path, name) in &self.names {
            let Some(inode) = name.found(fates) else { continue };
            if !folder_of(path).is_empty() && !found.has(folder_of(path)) {
                continue;
            }
            let durable = self.contents[&inode].found(inode, fates);
            found.contents.insert(inode, Contents { durable, pending: Vec::new() });
            found.names.insert(path.clone(), Name { durable: Some(inode), since: Vec::new() });
        }
        found
    }

    fn has(&self, folder: &str) -> bool {
        self.folders.get(folder).is_some_and(|f| f.durable)
    }

    /// Folders and files as the running process sees them.
    pub fn live(&self) -> (Vec<String>, Vec<LiveFile>) {
        let all = self.power_loss(&mut super::fates::EverythingKept);
        let folders = all.folders.into_keys().collect();
        let file = |(path, name): (String, Name<Option<Inode>>)| {
            let inode = name.durable.expect("found names point to a file");
            (path, inode, all.contents[&inode].durable.clone())
        };
        (folders, all.names.into_iter().map(file).collect())
    }

    /// A number that two images with the same files share; for recognising states seen before.
    pub fn fingerprint(&self) -> u64 {
        let mut sum = xxhash_rust::xxh3::Xxh3::new();
        for path in self.folders.keys() {
            sum.update(path.as_bytes());
            sum.update(b"/\0");
        }
        let (_, files) = self.live();
        for (path, _, bytes) in files {
            sum.update(path.as_bytes());
            sum.update(&(bytes.len() as u64).to_le_bytes());
            sum.update(&bytes);
        }
        sum.digest()
    }
}
