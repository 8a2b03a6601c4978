"""nbdkit's entry script: nothing but callbacks (nbdkit-python-plugin(3), API version 2).

nbdkit runs this file as ``__main__`` in its embedded Python. One process serves every disk of one
pool; the export's name chooses the disk, and a disk made while the server runs can be opened at
once. The requests themselves never meet Python: `pread`, `pwrite` and the others are the core's own
functions, and the handle that `open` returns is the core's `Disk`.

Errors: an exception alone would arrive at the client as EIO, and an errno without an exception as
success. So every callback here that can fail is wrapped in `_answering`, which sets the errno of
``storage.errors`` and lets the exception go on; the core does the same through its hook.

What is asked of us in which order
    config … config_complete → get_ready → after_fork → (preconnect → list_exports? → open →
    capabilities → requests → close)* → cleanup

A changed size is seen by a client when it connects again: NBD has no message for it.
"""

import errno
import functools
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

import nbdkit

from nbd_plugin import clients
from nbd_plugin.reporting import write_error, write_ready
from nbd_plugin.stopping import Stopping, outlive_parent
from storage import _core
from storage._core import Disk, cache, extents, flush, pread, pwrite, trim, zero
from storage.catalog import CATALOG_FILE
from storage.control import CONTROL_SOCKET, ControlServer
from storage.errors import BadConfig, PoolClosed, PoolNotFound, StorageError
from storage.faces import errno_of
from storage.pool import Pool
from storage.service import DiskInfo, DiskState
from storage.units import format_size

API_VERSION = 2

# Measured: while nothing blocks, serialised requests give the same throughput with a shorter tail;
# as soon as a request waits for the drive (a flush, a read that misses), parallel ones are needed,
# or one client's flush would hold up every other request of its connection.
THREAD_MODEL = nbdkit.THREAD_MODEL_PARALLEL

# A byte is allowed, a block is best, and no request needs more buffer than this.
BLOCK_SIZE_BYTES_MIN = 1
BLOCK_SIZE_BYTES_PREFERRED = 4096
BLOCK_SIZE_BYTES_MAX = 32 << 20

# nbdkit fails the whole list of exports beyond this (MAX_EXPORTS in its server/exports.c). Disks
# that are not listed can be opened all the same.
_EXPORTS_LISTED_MAX = 10_000


@dataclass
class Settings:
    """What the command line of nbdkit said.

    uris: where we are served, with `{name}` for a disk's name; only to tell others.
    environment: the prefix that this Python must have; None when nbdkit was started by hand.
    report_fd: where the launcher waits to hear how the start went.
    needs_network_tls: whether clients that come by TCP are served only with TLS.
    outlives_launcher: whether disks are served on when the launcher is killed.
    """

    pool: Path | None = None
    memory_bytes: int | None = None
    uris: list[str] = field(default_factory=list)
    environment: Path | None = None
    report_fd: int | None = None
    needs_network_tls: bool = False
    outlives_launcher: bool = False


@dataclass
class Server:
    """What `after_fork` set up, for the life of the process."""

    pool: Pool
    control: ControlServer
    stopping: Stopping


