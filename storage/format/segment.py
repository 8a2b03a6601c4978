"""Segment files: header, records, and once sealed a summary of the records and a trailer at the
very end.

Invariants
- A trailer is written after the segment's records are on stable storage, and in log order: a valid
  one says that its segment and all earlier ones are durable.
- The summary has one entry for every record, so the LSN of entry i is first_lsn + i.
"""

from collections.abc import Sequence
from typing import NamedTuple

from storage.format.layout import (
    FORMAT_VERSION,
    RECORD_ALIGN_BYTES,
    RECORD_HEADER,
    SEGMENT_HEADER,
    SEGMENT_MAGIC,
    SEGMENT_SIZE_BYTES_MAX,
    SUMMARY_ENTRY,
    TRAILER,
    TRAILER_MAGIC,
    DiskId,
    Lsn,
    Place,
    SegmentId,
    compute_check,
)
from storage.format.record import RecordShape, verify_shape

HEADER_SEED = 0
SEGMENT_RECORDS_MAX = SEGMENT_SIZE_BYTES_MAX // (RECORD_HEADER.size + SUMMARY_ENTRY.size)


class SegmentHeader(NamedTuple):
    """Whose segment this is, and its place in the log."""

    disk: DiskId
    segment: SegmentId
    prev: SegmentId
    log_index: int
    first_lsn: Lsn
    epoch: int
    pool: bytes

    def encode(self) -> bytes:
        """The first 128 bytes of the file."""
        return SEGMENT_HEADER.pack_sealed(
            *(SEGMENT_MAGIC, FORMAT_VERSION, 0, self.disk, self.segment, self.prev),
            *(self.log_index, self.first_lsn, self.epoch, self.pool),
            seed=HEADER_SEED,
        )


class UnverifiedSegmentHeader(NamedTuple):
    """The first bytes of a file that should be a segment."""

    raw: bytes
    place: Place

    def verify(self) -> SegmentHeader:
        """The header. Raises Damage."""
        if len(self.raw) != SEGMENT_HEADER.size:
            raise self.place.damage("the file ends inside the segment header")
        magic, version, flags, disk, segment, prev, log_index, first_lsn, epoch, pool, _ = (
            SEGMENT_HEADER.unpack(self.raw)
        )
        if magic != SEGMENT_MAGIC:
            is_empty = not any(self.raw)
            raise self.place.damage(f"no segment header: {'zeros' if is_empty else 'wrong magic'}")
        if version != FORMAT_VERSION:
            raise self.place.damage(f"segment of format version {version}, not {FORMAT_VERSION}")
        if not SEGMENT_HEADER.has_valid_checksum(self.raw, HEADER_SEED):
            raise self.place.damage("segment header fails its checksum")
        is_sane = flags == 0 and SEGMENT_HEADER.has_clear_reserve(self.raw)
        if not is_sane or segment == 0 or first_lsn == 0:
            raise self.place.damage("segment header with impossible contents")
        return SegmentHeader(
            DiskId(disk),
            SegmentId(segment),
            SegmentId(prev),
            log_index,
            Lsn(first_lsn),
            epoch,
            pool,
        )


class Trailer(NamedTuple):
    """The last 64 bytes of a sealed segment."""

    segment: SegmentId
    records_end: int
    entries: int
    first_lsn: Lsn
    last_lsn: Lsn
    summary_check: int

    def encode(self) -> bytes:
        """The last 64 bytes of the file."""
        return TRAILER.pack_sealed(
            *(TRAILER_MAGIC, FORMAT_VERSION, 0, self.segment, self.records_end, self.entries),
            *(self.first_lsn, self.last_lsn, self.summary_check),
            seed=self.segment,
        )


class UnverifiedTrailer(NamedTuple):
    """The last bytes of a segment file, sealed or not."""

    raw: bytes
    place: Place

    @property
    def has_magic(self) -> bool:
        """Does it look like a trailer at all?"""
        return self.raw[: len(TRAILER_MAGIC)] == TRAILER_MAGIC

    def verify(self, segment: SegmentId) -> Trailer:
        """The trailer of `segment`. Raises Damage, also where a segment is merely not sealed."""
        if len(self.raw) != TRAILER.size or not self.has_magic:
            raise self.place.damage("no trailer")
        if not TRAILER.has_valid_checksum(self.raw, segment):
            raise self.place.damage("trailer fails its checksum")
        _, version, flags, owner, records_end, entries, first_lsn, last_lsn, check, _ = (
            TRAILER.unpack(self.raw)
        )
        file_bytes = self.place.offset + TRAILER.size
        is_sane = (
            version == FORMAT_VERSION
            and flags == 0
            and owner == segment
            and TRAILER.has_clear_reserve(self.raw)
            and entries <= SEGMENT_RECORDS_MAX
            and first_lsn + entries == last_lsn + 1
            and records_end % RECORD_ALIGN_BYTES == 0
            and SEGMENT_HEADER.size <= records_end
            and records_end + entries * SUMMARY_ENTRY.size + TRAILER.size == file_bytes
        )
        if not is_sane:
            raise self.place.damage("trailer with impossible contents")
        return Trailer(segment, records_end, entries, Lsn(first_lsn), Lsn(last_lsn), check)


class SummaryEntry(NamedTuple):
    """One record as the summary lists it."""

    shape: RecordShape
    offset: int

    def encode(self) -> bytes:
        """The 24 bytes of the entry."""
        shape, offset16 = self.shape, self.offset // RECORD_ALIGN_BYTES
        return SUMMARY_ENTRY.pack(
            *(shape.block, offset16, shape.count, shape.stored_len),
            *(shape.kind, shape.codec, shape.flags),
        )


class UnverifiedSummary(NamedTuple):
    """The bytes between records and trailer of a sealed segment."""

    raw: bytes
    place: Place

    def verify(self, trailer: Trailer) -> list[SummaryEntry]:
        """All entries; together they fill the segment from its header to `records_end`. Raises
        Damage.
        """
        if len(self.raw) != trailer.entries * SUMMARY_ENTRY.size:
            raise self.place.damage("the file ends inside the summary")
        if compute_check(self.raw) != trailer.summary_check:
            raise self.place.damage("summary fails its checksum")
        entries: list[SummaryEntry] = []
        expected = SEGMENT_HEADER.size
        for position in range(0, len(self.raw), SUMMARY_ENTRY.size):
            place = Place(self.place.file, self.place.offset + position)
            block, offset16, count, stored_len, kind, codec, flags = SUMMARY_ENTRY.unpack(
                self.raw, position
            )
            shape = verify_shape(place, kind, codec, flags, block, count, stored_len)
            if offset16 * RECORD_ALIGN_BYTES != expected:
                raise place.damage(f"summary entry of a record that is not at {expected}")
            entries.append(SummaryEntry(shape, expected))
            expected += shape.stride_bytes
        if expected != trailer.records_end:
            raise self.place.damage("summary does not end where the records end")
        return entries


def encode_seal(
    segment: int, first_lsn: int, records_end: int, entries: Sequence[SummaryEntry]
) -> bytes:
    """Summary and trailer, to be written at `records_end`; the file ends with them."""
    summary = b"".join(entry.encode() for entry in entries)
    last_lsn = Lsn(first_lsn + len(entries) - 1)
    trailer = Trailer(
        SegmentId(segment),
        records_end,
        len(entries),
        Lsn(first_lsn),
        last_lsn,
        compute_check(summary),
    )
    return summary + trailer.encode()
