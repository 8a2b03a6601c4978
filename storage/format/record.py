"""Records: the units of the log, and what may stand in their headers.

Invariants
- Only `UnverifiedRecordHeader.verify` makes a header out of stored bytes; after it every length is
  within bounds.
- A header is valid in its own place only: the checksum's seed holds segment and offset.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import lz4.block

from storage.format.layout import (
    BLOCK_SIZE_BYTES,
    BLOCKS_MAX,
    EXTENT_BLOCKS_MAX,
    LEVELS_MAX,
    METADATA_PAYLOAD_BYTES_MAX,
    NODE_BITS,
    NODE_ENTRIES,
    RECORD_HEADER,
    RECORD_MAGIC,
    ROOT,
    USAGE_ENTRY,
    USAGE_HEADER,
    BlockIndex,
    DiskId,
    Lsn,
    Place,
    SegmentId,
    align_up,
    compute_check,
)

NODE_SIZE_BYTES = NODE_ENTRIES * 8
FLAG_GROUP_CONTINUES = 1
_WORD_BYTES = 8


class Kind(IntEnum):
    """What a record says."""

    DATA = 1
    HOLE = 2
    NODE = 3
    USAGE = 4
    ROOT = 5
    MARK = 6


class Codec(IntEnum):
    """How a payload is stored."""

    RAW = 0
    LZ4 = 1
    LZ4_PLANES = 2


@dataclass(frozen=True, slots=True)
class RecordShape:
    """The part of a record's header that the summary repeats."""

    kind: Kind
    codec: Codec
    flags: int
    block: BlockIndex
    count: int
    stored_len: int

    @property
    def record_bytes(self) -> int:
        """Header and payload."""
        return RECORD_HEADER.size + self.stored_len

    @property
    def stride_bytes(self) -> int:
        """From this record's start to the next one's."""
        return align_up(self.record_bytes)

    @property
    def continues_group(self) -> bool:
        """Does the next record belong to the same atomic group?"""
        return bool(self.flags & FLAG_GROUP_CONTINUES)


class RecordHeader(NamedTuple):
    """A verified header."""

    shape: RecordShape
    lsn: Lsn
    disk: DiskId
    payload_check: int

    def encode(self, segment: SegmentId, offset: int) -> bytes:
        """The 48 bytes of this header at `offset` of `segment`."""
        shape = self.shape
        return RECORD_HEADER.pack_sealed(
            *(RECORD_MAGIC, shape.kind, shape.codec, shape.flags, self.lsn, shape.block),
            *(shape.count, self.disk, self.payload_check, shape.stored_len),
            seed=compute_place_seed(segment, offset),
        )


class UnverifiedRecordHeader(NamedTuple):
    """48 bytes where a record should start; may be shorter at the end of a file."""

    raw: bytes
    place: Place

    def verify(self, segment: SegmentId, disk: DiskId) -> RecordHeader:
        """The header of a record of `disk` at this place of `segment`. Raises Damage."""
        raw = self.raw
        if len(raw) != RECORD_HEADER.size:
            raise self.place.damage("the file ends inside a record header")
        if raw[:4] != RECORD_MAGIC:
            is_empty = not any(raw)
            raise self.place.damage("no record: zeros" if is_empty else "no record: wrong magic")
        seed = compute_place_seed(segment, self.place.offset)
        if not RECORD_HEADER.has_valid_checksum(raw, seed):
            raise self.place.damage("record header fails its checksum")
        _, kind, codec, flags, lsn, block, count, owner, check, stored_len, _ = (
            RECORD_HEADER.unpack(raw)
        )
        shape = verify_shape(self.place, kind, codec, flags, block, count, stored_len)
        if owner != disk:
            raise self.place.damage(f"the record belongs to disk {owner}, not {disk}")
        header = RecordHeader(shape, Lsn(lsn), disk, check)
        if header.lsn == 0 or (shape.kind is Kind.MARK and shape.block >= header.lsn):
            raise self.place.damage(f"impossible LSN {header.lsn} of a {shape.kind.name} record")
        return header


class UnverifiedPayload(NamedTuple):
    """The stored bytes behind a header."""

    raw: bytes
    place: Place

    def verify(self, header: RecordHeader) -> bytes:
        """The stored payload as it was written. Raises Damage."""
        if len(self.raw) != header.shape.stored_len:
            raise self.place.damage("the file ends inside a payload")
        if compute_check(self.raw) != header.payload_check:
            raise self.place.damage(f"payload of {header.shape.kind.name} fails its checksum")
        return self.raw


def compute_place_seed(segment: int, offset: int) -> int:
    """The seed that binds a header to its place."""
    return segment << 32 | offset // 16


