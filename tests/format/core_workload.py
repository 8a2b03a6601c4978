"""A seeded workload on a disk of the core, and the same on a model.

Run as a program it drives a pool until it is killed: ``python -m tests.format.core_workload POOL
SEED`` prints a line for every answered operation.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from storage import _core
from storage.format.layout import BLOCK_SIZE_BYTES
from tests.format.writer import POOL_UUID

DISK = 1
DISK_SIZE_BYTES = 1 << 40
MEMORY_BYTES = 64 << 20
AREAS = (0, 3 * 512 * BLOCK_SIZE_BYTES - 50_000, 1 << 32, DISK_SIZE_BYTES - (1 << 20))
"""Where operations happen: within one leaf, across leaves, across inner nodes, at the end."""
AREA_BYTES = 1 << 20


class Operation(NamedTuple):
    """One thing to do; `data` is what a write writes."""

    name: str
    offset: int = 0
    length: int = 0
    data: bytes = b""


def make_operations(seed: int, *, can_reopen: bool) -> Iterator[Operation]:
    """Writes, trims and the like without end, the same for the same seed."""
    rng = random.Random(seed)
    chores = ["flush", "checkpoint"] + ["reopen"] * can_reopen
    while True:
        choice = rng.random()
        offset = rng.choice(AREAS) + rng.randrange(AREA_BYTES - 300_000)
        length = rng.choice([1, 512, 4096, 5000, 40_000, 300_000])
        if rng.random() < 0.6:
            offset -= offset % BLOCK_SIZE_BYTES
            length = max(length - length % BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES)
        if choice < 0.55:
            yield Operation("write", offset, length, make_data(rng, length))
        elif choice < 0.75:
            yield Operation(rng.choice(["trim", "zero"]), offset, length)
        elif choice < 0.78:
            yield Operation("trim", rng.choice(AREAS), rng.choice([1 << 21, 1 << 33]))
        else:
            yield Operation(rng.choice(chores))


def make_data(rng: random.Random, length: int) -> bytes:
    """Random, repetitive, or with zero blocks in between."""
    kind = rng.randrange(3)
    if kind == 0:
        return rng.randbytes(length)
    if kind == 1:
        return (rng.randbytes(64) * (length // 64 + 1))[:length]
    blocks = [rng.choice([bytes(4096), rng.randbytes(4096)]) for _ in range(length // 4096 + 1)]
    return b"".join(blocks)[:length]


class Model:
    """The areas as plain bytes; everything between them is never written."""

    def __init__(self) -> None:
        self.areas = {area: bytearray(AREA_BYTES) for area in AREAS}

    def apply(self, operation: Operation) -> None:
        """What the operation does to the disk's contents."""
        if not operation.length:
            return
        end = min(operation.offset + operation.length, DISK_SIZE_BYTES)
        for area, content in self.areas.items():
            start, stop = max(operation.offset, area), min(end, area + AREA_BYTES)
            if start >= stop:
                continue
            part = operation.data[start - operation.offset : stop - operation.offset]
            content[start - area : stop - area] = part or bytes(stop - start)


def clip(operation: Operation) -> Operation:
    """The operation within the disk."""
    length = min(operation.length, DISK_SIZE_BYTES - operation.offset)
    return operation._replace(length=length)


def open_pool(path: Path) -> _core.Pool:
    """The core's pool on a folder that `PoolWriter.save` has made."""
    (path / "anchors").mkdir(exist_ok=True)
    return _core.Pool.open(str(path), POOL_UUID.bytes, [(0, str(path))], MEMORY_BYTES)


def perform(disk: _core.Disk, operation: Operation) -> None:
    """Does one operation on the core's disk."""
    operation = clip(operation)
    if operation.name == "write":
        disk.write(operation.offset, operation.data)
    elif operation.name in ("trim", "zero"):
        getattr(disk, operation.name)(operation.offset, operation.length)
    else:
        getattr(disk, operation.name)()


def main(path: Path, seed: int) -> None:
    """Drives the pool until killed."""
    pool = open_pool(path)
    disk = pool.open_disk(DISK, DISK_SIZE_BYTES)
    for number, operation in enumerate(make_operations(seed, can_reopen=False)):
        perform(disk, operation)
        print(number, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
