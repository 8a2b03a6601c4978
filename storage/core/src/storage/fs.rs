//! The real drive: a folder of a Linux file system, through the page cache.
//!
//! The page cache is what makes an acknowledged write survive a crash of this process (contract §4.2)
//! without a sync; direct I/O is not used.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Drive, File, Space};

pub struct FsDrive {
    root: PathBuf,
}

impl FsDrive {
    pub fn new(root: impl Into<PathBuf>) -> FsDrive {
        FsDrive { root: root.into() }
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

impl Drive for FsDrive {
    fn create(&self, path: &str) -> io::Result<Box<dyn File>> {
        let full = self.root.join(path);
        if let Some(folder) = full.parent()
            && !folder.is_dir()
        {
            fs::create_dir_all(folder)?;
            // A new folder is rare; making it durable here keeps `sync_dir` to one level.
            for above in folder.ancestors().skip(1).take_while(|a| a.starts_with(&self.root)) {
                sync_folder(above)?;
            }
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(full)?;
        Ok(Box::new(FsFile { file }))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn File>> {
        let file = OpenOptions::new().read(true).write(true).open(self.root.join(path))?;
        Ok(Box::new(FsFile { file }))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.root.join(path))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.root.join(from), self.root.join(to))
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        match fs::remove_dir(self.root.join(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.root.join(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut names = Vec::new();
        for entry in entries {
            // Names of ours are ASCII; anything else in the folder is not ours to look at.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        sync_folder(&self.root.join(path))
    }

    fn space(&self) -> io::Result<Space> {
        let path = std::ffi::CString::new(self.root.as_os_str().as_encoded_bytes())?;
        // SAFETY: statvfs is plain data for which all-zero is a valid value.
        let mut info: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: `path` is NUL-terminated and `info` outlives the call.
        if unsafe { libc::statvfs(path.as_ptr(), &mut info) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let unit = info.f_frsize;
        Ok(Space { free_bytes: info.f_bavail * unit, total_bytes: info.f_blocks * unit })
    }
}

struct FsFile {
    file: fs::File,
}

impl File for FsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the descriptor is open; no memory is involved.
        match unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset as i64, length as i64) }
        {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn start_writeback(&self, offset: u64, length: u64) {
        // SAFETY: the descriptor is open; no memory is involved. A failure shows at `sync_data`.
        unsafe {
            libc::sync_file_range(
                self.file.as_raw_fd(),
                offset as i64,
                length as i64,
                libc::SYNC_FILE_RANGE_WRITE,
            );
        }
    }

    fn prefetch(&self, offset: u64, length: u64) {
        // SAFETY: the descriptor is open; no memory is involved. The call is a hint.
        unsafe {
            libc::posix_fadvise(
                self.file.as_raw_fd(),
                offset as i64,
                length as i64,
                libc::POSIX_FADV_WILLNEED,
            );
        }
    }
}
