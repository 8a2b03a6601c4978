"""What the map's records hold: nodes of the tree, and the table of segment usage."""

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from storage.format.layout import (
    NODE_ENTRIES,
    USAGE_ENTRY,
    USAGE_HEADER,
    Place,
    SegmentId,
)
from storage.format.record import NODE_SIZE_BYTES, Codec, compress, to_planes

_NODE: Final = struct.Struct(f"<{NODE_ENTRIES}Q")


def encode_node(locations: Sequence[int], codec: Codec) -> bytes:
    """The stored form of 512 locations, RAW or LZ4_PLANES."""
    plain = _NODE.pack(*locations)
    return plain if codec is Codec.RAW else compress(to_planes(plain))


class UnverifiedNode(NamedTuple):
    """A node's plain payload; the locations in it are verified one by one when they are used."""

    plain: bytes
    place: Place

    def verify(self) -> tuple[int, ...]:
        """512 locations. Raises Damage."""
        if len(self.plain) != NODE_SIZE_BYTES:
            raise self.place.damage(f"a node of {len(self.plain)} bytes")
        return _NODE.unpack(self.plain)


class SegmentUsage(NamedTuple):
    """What a checkpoint says of one segment: map entries that point into it, blocks and nodes ever
    appended.
    """

    segment: SegmentId
    live: int
    total: int


def encode_usage(table: Iterable[SegmentUsage]) -> bytes:
    """The payload of a USAGE record; `table` is sorted by segment."""
    entries = [USAGE_ENTRY.pack(*usage) for usage in table]
    return USAGE_HEADER.pack(len(entries)) + b"".join(entries)


class UnverifiedUsage(NamedTuple):
    """The payload of a USAGE record."""

    payload: bytes
    place: Place

    def verify(self) -> list[SegmentUsage]:
        """The table, sorted by segment, each segment once. Raises Damage."""
        if len(self.payload) < USAGE_HEADER.size:
            raise self.place.damage("usage table without a header")
        (entries,) = USAGE_HEADER.unpack(self.payload)
        if USAGE_HEADER.size + entries * USAGE_ENTRY.size != len(self.payload):
            raise self.place.damage(f"{entries} usage entries in {len(self.payload)} bytes")
        table: list[SegmentUsage] = []
        for start in range(USAGE_HEADER.size, len(self.payload), USAGE_ENTRY.size):
            segment, live, total = USAGE_ENTRY.unpack(self.payload, start)
            if segment == 0 or (table and segment <= table[-1].segment):
                raise self.place.damage(f"usage table is not sorted at segment {segment}")
            table.append(SegmentUsage(SegmentId(segment), live, total))
        return table
