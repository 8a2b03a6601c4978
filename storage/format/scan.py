"""Reading one segment file: sealed through its summary, unsealed by scanning its records one after
the other.

Files are read with pread, never mapped: a running server may cut off a file's end while it is
looked at.

Invariants
- No more than a segment's maximum is ever read of a file.
- A scan moves forward by at least one record, a search for MARKs by at least one byte: both end.
"""

import os
from pathlib import Path
from typing import NamedTuple, Self

from storage.format.damage import Damage
from storage.format.layout import (
    RECORD_ALIGN_BYTES,
    RECORD_HEADER,
    RECORD_MAGIC,
    SEGMENT_HEADER,
    SEGMENT_SIZE_BYTES_MAX,
    SUMMARY_ENTRY,
    TRAILER,
    DiskId,
    Lsn,
    Place,
    SegmentId,
)
from storage.format.location import Location
from storage.format.record import (
    Kind,
    RecordHeader,
    RecordShape,
    UnverifiedPayload,
    UnverifiedRecordHeader,
    decode_payload,
)
from storage.format.segment import (
    SummaryEntry,
    Trailer,
    UnverifiedSegmentHeader,
    UnverifiedSummary,
    UnverifiedTrailer,
)


class Identity(NamedTuple):
    """Whose segment a file must be, as its path says."""

    disk: DiskId
    segment: SegmentId
    pool: bytes | None


class Record(NamedTuple):
    """A record found in a segment. `payload_damage` is set where the header is right and its
    payload is not.
    """

    shape: RecordShape
    lsn: Lsn
    segment: SegmentId
    offset: int
    payload_damage: Damage | None

    @property
    def end_offset(self) -> int:
        """Where the next record starts."""
        return self.offset + self.shape.stride_bytes


class Scan(NamedTuple):
    """All records from a place on, where they end, and why: None means that a sealed segment's end
    was reached.
    """

    records: list[Record]
    end_offset: int
    next_lsn: Lsn
    stop: Damage | None


class ReadRecord(NamedTuple):
    """One record read through a location."""

    header: RecordHeader
    plain: bytes


