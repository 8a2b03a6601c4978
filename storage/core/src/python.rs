//! The Python face: `storage._core`. The only file that knows of Python.
//!
//! nbdkit calls the module's `pread`, `pwrite` … directly: one native call per request. The GIL is given
//! up around everything that may wait. A panic inside the core fails the disk it happened on (its memory
//! may be inconsistent, its log is not) instead of unwinding into the interpreter.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict};

use crate::codec::Compression;
use crate::error::Error;
use crate::storage::Drive;
use crate::storage::fs::FsDrive;
use crate::units::DiskId;
use crate::{Limits, Options, disk, pool};

/// Runs answered to one block status request: a client asks again for the rest.
const EXTENTS_MAX: usize = 1024;
/// NBD flags as nbdkit passes them on.
const FLAG_FUA: u32 = 1 << 1;
const EXTENT_TYPE_HOLE_AND_ZERO: u32 = 3;
const EXTENT_TYPE_DATA: u32 = 0;

/// Where to go on, if anywhere; offset, length and whether it is a hole of each range.
type ChangedPiece = (Option<u64>, Vec<(u64, u64, bool)>);

/// Where to go on, bytes of data passed, bytes read, damage as offset, length and detail.
type ScrubbedPiece = (u64, u64, u64, Vec<(u64, u64, String)>);

static ERRNO_HOOK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// The class of `storage.errors` for a core error, constructed.
fn to_python(py: Python<'_>, error: &Error, pool_dir: &str) -> PyErr {
    let build = || -> PyResult<PyErr> {
        let fields = PyDict::new(py);
        let name = match error {
            Error::InvalidRequest(reason) => {
                fields.set_item("reason", reason)?;
                "InvalidRequest"
            }
            Error::ReadOnly(disk) => {
                fields.set_item("disk", disk.0)?;
                "ReadOnly"
            }
            Error::NoSpace => {
                fields.set_item("pool", pool_dir)?;
                "NoSpace"
            }
            Error::Corrupt { disk, place, detail } => {
                fields.set_item("disk", disk.0)?;
                fields.set_item("where", place)?;
                fields.set_item("detail", detail)?;
                "Corrupt"
            }
            Error::DiskFailed { disk, cause } => {
                fields.set_item("disk", disk.0)?;
                fields.set_item("cause", cause)?;
                "DiskFailed"
            }
            Error::DiskNotFound(disk) => {
                fields.set_item("disk", disk.0)?;
                "DiskNotFound"
            }
            Error::DriveMissing { disk, drive } => {
                fields.set_item("disk", disk.0)?;
                fields.set_item("drive", drive)?;
                "DriveMissing"
            }
            Error::PoolClosed => "PoolClosed",
            Error::Io { place, errno } => {
                fields.set_item("where", place)?;
                fields.set_item("errno", errno)?;
                "StorageIO"
            }
        };
        let class = py.import("storage.errors")?.getattr(name)?;
        Ok(PyErr::from_value(class.call((), Some(&fields))?))
    };
    build().unwrap_or_else(|broken| broken)
}

#[pyclass(frozen, module = "storage._core")]
struct Pool {
    pool: Arc<pool::Pool>,
    dir: Arc<str>,
}

impl Pool {
    fn run<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&pool::Pool) -> crate::Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| work(&self.pool)).map_err(|e| to_python(py, &e, &self.dir))
    }
}

#[pymethods]
impl Pool {
    /// Opens the store of a pool and starts its background threads: call after any fork.
    #[staticmethod]
    fn open(
        py: Python<'_>,
        pool_dir: &str,
        pool_uuid: [u8; 16],
        drives: Vec<(u32, Option<String>)>,
        memory_bytes: usize,
    ) -> PyResult<Pool> {
        let anchors: Arc<dyn Drive> = Arc::new(FsDrive::new(pool_dir));
        let to_drive = |path: String| Arc::new(FsDrive::new(path)) as Arc<dyn Drive>;
        let drives = drives.into_iter().map(|(i, path)| (i, path.map(to_drive))).collect();
        let options = Options { pool_uuid, memory_bytes, ..Options::default() };
        let opened = py.detach(|| pool::Pool::open(anchors, drives, options));
        let pool = opened.map_err(|e| to_python(py, &e, pool_dir))?;
        Ok(Pool { pool, dir: pool_dir.into() })
    }

