"""Reaching a pool, whether or not a server runs: its control socket first, else the pool itself.

The pool's lock decides. Whoever finds it taken and no control socket behind it has met a server
that is starting or ending, or another command; both are over soon, so it tries again for a while.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from nbd_plugin.launcher import SOCKET_NAME, private_server
from storage.control import CONTROL_SOCKET, ControlClient
from storage.errors import PoolBusy, PoolNotFound, ServerNotStarted, ServerUnreachable
from storage.pool import MEMORY_BYTES_DEFAULT, Pool
from storage.pool_init import is_pool
from storage.service import PoolService, PoolStatus

_PATIENCE_S: Final = 3.0
_RETRY_S: Final = 0.05


@dataclass(frozen=True)
class DataPlane:
    """A pool that is being served: its operations, and the Unix socket where its disks are."""

    service: PoolService
    socket: Path


def demand_pool(pool: Path) -> None:
    """Raises PoolNotFound unless the folder is a pool."""
    if not is_pool(pool):
        raise PoolNotFound(pool=str(pool))


@contextlib.contextmanager
def open_service(pool: Path, memory_bytes: int | None = None) -> Iterator[PoolService]:
    """The pool's operations for the block.

    Raises: PoolNotFound; PoolBusy when another process holds the pool and does not answer.
    """
    demand_pool(pool)
    service = _reach(pool, memory_bytes)
    try:
        yield service
    finally:
        service.close()


def _reach(pool: Path, memory_bytes: int | None) -> PoolService:
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        client = connect(pool)
        if client is not None:
            return client
        try:
            return Pool.open(pool, memory_bytes or MEMORY_BYTES_DEFAULT)
        except PoolBusy:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(_RETRY_S)


def connect(pool: Path) -> ControlClient | None:
    """A connection to the pool's server; None when none answers."""
    try:
        return ControlClient(pool / CONTROL_SOCKET)
    except ServerUnreachable:
        return None


@contextlib.contextmanager
def open_data_plane(pool: Path, memory_bytes: int | None = None) -> Iterator[DataPlane]:
    """The pool's server, or one of our own for the block when none runs.

    Raises: ServerNotStarted, ToolMissing (nbdkit), PoolBusy, and what opening the pool raises.
    """
    client = connect(pool)
    if client is not None:
        with client:
            yield DataPlane(client, unix_socket(client.status(), pool))
        return
    with contextlib.ExitStack() as stack:
        with _diverted_stderr():
            socket = stack.enter_context(private_server(pool, memory_bytes))
        own = stack.enter_context(ControlClient(pool / CONTROL_SOCKET))
        yield DataPlane(own, socket)


@contextlib.contextmanager
def _diverted_stderr() -> Iterator[None]:
    """Lets a process that is started in the block keep its log to itself.

    Our own server logs every request that fails; whoever started a copy wants one error, ours. If
    the process cannot even be started, its log is shown after all.
    """
    ours = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except ServerNotStarted:
            log.seek(0)
            os.write(ours, log.read())
            raise
        finally:
            os.dup2(ours, 2)
            os.close(ours)


def unix_socket(status: PoolStatus, pool: Path) -> Path:
    """The Unix socket on which the pool's disks are served, or will be by default."""
    for uri in status.uris:
        parts = urlsplit(uri)
        sockets = parse_qs(parts.query).get("socket")
        if parts.scheme == "nbd+unix" and sockets:
            return Path(sockets[0])
    return pool.absolute() / SOCKET_NAME