def verify_shape(
    place: Place, kind: int, codec: int, flags: int, block: int, count: int, stored_len: int
) -> RecordShape:
    """The fields that say what a record holds, if they can be. Raises Damage.

    Source: docs/format.md, "Records", the table of kinds.
    """
    is_known = Kind.DATA <= kind <= Kind.MARK and codec <= Codec.LZ4_PLANES
    if not is_known or flags & ~FLAG_GROUP_CONTINUES:
        raise place.damage(f"unknown kind {kind}, codec {codec} or flags {flags:#x}")
    shape = RecordShape(Kind(kind), Codec(codec), flags, BlockIndex(block), count, stored_len)
    if not _SHAPE_RULES[shape.kind](shape):
        raise place.damage(
            f"impossible {shape.kind.name} record: "
            f"codec {codec}, block {block}, count {count}, stored {stored_len}"
        )
    return shape


def _is_data_shape(shape: RecordShape) -> bool:
    plain_bytes = shape.count * BLOCK_SIZE_BYTES
    is_length_right = {
        Codec.RAW: shape.stored_len == plain_bytes,
        Codec.LZ4: 0 < shape.stored_len < plain_bytes,
    }.get(shape.codec, False)
    has_range = 0 < shape.count <= EXTENT_BLOCKS_MAX and shape.block + shape.count <= BLOCKS_MAX
    return is_length_right and has_range


def _is_hole_shape(shape: RecordShape) -> bool:
    has_range = shape.count > 0 and shape.block + shape.count <= BLOCKS_MAX
    return has_range and shape.codec is Codec.RAW and shape.stored_len == 0


def _is_node_shape(shape: RecordShape) -> bool:
    if shape.count >= LEVELS_MAX or shape.block >= BLOCKS_MAX:
        return False
    if shape.block % (1 << NODE_BITS * (shape.count + 1)):
        return False
    if shape.codec is Codec.RAW:
        return shape.stored_len == NODE_SIZE_BYTES
    return shape.codec is Codec.LZ4_PLANES and 0 < shape.stored_len <= NODE_SIZE_BYTES


def _is_usage_shape(shape: RecordShape) -> bool:
    table_bytes = shape.stored_len - USAGE_HEADER.size
    has_length = table_bytes >= 0 and shape.stored_len <= METADATA_PAYLOAD_BYTES_MAX
    is_whole = has_length and table_bytes % USAGE_ENTRY.size == 0
    return is_whole and _is_plain(shape) and shape.block == 0


def _is_root_shape(shape: RecordShape) -> bool:
    return shape.stored_len == ROOT.size and _is_plain(shape) and shape.block == 0


def _is_mark_shape(shape: RecordShape) -> bool:
    return shape.stored_len == 0 and _is_plain(shape)


def _is_plain(shape: RecordShape) -> bool:
    return shape.codec is Codec.RAW and shape.count == 0


_SHAPE_RULES = {
    Kind.DATA: _is_data_shape,
    Kind.HOLE: _is_hole_shape,
    Kind.NODE: _is_node_shape,
    Kind.USAGE: _is_usage_shape,
    Kind.ROOT: _is_root_shape,
    Kind.MARK: _is_mark_shape,
}


def encode_record(
    shape: RecordShape, lsn: int, disk: int, stored: bytes, segment: int, offset: int
) -> bytes:
    """Header, payload and padding of a record at `offset` of `segment`."""
    header = RecordHeader(shape, Lsn(lsn), DiskId(disk), compute_check(stored))
    body = header.encode(SegmentId(segment), offset) + stored
    return body.ljust(shape.stride_bytes, b"\0")


def decode_payload(shape: RecordShape, stored: bytes, place: Place) -> bytes:
    """The plain payload of a verified one: blocks, a node, or what was stored. Raises Damage."""
    if shape.codec is Codec.RAW:
        return stored
    plain_bytes = shape.count * BLOCK_SIZE_BYTES if shape.kind is Kind.DATA else NODE_SIZE_BYTES
    try:
        plain: bytes = lz4.block.decompress(stored, uncompressed_size=plain_bytes)
    except lz4.block.LZ4BlockError as error:
        raise place.damage(f"payload cannot be decompressed: {error}") from error
    if len(plain) != plain_bytes:
        raise place.damage(f"payload decompresses to {len(plain)} bytes instead of {plain_bytes}")
    return from_planes(plain) if shape.codec is Codec.LZ4_PLANES else plain


def compress(plain: bytes) -> bytes:
    """LZ4 block format without a size prefix."""
    compressed: bytes = lz4.block.compress(plain, store_size=False)
    return compressed


def to_planes(plain: bytes) -> bytes:
    """Byte 0 of every u64, then byte 1 of every u64, and so on: eight planes."""
    return b"".join(plain[plane::_WORD_BYTES] for plane in range(_WORD_BYTES))


def from_planes(planes: bytes) -> bytes:
    """The inverse of `to_planes`."""
    plane_bytes = len(planes) // _WORD_BYTES
    plain = bytearray(len(planes))
    for plane in range(_WORD_BYTES):
        plain[plane::_WORD_BYTES] = planes[plane * plane_bytes : (plane + 1) * plane_bytes]
    return bytes(plain)
