"""Random bytes and flipped bits into every decoder: Damage or a result, nothing else, and it ends.

On whole pools more is asked: one damaged byte gives the right data or Damage, never other data.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.format.anchor import UnverifiedAnchorSlot, UnverifiedRoot, choose_slot
from storage.format.check import check_pool
from storage.format.damage import Damage
from storage.format.disk import OfflineDisk
from storage.format.inspection import inspect
from storage.format.layout import DiskId, Lsn, Place, SegmentId, compute_check
from storage.format.location import UnverifiedLocation
from storage.format.node import UnverifiedNode, UnverifiedUsage
from storage.format.pool import PoolFolder, read_catalog, read_label
from storage.format.record import (
    Kind,
    RecordHeader,
    RecordShape,
    UnverifiedPayload,
    UnverifiedRecordHeader,
    decode_payload,
)
from storage.format.segment import (
    Trailer,
    UnverifiedSegmentHeader,
    UnverifiedSummary,
    UnverifiedTrailer,
)
from tests.format import strategies as some
from tests.format.contents import make_blocks
from tests.format.writer import PoolWriter

PLACE = Place("file", 128)
ONE = SegmentId(1)


def decode_as_summary(raw: bytes) -> object:
    """A summary whose checksum is right, whatever is in it."""
    entries = len(raw) // 24
    raw = raw[: 24 * entries]
    trailer = Trailer(ONE, 4096, entries, Lsn(1), Lsn(entries), compute_check(raw))
    return UnverifiedSummary(raw, PLACE).verify(trailer)


DECODERS: dict[str, Callable[[bytes], object]] = {
    "segment header": lambda raw: UnverifiedSegmentHeader(raw, PLACE).verify(),
    "record header": lambda raw: UnverifiedRecordHeader(raw, PLACE).verify(ONE, DiskId(1)),
    "trailer": lambda raw: UnverifiedTrailer(raw, PLACE).verify(ONE),
    "root": lambda raw: UnverifiedRoot(raw, PLACE).verify(),
    "anchor slot": lambda raw: UnverifiedAnchorSlot(raw, PLACE).verify(),
    "anchor": lambda raw: choose_slot(raw, PLACE.file),
    "node": lambda raw: UnverifiedNode(raw, PLACE).verify(),
    "usage": lambda raw: UnverifiedUsage(raw, PLACE).verify(),
    "summary": decode_as_summary,
    "location": lambda raw: UnverifiedLocation(int.from_bytes(raw[:8]), PLACE).verify(),
}
SIZES = (0, 1, 8, 16, 24, 40, 47, 48, 63, 64, 72, 96, 127, 128, 4096, 8192)
"""Lengths at which some decoder gets as far as looking at the contents."""

raws = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda seed, size: (seed * 8192)[:size], st.binary(min_size=1), st.sampled_from(SIZES)
    ),
)


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=150)
@given(raw=raws)
def test_random_bytes(name: str, raw: bytes) -> None:
    try:
        DECODERS[name](raw)
    except Damage as damage:
        assert damage.file == PLACE.file and damage.reason


@settings(max_examples=300)
@given(raw=st.binary(max_size=300), shape=some.shapes())
def test_random_payloads_of_any_shape(raw: bytes, shape: RecordShape) -> None:
    """A payload that passes its checksum may still be nonsense to LZ4."""
    header = RecordHeader(shape, Lsn(1), DiskId(1), compute_check(raw))
    with contextlib.suppress(Damage):
        assert len(UnverifiedPayload(raw, PLACE).verify(header)) == shape.stored_len
    with contextlib.suppress(Damage):
        plain = decode_payload(shape, raw, PLACE)
        if shape.codec and shape.kind in (Kind.DATA, Kind.NODE):
            assert len(plain) == (shape.count if shape.kind is Kind.DATA else 1) * 4096


@pytest.mark.parametrize("reader", [read_label, read_catalog])
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.one_of(st.binary(), st.text().map(str.encode), st.just(b"[" * 4000)))
def test_random_files(tmp_path: Path, reader: Callable[[Path], object], raw: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(raw)
    with contextlib.suppress(Damage):
        reader(path)


class Specimen:
    """A pool on disk in which everything is durable, its files' bytes, and what its disk holds."""

    def __init__(self, path: Path) -> None:
        self.pool = PoolWriter(path)
        disk = self.pool.add_disk(1)
        disk.write(0, make_blocks(20, 1))
        disk.checkpoint()
        disk.write(5, make_blocks(3, 2, is_random=True))
        disk.roll()
        disk.trim(7, 4)
        disk.write(600, make_blocks(2, 3))
        disk.checkpoint()
        disk.roll(seal=False)
        disk.write(3, make_blocks(4, 4))
        disk.write(9, make_blocks(2, 5))
        disk.mark()
        self.model = disk.model
        self.pool.save()
        self.files = {p: p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
        folder = PoolFolder.open(path)
        self.anchor = folder.list_anchors()[DiskId(1)]
        self.segments = folder.list_segments()

    def read_or_refuse(self) -> None:
        """Asserts that every block is right, or reading it says that it is damaged."""
        try:
            with OfflineDisk.open(self.anchor, self.segments, DiskId(1)) as disk:
                for block in (*self.model, 7, 50, 10_000):
                    with contextlib.suppress(Damage):
                        expected = self.model.get(block, bytes(4096))
                        assert disk.read(block * 4096, 4096) == expected, block
        except Damage:
            return


@pytest.fixture(scope="module")
def specimen(tmp_path_factory: pytest.TempPathFactory) -> Specimen:
    return Specimen(tmp_path_factory.mktemp("specimen") / "pool")


def test_every_damaged_byte_gives_right_data_or_damage(specimen: Specimen) -> None:
    for path in (specimen.anchor, *specimen.segments[DiskId(1)].values()):
        whole = specimen.files[path]
        # Every third byte, fewer in the long and uniform middle of payloads and slots.
        middles = [range(160, 4080), range(4256, 8176)] if path == specimen.anchor else []
        middles += [range(1400, len(whole) - 300)]
        for position in range(0, len(whole), 3):
            if position % 61 and any(position in middle for middle in middles):
                continue
            damaged = bytearray(whole)
            damaged[position] ^= 1 << position % 8
            path.write_bytes(damaged)
            specimen.read_or_refuse()
        path.write_bytes(whole)
    assert check_pool(specimen.pool.path).is_sound


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_mangled_pools_cause_nothing_but_damage(specimen: Specimen, data: st.DataObject) -> None:
    mangled = data.draw(
        st.lists(st.sampled_from(sorted(specimen.files)), min_size=1, max_size=3, unique=True)
    )
    try:
        for path in mangled:
            content = bytearray(path.read_bytes())
            how = data.draw(st.sampled_from(["flip", "cut", "zero", "copy", "empty", "remove"]))
            start = data.draw(st.integers(0, max(len(content) - 1, 0)))
            length = data.draw(st.integers(1, 200))
            if how == "flip" and content:
                content[start] ^= data.draw(st.integers(1, 255))
            elif how == "cut":
                del content[start:]
            elif how == "zero":
                content[start : start + length] = bytes(length)
            elif how == "copy":
                other = specimen.files[data.draw(st.sampled_from(sorted(specimen.files)))]
                content[start : start + length] = other[start : start + length]
            elif how == "empty":
                content.clear()
            path.write_bytes(content)
            if how == "remove":
                path.unlink()
        report = check_pool(specimen.pool.path)
        for path in mangled:
            if path.exists():
                inspect(path, with_records=True)
        with contextlib.suppress(Damage):
            with PoolFolder.open(specimen.pool.path).open_disk(DiskId(1)) as disk:
                for mapped in disk.blocks():
                    with contextlib.suppress(Damage):
                        disk.read_block(mapped)
        assert report.to_dict()["pool"] == str(specimen.pool.path)
    finally:
        for path, whole in specimen.files.items():
            path.write_bytes(whole)
