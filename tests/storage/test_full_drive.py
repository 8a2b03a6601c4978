"""A pool whose drive is full to the last block can be opened, looked at and made smaller."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.errors import NoSpace
from storage.pool import Pool
from storage.units import GIB, MIB
from tests.system.loop_drive import mounted_drive


@pytest.fixture
def drive(folder: Path) -> Iterator[Path]:
    with mounted_drive(folder / "drive", 16 * MIB) as drive:
        yield drive.place


def fill(drive: Path, name: str) -> None:
    """Takes every block that is left."""
    with (drive / name).open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


def test_everything_but_writing_goes_on(drive: Path) -> None:
    path = drive / "pool"
    Pool.init(path)
    with Pool.open(path) as pool:
        for name in ("a", "b", "c"):
            pool.create_disk(name, GIB)
            pool.open_disk(name).write(0, b"data" * 25_000)
        fill(drive, "one")
        pool.rename_disk("a", "d")
        pool.resize_disk("d", 2 * GIB)
        pool.resize_disk("d", GIB, force=True)
        pool.delete_disk("b", force=True)
        assert [disk.name for disk in pool.list_disks()] == ["c", "d"]
    fill(drive, "two")
    with Pool.open(path) as pool:
        assert pool.open_disk("c").read(0, 4) == b"data"
        pool.delete_disk("c", force=True)
        pool.delete_disk("d")
        assert pool.list_disks() == []


def test_room_that_comes_back_is_noticed(drive: Path) -> None:
    path = drive / "pool"
    Pool.init(path)
    with Pool.open(path) as pool:
        pool.create_disk("a", GIB)
        fill(drive, "one")
        disk = pool.open_disk("a")
        with pytest.raises(NoSpace):
            for megabyte in range(16):
                disk.write(megabyte * MIB, bytes(range(256)) * 4096)
        (drive / "one").unlink()
        disk.write(0, b"data" * 25_000)
        pool.create_disk("b", GIB)
        assert (path / "catalog.reserve").stat().st_blocks * 512 >= MIB
