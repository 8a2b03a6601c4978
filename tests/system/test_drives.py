"""A pool over several drives: both are used, and what is missing takes away only what it held."""

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nbd
import pytest

from storage.pool import Pool
from storage.service import DriveState
from storage.units import MIB
from tests.system.agreement import assert_sound
from tests.system.crashes import Victim
from tests.system.data_plane import DataPlane
from tests.system.filler import Filler
from tests.system.load import read_whole
from tests.system.loop_drive import LoopDrive, free_bytes, mounted_drive

SMALL_BYTES: Final = 160 * MIB
LARGE_BYTES: Final = 256 * MIB
DISK_BYTES: Final = 400 * MIB
CONTENT_BYTES: Final = 16 * MIB
ROUNDS: Final = 500 if os.environ.get("NEARSTONE_SOAK") == "1" else 15


@dataclass
class Setup:
    """A pool, closed, and its drives; drive 0 is the smaller one."""

    pool: Path
    small: LoopDrive
    large: LoopDrive


@pytest.fixture
def setup(folder: Path) -> Iterator[Setup]:
    with ExitStack() as stack:
        small = stack.enter_context(mounted_drive(folder / "small", SMALL_BYTES))
        large = stack.enter_context(mounted_drive(folder / "large", LARGE_BYTES))
        Pool.init(folder / "pool", [small.place, large.place])
        yield Setup(folder / "pool", small, large)


def create_disks(pool: Path, *names: str) -> None:
    with Pool.open(pool) as opened:
        for name in names:
            opened.create_disk(name, DISK_BYTES)


def segments_on(drive: LoopDrive) -> int:
    return sum(1 for _ in drive.place.glob("segments/*/*.seg"))


def test_segments_spread_by_free_space(setup: Setup) -> None:
    create_disks(setup.pool, "disk")
    with DataPlane(setup.pool) as server:
        disk = Filler(server, "disk", DISK_BYTES)
        disk.write_chunks(64 * MIB)
        assert segments_on(setup.small) == 0, "the larger drive has more room"
        disk.write_chunks(160 * MIB)
        assert segments_on(setup.small) > 0
        difference = free_bytes(setup.large.place) - free_bytes(setup.small.place)
        assert abs(difference) < 64 * MIB
        written_bytes = disk.fill()
        assert written_bytes > (SMALL_BYTES + LARGE_BYTES) * 3 // 4
        disk.judge()
        for drive in (setup.small, setup.large):
            assert free_bytes(drive.place) < 24 * MIB
        disk.trim_all()
        disk.wait_for_room(written_bytes // 2, "trimming everything")
        disk.judge()
    assert_sound(setup.pool)


@pytest.fixture
def contents(setup: Setup) -> dict[str, bytes]:
    """Three disks: with segments on the small drive alone, on the large one alone, and on both.

    Returns: what the start of each holds; the pool is closed.
    """
    create_disks(setup.pool, "on-small", "on-large", "on-both")
    noise = random.Random(70)
    contents = {
        name: noise.randbytes(CONTENT_BYTES) for name in ("on-small", "on-large", "on-both")
    }
    half = CONTENT_BYTES // 2
    foreign = setup.large.place / "foreign"
    with DataPlane(setup.pool) as server:
        write(server, "on-large", contents["on-large"])
        foreign.write_bytes(bytes(LARGE_BYTES - SMALL_BYTES + 32 * MIB))
        write(server, "on-small", contents["on-small"])
        write(server, "on-both", contents["on-both"][:half])
    foreign.unlink()
    # A disk goes on in a new segment after a restart.
    with DataPlane(setup.pool) as server:
        write(server, "on-both", contents["on-both"][half:], half)
    return contents


def write(server: DataPlane, disk: str, content: bytes, offset: int = 0) -> None:
    client = server.connect(disk)
    for at in range(0, len(content), MIB):
        client.pwrite(content[at : at + MIB], offset + at)
    client.flush()
    client.shutdown()


def assert_reads(server: DataPlane, contents: dict[str, bytes]) -> None:
    for disk, content in contents.items():
        client = server.connect(disk)
        assert read_whole(client, CONTENT_BYTES, MIB) == content, disk
        client.shutdown()


@pytest.mark.parametrize(
    ("index", "name", "survivor"), [(0, "small", "on-large"), (1, "large", "on-small")]
)
def test_a_missing_drive(
    setup: Setup, contents: dict[str, bytes], index: int, name: str, survivor: str
) -> None:
    drive = setup.small if index == 0 else setup.large
    drive.unmount()
    with DataPlane(setup.pool) as server:
        with server.control() as control:
            status = control.status()
            assert [one.index for one in status.drives if one.state is DriveState.MISSING] == [
                index
            ]
            assert any(str(drive.place) in problem for problem in status.problems)
            problems = {disk.name: disk.problem for disk in control.list_disks()}
            assert problems.pop(survivor) is None
            assert all(f"drive {index}" in str(problem) for problem in problems.values())
            control.create_disk("new", MIB)
        for disk in problems:
            # All that nbdkit can tell the client is that there is no such export.
            with pytest.raises(nbd.Error):
                server.connect(disk)
        assert server.log().count(f"drive {index}") >= len(problems)
        assert_reads(server, {survivor: contents[survivor]})
        write(server, survivor, contents["on-both"])
        write(server, "new", contents["on-both"][:MIB])
    assert not any(drive.place.iterdir()), "something was written where no drive is"
    drive.mount()
    with DataPlane(setup.pool) as server:
        assert_reads(server, {**contents, survivor: contents["on-both"]})
        with server.control() as control:
            assert control.status().problems == []
    assert_sound(setup.pool)


def test_kill_at_random_moments(setup: Setup) -> None:
    """A log that goes on from drive to drive is as safe as any other."""
    size_bytes = 8 * MIB
    with Pool.open(setup.pool) as pool:
        pool.create_disk("one", size_bytes)
        pool.create_disk("two", size_bytes)
    # As much room on both: whichever has a little less next gets the next segment.
    (setup.large.place / "foreign").write_bytes(bytes(LARGE_BYTES - SMALL_BYTES))
    victim = Victim(setup.pool, {"one": size_bytes, "two": size_bytes}, seed=8)
    try:
        for _ in range(ROUNDS):
            victim.round(victim.random.uniform(0.0, 0.2))
        assert segments_on(setup.small) > 0
        assert segments_on(setup.large) > 0
        victim.finish()
    finally:
        if victim.server.is_running:
            victim.server.kill()
