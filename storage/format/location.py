"""Locations: the 8 bytes in which the map says where a block (or a child node) lies.

A location is an integer; 0 is a hole. `BITS` is the layout, and ``docs/format.md`` draws it.

The size class bounds the record's length from above, so that a reader fetches header and payload
with one system call. It is only that: how long the record is, its header says.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

from storage.format.layout import (
    EXTENT_BLOCKS_MAX,
    RECORD_ALIGN_BYTES,
    SEGMENT_HEADER,
    SEGMENT_SIZE_BYTES_MAX,
    Place,
    SegmentId,
)

HOLE: Final = 0


class BitField(NamedTuple):
    """Bits `low` to `high`, both inclusive."""

    low: int
    high: int
    name: str


BITS: Final = (
    BitField(0, 3, "index"),
    BitField(4, 9, "size_class"),
    BitField(10, 31, "offset16"),
    BitField(32, 63, "segment"),
)


@dataclass(frozen=True, slots=True)
class Location:
    """Where one block lies: the record at `offset` bytes of `segment`, block number `index` of its
    extent.
    """

    segment: SegmentId
    offset: int
    size_class: int
    index: int

    @property
    def record_bytes_max(self) -> int:
        """Upper bound of the record's header and payload."""
        return compute_class_bound(self.size_class) * RECORD_ALIGN_BYTES


def compute_class_bound(size_class: int) -> int:
    """The most 16-byte units of header and payload that the class stands for."""
    if size_class < 4:
        return size_class + 1
    return (5 + (size_class & 3)) << ((size_class >> 2) - 1)


def compute_size_class(record_bytes: int) -> int:
    """The smallest class whose bound holds `record_bytes` of header and payload."""
    units = -(-record_bytes // RECORD_ALIGN_BYTES)
    if units <= 4:
        return max(units, 1) - 1
    # Four classes an octave: the bounds (5..8) << shift share one `shift`.
    shift = (units - 1).bit_length() - 3
    return (shift + 1) * 4 + ((units - 1) >> shift) - 4


def encode_location(segment: int, offset: int, record_bytes: int, index: int = 0) -> int:
    """The location of block `index` of the record of `record_bytes` (header and payload) at
    `offset`.
    """
    is_place = 0 < segment < 1 << 32 and 0 <= offset < SEGMENT_SIZE_BYTES_MAX
    if not is_place or offset % RECORD_ALIGN_BYTES or not 0 <= index < EXTENT_BLOCKS_MAX:
        raise ValueError(f"no location: segment {segment}, offset {offset}, index {index}")
    units, size_class = offset // RECORD_ALIGN_BYTES, compute_size_class(record_bytes)
    return segment << 32 | units << 10 | size_class << 4 | index


class UnverifiedLocation(NamedTuple):
    """Eight bytes out of a node or a root; `place` is where they stood."""

    raw: int
    place: Place

    def verify(self) -> Location | None:
        """The location, None for a hole. Raises Damage where no record can be."""
        if self.raw == HOLE:
            return None
        segment = SegmentId(self.raw >> 32)
        offset = (self.raw >> 10 & 0x3F_FFFF) * RECORD_ALIGN_BYTES
        if segment == 0 or offset < SEGMENT_HEADER.size:
            raise self.place.damage(f"location {self.raw:#018x} names no record")
        return Location(segment, offset, self.raw >> 4 & 0x3F, self.raw & 0xF)
