"""A disk read without the core: newest anchor, its root, the tree, and the replay of the log behind
it.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from storage.format.anchor import Anchor, Root, choose_slot
from storage.format.damage import Damage
from storage.format.layout import (
    ANCHOR_SIZE_BYTES,
    BLOCK_SIZE_BYTES,
    BLOCKS_MAX,
    LSN_NONE,
    BlockIndex,
    DiskId,
    Lsn,
    SegmentId,
)
from storage.format.location import Location
from storage.format.log import Log, LogEnd
from storage.format.map import Map, Mapped, Tree, resolve_changes
from storage.format.record import Kind

CACHED_EXTENTS_MAX = 64
_ZERO_BLOCK = bytes(BLOCK_SIZE_BYTES)


class OfflineExtent(NamedTuple):
    """A range of the disk in bytes that is a hole, or is not."""

    offset: int
    length: int
    is_hole: bool


class OfflineDisk:
    """A disk as of the end of its log. Nothing is changed on the drive; the files must not change
    meanwhile either.

    The format does not know a disk's size (the catalog does): behind the last mapped block
    everything reads as zero.
    """

    def __init__(
        self, anchor: Anchor, log: Log, durable_lsn: Lsn = LSN_NONE, end_lsn: Lsn | None = None
    ) -> None:
        """Args: `durable_lsn`, as in `Log.replay`; `end_lsn`, the first one that does not count."""
        self.root: Root = anchor.root
        self.log = log
        replay = log.replay(anchor.root, durable_lsn)
        self.log_end: LogEnd = replay.end
        self.replayed = [
            record for record in replay.records if end_lsn is None or record.lsn < end_lsn
        ]
        tree = Tree(log, anchor.root.tree, anchor.root.levels)
        self.map = Map(tree, resolve_changes(self.replayed))
        self._extents: OrderedDict[tuple[SegmentId, int], tuple[BlockIndex, bytes]] = OrderedDict()

    @classmethod
    def open(
        cls,
        anchor_path: Path,
        segments: Mapping[DiskId, Mapping[SegmentId, Path]],
        disk: DiskId,
        durable_lsn: Lsn = LSN_NONE,
    ) -> Self:
        """Recovers the disk in memory; `segments` are the pool's, by disk. A snapshot without a
        tree is its disk as of the snapshot: `root` and `log` are that disk's.

        Args: `durable_lsn`, up to where the log is known to be durable.
        Raises Damage when it cannot be done without losing durable records; OSError.
        """
        anchor, end_lsn = read_anchor(anchor_path, disk), None
        if anchor.root.is_pending:
            disk, end_lsn = anchor.root.origin, anchor.root.replay_lsn
            durable_lsn = Lsn(end_lsn - 1)
            anchor = read_anchor(anchor_path.with_name(f"{disk:08x}.anchor"), disk)
            if anchor.root.replay_lsn > end_lsn:
                reason = f"disk {disk} has a checkpoint that is newer than this snapshot of it"
                raise Damage(str(anchor_path), 0, reason)
        foreign: dict[SegmentId, tuple[DiskId, Path]] = {}
        if anchor.root.shares_segments:
            for owner, paths in segments.items():
                if owner != disk:
                    foreign |= {segment: (owner, path) for segment, path in paths.items()}
        log = Log(disk, anchor.pool, segments.get(disk, {}), foreign)
        try:
            return cls(anchor, log, durable_lsn, end_lsn)
        except BaseException:
            log.close()
            raise

    def close(self) -> None:
        """Closes the segment files."""
        self.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def blocks(self) -> Iterator[Mapped]:
        """All mapped blocks in order. Raises Damage where the map is damaged."""
        return self.map.list_mapped()

    def read_block(self, mapped: Mapped) -> bytes:
        """The 4096 bytes of a mapped block. Raises Damage when its record is damaged or not the
        right one.
        """
        first_block, plain = self._read_extent(mapped.location)
        start = (mapped.block - first_block) * BLOCK_SIZE_BYTES
        if mapped.block - first_block != mapped.location.index or not 0 <= start < len(plain):
            raise Damage(
                self.log.path_of(mapped.location.segment),
                mapped.location.offset,
                f"the record holds {len(plain) // BLOCK_SIZE_BYTES} blocks from {first_block}, "
                f"not block {mapped.block} at index {mapped.location.index}",
            )
        return plain[start : start + BLOCK_SIZE_BYTES]

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from byte `offset`, any alignment. Raises Damage; ValueError outside the
        largest disk.
        """
        if offset < 0 or length < 0 or offset + length > BLOCKS_MAX * BLOCK_SIZE_BYTES:
            raise ValueError(f"no such range: {length} bytes from {offset}")
        first = offset // BLOCK_SIZE_BYTES
        end = -(-(offset + length) // BLOCK_SIZE_BYTES)
        content = bytearray((end - first) * BLOCK_SIZE_BYTES)
        for mapped in self.map.list_mapped(first, end):
            start = (mapped.block - first) * BLOCK_SIZE_BYTES
            content[start : start + BLOCK_SIZE_BYTES] = self.read_block(mapped)
        skip = offset - first * BLOCK_SIZE_BYTES
        return bytes(content[skip : skip + length])

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[OfflineExtent]:
        """Data and holes of the range in turn, block-aligned but for the range's own ends; None: to
        the last data.
        """
        end_offset = self.end_of_data() if length is None else offset + length
        at = offset
        run_start: int | None = None
        end_block = -(-end_offset // BLOCK_SIZE_BYTES)
        run_end = at
        for mapped in self.map.list_mapped(offset // BLOCK_SIZE_BYTES, end_block):
            start = max(mapped.block * BLOCK_SIZE_BYTES, offset)
            if run_start is None or start != run_end:
                if run_start is not None:
                    yield OfflineExtent(run_start, run_end - run_start, False)
                    at = run_end
                if start > at:
                    yield OfflineExtent(at, start - at, True)
                run_start = start
            run_end = min((mapped.block + 1) * BLOCK_SIZE_BYTES, end_offset)
        if run_start is not None:
            yield OfflineExtent(run_start, run_end - run_start, False)
            at = run_end
        if at < end_offset:
            yield OfflineExtent(at, end_offset - at, True)

    def end_of_data(self) -> int:
        """The end of the last mapped block in bytes."""
        last = -1
        for mapped in self.map.list_mapped():
            last = mapped.block
        return (last + 1) * BLOCK_SIZE_BYTES

    def _read_extent(self, location: Location) -> tuple[BlockIndex, bytes]:
        key = (location.segment, location.offset)
        if (extent := self._extents.get(key)) is None:
            header, plain = self.log.read(location)
            if header.shape.kind is not Kind.DATA:
                path = self.log.path_of(location.segment)
                found = header.shape.kind.name
                raise Damage(path, location.offset, f"a {found} record where DATA should be")
            extent = (header.shape.block, plain)
            self._extents[key] = extent
            if len(self._extents) > CACHED_EXTENTS_MAX:
                self._extents.popitem(last=False)
        return extent


def read_anchor(path: Path, disk: DiskId | None = None) -> Anchor:
    """The newest valid slot of an anchor file. Raises Damage; OSError."""
    with path.open("rb") as file:
        return choose_slot(file.read(ANCHOR_SIZE_BYTES), str(path), disk)
