"""Every codec gives back what it was given, and notices every bit that is not as it was written."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.format.anchor import (
    Anchor,
    Root,
    UnverifiedAnchorSlot,
    UnverifiedRoot,
    choose_slot,
    encode_anchor_file,
)
from storage.format.damage import Damage
from storage.format.layout import (
    BLOCK_SIZE_BYTES,
    DiskId,
    Lsn,
    Place,
    SegmentId,
    align_up,
    compute_check,
)
from storage.format.location import (
    UnverifiedLocation,
    compute_class_bound,
    compute_size_class,
    encode_location,
)
from storage.format.node import (
    SegmentUsage,
    UnverifiedNode,
    UnverifiedUsage,
    encode_node,
    encode_usage,
)
from storage.format.record import (
    Codec,
    Kind,
    RecordHeader,
    RecordShape,
    UnverifiedPayload,
    UnverifiedRecordHeader,
    compress,
    decode_payload,
    encode_record,
    from_planes,
    to_planes,
    verify_shape,
)
from storage.format.segment import (
    SegmentHeader,
    SummaryEntry,
    UnverifiedSegmentHeader,
    UnverifiedSummary,
    UnverifiedTrailer,
    encode_seal,
)
from tests.format import strategies as some

PLACE = Place("file", 0)


def assert_every_flip_is_noticed(raw: bytes, verify: Callable[[bytes], object]) -> None:
    verify(raw)
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damage):
            verify(bytes(flipped))


@given(some.segment_headers)
def test_segment_header_round_trip(header: SegmentHeader) -> None:
    raw = header.encode()
    assert len(raw) == 128
    assert UnverifiedSegmentHeader(raw, PLACE).verify() == header


@given(some.record_headers(), some.ids, some.offsets)
def test_record_header_round_trip(header: RecordHeader, segment: int, offset: int) -> None:
    raw = header.encode(SegmentId(segment), offset)
    assert len(raw) == 48
    unverified = UnverifiedRecordHeader(raw, Place("file", offset))
    assert unverified.verify(SegmentId(segment), header.disk) == header
    with pytest.raises(Damage, match="checksum"):
        UnverifiedRecordHeader(raw, Place("file", offset ^ 16)).verify(
            SegmentId(segment), header.disk
        )
    with pytest.raises(Damage, match="checksum"):
        unverified.verify(SegmentId(segment ^ 2), header.disk)
    with pytest.raises(Damage, match="belongs to disk"):
        unverified.verify(SegmentId(segment), DiskId(header.disk ^ 1))


@given(some.anchors)
def test_anchor_round_trip(anchor: Anchor) -> None:
    raw = anchor.encode()
    assert len(raw) == 4096
    assert UnverifiedAnchorSlot(raw, PLACE).verify(anchor.root.disk) == anchor
    assert UnverifiedAnchorSlot(raw, PLACE).verify() == anchor
    with pytest.raises(Damage, match="checksum"):
        UnverifiedAnchorSlot(raw, PLACE).verify(DiskId(anchor.root.disk ^ 1))


@given(some.roots())
def test_root_round_trip(root: Root) -> None:
    assert UnverifiedRoot(root.encode(), PLACE).verify() == root


@given(some.roots(), st.integers(1, 1 << 60))
def test_the_newest_valid_slot_wins(root: Root, seq: int) -> None:
    older = Anchor(bytes(16), root._replace(seq=seq))
    newer = Anchor(bytes(16), root._replace(seq=seq + 1))
    raw = bytearray(encode_anchor_file(older, newer))
    assert choose_slot(bytes(raw), "file", root.disk) == newer
    raw[newer.slot * 4096 + 2000] ^= 1
    assert choose_slot(bytes(raw), "file", root.disk) == older
    raw[older.slot * 4096 + 4095] ^= 1
    with pytest.raises(Damage, match="no valid anchor slot"):
        choose_slot(bytes(raw), "file", root.disk)


@given(st.lists(some.shapes(), max_size=20), some.ids, st.integers(1, 1 << 62))
def test_seal_round_trip(shapes: list[RecordShape], segment: int, first_lsn: int) -> None:
    entries: list[SummaryEntry] = []
    end = 128
    for shape in shapes:
        entries.append(SummaryEntry(shape, end))
        end += shape.stride_bytes
    seal = encode_seal(segment, first_lsn, end, entries)
    assert len(seal) == 24 * len(shapes) + 64
    unverified = UnverifiedTrailer(seal[-64:], Place("file", end + len(seal) - 64))
    trailer = unverified.verify(SegmentId(segment))
    assert (trailer.first_lsn, trailer.last_lsn) == (first_lsn, first_lsn + len(shapes) - 1)
    assert UnverifiedSummary(seal[:-64], Place("file", end)).verify(trailer) == entries
    with pytest.raises(Damage):
        unverified.verify(SegmentId(segment ^ 1))


@given(some.entries, st.sampled_from([Codec.RAW, Codec.LZ4_PLANES]))
def test_node_round_trip(entries: list[int], codec: Codec) -> None:
    stored = encode_node(entries, codec)
    shape = RecordShape(Kind.NODE, codec, 0, verify_shape(PLACE, 2, 0, 0, 0, 1, 0).block, 0, 1)
    plain = decode_payload(shape, stored, PLACE)
    assert UnverifiedNode(plain, PLACE).verify() == tuple(entries)


@given(st.dictionaries(some.ids, st.tuples(some.u32, some.u32), max_size=30))
def test_usage_round_trip(counts: dict[int, tuple[int, int]]) -> None:
    table = [SegmentUsage(SegmentId(s), live, total) for s, (live, total) in sorted(counts.items())]
    payload = encode_usage(table)
    assert len(payload) == 8 + 16 * len(table)
    assert UnverifiedUsage(payload, PLACE).verify() == table


@given(some.ids, some.offsets, some.record_lengths, st.integers(0, 15))
def test_location_round_trip(segment: int, offset: int, record_bytes: int, index: int) -> None:
    raw = encode_location(segment, offset, record_bytes, index)
    location = UnverifiedLocation(raw, PLACE).verify()
    assert location is not None
    assert (location.segment, location.offset, location.index) == (segment, offset, index)
    assert record_bytes <= location.record_bytes_max
    assert location.record_bytes_max < record_bytes * 5 / 4 + 16


def test_size_classes_are_the_smallest_that_hold_their_records() -> None:
    bounds = [compute_class_bound(size_class) for size_class in range(64)]
    assert bounds == sorted(set(bounds))
    assert bounds[:10] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12]
    for units in range(1, 70_000):
        size_class = compute_size_class(units * 16)
        assert compute_size_class(units * 16 - 15) == size_class
        assert bounds[size_class] >= units
        assert size_class == 0 or bounds[size_class - 1] < units


def test_a_location_without_a_record_is_damage() -> None:
    assert UnverifiedLocation(0, PLACE).verify() is None
    for raw in (1, 1 << 10, 5 << 32, 5 << 32 | 7 << 10):
        with pytest.raises(Damage, match="names no record"):
            UnverifiedLocation(raw, PLACE).verify()


@given(st.binary(min_size=1, max_size=300))
def test_record_round_trip(seed: bytes) -> None:
    plain = (seed * 2 * BLOCK_SIZE_BYTES)[: 2 * BLOCK_SIZE_BYTES]
    stored = compress(plain)
    shape = verify_shape(PLACE, Kind.DATA, Codec.LZ4, 0, 7, 2, len(stored))
    raw = encode_record(shape, 5, 1, stored, 3, 256)
    assert len(raw) == align_up(48 + len(stored))
    place = Place("file", 256)
    header = UnverifiedRecordHeader(raw[:48], place).verify(SegmentId(3), DiskId(1))
    assert header == RecordHeader(shape, Lsn(5), DiskId(1), compute_check(stored))
    payload = UnverifiedPayload(raw[48 : 48 + len(stored)], place).verify(header)
    assert decode_payload(shape, payload, place) == plain


@given(st.binary(min_size=64, max_size=64))
def test_planes_round_trip(plain: bytes) -> None:
    planes = to_planes(plain)
    assert from_planes(planes) == plain
    assert planes[:8] == plain[0:64:8]


def test_every_flipped_bit_is_noticed() -> None:
    ids = DiskId(9), SegmentId(3), SegmentId(2)
    header = SegmentHeader(*ids, 1, Lsn(77), 5, bytes(range(16)))
    assert_every_flip_is_noticed(
        header.encode(), lambda raw: UnverifiedSegmentHeader(raw, PLACE).verify()
    )
    shape = verify_shape(PLACE, Kind.DATA, Codec.LZ4, 1, 5, 16, 1000)
    record = RecordHeader(shape, Lsn(77), DiskId(9), 1)
    assert_every_flip_is_noticed(
        record.encode(SegmentId(3), 0),
        lambda raw: UnverifiedRecordHeader(raw, PLACE).verify(SegmentId(3), DiskId(9)),
    )
    entries = [SummaryEntry(shape, 128), SummaryEntry(shape, 128 + shape.stride_bytes)]
    end = 128 + 2 * shape.stride_bytes
    seal = encode_seal(3, 77, end, entries)
    trailer = UnverifiedTrailer(seal[-64:], Place("file", end + 48)).verify(SegmentId(3))
    assert_every_flip_is_noticed(
        seal[-64:], lambda raw: UnverifiedTrailer(raw, Place("", end + 48)).verify(SegmentId(3))
    )
    assert_every_flip_is_noticed(
        seal[:-64], lambda raw: UnverifiedSummary(raw, PLACE).verify(trailer)
    )


def test_every_flipped_bit_of_an_anchor_slot_is_noticed() -> None:
    pool = bytes(range(16))
    tree = encode_location(3, 4096, 200)
    position = 2, SegmentId(3), 128, Lsn(70)
    usage = SegmentId(3), 5000, 3
    root = Root(8, 5, tree, 2, DiskId(9), *position, *usage, 1, SegmentId(4), 0)
    raw = Anchor(pool, root).encode()
    verify = UnverifiedAnchorSlot
    used = list(range(128 * 8)) + list(range(4088 * 8, 4096 * 8)) + [3000 * 8]
    for bit in used:
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damage):
            verify(bytes(flipped), PLACE).verify(root.disk)


def test_shapes_out_of_bounds_are_damage() -> None:
    bad = [
        (0, 0, 0, 0, 0, 0),  # no kind
        (7, 0, 0, 0, 0, 0),
        (Kind.DATA, 3, 0, 0, 1, 10),  # no codec
        (Kind.DATA, Codec.RAW, 2, 0, 1, 4096),  # unknown flag
        (Kind.DATA, Codec.RAW, 0, 0, 1, 4095),
        (Kind.DATA, Codec.RAW, 0, 0, 17, 17 * 4096),
        (Kind.DATA, Codec.RAW, 0, 0, 0, 0),
        (Kind.DATA, Codec.LZ4, 0, 0, 1, 4096),
        (Kind.DATA, Codec.LZ4, 0, 0, 1, 0),
        (Kind.DATA, Codec.LZ4_PLANES, 0, 0, 1, 100),
        (Kind.DATA, Codec.LZ4, 0, (1 << 51) - 1, 2, 100),
        (Kind.HOLE, Codec.RAW, 0, 0, 0, 0),
        (Kind.HOLE, Codec.RAW, 0, 0, 1, 16),
        (Kind.HOLE, Codec.RAW, 0, 1 << 51, 1, 0),
        (Kind.NODE, Codec.RAW, 0, 0, 0, 100),
        (Kind.NODE, Codec.LZ4, 0, 0, 0, 100),
        (Kind.NODE, Codec.LZ4_PLANES, 0, 1, 0, 100),  # not where a leaf starts
        (Kind.NODE, Codec.LZ4_PLANES, 0, 512, 1, 100),
        (Kind.NODE, Codec.LZ4_PLANES, 0, 0, 6, 100),
        (Kind.USAGE, Codec.RAW, 0, 0, 0, 9),
        (Kind.USAGE, Codec.LZ4, 0, 0, 0, 8),
        (Kind.USAGE, Codec.RAW, 0, 0, 0, (16 << 20) + 8),
        (Kind.ROOT, Codec.RAW, 0, 0, 0, 95),
        (Kind.MARK, Codec.RAW, 0, 5, 1, 0),
        (Kind.MARK, Codec.RAW, 0, 5, 0, 16),
    ]
    for fields in bad:
        with pytest.raises(Damage):
            pytest.fail(f"{fields} gave {verify_shape(PLACE, *fields)}")


def test_damage_names_file_offset_and_reason(tmp_path: Path) -> None:
    damage = Damage(str(tmp_path / "x.seg"), 64, "torn")
    assert str(damage) == f"{tmp_path}/x.seg, offset 64: torn"
    assert damage.to_dict() == {"file": f"{tmp_path}/x.seg", "offset": 64, "reason": "torn"}
