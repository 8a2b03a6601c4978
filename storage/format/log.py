"""A disk's log: its segments in order, and the replay of what a checkpoint does not hold.

Source: docs/format.md, "Recovery". This reader changes nothing: where the core would cut off a torn
tail and remove segments behind it, this one only says so.
"""

import bisect
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from storage.format.anchor import Root
from storage.format.damage import Damage
from storage.format.layout import LSN_NONE, DiskId, Lsn, Place, SegmentId
from storage.format.location import HOLE, Location, UnverifiedLocation
from storage.format.scan import (
    Identity,
    ReadRecord,
    Record,
    Scan,
    SegmentFile,
    find_durable_lsn,
)

OPEN_FILES_MAX = 64


class LogEnd(NamedTuple):
    """Where the log ends: the next record would have `next_lsn`.

    `segment` is None when nothing lies behind the replay position, `reason` says what stands there
    instead of a record (None: a sealed segment's end), `leftovers` are files behind the end that
    the next recovery by the core removes.
    """

    segment: SegmentId | None
    offset: int
    next_lsn: Lsn
    reason: Damage | None
    leftovers: list[Path]


class Replay(NamedTuple):
    """The records from the replay position to the log's end, whole groups only."""

    records: list[Record]
    end: LogEnd


class Log:
    """The segment files of one disk, and those it shares, opened when used; a bounded number stays
    open.
    """

    def __init__(
        self,
        disk: DiskId,
        pool: bytes | None,
        paths: Mapping[SegmentId, Path],
        foreign: Mapping[SegmentId, tuple[DiskId, Path]],
    ) -> None:
        """Args: `foreign`, segments of other disks that a snapshot or clone may lead into."""
        self.disk = disk
        self.paths = dict(sorted(paths.items()))
        self.foreign = foreign
        self._pool = pool
        self._open: OrderedDict[SegmentId, SegmentFile] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all files."""
        while self._open:
            self._open.popitem()[1].close()

    def get(self, segment: SegmentId) -> SegmentFile:
        """The open segment. Raises Damage when it is missing or its header is not valid."""
        if (file := self._open.get(segment)) is not None:
            self._open.move_to_end(segment)
            return file
        path = self.paths.get(segment)
        owner, path = (self.disk, path) if path else self.foreign.get(segment, (self.disk, None))
        if path is None:
            raise Damage(f"{segment:08x}.seg", 0, f"the segment of disk {self.disk} is missing")
        file = SegmentFile.open(str(path), Identity(owner, segment, self._pool))
        self._open[segment] = file
        if len(self._open) > OPEN_FILES_MAX:
            self._open.popitem(last=False)[1].close()
        return file

    def path_of(self, segment: SegmentId) -> str:
        """The segment's file; its bare name if there is none."""
        path = self.paths.get(segment) or self.foreign.get(segment, (0, None))[1]
        return str(path or f"{segment:08x}.seg")

    def find(self, segment: SegmentId) -> SegmentFile | None:
        """As `get`, None instead of damage."""
        try:
            return self.get(segment)
        except Damage:
            return None

    def read(self, location: Location) -> ReadRecord:
        """The record that a location points at. Raises Damage."""
        return self.get(location.segment).read_record(location)

    def replay(self, root: Root, durable_lsn: Lsn = LSN_NONE) -> Replay:
        """Everything that happened after the checkpoint. Raises Damage where durable records are
        lost.

        Args: `durable_lsn`, up to where somebody else says that the log was on stable storage.
        """
        return _Replay(self, root, durable_lsn).run()