settings = Settings()
server: Server | None = None

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def _answering(callback: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """`callback`, with the errno of whatever it raises set for the client."""

    @functools.wraps(callback)
    def answer(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return callback(*args, **kwargs)
        except StorageError as exc:
            nbdkit.set_error(errno_of(exc))
            # nbdkit logs the traceback; for what can be expected the sentence is enough.
            raise exc.with_traceback(None) from None
        except Exception as exc:
            nbdkit.set_error(errno_of(exc))
            raise

    return answer


# ------------------------------------------------------------------------- start and end


def _flag(name: str) -> Callable[[str], None]:
    """What sets the setting `name` when the value is `yes`; there is no other value."""

    def take(value: str) -> None:
        if value != "yes":
            raise BadConfig(source=name, detail=f"{value!r}; the only value is 'yes'")
        setattr(settings, name, True)

    return take


CONFIG_KEYS: dict[str, Callable[[str], None]] = {
    "pool": lambda value: setattr(settings, "pool", Path(value)),
    "memory": lambda value: setattr(settings, "memory_bytes", nbdkit.parse_size(value)),
    "uri": settings.uris.append,
    "environment": lambda value: setattr(settings, "environment", Path(value)),
    "report-fd": lambda value: setattr(settings, "report_fd", int(value)),
    "network-tls": _flag("needs_network_tls"),
    "outlive-launcher": _flag("outlives_launcher"),
}


def dump_plugin() -> None:
    """Print what `nbdkit --dump-plugin` and `nearstone doctor` want to know."""
    print(f"nearstone_core_version={_core.CORE_VERSION}")
    print(f"nearstone_core={_core.__file__}")
    print(f"nearstone_environment={sys.prefix}")
    print(f"nearstone_can_require_tls={int(clients.can_tell_clients_apart())}")


def config(key: str, value: str) -> None:
    """One `key=value` of the command line."""
    if key not in CONFIG_KEYS:
        raise BadConfig(source=key, detail=f"unknown; the keys are {', '.join(CONFIG_KEYS)}")
    CONFIG_KEYS[key](value)


def config_complete() -> None:
    """See that the settings make sense and that this is the Python we were installed for."""
    if settings.pool is None:
        raise BadConfig(source="pool", detail="it is missing: pool=FOLDER")
    if settings.environment is not None and not settings.environment.samefile(sys.prefix):
        raise BadConfig(
            source="PATH",
            detail=f"nbdkit runs the Python of {sys.prefix}, not of {settings.environment}",
        )
    if settings.needs_network_tls and not clients.can_tell_clients_apart():
        raise BadConfig(
            source="network-tls",
            detail="this nbdkit does not tell which clients use TLS; it would serve all of them",
        )


def thread_model() -> int:
    """How many requests nbdkit may have in flight."""
    return THREAD_MODEL


def get_ready() -> None:
    """The last chance to fail before anything was touched."""
    pool_dir = _pool_dir()
    if not (pool_dir / CATALOG_FILE).exists():
        raise PoolNotFound(pool=str(pool_dir))


def after_fork() -> None:
    """Open the pool and start the threads; clients are accepted when this returns."""
    global server
    stopping = Stopping(_shut_down)
    stopping.start()
    if settings.outlives_launcher:
        outlive_parent()
    _core.set_errno_hook(nbdkit.set_error)
    try:
        server = _open_pool(stopping)
    except Exception as exc:
        if settings.report_fd is None:
            raise
        # The launcher says it in one line; nbdkit would print the traceback as well.
        write_error(settings.report_fd, exc)
        os._exit(1)
    write_ready(settings.report_fd)


def _shut_down() -> None:
    """Asks nbdkit to end. It waits for every request, so none may go on waiting for a limit."""
    if server is not None:
        server.pool.lift_limits()
    nbdkit.shutdown()


def _open_pool(stopping: Stopping) -> Server:
    pool_dir = _pool_dir()
    if settings.memory_bytes is None:
        pool = Pool.open(pool_dir)
    else:
        pool = Pool.open(pool_dir, memory_bytes=settings.memory_bytes)
    try:
        control = ControlServer(pool, pool_dir / CONTROL_SOCKET, settings.uris)
        control.start()
        pool.start_upkeep()
    except BaseException:
        pool.close()
        raise
    return Server(pool, control, stopping)


def cleanup() -> None:
    """Close the pool. No client is connected any more."""
    if server is None:
        return
    server.stopping.finish()
    try:
        server.control.close()
        server.pool.close()
    except Exception as exc:
        # nbdkit would end with status 0; nothing is lost, but the next start has to recover.
        if isinstance(exc, StorageError):
            print(
                f"nearstone: the pool was not closed in order: {exc}", file=sys.stderr, flush=True
            )
        else:
            traceback.print_exc()
        os._exit(1)


def _pool_dir() -> Path:
    if settings.pool is None:
        raise PoolClosed
    return settings.pool


def _server() -> Server:
    if server is None or server.stopping.is_stopping:
        raise PoolClosed
    return server


# --------------------------------------------------------------------- clients come and go


@_answering
def preconnect(readonly: bool) -> None:
    """Turn a client away at the door when the server is stopping."""
    _server()


@_answering
def list_exports(readonly: bool, is_tls: bool) -> Iterable[tuple[str, str]]:
    """Every disk and a few words about it."""
    _demand_encryption(is_tls)
    disks = itertools.islice(_listed(), _EXPORTS_LISTED_MAX)
    return [(disk.name, _words_about(disk)) for disk in disks]


@_answering
def default_export(readonly: bool, is_tls: bool) -> str:
    """The disk of a client that names none: the only one there is."""
    _demand_encryption(is_tls)
    disks = _listed()
    return disks[0].name if len(disks) == 1 else ""


@_answering
def open(readonly: bool) -> Disk:
    """The disk that the client named. Raises: DiskNotFound, which the client sees as ENOENT."""
    _demand_encryption(clients.is_encrypted())
    return _server().pool.open_disk(nbdkit.export_name())


def close(h: Disk) -> None:
    """The client is gone."""
    if server is not None:
        server.pool.release_disk(h)


@_answering
def export_description(h: Disk) -> str:
    """What `list_exports` says of this disk."""
    return _words_about(_server().pool.describe_disk(h))


def _listed() -> list[DiskInfo]:
    return [disk for disk in _server().pool.list_disks() if disk.state is DiskState.READY]


def _words_about(disk: DiskInfo) -> str:
    """What is wrong with the disk, else what its owner wrote about it, else its size."""
    return disk.problem or disk.description or f"a disk of {format_size(disk.size_bytes)}"


def _demand_encryption(is_encrypted: bool) -> None:
    if settings.needs_network_tls and not is_encrypted and clients.came_over_network():
        raise PermissionError(errno.EPERM, "clients over the network must use TLS")


@_answering
def get_size(h: Disk) -> int:
    """The size in bytes, fixed for this connection."""
    return h.size_bytes


def block_size(h: Disk) -> tuple[int, int, int]:
    """The smallest, the preferred and the largest request in bytes."""
    return BLOCK_SIZE_BYTES_MIN, BLOCK_SIZE_BYTES_PREFERRED, BLOCK_SIZE_BYTES_MAX


# ----------------------------------------------------------- what the disks can, as answers


def is_rotational(h: Disk) -> bool:
    """No: a log does not care for the order of addresses, and guests need not either."""
    return False


def can_write(h: Disk) -> bool:
    """Yes, unless it is a snapshot."""
    return not h.is_snapshot


def can_flush(h: Disk) -> bool:
    """Yes: everything answered before it, on every connection, survives power loss."""
    return True


def can_trim(h: Disk) -> bool:
    """Yes: a metadata operation of any length."""
    return True


def can_zero(h: Disk) -> bool:
    """Yes: a metadata operation of any length."""
    return True


def can_fast_zero(h: Disk) -> bool:
    """Yes: zeroing never writes zeroes."""
    return True


def can_fua(h: Disk) -> int:
    """Natively: the write and what came before it in the log, without a flush of other disks."""
    return nbdkit.FUA_NATIVE


def can_multi_conn(h: Disk) -> bool:
    """Yes: all connections share one disk object, and a flush covers them all."""
    return True


def can_cache(h: Disk) -> int:
    """Natively: it warms the map and the page cache without a copy to the client."""
    return nbdkit.CACHE_NATIVE


def can_extents(h: Disk) -> bool:
    """Yes, from the map."""
    return True


# The requests: nbdkit looks these names up in this module and calls the core directly.
__all__ = [
    "cache",
    "extents",
    "flush",
    "pread",
    "pwrite",
    "trim",
    "zero",
]
