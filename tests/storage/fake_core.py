"""A stand-in for `storage._core` that keeps everything in memory: a fake, not a mock.

It keeps the promises of the interface (ranges, errors, holes, what a closed pool answers), forgets
nothing between `FakeDrive.open` and the next, and has no files but the anchors and one segment file
per disk, which it makes so that leftovers can be told from data. `test_core_conformance.py` holds
it to the same suite as the real core.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from storage.errors import DiskNotFound, DriveMissing, InvalidRequest, PoolClosed, ReadOnly

if TYPE_CHECKING:
    from storage import _core

BLOCK_SIZE_BYTES = 4096


@dataclass
class FakeDrive:
    """What survives a restart: the blocks of each disk, and which drives they lie on.

    Blocks with the contents in `damaged` fail a scrub.
    """

    blocks: dict[int, dict[int, bytes]] = field(default_factory=dict)
    drives_used: dict[int, set[int]] = field(default_factory=dict)
    snapshots: set[int] = field(default_factory=set)
    damaged: set[bytes] = field(default_factory=set)

    def open(
        self, pool_dir: str, pool_uuid: bytes, drives: list[tuple[int, str | None]], memory: int
    ) -> "_core.Pool":
        """The counterpart of `_core.Pool.open`."""
        if len(pool_uuid) != 16 or memory <= 0:
            raise ValueError("the arguments of Pool.open")
        return cast("_core.Pool", FakePool(self, Path(pool_dir), dict(drives)))


class FakePool:
    """The counterpart of `_core.Pool`."""

    def __init__(self, drive: FakeDrive, pool_dir: Path, drives: dict[int, str | None]) -> None:
        self.drive = drive
        self.drives = drives
        self.anchors = pool_dir / "anchors"
        self.open_disks: dict[int, FakeDisk] = {}
        self.is_closed = False

    def check_open(self) -> None:
        if self.is_closed:
            raise PoolClosed

    def anchor(self, disk_id: int) -> Path:
        return self.anchors / f"{disk_id:08x}.anchor"

    def create_disk(self, disk_id: int) -> None:
        self.check_open()
        if self.anchor(disk_id).exists():
            raise InvalidRequest(reason="exists")
        self.anchor(disk_id).touch()
        self.drive.blocks[disk_id] = {}

    def open_disk(self, disk_id: int, size_bytes: int) -> "FakeDisk":
        self.check_open()
        if not self.anchor(disk_id).exists():
            raise DiskNotFound(disk=disk_id)
        for index in self.drive.drives_used.get(disk_id, ()):
            if self.drives[index] is None:
                raise DriveMissing(disk=disk_id, drive=index)
        if disk_id not in self.open_disks:
            self.open_disks[disk_id] = FakeDisk(self, disk_id, size_bytes)
        return self.open_disks[disk_id]

    def snapshot(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.check_open()
        for disk_id, snapshot_id in pairs:
            self.copy(disk_id, snapshot_id)
            self.drive.snapshots.add(snapshot_id)

    def clone_disk(self, snapshot_id: int, disk_id: int) -> None:
        self.check_open()
        if snapshot_id not in self.drive.snapshots:
            raise InvalidRequest(reason="not a snapshot")
        self.copy(snapshot_id, disk_id)

    def rollback_disk(self, disk_id: int, size_bytes: int, snapshot_id: int) -> None:
        self.check_open()
        if disk := self.open_disks.pop(disk_id, None):
            disk.is_gone = True
        self.drive.blocks[disk_id] = dict(self.drive.blocks[snapshot_id])

    def copy(self, from_id: int, to_id: int) -> None:
        if not self.anchor(from_id).exists():
            raise DiskNotFound(disk=from_id)
        self.anchor(to_id).touch()
        self.drive.blocks[to_id] = dict(self.drive.blocks[from_id])
        self.drive.drives_used[to_id] = set(self.drive.drives_used.get(from_id, ()))

    def delete_disk(self, disk_id: int) -> bool:
        self.check_open()
        if not self.anchor(disk_id).exists():
            raise DiskNotFound(disk=disk_id)
        for index in self.drive.drives_used.get(disk_id, ()):
            if self.drives[index] is None:
                raise DriveMissing(disk=disk_id, drive=index)
        if disk := self.open_disks.pop(disk_id, None):
            disk.is_gone = True
        for folder in self.drives.values():
            segments = Path(folder or "/nowhere", "segments", f"{disk_id:08x}")
            for file in segments.glob("*.seg"):
                file.unlink()
        self.anchor(disk_id).unlink()
        del self.drive.blocks[disk_id]
        self.drive.snapshots.discard(disk_id)
        return True

    def anchored_disks(self) -> list[int]:
        self.check_open()
        return sorted(int(anchor.stem, 16) for anchor in self.anchors.glob("*.anchor"))

    def stats(self) -> dict[str, int]:
        self.check_open()
        stored = sum(map(len, self.drive.blocks.values())) * BLOCK_SIZE_BYTES
        return {"stored_bytes": stored, "free_bytes": 1 << 40, "segments": len(self.drive.blocks)}

    def lift_limits(self) -> None:
        self.check_open()
        for disk in self.open_disks.values():
            disk.limits = (0, 0, 0)

    def close(self) -> None:
        for disk in self.open_disks.values():
            disk.is_gone = True
        self.is_closed = True


class FakeDisk:
    """The counterpart of `_core.Disk`."""

    def __init__(self, pool: FakePool, disk_id: int, size_bytes: int) -> None:
        self.pool = pool
        self.disk_id = disk_id
        self.size_bytes = size_bytes
        self.is_gone = False
        self.limits = (0, 0, 0)
        self.compression = "lz4"

    @property
    def is_snapshot(self) -> bool:
        return self.disk_id in self.pool.drive.snapshots

    def writable(self, offset: int, length: int) -> dict[int, bytes]:
        blocks = self.blocks_of(offset, length)
        if self.is_snapshot:
            raise ReadOnly(disk=self.disk_id)
        return blocks

    def blocks_of(self, offset: int, length: int) -> dict[int, bytes]:
        if self.is_gone:
            raise PoolClosed
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise InvalidRequest(reason=f"[{offset}, {offset + length}) is outside the disk")
        return self.pool.drive.blocks[self.disk_id]

    def read(self, offset: int, length: int) -> bytes:
        blocks = self.blocks_of(offset, length)
        first = offset // BLOCK_SIZE_BYTES
        last = (offset + length + BLOCK_SIZE_BYTES - 1) // BLOCK_SIZE_BYTES
        whole = b"".join(blocks.get(at, bytes(BLOCK_SIZE_BYTES)) for at in range(first, last))
        start = offset - first * BLOCK_SIZE_BYTES
        return whole[start : start + length]

    def write(self, offset: int, data: bytes, fua: bool = False) -> None:
        blocks = self.writable(offset, len(data))
        at = 0
        while at < len(data):
            block, start = divmod(offset + at, BLOCK_SIZE_BYTES)
            piece = data[at : at + BLOCK_SIZE_BYTES - start]
            old = bytearray(blocks.get(block, bytes(BLOCK_SIZE_BYTES)))
            old[start : start + len(piece)] = piece
            if any(old):
                blocks[block] = bytes(old)
            else:
                blocks.pop(block, None)
            at += len(piece)
        index, folder = next((i, f) for i, f in self.pool.drives.items() if f is not None)
        segments = Path(folder, "segments", f"{self.disk_id:08x}")
        segments.mkdir(parents=True, exist_ok=True)
        (segments / "00000001.seg").write_bytes(bytes(BLOCK_SIZE_BYTES))
        self.pool.drive.drives_used.setdefault(self.disk_id, set()).add(index)

    def zero(self, offset: int, length: int, fua: bool = False) -> None:
        blocks = self.writable(offset, length)
        for block in list(blocks):
            low = max(offset, block * BLOCK_SIZE_BYTES)
            high = min(offset + length, (block + 1) * BLOCK_SIZE_BYTES)
            if low < high:
                self.write(low, bytes(high - low))

    trim = zero

    def flush(self) -> None:
        self.blocks_of(0, 0)

    def extents(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        blocks = self.blocks_of(offset, length)
        found: list[tuple[int, int, bool]] = []
        at = offset
        while at < offset + length:
            end = min((at // BLOCK_SIZE_BYTES + 1) * BLOCK_SIZE_BYTES, offset + length)
            is_hole = at // BLOCK_SIZE_BYTES not in blocks
            if found and found[-1][2] == is_hole:
                found[-1] = (found[-1][0], end - found[-1][0], is_hole)
            else:
                found.append((at, end - at, is_hole))
            at = end
        return found

    def prefetch(self, offset: int, length: int) -> None:
        self.blocks_of(offset, length)

    def resize(self, size_bytes: int) -> None:
        if size_bytes < self.size_bytes:
            self.zero(size_bytes, self.size_bytes - size_bytes)
        self.size_bytes = size_bytes

    def measure_data(self) -> tuple[int, int]:
        blocks = self.blocks_of(0, 0)
        end_bytes = (max(blocks) + 1) * BLOCK_SIZE_BYTES if blocks else 0
        return len(blocks) * BLOCK_SIZE_BYTES, min(end_bytes, self.size_bytes)

    def scrub(
        self, offset: int, data_bytes_max: int, verified: "FakeDisk | None" = None
    ) -> tuple[int, int, int, list[tuple[int, int, str]]]:
        blocks = self.blocks_of(0, 0)
        others = verified.blocks_of(0, 0) if verified else {}
        data_bytes = read_bytes = 0
        damages: list[tuple[int, int, str]] = []
        for block in sorted(b for b in blocks if b * BLOCK_SIZE_BYTES >= offset):
            if data_bytes >= data_bytes_max:
                return block * BLOCK_SIZE_BYTES, data_bytes, read_bytes, damages
            data_bytes += BLOCK_SIZE_BYTES
            if blocks[block] is others.get(block):
                continue
            read_bytes += BLOCK_SIZE_BYTES
            if blocks[block] in self.pool.drive.damaged:
                damages.append((block * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES, "payload"))
        end = (self.size_bytes + BLOCK_SIZE_BYTES - 1) // BLOCK_SIZE_BYTES * BLOCK_SIZE_BYTES
        return end, data_bytes, read_bytes, damages

    def changed_since(
        self, older: "FakeDisk", offset: int, ranges_max: int
    ) -> tuple[int | None, list[tuple[int, int, bool]]]:
        before, now = older.blocks_of(0, 0), self.blocks_of(0, 0)
        found: list[tuple[int, int, bool]] = []
        for block in sorted(before.keys() | now.keys()):
            start = block * BLOCK_SIZE_BYTES
            if start < offset or before.get(block) is now.get(block):
                continue
            if len(found) == ranges_max:
                return start, found
            found.append((start, BLOCK_SIZE_BYTES, block not in now))
        return None, found

    def checkpoint(self) -> None:
        self.blocks_of(0, 0)

    def set_limits(self, requests_per_s: int, bytes_per_s: int, burst_s: int) -> None:
        self.limits = (requests_per_s, bytes_per_s, burst_s)

    def set_compression(self, compression: str) -> None:
        self.compression = compression

    def stats(self) -> dict[str, int]:
        mapped = len(self.blocks_of(0, 0)) * BLOCK_SIZE_BYTES
        return {"stored_bytes": mapped, "segments": 1}

    def close(self) -> None:
        self.is_gone = True
        self.pool.open_disks.pop(self.disk_id, None)
