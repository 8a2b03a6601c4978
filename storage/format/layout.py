"""Field by field, the structures of format version 1, and the numbers that bound them.

This file and the drawings of ``docs/format.md`` say the same; a test compares them. Everything is
little-endian. A structure's reserved bytes are zero: a reader of version 1 refuses anything else,
so that a later version may use them.

Invariants
- A layout's fields lie one after the other without gaps, and end at its size (checked when this
  module loads).
- A checksum covers the bytes from 0 to the start of its own field.
"""

import struct
from typing import Any, Final, NamedTuple, NewType

import xxhash

from storage.format.damage import Damage

BlockIndex = NewType("BlockIndex", int)
DiskId = NewType("DiskId", int)
Lsn = NewType("Lsn", int)
LSN_NONE: Final = Lsn(0)
SegmentId = NewType("SegmentId", int)

FORMAT_VERSION: Final = 1
BLOCK_SIZE_BYTES: Final = 4096
EXTENT_BLOCKS_MAX: Final = 16
SEGMENT_SIZE_BYTES_MAX: Final = 64 << 20
RECORD_ALIGN_BYTES: Final = 16
METADATA_PAYLOAD_BYTES_MAX: Final = 16 << 20
NODE_ENTRIES: Final = 512
NODE_BITS: Final = 9
BLOCKS_MAX: Final = 1 << 51
"""Blocks of the largest disk: NBD's offsets end at 2^63 bytes."""
LEVELS_MAX: Final = 6
"""Levels of the tree over the largest disk: 512^6 ≥ 2^51 > 512^5."""
ANCHOR_SIZE_BYTES: Final = 8192
PAYLOAD_SEED: Final = 0

_CODES: Final = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
_SIZES: Final = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}


class Place(NamedTuple):
    """Where bytes came from, for what is said about them."""

    file: str
    offset: int

    def damage(self, reason: str) -> Damage:
        """The exception that says `reason` of this place."""
        return Damage(self.file, self.offset, reason)


class Field(NamedTuple):
    """One field: u8, u16, u32, u64, `bytes` of a given size, or `zero` bytes that are reserved."""

    offset: int
    size: int
    name: str
    type: str


def _code_of(field: Field) -> str:
    if field.type in _CODES:
        return _CODES[field.type]
    return f"{field.size}{'x' if field.type == 'zero' else 's'}"


class Layout:
    """A structure of fixed size: packs and unpacks its fields and places its checksum."""

    def __init__(self, name: str, fields: list[Field], checksum: str | None = None) -> None:
        end = 0
        for field in fields:
            if field.offset != end or field.size != _SIZES.get(field.type, field.size):
                raise ValueError(f"{name}: field {field.name} does not start at {end}")
            end += field.size
        self.name = name
        self.fields = fields
        self.size = end
        self.checksum = next((f for f in fields if f.name == checksum), None)
        self._struct = struct.Struct("<" + "".join(_code_of(field) for field in fields))
        self._reserved = [(f.offset, f.offset + f.size) for f in fields if f.type == "zero"]

    def pack(self, *values: int | bytes) -> bytes:
        """The encoded structure: `values` has one for every field that is not reserved."""
        return self._struct.pack(*values)

    def pack_sealed(self, *values: int | bytes, seed: int) -> bytes:
        """The same, the last value being left to the checksum."""
        unsealed = self._struct.pack(*values, 0)
        check = self.compute_checksum(unsealed, seed)
        return self._struct.pack(*values, check)

    def unpack(self, raw: bytes, offset: int = 0) -> tuple[Any, ...]:
        """The values (int, or bytes) of all fields but the reserved ones.

        `raw` must hold `size` bytes from `offset`.
        """
        return self._struct.unpack_from(raw, offset)

    def compute_checksum(self, raw: bytes, seed: int) -> int:
        """The checksum that belongs into the checksum field of `raw`."""
        if self.checksum is None:
            raise ValueError(f"{self.name} has no checksum of its own")
        check = xxhash.xxh3_64_intdigest(raw[: self.checksum.offset], seed)
        return check & ((1 << 8 * self.checksum.size) - 1)

    def has_valid_checksum(self, raw: bytes, seed: int) -> bool:
        """Does the checksum stored in `raw` match its bytes?"""
        if self.checksum is None:
            raise ValueError(f"{self.name} has no checksum of its own")
        start, end = self.checksum.offset, self.checksum.offset + self.checksum.size
        return int.from_bytes(raw[start:end], "little") == self.compute_checksum(raw, seed)

    def has_clear_reserve(self, raw: bytes) -> bool:
        """Are the reserved bytes zero?"""
        return not any(any(raw[start:end]) for start, end in self._reserved)


