"""Flipped bits on a drive, seen through NBD: an error or the right bytes, never wrong ones, and a
server that goes on serving everything else.
"""

import errno
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import nbd
import pytest

from storage.pool import Pool
from storage.units import KIB, MIB
from tests.system.data_plane import DataPlane

ROUNDS: Final = 2000 if os.environ.get("NEARSTONE_SOAK") == "1" else 24
DISK_BYTES: Final = 2 * MIB
BLOCK_BYTES: Final = 4 * KIB
# Checkpoints after every few writes, so that there are nodes, roots and usage tables to damage.
MEMORY_BYTES: Final = 8 * KIB

Contents = dict[str, bytes]


def fill(server: DataPlane) -> Contents:
    """Write both disks over and over, flush. Returns: what they hold."""
    contents = {}
    for disk in ("one", "two"):
        content = bytearray(DISK_BYTES)
        client = server.connect(disk)
        choose = random.Random(disk)
        for _ in range(300):
            at = choose.randrange(DISK_BYTES)
            data = choose.randbytes(50) * choose.randint(1, 300)
            data = data[: DISK_BYTES - at]
            client.pwrite(data, at)
            content[at : at + len(data)] = data
        client.trim(64 * KIB, 128 * KIB)
        content[128 * KIB : 192 * KIB] = bytes(64 * KIB)
        client.flush()
        client.shutdown()
        contents[disk] = bytes(content)
    return contents


@pytest.fixture(params=["stopped", "killed after a flush"])
def pool(folder: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Contents]]:
    """A pool that nobody has open, all of it on stable storage, and what its disks hold."""
    path = folder / "whole"
    Pool.init(path)
    with Pool.open(path) as pool:
        for disk in ("one", "two"):
            pool.create_disk(disk, DISK_BYTES)
    server = DataPlane(path, MEMORY_BYTES).start()
    contents = fill(server)
    if request.param == "stopped":
        server.stop()
    else:
        server.kill()
    yield path, contents


def test_flipped_bits(pool: tuple[Path, Contents], folder: Path) -> None:
    whole, contents = pool
    choose = random.Random(30)
    errors = 0
    for number in range(ROUNDS):
        damaged = folder / "damaged"
        shutil.copytree(whole, damaged, ignore=shutil.ignore_patterns("*.sock"))
        what = _damage(damaged, choose, flips=1 + number % 3)
        with DataPlane(damaged, MEMORY_BYTES) as server:
            errors += _count_errors(server, "one", contents["one"], what)
            assert _count_errors(server, "two", contents["two"], what) == 0
            server.stop(is_damaged=True)
        shutil.rmtree(damaged)
    assert errors > 0, "nothing was hit"


def _damage(pool: Path, choose: random.Random, flips: int) -> str:
    """Flip bits in the files of disk `one`. Returns: where."""
    files = sorted([*pool.glob("segments/00000001/*.seg"), *pool.glob("anchors/00000001.anchor")])
    places = []
    for _ in range(flips):
        file = choose.choice(files)
        raw = bytearray(file.read_bytes())
        at = choose.randrange(len(raw))
        raw[at] ^= 1 << choose.randrange(8)
        file.write_bytes(raw)
        places.append(f"{file.name}:{at}")
    return ", ".join(places)


def _count_errors(server: DataPlane, disk: str, content: bytes, what: str) -> int:
    """Read every block. Returns: how many could not be read, all of them if the disk is closed."""
    blocks = range(0, DISK_BYTES, BLOCK_BYTES)
    try:
        client = server.connect(disk)
    except nbd.Error:
        assert server.is_alive(), what
        return len(blocks)
    errors = 0
    for at in blocks:
        try:
            assert client.pread(BLOCK_BYTES, at) == content[at : at + BLOCK_BYTES], (what, at)
        except nbd.Error as exc:
            assert (exc.errnum, server.is_alive()) == (errno.EIO, True), (what, server.log())
            errors += 1
    client.shutdown()
    return errors
