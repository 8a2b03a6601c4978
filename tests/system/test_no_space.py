"""A drive that is full: writes fail with ENOSPC, everything else goes on, and room heals it."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from storage.pool import Pool
from storage.units import KIB, MIB
from tests.system.agreement import assert_sound
from tests.system.data_plane import DataPlane
from tests.system.filler import CHUNK_BYTES, CHUNK_SECTORS, Filler
from tests.system.loop_drive import free_bytes, mounted_drive
from tests.system.stamps import SECTOR_BYTES

DRIVE_BYTES: Final = 256 * MIB
DISK_BYTES: Final = 264 * MIB  # more than the drive can hold
# What the file system and the store may keep for themselves.
METADATA_BYTES_MAX: Final = 40 * MIB


@pytest.fixture
def drive(folder: Path) -> Iterator[Path]:
    with mounted_drive(folder / "drive", DRIVE_BYTES) as drive:
        yield drive.place


@pytest.fixture
def server(drive: Path) -> Iterator[DataPlane]:
    """A pool on the small drive with the disks `one` and `two`."""
    Pool.init(drive / "pool")
    with Pool.open(drive / "pool") as pool:
        pool.create_disk("one", DISK_BYTES)
        pool.create_disk("two", DISK_BYTES)
    with DataPlane(drive / "pool") as server:
        yield server


def test_everything_but_writing_goes_on(server: DataPlane) -> None:
    one, two = Filler(server, "one", DISK_BYTES), Filler(server, "two", DISK_BYTES)
    assert two.can_write(0)
    written_bytes = one.fill()
    assert written_bytes > DRIVE_BYTES - METADATA_BYTES_MAX
    assert not two.can_write(CHUNK_SECTORS)
    for filler in (one, two):
        filler.judge()
        filler.connection.flush()
        filler.trim(17, 1)
        filler.connection.cache(MIB, 0)
        filler.connection.flush(0)
        filler.judge()
    with server.control() as control:
        assert control.status().statistics["free_bytes"] == 0
        control.rename_disk("two", "renamed")
        control.delete_disk("renamed", force=True)


def test_trimming_makes_room(server: DataPlane) -> None:
    one = Filler(server, "one", DISK_BYTES)
    full_bytes = one.fill()
    one.trim(0, full_bytes // SECTOR_BYTES // 2)
    one.wait_for_room(full_bytes // 3, "trimming half of it")
    one.judge()
    one.trim_all()
    one.wait_for_room(full_bytes * 9 // 10, "trimming everything")
    one.judge()


def test_deleting_another_disk_makes_room(server: DataPlane) -> None:
    one, two = Filler(server, "one", DISK_BYTES), Filler(server, "two", DISK_BYTES)
    two.write_chunks(64 * MIB)
    one.fill()
    two.connection.shutdown()
    with server.control() as control:
        control.delete_disk("two", force=True)
    one.wait_for_room(48 * MIB, "deleting a disk")
    one.judge()


def test_removing_a_foreign_file_makes_room(server: DataPlane, drive: Path) -> None:
    foreign = drive / "foreign"
    foreign.write_bytes(bytes(64 * MIB))
    one = Filler(server, "one", DISK_BYTES)
    one.fill()
    foreign.unlink()
    one.wait_for_room(48 * MIB, "removing a file")
    one.judge()


def test_overwriting_makes_its_own_room(server: DataPlane) -> None:
    """A disk that fits its drive can be overwritten for ever: the garbage of it comes back."""
    one = Filler(server, "one", DISK_BYTES)
    random_at = random.Random(90)
    chunks = 128 * MIB // CHUNK_BYTES
    one.write_chunks(chunks * CHUNK_BYTES)
    for _ in range(3 * chunks):
        assert one.can_write(random_at.randrange(chunks) * CHUNK_SECTORS)
    one.judge()


def test_trims_and_refused_writes_do_not_use_up_the_reserve(server: DataPlane) -> None:
    """Else there would be no room left for the trim that makes room."""
    one = Filler(server, "one", DISK_BYTES)
    used_sectors = one.fill() // SECTOR_BYTES
    random_at = random.Random(91)
    for _ in range(1500):
        one.trim(random_at.randrange(used_sectors // 8) * 8, 8)
        one.can_write(random_at.randrange(used_sectors // 8) * 8, 8)
    one.judge()
    one.trim_all()
    one.wait_for_room(used_sectors * SECTOR_BYTES // 2, "trimming everything")


@pytest.mark.parametrize("kind", ["kill", "stop"])
def test_restart_with_the_drive_still_full(server: DataPlane, kind: str) -> None:
    one, two = Filler(server, "one", DISK_BYTES), Filler(server, "two", DISK_BYTES)
    assert two.can_write(0)
    full_bytes = one.fill()
    if kind == "kill":
        server.kill()
    else:
        for filler in (one, two):
            filler.connection.shutdown()
        server.stop()
    assert_sound(server.pool)
    server.start()
    for filler in (one, two):
        filler.connect()
        filler.judge()
        filler.connection.flush()
    one.trim_all()
    two.wait_for_room(full_bytes // 2, "trimming the other disk")
    one.judge()
    two.judge()


def test_a_drive_without_a_single_free_byte(server: DataPlane, drive: Path) -> None:
    """Someone else may take what the store keeps back. Nothing acknowledged is lost by that."""
    one = Filler(server, "one", DISK_BYTES)
    one.write_chunks(96 * MIB)
    foreign = drive / "foreign"
    with foreign.open("wb", buffering=0) as file:
        with pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(64 * KIB))
        with pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(512))
    assert free_bytes(drive) == 0
    one.fill()
    one.judge()
    server.kill()
    server.start()
    one.connect()
    one.judge()
    foreign.unlink()
    one.wait_for_room(32 * MIB, "removing a file")
    one.judge()
    server.stop()
    assert_sound(server.pool)