def _layout(name: str, *fields: tuple[str, str], checksum: str | None = None) -> Layout:
    placed: list[Field] = []
    offset = 0
    for field_name, field_type in fields:
        kind, _, size = field_type.partition("*")
        field = Field(offset, int(size) if size else _SIZES[kind], field_name, kind)
        placed.append(field)
        offset += field.size
    return Layout(name, placed, checksum)


SEGMENT_MAGIC: Final = b"NSSEGMT1"
RECORD_MAGIC: Final = b"NSR\x01"
TRAILER_MAGIC: Final = b"NSTRAIL1"
ANCHOR_MAGIC: Final = b"NSANCHR1"

SEGMENT_HEADER: Final = _layout(
    "segment header",
    ("magic", "bytes*8"),
    ("version", "u16"),
    ("flags", "u16"),
    ("disk", "u32"),
    ("segment", "u32"),
    ("prev", "u32"),
    ("log_index", "u64"),
    ("first_lsn", "u64"),
    ("epoch", "u64"),
    ("pool", "bytes*16"),
    ("reserved", "zero*56"),
    ("checksum", "u64"),
    checksum="checksum",
)

RECORD_HEADER: Final = _layout(
    "record header",
    ("magic", "bytes*4"),
    ("kind", "u8"),
    ("codec", "u8"),
    ("flags", "u16"),
    ("lsn", "u64"),
    ("block", "u64"),
    ("count", "u32"),
    ("disk", "u32"),
    ("payload_check", "u64"),
    ("stored_len", "u32"),
    ("header_check", "u32"),
    checksum="header_check",
)

SUMMARY_ENTRY: Final = _layout(
    "summary entry",
    ("block", "u64"),
    ("offset16", "u32"),
    ("count", "u32"),
    ("stored_len", "u32"),
    ("kind", "u8"),
    ("codec", "u8"),
    ("flags", "u16"),
)

TRAILER: Final = _layout(
    "trailer",
    ("magic", "bytes*8"),
    ("version", "u16"),
    ("flags", "u16"),
    ("segment", "u32"),
    ("records_end", "u32"),
    ("entries", "u32"),
    ("first_lsn", "u64"),
    ("last_lsn", "u64"),
    ("summary_check", "u64"),
    ("reserved", "zero*8"),
    ("checksum", "u64"),
    checksum="checksum",
)

ROOT: Final = _layout(
    "root",
    ("seq", "u64"),
    ("epoch", "u64"),
    ("tree", "u64"),
    ("levels", "u8"),
    ("reserved_a", "zero*3"),
    ("disk", "u32"),
    ("replay_log_index", "u64"),
    ("replay_segment", "u32"),
    ("replay_offset", "u32"),
    ("replay_lsn", "u64"),
    ("usage_segment", "u32"),
    ("usage_offset", "u32"),
    ("mapped_blocks", "u64"),
    ("drives", "u64"),
    ("segment_high", "u32"),
    ("flags", "u32"),
    ("origin", "u32"),
    ("reserved_b", "zero*4"),
)

ANCHOR_SLOT: Final = _layout(
    "anchor slot",
    ("magic", "bytes*8"),
    ("version", "u16"),
    ("reserved_a", "zero*6"),
    ("pool", "bytes*16"),
    ("root", f"bytes*{ROOT.size}"),
    ("reserved_b", "zero*3960"),
    ("checksum", "u64"),
    checksum="checksum",
)

USAGE_HEADER: Final = _layout("usage header", ("entries", "u32"), ("reserved", "zero*4"))

USAGE_ENTRY: Final = _layout(
    "usage entry",
    ("segment", "u32"),
    ("live", "u32"),
    ("total", "u32"),
    ("reserved", "zero*4"),
)

LAYOUTS: Final = (
    SEGMENT_HEADER,
    RECORD_HEADER,
    SUMMARY_ENTRY,
    TRAILER,
    ROOT,
    ANCHOR_SLOT,
    USAGE_HEADER,
    USAGE_ENTRY,
)


def align_up(length_bytes: int) -> int:
    """The next multiple of 16, where a record may start."""
    return (length_bytes + RECORD_ALIGN_BYTES - 1) & ~(RECORD_ALIGN_BYTES - 1)


def compute_check(payload: bytes) -> int:
    """XXH3-64 with seed 0: the checksum of payloads and summaries."""
    return xxhash.xxh3_64_intdigest(payload, PAYLOAD_SEED)