    fn create_disk(&self, py: Python<'_>, disk_id: u32) -> PyResult<()> {
        self.run(py, |pool| pool.create_disk(DiskId(disk_id)))
    }

    fn open_disk(&self, py: Python<'_>, disk_id: u32, size_bytes: u64) -> PyResult<Disk> {
        let disk = self.run(py, |pool| pool.open_disk(DiskId(disk_id), size_bytes))?;
        Ok(Disk { disk, pool_dir: self.dir.clone() })
    }

    /// Pairs of disk and snapshot, all as of one instant.
    fn snapshot(&self, py: Python<'_>, pairs: Vec<(u32, u32)>) -> PyResult<()> {
        let pairs: Vec<_> = pairs.into_iter().map(|(d, s)| (DiskId(d), DiskId(s))).collect();
        self.run(py, |pool| pool.snapshot(&pairs))
    }

    fn clone_disk(&self, py: Python<'_>, snapshot_id: u32, disk_id: u32) -> PyResult<()> {
        self.run(py, |pool| pool.clone_disk(DiskId(snapshot_id), DiskId(disk_id)))
    }

    fn rollback_disk(
        &self,
        py: Python<'_>,
        disk_id: u32,
        size_bytes: u64,
        snapshot_id: u32,
    ) -> PyResult<()> {
        self.run(py, |pool| pool.rollback_disk(DiskId(disk_id), size_bytes, DiskId(snapshot_id)))
    }

    fn delete_disk(&self, py: Python<'_>, disk_id: u32) -> PyResult<bool> {
        self.run(py, |pool| pool.delete_disk(DiskId(disk_id)))
    }

    /// Ids of the disks that the drives hold anything of.
    fn anchored_disks(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        let disks = self.run(py, |pool| pool.stored_disks())?;
        Ok(disks.into_iter().map(|d| d.0).collect())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.run(py, |pool| pool.stats())?;
        let out = PyDict::new(py);
        out.set_item("free_bytes", stats.space.free_bytes)?;
        out.set_item("total_bytes", stats.space.total_bytes)?;
        out.set_item("segments", stats.segments)?;
        out.set_item("open_disks", stats.open_disks)?;
        out.set_item("delta_bytes", stats.delta_bytes)?;
        out.set_item("node_cache_bytes", stats.node_cache_bytes)?;
        Ok(out)
    }

    /// Ends all waiting for limits, for the end of service.
    fn lift_limits(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, |pool| {
            pool.lift_limits();
            Ok(())
        })
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, |pool| pool.close())
    }
}

#[pyclass(frozen, module = "storage._core")]
struct Disk {
    disk: Arc<disk::Disk>,
    pool_dir: Arc<str>,
}

impl Disk {
    fn run<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&disk::Disk) -> crate::Result<T> + Send,
    ) -> PyResult<T> {
        let guarded = || catch_unwind(AssertUnwindSafe(|| work(&self.disk)));
        let outcome =
            py.detach(guarded).unwrap_or_else(|_| Err(self.disk.fail("the core panicked")));
        outcome.map_err(|e| to_python(py, &e, &self.pool_dir))
    }

    /// As `run`, for nbdkit.
    fn answer<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&disk::Disk) -> crate::Result<T> + Send,
    ) -> PyResult<T> {
        self.run(py, work).map_err(|error| for_nbdkit(py, error))
    }
}

/// Tells nbdkit the errno, and gives the exception the traceback without which nbdkit 1.32 crashes.
fn for_nbdkit(py: Python<'_>, error: PyErr) -> PyErr {
    tell_errno(py, &error);
    let errors = py.import("storage.errors");
    let with_traceback = errors.and_then(|e| e.getattr("with_traceback"));
    match with_traceback.and_then(|f| f.call1((error.value(py),))) {
        Ok(raised) => PyErr::from_value(raised),
        Err(broken) => broken,
    }
}

fn tell_errno(py: Python<'_>, error: &PyErr) {
    let Some(hook) = ERRNO_HOOK.get(py) else { return };
    let errno_of = || py.import("storage.faces")?.getattr("errno_of")?.call1((error.value(py),));
    let errno = errno_of().and_then(|e| e.extract::<i32>()).unwrap_or(libc::EIO);
    if let Err(broken) = hook.call1(py, (errno,)) {
        broken.print(py);
    }
}

#[pymethods]
impl Disk {
    #[getter]
    fn disk_id(&self) -> u32 {
        self.disk.id.0
    }