class SegmentFile:
    """An open segment file with a verified header. `trailer` is None while it is not sealed."""

    def __init__(self, path: str, descriptor: int, identity: Identity | None) -> None:
        self.path = path
        self._descriptor = descriptor
        self.size_bytes = os.fstat(descriptor).st_size
        if self.size_bytes > SEGMENT_SIZE_BYTES_MAX:
            raise Damage(path, SEGMENT_SIZE_BYTES_MAX, "the file is larger than a segment may be")
        raw = self.read(0, SEGMENT_HEADER.size)
        self.header = UnverifiedSegmentHeader(raw, Place(path, 0)).verify()
        if identity is not None:
            self._verify_identity(identity)
        self.trailer_damage: Damage | None = None
        self.trailer = self._read_trailer()

    @classmethod
    def open(cls, path: str, identity: Identity | None = None) -> "SegmentFile":
        """Opens for reading. Raises Damage when the header is not that of a segment, or not of this
        one; OSError.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return cls(path, descriptor, identity)
        except BaseException:
            os.close(descriptor)
            raise

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_sealed(self) -> bool:
        """Has the segment a valid trailer, and so records that are all on stable storage?"""
        return self.trailer is not None

    def read(self, offset: int, length_bytes: int) -> bytes:
        """The file's bytes there; fewer where it ends."""
        parts: list[bytes] = []
        while length_bytes > 0 and (part := os.pread(self._descriptor, length_bytes, offset)):
            parts.append(part)
            offset += len(part)
            length_bytes -= len(part)
        return b"".join(parts)

    def read_summary(self) -> list[SummaryEntry]:
        """The entries of a sealed segment's summary. Raises Damage, also where the segment is not
        sealed.
        """
        trailer = self.trailer
        if trailer is None:
            raise Damage(self.path, self.size_bytes, "the segment is not sealed")
        place = Place(self.path, trailer.records_end)
        raw = self.read(trailer.records_end, trailer.entries * SUMMARY_ENTRY.size)
        return UnverifiedSummary(raw, place).verify(trailer)

    def list_records(self) -> Scan:
        """All records as the summary lists them. Raises Damage as `read_summary`."""
        entries, first_lsn = self.read_summary(), self.header.first_lsn
        records = [
            Record(entry.shape, Lsn(first_lsn + index), self.header.segment, entry.offset, None)
            for index, entry in enumerate(entries)
        ]
        end = records[-1].end_offset if records else SEGMENT_HEADER.size
        return Scan(records, end, Lsn(first_lsn + len(records)), None)

    def scan(self, offset: int = SEGMENT_HEADER.size, lsn: Lsn | None = None) -> Scan:
        """Verifies record after record from `offset`, which holds `lsn` (None: the segment's
        first).

        Records whose payload alone is damaged are listed as such and the scan goes on behind them;
        it stops at the first place that holds no record, or at the end of a sealed segment's
        records.
        """
        end = self.trailer.records_end if self.trailer else self.size_bytes
        buffer = self.read(offset, end - offset)
        records: list[Record] = []
        base, expected = offset, self.header.first_lsn if lsn is None else lsn
        stop: Damage | None = None
        while not (self.is_sealed and offset == end):
            try:
                record = self._scan_record(buffer, base, offset, expected)
            except Damage as damage:
                stop = damage
                break
            records.append(record)
            offset, expected = record.end_offset, Lsn(expected + 1)
        return Scan(records, offset, expected, stop)

    def read_header(self, offset: int) -> RecordHeader:
        """The verified header of the record at `offset`. Raises Damage."""
        unverified = UnverifiedRecordHeader(
            self.read(offset, RECORD_HEADER.size), Place(self.path, offset)
        )
        return unverified.verify(self.header.segment, self.header.disk)

    def read_record(self, location: Location) -> ReadRecord:
        """The record that a location points at, verified and decompressed. Raises Damage."""
        offset, place = location.offset, Place(self.path, location.offset)
        end = self.trailer.records_end if self.trailer else self.size_bytes
        length_bytes = max(location.record_bytes_max, RECORD_HEADER.size)
        raw = self.read(offset, min(length_bytes, end - offset))
        unverified = UnverifiedRecordHeader(raw[: RECORD_HEADER.size], place)
        header = unverified.verify(self.header.segment, self.header.disk)
        record_bytes = header.shape.record_bytes
        if record_bytes > end - offset:
            raise place.damage("the record reaches beyond the segment's records")
        if len(raw) < record_bytes:
            raw += self.read(offset + len(raw), record_bytes - len(raw))
        payload = UnverifiedPayload(raw[RECORD_HEADER.size : record_bytes], place).verify(header)
        return ReadRecord(header, decode_payload(header.shape, payload, place))

    def _scan_record(self, buffer: bytes, base: int, offset: int, expected: Lsn) -> Record:
        place, start = Place(self.path, offset), offset - base
        raw = buffer[start : start + RECORD_HEADER.size]
        header = UnverifiedRecordHeader(raw, place).verify(self.header.segment, self.header.disk)
        if header.lsn != expected:
            raise place.damage(f"LSN {header.lsn} where {expected} should be")
        payload_start = start + RECORD_HEADER.size
        raw_payload = buffer[payload_start : payload_start + header.shape.stored_len]
        payload_damage: Damage | None = None
        try:
            UnverifiedPayload(raw_payload, place).verify(header)
        except Damage as damage:
            if start + header.shape.stride_bytes > len(buffer):
                raise
            payload_damage = damage
        return Record(header.shape, header.lsn, self.header.segment, offset, payload_damage)

    def _read_trailer(self) -> Trailer | None:
        start = self.size_bytes - TRAILER.size
        if start < SEGMENT_HEADER.size:
            return None
        unverified = UnverifiedTrailer(self.read(start, TRAILER.size), Place(self.path, start))
        try:
            trailer = unverified.verify(self.header.segment)
            if trailer.first_lsn != self.header.first_lsn:
                raise unverified.place.damage("trailer and header name different first LSNs")
        except Damage as damage:
            # Whatever lies at the end of a segment that was never sealed is no reason to complain.
            self.trailer_damage = damage if unverified.has_magic else None
            return None
        return trailer

    def _verify_identity(self, identity: Identity) -> None:
        header = self.header
        for name, found, expected in (
            ("disk", header.disk, identity.disk),
            ("segment", header.segment, identity.segment),
            ("pool", header.pool.hex(), (identity.pool or header.pool).hex()),
        ):
            if found != expected:
                raise Damage(self.path, 0, f"the header says {name} {found}, not {expected}")


def find_durable_lsn(path: str, disk: DiskId, segment: SegmentId) -> Lsn:
    """The highest LSN that the trailer, or a valid MARK in the file, says is durable; else 0.

    Asks nothing else of the file: the evidence counts although the segment's header is damaged.
    Looks at every possible place, since behind damage it is unknown where records start.
    """
    with Path(path).open("rb") as file:
        buffer = file.read(SEGMENT_SIZE_BYTES_MAX)
    start = max(len(buffer) - TRAILER.size, 0)
    try:
        return UnverifiedTrailer(buffer[start:], Place(path, start)).verify(segment).last_lsn
    except Damage:
        durable = Lsn(0)
    position = buffer.find(RECORD_MAGIC)
    while position >= 0:
        if position % RECORD_ALIGN_BYTES == 0:
            raw = buffer[position : position + RECORD_HEADER.size]
            try:
                header = UnverifiedRecordHeader(raw, Place(path, position)).verify(segment, disk)
                if header.shape.kind is Kind.MARK:
                    durable = max(durable, Lsn(header.shape.block))
            except Damage:
                pass
        position = buffer.find(RECORD_MAGIC, position + 1)
    return durable
