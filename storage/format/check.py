"""The offline check of a pool: every invariant of the format, every checksum.

The caller holds the pool's lock: a server that writes meanwhile makes the findings meaningless.
Memory is bounded by 16 bytes a mapped block and one segment's records.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from storage.format.damage import Damage
from storage.format.disk import OfflineDisk
from storage.format.layout import BLOCK_SIZE_BYTES, SEGMENT_HEADER, DiskId, Place, SegmentId
from storage.format.location import Location, UnverifiedLocation, compute_size_class
from storage.format.node import SegmentUsage, UnverifiedUsage
from storage.format.pool import PoolFolder
from storage.format.record import Kind, RecordShape
from storage.format.scan import Record, SegmentFile

FINDINGS_PER_DISK_MAX: Final = 1000


class Severity(StrEnum):
    """DAMAGE: bytes are lost. VIOLATION: an invariant does not hold. LEFTOVER: removed at next
    open.
    """

    DAMAGE = "damage"
    VIOLATION = "violation"
    LEFTOVER = "leftover"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be; `disk` is None when it concerns the whole pool."""

    severity: Severity
    disk: DiskId | None
    file: str
    offset: int
    reason: str


@dataclass
class DiskReport:
    """What was looked at. `mapped_blocks` is as of the log's end, `checkpoint_blocks` as of the
    root.
    """

    disk: DiskId
    name: str | None
    checkpoint: int = 0
    segments: int = 0
    records: int = 0
    nodes: int = 0
    checkpoint_blocks: int = 0
    mapped_blocks: int = 0
    dead_segments: int = 0
    findings_left_out: int = 0


