//! The core's errors. Each variant becomes one class of `storage/errors.py`.

use std::io;

use crate::units::{DiskId, SegmentId};

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The request makes no sense: out of range, misused flag.
    #[error("invalid request: {0}")]
    InvalidRequest(String),
    /// A snapshot cannot be written to.
    #[error("disk {:08x} is a snapshot", .0.0)]
    ReadOnly(DiskId),
    /// No drive of the pool has room; freeing space makes the same call work again.
    #[error("no space left in the pool")]
    NoSpace,
    /// Stored bytes fail verification. The data is not returned, nothing is changed.
    #[error("damaged data of disk {:08x} in {place}: {detail}", .disk.0)]
    Corrupt { disk: DiskId, place: String, detail: String },
    /// The log can take no more writes (a sync failed); what was acknowledged stays readable until restart.
    #[error("disk {:08x} has failed: {cause}", .disk.0)]
    DiskFailed { disk: DiskId, cause: String },
    #[error("no disk {:08x}", .0.0)]
    DiskNotFound(DiskId),
    /// A drive that holds segments of the disk is not there.
    #[error("disk {:08x} needs drive {drive}, which is missing", .disk.0)]
    DriveMissing { disk: DiskId, drive: u32 },
    #[error("the pool is closed")]
    PoolClosed,
    /// The operating system refused; `errno` is its number.
    #[error("{place}: {}", io::Error::from_raw_os_error(*.errno))]
    Io { place: String, errno: i32 },
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Wraps an operating system error; `ENOSPC` and `EDQUOT` become [`Error::NoSpace`].
    pub fn io(place: impl Into<String>, error: io::Error) -> Error {
        match error.raw_os_error() {
            Some(libc::ENOSPC) | Some(libc::EDQUOT) => Error::NoSpace,
            errno => Error::Io { place: place.into(), errno: errno.unwrap_or(libc::EIO) },
        }
    }

    pub fn corrupt(
        disk: DiskId,
        segment: SegmentId,
        offset: usize,
        detail: impl Into<String>,
    ) -> Error {
        let place = format!("segment {:08x} offset {offset}", segment.0);
        Error::Corrupt { disk, place, detail: detail.into() }
    }
}
