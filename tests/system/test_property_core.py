"""Any sequence of operations on a disk of the core gives what it gives on a bytearray."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings

from storage import _core
from storage.format.layout import DiskId
from storage.format.pool import LABEL_FILE, read_label
from storage.pool import Pool
from tests.system.agreement import assert_holds, assert_sound
from tests.system.operations import KIB, MIB, Model, Operation, models, operations, run_all

EXAMPLES: Final = 20_000 if os.environ.get("NEARSTONE_SOAK") == "1" else 120

DISK: Final = DiskId(1)
CHECKPOINT, CRASH = "checkpoint", "crash"
REOPEN_DISK, REOPEN_POOL = "reopen the disk", "reopen the pool"


class CoreTarget:
    """Disk 1 of a pool that `storage._core` has open in this process."""

    def __init__(self, path: Path, size_bytes: int, memory_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._path, self._memory_bytes = path, memory_bytes
        self._pool_uuid = read_label(path / LABEL_FILE).pool.bytes
        self._pool = self._open_pool()
        self._pool.create_disk(DISK)
        self._disk = self._pool.open_disk(DISK, size_bytes)

    def _open_pool(self) -> _core.Pool:
        path = str(self._path)
        return _core.Pool.open(path, self._pool_uuid, [(0, path)], self._memory_bytes)

    def read(self, offset: int, length: int) -> bytes:
        return self._disk.read(offset, length)

    def write(self, offset: int, data: bytes, fua: bool) -> None:
        self._disk.write(offset, data, fua)

    def trim(self, offset: int, length: int, fua: bool) -> None:
        self._disk.trim(offset, length, fua)

    def zero(self, offset: int, length: int, fua: bool) -> None:
        self._disk.zero(offset, length, fua)

    def flush(self) -> None:
        self._disk.flush()

    def cache(self, offset: int, length: int) -> None:
        self._disk.prefetch(offset, length)

    def list_runs(self, offset: int, length: int) -> list[tuple[int, bool]]:
        runs: list[tuple[int, bool]] = []
        at, end = offset, offset + length
        while at < end:
            for start, run_bytes, is_hole in self._disk.extents(at, end - at):
                assert start == at
                at += run_bytes
                before_bytes = runs.pop()[0] if runs and runs[-1][1] == is_hole else 0
                runs.append((before_bytes + run_bytes, is_hole))
        assert at == end
        return runs

    def resize(self, size_bytes: int) -> None:
        self._disk.resize(size_bytes)
        self.size_bytes = size_bytes

    def interrupt(self, kind: str) -> None:
        if kind == CHECKPOINT:
            self._disk.checkpoint()
        elif kind == REOPEN_DISK:
            self._disk.close()
            self._disk = self._pool.open_disk(DISK, self.size_bytes)
        else:
            if kind == REOPEN_POOL:
                self._pool.close()
            self.crash()
            self._pool = self._open_pool()
            self._disk = self._pool.open_disk(DISK, self.size_bytes)

    def crash(self) -> None:
        """The core's objects go as they are: nothing more reaches the drive."""
        del self._disk, self._pool


@pytest.mark.parametrize("memory_bytes", [8 * KIB, 64 * MIB])
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(model=models(), steps=operations((CHECKPOINT, REOPEN_DISK, REOPEN_POOL, CRASH)))
def test_a_disk_is_a_bytearray(
    folder: Path, memory_bytes: int, model: Model, steps: list[Operation]
) -> None:
    pool = Path(tempfile.mkdtemp(dir=folder), "pool")
    Pool.init(pool)
    target = CoreTarget(pool, model.base + len(model.content), memory_bytes)
    try:
        run_all(target, model, steps)
    finally:
        target.crash()
    assert_holds(pool, DISK, model)
    assert_sound(pool)
    shutil.rmtree(pool.parent)
