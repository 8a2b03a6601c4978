"""A tiny writer of the format, for tests only: makes pools for the second reader without the core.

It keeps everything in memory and beside it a plain model of what each disk holds; `save` writes the
files. Nothing is durable and nothing is fast; what counts is that the bytes are those of
``docs/format.md``.
"""

import json
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from storage.format.anchor import FLAG_CLEAN, Anchor, Root, encode_anchor_file
from storage.format.layout import (
    BLOCK_SIZE_BYTES,
    EXTENT_BLOCKS_MAX,
    NODE_ENTRIES,
    BlockIndex,
    DiskId,
    Lsn,
    SegmentId,
)
from storage.format.location import HOLE, encode_location
from storage.format.node import SegmentUsage, encode_node, encode_usage
from storage.format.record import (
    FLAG_GROUP_CONTINUES,
    Codec,
    Kind,
    RecordShape,
    compress,
    encode_record,
)
from storage.format.segment import SegmentHeader, SummaryEntry, encode_seal

POOL_UUID = UUID("6e656172-7374-4f6e-8000-000000000001")
DRIVE_UUID = UUID("6e656172-7374-4f6e-8000-0000000000d0")


@dataclass
class Draft:
    """A record before it has a place."""

    kind: Kind
    block: int
    count: int
    codec: Codec = Codec.RAW
    stored: bytes = b""


@dataclass
class SegmentDraft:
    """A segment in memory."""

    header: SegmentHeader
    content: bytearray
    entries: list[SummaryEntry] = field(default_factory=list)
    is_sealed: bool = False

    @property
    def next_lsn(self) -> int:
        return self.header.first_lsn + len(self.entries)

    def seal(self) -> None:
        header = self.header
        end = len(self.content)
        self.content += encode_seal(header.segment, header.first_lsn, end, self.entries)
        self.is_sealed = True


