//! What the store needs of a drive: a folder of files, written at offsets, synced by file and by directory.
//!
//! The log, the checkpoints and the recovery run over these traits only, so that tests put a recording
//! drive beneath them and cut the power wherever they like.
//!
//! Durability, as POSIX promises it and no more:
//! - bytes written to a file are on stable storage after its `sync_data`; before that any subset of
//!   them may survive a power loss, in any order, torn at 512-byte boundaries;
//! - a file's length is durable with `sync_data` too;
//! - a created or removed name is durable after `sync_dir` of its folder; before that either may be
//!   found after a power loss.

pub mod fs;
#[cfg(any(test, feature = "testing"))]
pub mod recording;

use std::io;

/// Room on the file system behind a drive, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// A folder tree on one drive. Paths are relative, `/`-separated, of at most three parts.
pub trait Drive: Send + Sync {
    /// Makes a new, empty file, and the folders above it; `AlreadyExists` if it is there.
    fn create(&self, path: &str) -> io::Result<Box<dyn File>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &str) -> io::Result<Box<dyn File>>;
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Gives a file another name, which no file has. As if the new name were created and the old one removed:
    /// each durable after `sync_dir` of its own folder.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes an empty folder; a missing one is no error.
    fn remove_dir(&self, path: &str) -> io::Result<()>;
    /// Names in a folder, unsorted; a missing folder is empty.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;
    /// Makes names created in and removed from `path`, and `path` itself, durable.
    fn sync_dir(&self, path: &str) -> io::Result<()>;
    fn space(&self) -> io::Result<Space>;
}

/// One open file. All methods may be called from several threads at once.
#[allow(clippy::len_without_is_empty)] // nobody asks whether a file is empty
pub trait File: Send + Sync {
    /// Fills `buf` from `offset`; returns fewer bytes only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `data`; on an error any part of it may have been written.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    fn sync_data(&self) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Gives the range's space back; it reads as zeros from then on.
    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Starts writing the range to the drive without waiting for it; no promise of durability.
    fn start_writeback(&self, offset: u64, length: u64);
    /// Asks for the range to be brought into the page cache; no promise.
    fn prefetch(&self, offset: u64, length: u64);
}