    #[getter]
    fn is_snapshot(&self) -> bool {
        self.disk.is_snapshot()
    }

    #[getter]
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        offset: u64,
        length: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        // Checked before memory is taken by a length that may be nonsense.
        self.run(py, |disk| disk.check_range(offset, length as u64))?;
        PyBytes::new_with(py, length, |out| self.run(py, |disk| disk.read(offset, out)))
    }

    #[pyo3(signature = (offset, data, fua=false))]
    fn write(&self, py: Python<'_>, offset: u64, data: &[u8], fua: bool) -> PyResult<()> {
        self.run(py, |disk| disk.write(offset, data, fua))
    }

    #[pyo3(signature = (offset, length, fua=false))]
    fn trim(&self, py: Python<'_>, offset: u64, length: u64, fua: bool) -> PyResult<()> {
        self.run(py, |disk| disk.zero(offset, length, fua))
    }

    #[pyo3(signature = (offset, length, fua=false))]
    fn zero(&self, py: Python<'_>, offset: u64, length: u64, fua: bool) -> PyResult<()> {
        self.run(py, |disk| disk.zero(offset, length, fua))
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, |disk| disk.flush())
    }

    fn extents(&self, py: Python<'_>, offset: u64, length: u64) -> PyResult<Vec<(u64, u64, bool)>> {
        self.run(py, |disk| disk.extents(offset, length, EXTENTS_MAX))
    }

    fn prefetch(&self, py: Python<'_>, offset: u64, length: u64) -> PyResult<()> {
        self.run(py, |disk| disk.prefetch(offset, length))
    }

    fn resize(&self, py: Python<'_>, size_bytes: u64) -> PyResult<()> {
        self.run(py, |disk| disk.resize(size_bytes))
    }

    /// Bytes that hold data, and where the last of them ends.
    fn measure_data(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.run(py, |disk| disk.measure_data())
    }

    #[pyo3(signature = (offset, data_bytes_max, verified=None))]
    fn scrub(
        &self,
        py: Python<'_>,
        offset: u64,
        data_bytes_max: u64,
        verified: Option<&Bound<'_, Disk>>,
    ) -> PyResult<ScrubbedPiece> {
        let verified = verified.map(|other| other.get().disk.clone());
        let found = self.run(py, |disk| disk.scrub(offset, data_bytes_max, verified.as_deref()))?;
        let damages = found.damages.into_iter().map(|d| (d.offset, d.length, d.detail)).collect();
        Ok((found.next, found.data_bytes, found.read_bytes, damages))
    }

    fn changed_since(
        &self,
        py: Python<'_>,
        older: &Bound<'_, Disk>,
        offset: u64,
        ranges_max: usize,
    ) -> PyResult<ChangedPiece> {
        let older = older.get().disk.clone();
        let (found, next) = self.run(py, |disk| disk.changed_since(&older, offset, ranges_max))?;
        Ok((next, found.into_iter().map(|c| (c.offset, c.length, c.is_hole)).collect()))
    }

    fn checkpoint(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, |disk| disk.checkpoint())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.run(py, |disk| Ok(disk.stats()))?;
        let out = PyDict::new(py);
        for (name, value) in stats {
            out.set_item(name, value)?;
        }
        Ok(out)
    }

    /// Requests and bytes a second that clients may ask for, 0 for as many as they like.
    fn set_limits(
        &self,
        py: Python<'_>,
        requests_per_s: u64,
        bytes_per_s: u64,
        burst_s: u32,
    ) -> PyResult<()> {
        let burst = Duration::from_secs(burst_s.into());
        self.run(py, |disk| {
            disk.throttle.set(Limits { requests_per_s, bytes_per_s, burst });
            Ok(())
        })
    }

    /// How data is stored from now on: "lz4" or "none".
    fn set_compression(&self, py: Python<'_>, compression: &str) -> PyResult<()> {
        self.run(py, |disk| {
            disk.set_compression(match compression {
                "lz4" => Compression::Lz4,
                "none" => Compression::None,
                other => return Err(Error::InvalidRequest(format!("compression {other:?}"))),
            });
            Ok(())
        })
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, |disk| disk.close())
    }
}