class DiskWriter:
    """Writes one disk's log. `model` is what a reader must find: mapped blocks and their bytes."""

    def __init__(self, pool: "PoolWriter", disk: int) -> None:
        self.pool = pool
        self.disk = DiskId(disk)
        self.segments: list[SegmentDraft] = []
        self.model: dict[int, bytes] = {}
        self.locations: dict[int, int] = {}
        self.next_lsn = 1
        self.nodes: dict[tuple[int, int], tuple[tuple[int, ...], int]] = {}
        self.older: Anchor | None = None
        nothing = SegmentId(0)
        root = Root(
            *(0, 0, HOLE, 0, self.disk, 0, nothing, 0, Lsn(1), nothing, 0, 0, 0, nothing, 0)
        )
        self.anchor = Anchor(pool.uuid.bytes, root)

    @property
    def active(self) -> SegmentDraft:
        """The segment that is appended to; a new one where there is none."""
        if not self.segments or self.segments[-1].is_sealed:
            self.roll()
        return self.segments[-1]

    def roll(self, *, seal: bool = True) -> SegmentDraft:
        """Goes on in a new segment, sealing the last one or not."""
        if self.segments and seal and not self.segments[-1].is_sealed:
            self.segments[-1].seal()
        last = self.segments[-1].header if self.segments else None
        if last is None:
            root = self.anchor.root
            self.older, self.anchor = self.anchor, self._anchor_of(seq=root.seq + 1, drives=1)
        header = SegmentHeader(
            disk=self.disk,
            segment=SegmentId(self.pool.allocate_segment()),
            prev=last.segment if last else SegmentId(0),
            log_index=last.log_index + 1 if last else 0,
            first_lsn=Lsn(self.next_lsn),
            epoch=0,
            pool=self.pool.uuid.bytes,
        )
        self.segments.append(SegmentDraft(header, bytearray(header.encode())))
        return self.segments[-1]

    def write(self, block: int, plain: bytes, *, can_compress: bool = True) -> None:
        """Writes whole blocks as one group of extents; zero blocks become holes."""
        blocks = [plain[i : i + BLOCK_SIZE_BYTES] for i in range(0, len(plain), BLOCK_SIZE_BYTES)]
        drafts: list[Draft] = []
        start = 0
        while start < len(blocks):
            is_zero = not any(blocks[start])
            end = start + 1
            limit = min(len(blocks), start + EXTENT_BLOCKS_MAX) if not is_zero else len(blocks)
            while end < limit and (not any(blocks[end])) == is_zero:
                end += 1
            if is_zero:
                drafts.append(Draft(Kind.HOLE, block + start, end - start))
            else:
                extent = b"".join(blocks[start:end])
                drafts.append(_draft_data(block + start, extent, can_compress=can_compress))
            start = end
        self.append(drafts)
        for index, content in enumerate(blocks):
            if any(content):
                self.model[block + index] = content
            else:
                self.model.pop(block + index, None)

    def trim(self, block: int, count: int) -> None:
        """A hole."""
        self.append([Draft(Kind.HOLE, block, count)])
        for index in [b for b in self.model if block <= b < block + count]:
            del self.model[index]

    def mark(self, durable: int | None = None) -> None:
        """A MARK; None: all so far is durable."""
        self.append([Draft(Kind.MARK, self.next_lsn - 1 if durable is None else durable, 0)])

    def append(self, drafts: list[Draft]) -> int:
        """Appends a group; the location of its first record."""
        segment = self.active
        first = HOLE
        for position, draft in enumerate(drafts):
            is_last = position == len(drafts) - 1
            flags = 0 if is_last else FLAG_GROUP_CONTINUES
            shape = RecordShape(
                draft.kind,
                draft.codec,
                flags,
                BlockIndex(draft.block),
                draft.count,
                len(draft.stored),
            )
            offset = len(segment.content)
            number = segment.header.segment
            segment.content += encode_record(
                shape, self.next_lsn, self.disk, draft.stored, number, offset
            )
            segment.entries.append(SummaryEntry(shape, offset))
            self.next_lsn += 1
            self._map(shape, number, offset)
            first = first or encode_location(number, offset, shape.record_bytes)
        return first

    def checkpoint(self, *, is_clean: bool = False) -> None:
        """Writes changed nodes, the usage table and a ROOT record, and makes the new anchor."""
        replay_lsn = Lsn(self.next_lsn)
        last = self.segments[-1] if self.segments else None
        replay_segment = last.header.segment if last else SegmentId(0)
        replay_index = last.header.log_index if last else 0
        # The next record opens a new segment: 0 stands for the end of the last one.
        replay_offset = len(last.content) if last and not last.is_sealed else 0
        tree, levels = self._write_tree()
        usage = self.append([Draft(Kind.USAGE, 0, 0, Codec.RAW, encode_usage(self.count_usage()))])
        anchor = self._anchor_of(
            seq=self.anchor.root.seq + 1,
            tree=tree,
            levels=levels,
            replay_log_index=replay_index,
            replay_segment=replay_segment,
            replay_offset=replay_offset,
            replay_lsn=replay_lsn,
            usage_segment=SegmentId(usage >> 32),
            usage_offset=(usage >> 10 & 0x3FFFFF) * 16,
            mapped_blocks=len(self.locations),
            segment_high=self.segments[-1].header.segment,
            flags=FLAG_CLEAN if is_clean else 0,
        )
        self.append([Draft(Kind.ROOT, 0, 0, Codec.RAW, anchor.root.encode())])
        self.mark()
        self.older, self.anchor = self.anchor, anchor

    def close(self) -> None:
        """A checkpoint with nothing to replay behind it, and a sealed tail."""
        self.checkpoint(is_clean=True)
        self.segments[-1].seal()

    def count_usage(self) -> list[SegmentUsage]:
        """The usage table of the newest tree."""
        live: Counter[int] = Counter()
        for location in self.locations.values():
            live[location >> 32] += 1
        for _, location in self.nodes.values():
            live[location >> 32] += 1
        table: list[SegmentUsage] = []
        for segment in self.segments:
            shapes = [entry.shape for entry in segment.entries]
            blocks = sum(shape.count for shape in shapes if shape.kind is Kind.DATA)
            nodes = sum(shape.kind is Kind.NODE for shape in shapes)
            number = segment.header.segment
            table.append(SegmentUsage(number, live[number], blocks + nodes))
        return table

    def _map(self, shape: RecordShape, segment: int, offset: int) -> None:
        if shape.kind is Kind.DATA:
            for index in range(shape.count):
                self.locations[shape.block + index] = encode_location(
                    segment, offset, shape.record_bytes, index
                )
        elif shape.kind is Kind.HOLE:
            end = shape.block + shape.count
            for block in [b for b in self.locations if shape.block <= b < end]:
                del self.locations[block]

    def _write_tree(self) -> tuple[int, int]:
        """Copy on write: only nodes whose entries changed are appended."""
        entries = dict(self.locations)
        nodes: dict[tuple[int, int], tuple[tuple[int, ...], int]] = {}
        level = 0
        while entries and (level == 0 or len(entries) > 1 or max(entries) > 0):
            grouped: dict[int, list[int]] = {}
            for index, location in entries.items():
                slots = grouped.setdefault(index // NODE_ENTRIES, [HOLE] * NODE_ENTRIES)
                slots[index % NODE_ENTRIES] = location
            entries = {}
            for number, slots in sorted(grouped.items()):
                kept = self.nodes.get((level, number))
                if kept is None or kept[0] != tuple(slots):
                    kept = (tuple(slots), self._append_node(level, number, slots))
                nodes[level, number] = kept
                entries[number] = kept[1]
            level += 1
        self.nodes = nodes
        return (entries[0], level) if entries else (HOLE, 0)

    def _append_node(self, level: int, number: int, slots: list[int]) -> int:
        codec = Codec.RAW if number % 3 == 2 else Codec.LZ4_PLANES
        stored = encode_node(slots, codec)
        if len(stored) > NODE_ENTRIES * 8:
            codec, stored = Codec.RAW, encode_node(slots, Codec.RAW)
        block = number * NODE_ENTRIES ** (level + 1)
        return self.append([Draft(Kind.NODE, block, level, codec, stored)])

    def _anchor_of(self, **changes: Any) -> Anchor:
        return Anchor(self.pool.uuid.bytes, self.anchor.root._replace(**changes))

    def save(self) -> None:
        """Writes anchor and segments."""
        folder = self.pool.drive / "segments" / f"{self.disk:08x}"
        folder.mkdir(parents=True, exist_ok=True)
        for segment in self.segments:
            (folder / f"{segment.header.segment:08x}.seg").write_bytes(segment.content)
        anchors = self.pool.path / "anchors"
        anchors.mkdir(exist_ok=True)
        file = encode_anchor_file(self.older, self.anchor)
        (anchors / f"{self.disk:08x}.anchor").write_bytes(file)


class PoolWriter:
    """A pool with one drive, the pool's own folder unless another is given."""

    def __init__(self, path: Path, drive: Path | None = None) -> None:
        self.path = path
        self.drive = drive or path
        self.uuid = POOL_UUID
        self.disks: dict[int, tuple[DiskWriter, str, int]] = {}
        self._last_segment = 0

    def allocate_segment(self) -> int:
        self._last_segment += 1
        return self._last_segment

    def add_disk(self, disk: int, name: str = "vm", size_bytes: int = 1 << 40) -> DiskWriter:
        writer = DiskWriter(self, disk)
        self.disks[disk] = (writer, name, size_bytes)
        return writer

    def save(self) -> None:
        """Writes everything."""
        self.path.mkdir(exist_ok=True)
        (self.drive / "segments").mkdir(parents=True, exist_ok=True)
        label = {"format": 1, "pool": str(self.uuid), "drive": str(DRIVE_UUID), "index": 0}
        (self.drive / "nearstone-drive").write_text(json.dumps(label) + "\n")
        for writer, _, _ in self.disks.values():
            writer.save()
        self._save_catalog()

    def _save_catalog(self) -> None:
        path = self.path / "catalog.sqlite"
        path.unlink(missing_ok=True)
        connection = sqlite3.connect(path)
        connection.executescript(
            "CREATE TABLE pool (one INTEGER PRIMARY KEY, uuid BLOB, created INTEGER);"
            'CREATE TABLE drives ("index" INTEGER PRIMARY KEY, uuid BLOB, path TEXT);'
            "CREATE TABLE disks"
            " (id INTEGER PRIMARY KEY, name TEXT, size_bytes INTEGER, state TEXT)"
        )
        connection.execute("INSERT INTO pool VALUES (1, ?, 0)", (self.uuid.bytes,))
        drive = "." if self.drive == self.path else str(self.drive)
        connection.execute("INSERT INTO drives VALUES (0, ?, ?)", (DRIVE_UUID.bytes, drive))
        for disk, (_, name, size_bytes) in self.disks.items():
            connection.execute(
                "INSERT INTO disks VALUES (?, ?, ?, 'ready')", (disk, name, size_bytes)
            )
        connection.commit()
        connection.close()


def _draft_data(block: int, plain: bytes, *, can_compress: bool) -> Draft:
    count = len(plain) // BLOCK_SIZE_BYTES
    compressed = compress(plain)
    if can_compress and len(compressed) < len(plain):
        return Draft(Kind.DATA, block, count, Codec.LZ4, compressed)
    return Draft(Kind.DATA, block, count, Codec.RAW, plain)
