"""What `storage._core` promises to the store's Python face: one suite for the core and its fake."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import _core
from storage.errors import DiskNotFound, InvalidRequest, PoolClosed
from storage.units import MIB
from tests.storage.fake_core import FakeDrive

if TYPE_CHECKING:
    from storage.pool import CoreOpener

POOL_UUID = UUID(int=7).bytes
OpenPool = Callable[[], _core.Pool]


@pytest.fixture(params=["fake", "real"])
def open_pool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenPool]:
    """Opens the same pool, again and again; closes them all."""
    for folder in ("anchors", "segments"):
        (tmp_path / folder).mkdir()
    opener: CoreOpener = FakeDrive().open if request.param == "fake" else _core.Pool.open
    opened: list[_core.Pool] = []

    def open_again() -> _core.Pool:
        pool = opener(str(tmp_path), POOL_UUID, [(0, str(tmp_path))], 64 * MIB)
        opened.append(pool)
        return pool

    yield open_again
    for pool in opened:
        pool.close()


def test_disks_come_and_go(open_pool: OpenPool) -> None:
    pool = open_pool()
    assert pool.anchored_disks() == []
    for disk_id in (1, 7, 0xFFFFFFFF):
        pool.create_disk(disk_id)
    assert sorted(pool.anchored_disks()) == [1, 7, 0xFFFFFFFF]
    pool.delete_disk(7)
    assert sorted(pool.anchored_disks()) == [1, 0xFFFFFFFF]
    with pytest.raises(DiskNotFound) as caught:
        pool.open_disk(7, MIB)
    assert caught.value.disk == 7


def test_a_new_disk_is_one_hole(open_pool: OpenPool) -> None:
    pool = open_pool()
    pool.create_disk(1)
    disk = pool.open_disk(1, MIB + 512)
    assert (disk.disk_id, disk.size_bytes) == (1, MIB + 512)
    assert disk.read(0, MIB + 512) == bytes(MIB + 512)
    assert disk.measure_data() == (0, 0)
    assert all(is_hole for _, _, is_hole in disk.extents(0, MIB + 512))


def test_an_open_disk_is_one_object(open_pool: OpenPool) -> None:
    pool = open_pool()
    pool.create_disk(1)
    pool.open_disk(1, MIB).write(0, b"x")
    assert pool.open_disk(1, MIB).read(0, 1) == b"x"


def test_what_was_written_is_there_after_a_clean_restart(open_pool: OpenPool) -> None:
    pool = open_pool()
    pool.create_disk(1)
    pool.open_disk(1, MIB).write(12345, b"some bytes" * 1000)
    pool.close()
    disk = open_pool().open_disk(1, MIB)
    assert disk.read(12345, 10_000) == b"some bytes" * 1000


@pytest.mark.parametrize(("offset", "length"), [(MIB, 1), (MIB - 1, 2), (MIB + 4096, 4096)])
def test_requests_outside_the_disk(open_pool: OpenPool, offset: int, length: int) -> None:
    pool = open_pool()
    pool.create_disk(1)
    disk = pool.open_disk(1, MIB)
    for action in (
        lambda: disk.read(offset, length),
        lambda: disk.write(offset, b"x" * length),
        lambda: disk.zero(offset, length),
        lambda: disk.trim(offset, length),
    ):
        with pytest.raises(InvalidRequest):
            action()
    assert disk.measure_data() == (0, 0)


def test_shrinking_forgets_and_growing_shows_zeroes(open_pool: OpenPool) -> None:
    pool = open_pool()
    pool.create_disk(1)
    disk = pool.open_disk(1, 2 * MIB)
    disk.write(0, b"x" * 2 * MIB)
    disk.resize(MIB + 512)
    assert disk.size_bytes == MIB + 512
    with pytest.raises(InvalidRequest):
        disk.read(MIB + 512, 1)
    disk.resize(2 * MIB)
    assert disk.read(MIB, 4096) == b"x" * 512 + bytes(4096 - 512)
    assert disk.read(MIB + 4096, MIB - 4096) == bytes(MIB - 4096)


def test_the_end_of_data(open_pool: OpenPool) -> None:
    pool = open_pool()
    pool.create_disk(1)
    disk = pool.open_disk(1, 8 * MIB)
    disk.write(5 * MIB, b"x")
    assert disk.measure_data() == (4096, 5 * MIB + 4096)
    disk.trim(5 * MIB, 4096)
    assert disk.measure_data() == (0, 0)


def test_figures(open_pool: OpenPool) -> None:
    pool = open_pool()
    pool.create_disk(1)
    disk = pool.open_disk(1, MIB)
    disk.write(0, b"x" * 8192)
    assert disk.measure_data() == (8192, 8192)
    disk.checkpoint()
    assert disk.measure_data() == (8192, 8192)
    disk.write(4096, bytes(4096))  # not in a checkpoint yet
    assert disk.measure_data() == (4096, 4096)
    assert pool.stats()["free_bytes"] > 0


def test_a_deleted_disk_fails_its_clients(open_pool: OpenPool) -> None:
    pool = open_pool()
    pool.create_disk(1)
    disk = pool.open_disk(1, MIB)
    pool.delete_disk(1)
    with pytest.raises((PoolClosed, DiskNotFound)):
        disk.read(0, 1)
    with pytest.raises((PoolClosed, DiskNotFound)):
        disk.write(0, b"x")


def test_a_closed_pool(open_pool: OpenPool) -> None:
    pool = open_pool()
    pool.create_disk(1)
    disk = pool.open_disk(1, MIB)
    pool.close()
    pool.close()
    for action in (
        lambda: pool.create_disk(2),
        lambda: pool.open_disk(1, MIB),
        lambda: disk.read(0, 1),
        lambda: disk.write(0, b"x"),
    ):
        with pytest.raises(PoolClosed):
            action()


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["write", "zero", "trim", "flush", "restart"]),
        st.integers(0, 64 * 1024 - 1),
        st.integers(1, 20_000),
        st.integers(0, 255),
    ),
    max_size=12,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(operations=OPERATIONS)
def test_any_operations_against_a_bytearray(
    open_pool: OpenPool, operations: list[tuple[str, int, int, int]]
) -> None:
    size_bytes = 64 * 1024
    pool = open_pool()
    disk_id = max([0, *pool.anchored_disks()]) + 1
    pool.create_disk(disk_id)
    disk = pool.open_disk(disk_id, size_bytes)
    model = bytearray(size_bytes)
    for kind, offset, length, value in operations:
        end = min(offset + length, size_bytes)
        if kind == "write":
            disk.write(offset, bytes([value]) * (end - offset))
            model[offset:end] = bytes([value]) * (end - offset)
        elif kind in ("zero", "trim"):
            getattr(disk, kind)(offset, end - offset)
            model[offset:end] = bytes(end - offset)
        elif kind == "flush":
            disk.flush()
        else:
            pool.close()
            pool = open_pool()
            disk = pool.open_disk(disk_id, size_bytes)
    assert disk.read(0, size_bytes) == model
    for start, span, is_hole in disk.extents(0, size_bytes):
        assert not is_hole or not any(model[start : start + span])
    pool.close()
