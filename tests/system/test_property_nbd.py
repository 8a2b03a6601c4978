"""Any sequence of operations through NBD gives what it gives on a bytearray, whatever happens to
the server in between.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import nbd
import pytest
from hypothesis import HealthCheck, given, settings

from storage.pool import MEMORY_BYTES_DEFAULT, Pool
from tests.system.agreement import assert_holds, assert_sound, find_disk
from tests.system.data_plane import DataPlane, list_runs
from tests.system.operations import KIB, Model, Operation, models, operations, run_all

EXAMPLES: Final = 10_000 if os.environ.get("NEARSTONE_SOAK") == "1" else 50

RECONNECT, STOP, KILL = "reconnect", "stop", "kill -9"
_CONNECTIONS: Final = 2
_disks: Final = itertools.count(1)


class NbdTarget:
    """A disk of a running server. Requests go over several connections in turn."""

    def __init__(self, server: DataPlane, model: Model) -> None:
        self.name = f"disk-{next(_disks)}"
        self._server = server
        self._model = model
        with server.control() as control:
            control.create_disk(self.name, model.base + len(model.content))
        self._connect()

    def _connect(self) -> None:
        self._connections = [self._server.connect(self.name) for _ in range(_CONNECTIONS)]
        self._next = itertools.cycle(self._connections)

    @property
    def _connection(self) -> nbd.NBD:
        return next(self._next)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._connection.pread(length, offset))

    def write(self, offset: int, data: bytes, fua: bool) -> None:
        self._connection.pwrite(data, offset, nbd.CMD_FLAG_FUA if fua else 0)

    def trim(self, offset: int, length: int, fua: bool) -> None:
        self._connection.trim(length, offset, nbd.CMD_FLAG_FUA if fua else 0)

    def zero(self, offset: int, length: int, fua: bool) -> None:
        self._connection.zero(length, offset, nbd.CMD_FLAG_FUA if fua else nbd.CMD_FLAG_FAST_ZERO)

    def flush(self) -> None:
        self._connection.flush()

    def cache(self, offset: int, length: int) -> None:
        self._connection.cache(length, offset)

    def list_runs(self, offset: int, length: int) -> list[tuple[int, bool]]:
        return list_runs(self._connection, offset, length)

    def resize(self, size_bytes: int) -> None:
        with self._server.control() as control:
            control.resize_disk(self.name, size_bytes, force=True)
        self.interrupt(RECONNECT)

    def interrupt(self, kind: str) -> None:
        self.disconnect()
        if kind != RECONNECT:
            if kind == STOP:
                self._server.stop()
            else:
                self._server.kill()
            pool = self._server.pool
            assert_holds(pool, find_disk(pool, self.name), self._model)
            assert_sound(pool)
            self._server.start()
        self._connect()

    def disconnect(self) -> None:
        for connection in self._connections:
            connection.shutdown()

    def delete(self) -> None:
        self.disconnect()
        with self._server.control() as control:
            control.delete_disk(self.name, force=True)


@pytest.fixture(params=[16 * KIB, MEMORY_BYTES_DEFAULT], ids=["tiny memory", "default memory"])
def server(folder: Path, request: pytest.FixtureRequest) -> Iterator[DataPlane]:
    """A running server; with little memory, checkpoints come after every few requests."""
    Pool.init(folder / "pool")
    server = DataPlane(folder / "pool", request.param)
    yield server
    if server.is_running:
        server.kill()


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(model=models(), steps=operations((RECONNECT, STOP, KILL)))
def test_a_disk_is_a_bytearray(server: DataPlane, model: Model, steps: list[Operation]) -> None:
    # A failed example may have left it stopped.
    if not server.is_running:
        server.start()
    target = NbdTarget(server, model)
    run_all(target, model, steps)
    target.interrupt(KILL if len(steps) % 2 else STOP)
    target.delete()
