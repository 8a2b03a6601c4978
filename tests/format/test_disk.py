"""A disk read offline, against a plain model: reads, extents, blocks."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.format.check import check_pool
from storage.format.disk import OfflineDisk
from storage.format.layout import BLOCK_SIZE_BYTES, DiskId
from storage.format.pool import PoolFolder
from tests.format.contents import make_blocks
from tests.format.writer import DiskWriter, PoolWriter

# Blocks around the borders of leaves and of inner nodes, so that trees of all heights come up.
BASES = (0, 500, 512**2 - 9, 512**3 - 5, 2**36 + 17)
CHORES = ("mark", "checkpoint", "roll", "seal", "close")
blocks = st.builds(lambda base, step: base + step, st.sampled_from(BASES), st.integers(0, 25))
steps = st.one_of(
    st.tuples(st.just("write"), blocks, st.integers(1, 40)),
    st.tuples(st.just("zeros"), blocks, st.integers(1, 10)),
    st.tuples(st.just("trim"), blocks, st.sampled_from([1, 7, 600, 2**32 - 1])),
    st.tuples(
        st.sampled_from(["mark", "checkpoint", "roll", "seal", "close"]), st.none(), st.none()
    ),
)


def apply(disk: DiskWriter, generation: int, step: tuple[str, int | None, int | None]) -> None:
    name, block, count = step
    if block is not None and count is not None:
        if name == "write":
            disk.write(block, make_blocks(count, generation, is_random=generation % 2 == 0))
        elif name == "zeros":
            disk.write(block, bytes(count * BLOCK_SIZE_BYTES) + make_blocks(1, generation))
        else:
            disk.trim(block, count)
    elif name == "roll":
        disk.roll(seal=generation % 2 == 0)
    elif name == "seal":
        disk.roll()
    else:
        getattr(disk, name)()


@settings(max_examples=80, deadline=None)
@given(st.lists(steps, max_size=25))
def test_any_history_reads_as_the_model_says(
    history: list[tuple[str, int | None, int | None]],
) -> None:
    with TemporaryDirectory() as folder:
        pool = PoolWriter(Path(folder) / "pool")
        disk = pool.add_disk(1, size_bytes=1 << 62)
        for generation, step in enumerate(history):
            apply(disk, generation, step)
        pool.save()
        with PoolFolder.open(pool.path).open_disk(DiskId(1)) as opened:
            found = {mapped.block: opened.read_block(mapped) for mapped in opened.blocks()}
            assert list(found) == sorted(found)
            assert found == disk.model
            assert_extents_match(opened, disk)
            for base in BASES:
                start, length = base * BLOCK_SIZE_BYTES + 100, 20 * BLOCK_SIZE_BYTES
                assert opened.read(start, length) == read_model(disk, start, length)
        report = check_pool(pool.path)
        assert report.is_sound, report.findings
        assert report.findings == []
        assert report.disks[0].mapped_blocks == len(disk.model)


def read_model(disk: DiskWriter, offset: int, length: int) -> bytes:
    first, end = offset // BLOCK_SIZE_BYTES, -(-(offset + length) // BLOCK_SIZE_BYTES)
    zero = bytes(BLOCK_SIZE_BYTES)
    whole = b"".join(disk.model.get(block, zero) for block in range(first, end))
    start = offset - first * BLOCK_SIZE_BYTES
    return whole[start : start + length]


def assert_extents_match(opened: OfflineDisk, disk: DiskWriter) -> None:
    end = max(disk.model, default=-1) + 1
    assert opened.end_of_data() == end * BLOCK_SIZE_BYTES
    at, data_blocks = 0, 0
    previous_is_hole: bool | None = None
    for extent in opened.extents():
        assert extent.offset == at and extent.length > 0
        assert extent.is_hole != previous_is_hole
        if not extent.is_hole:
            run = range(at // BLOCK_SIZE_BYTES, (at + extent.length) // BLOCK_SIZE_BYTES)
            assert all(block in disk.model for block in run)
            data_blocks += len(run)
        at, previous_is_hole = at + extent.length, extent.is_hole
    assert at == end * BLOCK_SIZE_BYTES
    assert data_blocks == len(disk.model)


def test_extents_of_a_range_end_with_it(pool: PoolWriter, disk: DiskWriter) -> None:
    disk.write(2, make_blocks(2, 1))
    disk.write(5, make_blocks(1, 2))
    pool.save()
    with PoolFolder.open(pool.path).open_disk(DiskId(1)) as opened:
        block = BLOCK_SIZE_BYTES
        assert [tuple(e) for e in opened.extents(3 * block + 7, 10 * block)] == [
            (3 * block + 7, block - 7, False),
            (4 * block, block, True),
            (5 * block, block, False),
            (6 * block, 7 * block + 7, True),
        ]
        assert [tuple(e) for e in opened.extents(2 * block + 5, 10)] == [(2 * block + 5, 10, False)]
        assert list(opened.extents(0, 0)) == []


def test_ranges_outside_any_disk_are_refused(pool: PoolWriter, disk: DiskWriter) -> None:
    disk.save()
    pool.save()
    with PoolFolder.open(pool.path).open_disk(DiskId(1)) as opened:
        for offset, length in ((-1, 1), (0, -1), (1 << 63, 1)):
            with pytest.raises(ValueError, match="no such range"):
                opened.read(offset, length)
        assert opened.read((1 << 63) - 1, 1) == b"\0"


def test_a_history_of_many_changes_is_resolved_in_good_time(
    pool: PoolWriter, disk: DiskWriter
) -> None:
    """Overlapping trims of the whole disk between writes: quadratic replay would take minutes."""
    for number in range(1500):
        disk.write(number % 700 * 3, make_blocks(1, number))
        disk.trim(number % 500, 1 << 31)
    pool.save()
    with PoolFolder.open(pool.path).open_disk(DiskId(1)) as opened:
        assert {mapped.block for mapped in opened.blocks()} == set(disk.model)
