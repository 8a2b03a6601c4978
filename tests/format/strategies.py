"""Hypothesis strategies for valid structures of the format."""

from hypothesis import strategies as st

from storage.format.anchor import FLAG_CLEAN, Anchor, Root
from storage.format.layout import (
    BLOCK_SIZE_BYTES,
    BLOCKS_MAX,
    EXTENT_BLOCKS_MAX,
    LEVELS_MAX,
    NODE_BITS,
    SEGMENT_SIZE_BYTES_MAX,
    BlockIndex,
    DiskId,
    Lsn,
    SegmentId,
)
from storage.format.location import HOLE, encode_location
from storage.format.record import NODE_SIZE_BYTES, Codec, Kind, RecordHeader, RecordShape
from storage.format.segment import SegmentHeader

u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)
ids = st.integers(1, (1 << 32) - 1)
lsns = st.integers(1, (1 << 64) - 1)
pools = st.binary(min_size=16, max_size=16)
offsets = st.integers(8, SEGMENT_SIZE_BYTES_MAX // 16 - 1).map(lambda units: units * 16)
record_lengths = st.integers(48, 48 + EXTENT_BLOCKS_MAX * BLOCK_SIZE_BYTES)
locations = st.builds(encode_location, ids, offsets, record_lengths, st.integers(0, 15))
entries = st.lists(st.one_of(st.just(HOLE), locations), min_size=1, max_size=8).map(
    lambda some: (some * 512)[:512]
)


@st.composite
def shapes(draw: st.DrawFn) -> RecordShape:
    kind = draw(st.sampled_from(Kind))
    codec, block, count, stored_len = Codec.RAW, 0, 0, 0
    if kind is Kind.DATA:
        count = draw(st.integers(1, EXTENT_BLOCKS_MAX))
        block = draw(st.integers(0, BLOCKS_MAX - count))
        codec = draw(st.sampled_from([Codec.RAW, Codec.LZ4]))
        plain_bytes = count * BLOCK_SIZE_BYTES
        is_raw = codec is Codec.RAW
        stored_len = plain_bytes if is_raw else draw(st.integers(1, plain_bytes - 1))
    elif kind is Kind.HOLE:
        count = draw(st.integers(1, (1 << 32) - 1))
        block = draw(st.integers(0, BLOCKS_MAX - count))
    elif kind is Kind.NODE:
        count = draw(st.integers(0, LEVELS_MAX - 1))
        span_bits = NODE_BITS * (count + 1)
        block = draw(st.integers(0, max((BLOCKS_MAX >> span_bits) - 1, 0))) << span_bits
        codec = draw(st.sampled_from([Codec.RAW, Codec.LZ4_PLANES]))
        is_raw = codec is Codec.RAW
        stored_len = NODE_SIZE_BYTES if is_raw else draw(st.integers(1, NODE_SIZE_BYTES))
    elif kind is Kind.USAGE:
        stored_len = 8 + 16 * draw(st.integers(0, 1000))
    elif kind is Kind.ROOT:
        stored_len = 96
    flags = draw(st.integers(0, 1))
    return RecordShape(kind, codec, flags, BlockIndex(block), count, stored_len)


@st.composite
def record_headers(draw: st.DrawFn) -> RecordHeader:
    shape = draw(shapes())
    lsn = draw(lsns)
    if shape.kind is Kind.MARK:
        block = BlockIndex(draw(st.integers(0, lsn - 1)))
        shape = RecordShape(Kind.MARK, Codec.RAW, shape.flags, block, 0, 0)
    return RecordHeader(shape, Lsn(lsn), DiskId(draw(u32)), draw(u64))


segment_headers = st.builds(
    SegmentHeader,
    disk=u32.map(DiskId),
    segment=ids.map(SegmentId),
    prev=u32.map(SegmentId),
    log_index=u64,
    first_lsn=lsns.map(Lsn),
    epoch=u64,
    pool=pools,
)


@st.composite
def roots(draw: st.DrawFn) -> Root:
    tree = draw(st.one_of(st.just(HOLE), locations))
    has_log = draw(st.booleans())
    has_usage = draw(st.booleans())
    return Root(
        seq=draw(u64),
        epoch=draw(u64),
        tree=tree,
        levels=draw(st.integers(1, LEVELS_MAX)) if tree else 0,
        disk=DiskId(draw(u32)),
        replay_log_index=draw(u64) if has_log else 0,
        replay_segment=SegmentId(draw(ids) if has_log else 0),
        replay_offset=draw(st.one_of(st.just(0), offsets)) if has_log else 0,
        replay_lsn=Lsn(draw(lsns) if has_log else 1),
        usage_segment=SegmentId(draw(ids) if has_usage else 0),
        usage_offset=draw(offsets) if has_usage else 0,
        mapped_blocks=draw(st.integers(0, BLOCKS_MAX)) if tree else 0,
        drives=draw(u64),
        segment_high=SegmentId(draw(u32)),
        flags=draw(st.sampled_from([0, FLAG_CLEAN])),
    )


anchors = st.builds(Anchor, pools, roots())