@dataclass
class PoolReport:
    """The check's outcome."""

    pool: str
    disks: list[DiskReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Nothing but leftovers, if anything, was found."""
        return all(finding.severity is Severity.LEFTOVER for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The report in JSON types."""
        return {
            "pool": self.pool,
            "is_sound": self.is_sound,
            "disks": [vars(disk) for disk in self.disks],
            "findings": [vars(finding) for finding in self.findings],
        }


def check_pool(pool_dir: Path, drives: Sequence[Path] | None = None) -> PoolReport:
    """Checks a whole pool. Raises OSError when its folders cannot be read, never for damage.

    Args: `drives`, folders to use instead of those that the catalog names.
    """
    folder = PoolFolder.open(pool_dir, drives)
    report = PoolReport(str(pool_dir))
    anchors, segments = folder.list_anchors(), folder.list_segments()
    for problem in folder.problems:
        report.findings.append(_to_finding(Severity.DAMAGE, None, problem))
    for index in folder.missing_drives:
        reason = f"drive {index} is missing"
        report.findings.append(Finding(Severity.DAMAGE, None, str(pool_dir), 0, reason))
    report.findings += _compare_with_catalog(folder, anchors)
    needed: set[SegmentId] = set()
    for disk, anchor in anchors.items():
        check = _DiskCheck(folder, disk, anchor)
        check.run()
        report.disks.append(check.report)
        report.findings += check.findings
        needed |= check.needed
    for disk, paths in segments.items():
        if disk not in anchors and (dead := paths.keys() - needed):
            reason = f"{len(dead)} segments of a disk that has no anchor, which no other disk needs"
            file = str(next(iter(paths.values())).parent)
            report.findings.append(Finding(Severity.LEFTOVER, disk, file, 0, reason))
    return report


def _to_finding(severity: Severity, disk: DiskId | None, damage: Damage) -> Finding:
    return Finding(severity, disk, damage.file, damage.offset, damage.reason)


def _compare_with_catalog(folder: PoolFolder, anchors: dict[DiskId, Path]) -> Iterator[Finding]:
    if folder.catalog is None:
        return
    for disk, row in folder.catalog.disks.items():
        if disk not in anchors and row.state != "deleting":
            reason = f"the catalog has disk {row.name!r}, which has no anchor"
            yield Finding(Severity.DAMAGE, disk, str(folder.path), 0, reason)
    for disk, path in anchors.items():
        if disk not in folder.catalog.disks:
            reason = "the catalog does not know this disk"
            yield Finding(Severity.LEFTOVER, disk, str(path), 0, reason)


@dataclass
class _References:
    """Map entries that point into one segment: locations, and beside them their blocks."""

    locations: "array[int]" = field(default_factory=lambda: array("Q"))
    blocks: "array[int]" = field(default_factory=lambda: array("Q"))


class _DiskCheck:
    """The check of one disk; findings gather in `findings`, at most a bounded number.

    `needed` are the segments that the checkpoint leads into.
    """

    def __init__(self, folder: PoolFolder, disk: DiskId, anchor_path: Path) -> None:
        row = folder.catalog.disks.get(disk) if folder.catalog else None
        self.report = DiskReport(disk, row.name if row else None)
        self.findings: list[Finding] = []
        self.needed: set[SegmentId] = set()
        self._folder = folder
        self._disk = disk
        self._anchor_file = str(anchor_path)
        self._size_blocks = -(-row.size_bytes // BLOCK_SIZE_BYTES) if row else None
        self._references: dict[SegmentId, _References] = {}
        self._live: Counter[SegmentId] = Counter()
        self._totals: dict[SegmentId, int] = {}
        self._last_records: dict[SegmentId, Record | None] = {}

    def run(self) -> None:
        """Checks everything; what cannot be read is a finding."""
        try:
            disk = self._folder.open_disk(self._disk)
        except Damage as damage:
            # A disk whose making was interrupted: its row comes last, so nobody misses it.
            is_unknown = self._folder.catalog is not None and self._size_blocks is None
            self._note(Severity.LEFTOVER if is_unknown else Severity.DAMAGE, damage)
            return
        with disk:
            self.report.checkpoint = disk.root.seq
            is_tree_whole = self._check_tree(disk)
            self.needed = {*self._live, disk.root.usage_segment}
            self._check_map(disk)
            if disk.root.disk != self._disk:
                # A snapshot without a tree of its own: the rest is checked with its disk.
                for segment in list(self._references):
                    self._check_segment(disk, segment)
                return
            leftovers = set(disk.log_end.leftovers)
            for segment, path in disk.log.paths.items():
                if path in leftovers:
                    reason = "a segment behind the end of the log"
                    self._note(Severity.LEFTOVER, Damage(str(path), 0, reason))
                else:
                    self._check_segment(disk, segment)
            for segment in self._references.keys() & disk.log.foreign.keys():
                self._check_segment(disk, segment)
            self._check_dangling(disk)
            self._check_continuity(disk)
            self._check_root(disk)
            if is_tree_whole:
                self._check_usage(disk)

    def _note(self, severity: Severity, damage: Damage) -> None:
        if len(self.findings) < FINDINGS_PER_DISK_MAX:
            self.findings.append(_to_finding(severity, self._disk, damage))
        else:
            self.report.findings_left_out += 1

    def _violate(self, file: str, offset: int, reason: str) -> None:
        self._note(Severity.VIOLATION, Damage(file, offset, reason))

    def _check_tree(self, disk: OfflineDisk) -> bool:
        """Recounts the checkpoint's tree; False if it cannot be read to its end."""
        tree, mapped_blocks = disk.map.tree, 0
        try:
            for node in tree.walk():
                self.report.nodes += 1
                self._live[node.location.segment] += 1
                if node.level:
                    continue
                place = Place(disk.log.path_of(node.location.segment), node.location.offset)
                for index, raw in enumerate(node.entries):
                    location = UnverifiedLocation(raw, place).verify()
                    if location is not None:
                        mapped_blocks += 1
                        self._live[location.segment] += 1
                        self._refer(location.segment, raw, node.first_block + index)
        except Damage as damage:
            self._note(Severity.DAMAGE, damage)
            return False
        self.report.checkpoint_blocks = mapped_blocks
        if mapped_blocks != disk.root.mapped_blocks:
            reason = (
                f"the root says {disk.root.mapped_blocks} mapped blocks, there are {mapped_blocks}"
            )
            self._violate(self._anchor_file, 0, reason)
        return True

    def _refer(self, segment: SegmentId, raw: int, block: int) -> None:
        references = self._references.setdefault(segment, _References())
        references.locations.append(raw)
        references.blocks.append(block)

    def _check_map(self, disk: OfflineDisk) -> None:
        """Counts the map as of the log's end and compares it with the disk's size."""
        last_block = -1
        try:
            for mapped in disk.blocks():
                self.report.mapped_blocks += 1
                last_block = mapped.block
        except Damage as damage:
            self._note(Severity.DAMAGE, damage)
        if self._size_blocks is not None and last_block >= self._size_blocks:
            reason = f"block {last_block} is mapped, the disk has {self._size_blocks} blocks"
            self._violate(self._anchor_file, 0, reason)

    def _check_segment(self, disk: OfflineDisk, segment: SegmentId) -> None:
        """Every record of a segment, and every map entry that points into it."""
        references = self._references.pop(segment, _References())
        try:
            file = disk.log.get(segment)
        except Damage as damage:
            self._note(Severity.DAMAGE, damage)
            return
        self.report.segments += 1
        shapes: dict[int, RecordShape] = {}
        records = self._list_records(disk, file)
        # What other disks with an anchor wrote is verified with them.
        owner = file.header.disk
        is_ours = owner == self._disk or owner not in self._folder.list_anchors()
        for record in records:
            if is_ours:
                self._check_record(file, record)
            shapes[record.offset] = record.shape
        self.report.records += len(records)
        if segment in disk.log.paths:
            self._totals[segment] = sum(_weigh(shape) for shape in shapes.values())
            self._last_records[segment] = records[-1] if records else None
        if segment == disk.root.replay_segment:
            self._check_replay_position(disk, records)
        if records and records[-1].shape.continues_group and file.is_sealed:
            self._violate(file.path, records[-1].offset, "a group reaches beyond its segment")
        for raw, block in zip(references.locations, references.blocks, strict=True):
            self._check_reference(file, shapes, raw, block)

    def _check_replay_position(self, disk: OfflineDisk, records: list[Record]) -> None:
        root = disk.root
        offsets = [record.offset for record in records if record.lsn >= root.replay_lsn]
        end = records[-1].end_offset if records else SEGMENT_HEADER.size
        if root.replay_offset not in (0, offsets[0] if offsets else end):
            reason = f"the root says that LSN {root.replay_lsn} is at {root.replay_offset}"
            self._violate(self._anchor_file, 0, reason)

    def _list_records(self, disk: OfflineDisk, file: SegmentFile) -> list[Record]:
        if file.is_sealed:
            try:
                return file.list_records().records
            except Damage as damage:
                self._note(Severity.DAMAGE, damage)
        scan = file.scan()
        end = disk.log_end
        is_tail = file.header.segment == end.segment
        if scan.stop is not None and file.is_sealed:
            self._note(Severity.DAMAGE, scan.stop)
        if is_tail:
            return [record for record in scan.records if record.offset < end.offset]
        return scan.records

    def _check_record(self, file: SegmentFile, listed: Record) -> None:
        shape = listed.shape
        segment = file.header.segment
        size_class = compute_size_class(shape.record_bytes)
        try:
            found = file.read_record(Location(segment, listed.offset, size_class, 0))
        except Damage as damage:
            what = f"{damage.reason} ({shape.kind.name}, block {shape.block}, count {shape.count})"
            self._note(Severity.DAMAGE, Damage(damage.file, damage.offset, what))
            return
        if (found.header.shape, found.header.lsn) != (shape, listed.lsn):
            self._violate(file.path, listed.offset, "summary and record differ")

    def _check_reference(
        self, file: SegmentFile, shapes: dict[int, RecordShape], raw: int, block: int
    ) -> None:
        location = UnverifiedLocation(raw, Place(file.path, 0)).verify()
        if location is None:
            return
        shape = shapes.get(location.offset)
        if shape is None or shape.kind is not Kind.DATA:
            reason = f"the map says that block {block} is here, where no DATA record starts"
            self._note(Severity.DAMAGE, Damage(file.path, location.offset, reason))
        elif location.index >= shape.count or shape.block + location.index != block:
            reason = f"the record holds {shape.count} blocks from {shape.block}, not block {block}"
            self._note(Severity.DAMAGE, Damage(file.path, location.offset, reason))
        elif location.size_class != compute_size_class(shape.record_bytes):
            reason = f"size class {location.size_class} of block {block} is not the record's"
            self._violate(file.path, location.offset, reason)

    def _check_dangling(self, disk: OfflineDisk) -> None:
        """Map entries that point into segments which do not belong to the log, or are not there."""
        for segment, references in self._references.items():
            file = disk.log.path_of(segment)
            reason = f"missing, though {len(references.blocks)} blocks of the map lie in it"
            self._note(Severity.DAMAGE, Damage(file, 0, reason))

    def _check_continuity(self, disk: OfflineDisk) -> None:
        """Segments follow each other; below the replay position dead ones may have been removed."""
        previous: SegmentFile | None = None
        for segment in self._last_records:
            file = disk.log.get(segment)
            if previous is not None:
                self._check_succession(disk, previous, file)
            previous = file

    def _check_succession(
        self, disk: OfflineDisk, previous: SegmentFile, file: SegmentFile
    ) -> None:
        header, before = file.header, previous.header
        last = self._last_records[before.segment]
        next_lsn = last.lsn + 1 if last else before.first_lsn
        if header.log_index == before.log_index + 1:
            is_next = header.first_lsn == next_lsn and header.prev == before.segment
        else:
            # Everything between the two was dead and is gone.
            is_removed = before.log_index < header.log_index <= disk.root.replay_log_index
            is_next = is_removed and header.first_lsn > next_lsn and header.prev > before.segment
        if not is_next:
            reason = (
                f"log index {header.log_index}, first LSN {header.first_lsn}, previous segment "
                f"{header.prev} do not follow segment {before.segment} (log index "
                f"{before.log_index}, next LSN {next_lsn})"
            )
            self._violate(file.path, 0, reason)

    def _check_root(self, disk: OfflineDisk) -> None:
        root = disk.root
        in_tree = max(self._live, default=SegmentId(0))
        if max(in_tree, root.replay_segment, root.usage_segment) > root.segment_high:
            reason = f"the root's highest segment {root.segment_high} is not the highest"
            self._violate(self._anchor_file, 0, reason)
        for segment in self._last_records:
            index = self._folder.drive_of(disk.log.paths[segment])
            if index is not None and not root.drives & 1 << index:
                reason = f"on drive {index}, which the root does not name"
                self._violate(str(disk.log.paths[segment]), 0, reason)

    def _check_usage(self, disk: OfflineDisk) -> None:
        """The usage table against a recount."""
        root = disk.root
        table: dict[SegmentId, SegmentUsage] = {}
        if root.usage_segment:
            try:
                table = self._read_usage(disk)
            except Damage as damage:
                self._note(Severity.DAMAGE, damage)
                return
        for segment in sorted(table.keys() | self._live.keys() | self._totals.keys()):
            self._check_segment_usage(disk, segment, table.get(segment))

    def _read_usage(self, disk: OfflineDisk) -> dict[SegmentId, SegmentUsage]:
        segment, offset = disk.root.usage_segment, disk.root.usage_offset
        header, plain = disk.log.read(Location(segment, offset, 0, 0))
        place = Place(disk.log.path_of(segment), offset)
        if header.shape.kind is not Kind.USAGE:
            raise place.damage(f"a {header.shape.kind.name} record where USAGE should be")
        return {usage.segment: usage for usage in UnverifiedUsage(plain, place).verify()}

    def _check_segment_usage(
        self, disk: OfflineDisk, segment: SegmentId, usage: SegmentUsage | None
    ) -> None:
        root, live = disk.root, self._live[segment]
        file = disk.log.path_of(segment)
        noted_live = usage.live if usage else 0
        if noted_live != live:
            self._violate(file, 0, f"the usage table says {noted_live} live, there are {live}")
        total = self._totals.get(segment)
        is_before_replay = root.replay_segment != 0 and segment < root.replay_segment
        # Fewer than there are: the table is older, or the disk was rolled back to one that was.
        if total is not None and usage is not None and not live <= usage.total <= total:
            reason = f"the usage table says {usage.total} in all, there are {total}"
            self._violate(file, 0, reason)
        if live == 0 and is_before_replay and segment != root.usage_segment and total is not None:
            self.report.dead_segments += 1


def _weigh(shape: RecordShape) -> int:
    """What a record adds to its segment's total: blocks, or one for a node."""
    if shape.kind is Kind.DATA:
        return shape.count
    return 1 if shape.kind is Kind.NODE else 0