class _Replay:
    """One walk along the log. `_records` are those accepted; all groups but the last are whole."""

    def __init__(self, log: Log, root: Root, durable_lsn: Lsn) -> None:
        self._log = log
        self._root = root
        self._durable_floor = durable_lsn
        self._records: list[Record] = []
        ids = list(log.paths)
        self._candidates = ids[bisect.bisect_left(ids, root.replay_segment) :]
        self._durable: Lsn | None = None
        self._anchor = Place(f"{root.disk:08x}.anchor", 0)

    def run(self) -> Replay:
        end = LogEnd(None, 0, Lsn(1), None, [])
        for file in self._follow():
            header = file.header
            if end.segment is None:
                self._verify_first(file)
            elif header.first_lsn != end.next_lsn:
                break
            scan = self._read_segment(file)
            accepted = self._accept(scan.records)
            next_lsn = Lsn(header.first_lsn + accepted)
            end = LogEnd(header.segment, scan.end_offset, next_lsn, scan.stop, [])
            if accepted < len(scan.records):
                torn = scan.records[accepted]
                end = end._replace(offset=torn.offset, reason=torn.payload_damage)
                break
        end = self._cut_open_group(end)
        self._refuse_lost_records(end)
        paths, last = self._log.paths, end.segment or 0
        is_left = [
            segment > last or self._log.find(segment) is None for segment in self._candidates
        ]
        leftovers = [
            paths[segment] for segment, left in zip(self._candidates, is_left, strict=True) if left
        ]
        records = [record for record in self._records if record.lsn >= self._root.replay_lsn]
        return Replay(records, end._replace(leftovers=leftovers))

    def _follow(self) -> Iterator[SegmentFile]:
        """Candidates in order as long as their log indexes have no gap. Files without a header are
        no segments: made in advance and not used, or torn while being made.
        """
        log_index = self._root.replay_log_index
        for segment in self._candidates:
            file = self._log.find(segment)
            if file is None:
                continue
            if file.header.log_index != log_index:
                return
            log_index += 1
            yield file

    def _verify_first(self, file: SegmentFile) -> None:
        """The walk starts with the segment that the root names, at its first record."""
        root, header = self._root, file.header
        if root.replay_segment not in (0, header.segment) or header.first_lsn > root.replay_lsn:
            reason = f"the log goes on here, not in segment {root.replay_segment} as the root says"
            raise Damage(file.path, 0, reason)

    def _read_segment(self, file: SegmentFile) -> Scan:
        """The records of one segment, from its summary if it has a valid one."""
        if file.is_sealed:
            try:
                return file.list_records()
            except Damage:
                # The trailer still vouches for the records: they are scanned, none may be missing.
                return file.scan()
        return file.scan()

    def _accept(self, records: list[Record]) -> int:
        """Takes records up to the first whose payload is torn; a damaged payload known to be
        durable is no tear.
        """
        for accepted, record in enumerate(records):
            if record.payload_damage is not None and record.lsn > self._find_durable_lsn():
                return accepted
            self._records.append(record)
        return len(records)

    def _cut_open_group(self, end: LogEnd) -> LogEnd:
        """Takes back the records of a group whose last record is missing."""
        while self._records and self._records[-1].shape.continues_group:
            record = self._records.pop()
            reason = end.reason or Damage(
                str(self._log.paths[record.segment]),
                record.offset,
                "the group's last record is missing",
            )
            end = LogEnd(record.segment, record.offset, record.lsn, reason, [])
        return end

    def _find_durable_lsn(self) -> Lsn:
        """The highest LSN that the root or anything behind it says is on stable storage."""
        if self._durable is None:
            durable = max(
                Lsn(self._root.replay_lsn - 1), self._find_usage_lsn(), self._durable_floor
            )
            for segment in self._candidates:
                path = str(self._log.paths[segment])
                durable = max(durable, find_durable_lsn(path, self._log.disk, segment))
            self._durable = durable
        return self._durable

    def _find_usage_lsn(self) -> Lsn:
        """The LSN of the root's usage table; 0 if the log has none or it cannot be read."""
        root = self._root
        is_own = root.usage_segment in self._log.paths
        file = self._log.find(root.usage_segment) if is_own else None
        try:
            return file.read_header(root.usage_offset).lsn if file else Lsn(0)
        except Damage:
            return Lsn(0)

    def _refuse_lost_records(self, end: LogEnd) -> None:
        """Raises Damage when the record missing at the end was on stable storage: no torn tail."""
        durable = self._find_durable_lsn()
        if durable >= end.next_lsn:
            raise self._blame(end, f"but everything up to LSN {durable} was on stable storage")
        for name, place in self._list_root_places():
            if end.segment is None or place >= (end.segment, end.offset):
                raise self._blame(end, f"but the checkpoint's {name} behind it was")

    def _list_root_places(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """What the root names in this log: what lies in others does not tell where this ends."""
        root = self._root
        if root.usage_segment and root.usage_segment not in self._log.foreign:
            yield "usage table", (root.usage_segment, root.usage_offset)
        if root.tree != HOLE:
            location = UnverifiedLocation(root.tree, self._anchor).verify()
            if location is not None and location.segment not in self._log.foreign:
                yield "tree", (location.segment, location.offset)

    def _blame(self, end: LogEnd, evidence: str) -> Damage:
        if end.reason is not None:
            file, offset, reason = end.reason.file, end.reason.offset, end.reason.reason
        elif end.segment is not None:
            file, offset, reason = (
                str(self._log.paths[end.segment]),
                end.offset,
                "the log ends here",
            )
        else:
            (file, offset), reason = self._anchor, "the log has no further segment"
        return Damage(file, offset, f"LSN {end.next_lsn} is missing ({reason}), {evidence}")