/// The bytes behind a buffer of nbdkit's. It outlives the call that passes it.
fn address_of(buf: &Bound<'_, PyAny>) -> PyResult<(PyBuffer<u8>, usize, usize)> {
    let view = PyBuffer::<u8>::get(buf)?;
    if !view.is_c_contiguous() {
        return Err(PyBufferError::new_err("a contiguous buffer is needed"));
    }
    let (address, len) = (view.buf_ptr() as usize, view.len_bytes());
    Ok((view, address, len))
}

#[pyfunction]
fn pread(
    py: Python<'_>,
    h: &Bound<'_, Disk>,
    buf: &Bound<'_, PyAny>,
    offset: u64,
    flags: u32,
) -> PyResult<()> {
    let _ = flags; // NBD defines none that change a read
    let (view, address, len) = address_of(buf).map_err(|error| for_nbdkit(py, error))?;
    if view.readonly() {
        let error = PyBufferError::new_err("a writable buffer is needed");
        return Err(for_nbdkit(py, error));
    }
    // SAFETY: `view` keeps the buffer alive and in place, it is writable, and only this request uses it.
    let out = unsafe { std::slice::from_raw_parts_mut(address as *mut u8, len) };
    h.get().answer(py, |disk| disk.read(offset, out))
}

#[pyfunction]
fn pwrite(
    py: Python<'_>,
    h: &Bound<'_, Disk>,
    buf: &Bound<'_, PyAny>,
    offset: u64,
    flags: u32,
) -> PyResult<()> {
    let (_view, address, len) = address_of(buf).map_err(|error| for_nbdkit(py, error))?;
    // SAFETY: `_view` keeps the buffer alive and in place; nbdkit does not change it during the request.
    let data = unsafe { std::slice::from_raw_parts(address as *const u8, len) };
    h.get().answer(py, |disk| disk.write(offset, data, flags & FLAG_FUA != 0))
}

#[pyfunction]
fn flush(py: Python<'_>, h: &Bound<'_, Disk>, flags: u32) -> PyResult<()> {
    let _ = flags;
    h.get().answer(py, |disk| disk.flush())
}

#[pyfunction]
fn trim(py: Python<'_>, h: &Bound<'_, Disk>, count: u64, offset: u64, flags: u32) -> PyResult<()> {
    h.get().answer(py, |disk| disk.zero(offset, count, flags & FLAG_FUA != 0))
}

#[pyfunction]
fn zero(py: Python<'_>, h: &Bound<'_, Disk>, count: u64, offset: u64, flags: u32) -> PyResult<()> {
    h.get().answer(py, |disk| disk.zero(offset, count, flags & FLAG_FUA != 0))
}

#[pyfunction]
fn cache(py: Python<'_>, h: &Bound<'_, Disk>, count: u64, offset: u64, flags: u32) -> PyResult<()> {
    let _ = flags;
    h.get().answer(py, |disk| disk.prefetch(offset, count))
}

#[pyfunction]
fn extents(
    py: Python<'_>,
    h: &Bound<'_, Disk>,
    count: u64,
    offset: u64,
    flags: u32,
) -> PyResult<Vec<(u64, u64, u32)>> {
    let _ = flags;
    let runs = h.get().answer(py, |disk| disk.extents(offset, count, EXTENTS_MAX))?;
    let kind = |is_hole| if is_hole { EXTENT_TYPE_HOLE_AND_ZERO } else { EXTENT_TYPE_DATA };
    Ok(runs.into_iter().map(|(at, len, is_hole)| (at, len, kind(is_hole))).collect())
}

/// Sets what is called with the errno before one of the callbacks above raises: `nbdkit.set_error`.
#[pyfunction]
fn set_errno_hook(py: Python<'_>, set_error: Py<PyAny>) {
    // Set once: a second plugin in one interpreter does not exist.
    let _ = ERRNO_HOOK.set(py, set_error);
}

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("CORE_VERSION", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<Pool>()?;
    module.add_class::<Disk>()?;
    module.add_function(wrap_pyfunction!(pread, module)?)?;
    module.add_function(wrap_pyfunction!(pwrite, module)?)?;
    module.add_function(wrap_pyfunction!(flush, module)?)?;
    module.add_function(wrap_pyfunction!(trim, module)?)?;
    module.add_function(wrap_pyfunction!(zero, module)?)?;
    module.add_function(wrap_pyfunction!(cache, module)?)?;
    module.add_function(wrap_pyfunction!(extents, module)?)?;
    module.add_function(wrap_pyfunction!(set_errno_hook, module)?)?;
    Ok(())
}
