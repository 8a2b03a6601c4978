"""fio writes, trims, reads back and verifies: several disks and connections at once, depth 32."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from storage.units import KIB, MIB
from tests.system.agreement import assert_sound
from tests.system.conftest import MakePool
from tests.system.data_plane import DataPlane
from tests.system.fio import Options, run_fio

# In soak runs every job covers this many times as much.
SCALE: Final = 16 if os.environ.get("NEARSTONE_SOAK") == "1" else 1
JOB_BYTES: Final = 24 * MIB * SCALE
CONNECTIONS: Final = 3  # of each disk; every one has a part of the disk to itself
DISKS: Final = ("one", "two")
DISK_BYTES: Final = CONNECTIONS * JOB_BYTES

SHARED: Final[Options] = {
    "numjobs": CONNECTIONS,
    "size": JOB_BYTES,
    "offset_increment": JOB_BYTES,
    "iodepth": 32,
    "do_verify": 1,
}
JOBS: Final[dict[str, Options]] = {
    "random 4 KiB": {"rw": "randwrite", "bs": "4k", "verify": "xxhash"},
    "random 4 KiB, compressible, read back while writing": {
        "rw": "randrw",
        "bs": "4k",
        "verify": "crc32c",
        "verify_backlog": 512,
        "buffer_compress_percentage": 50,
    },
    # A request waits for those in flight that it overlaps: fio could not know what is right.
    "overlapping, 512 B to 1 MiB, any alignment": {
        "rw": "randwrite",
        "bsrange": "512-1m",
        "bs_unaligned": 1,
        "norandommap": 1,
        "serialize_overlap": 1,
        "verify": "crc32c",
        "io_size": 6 * JOB_BYTES,
    },
    "small and ragged, overlapping": {
        "rw": "randwrite",
        "bsrange": "512-16k",
        "blockalign": 512,
        "norandommap": 1,
        "serialize_overlap": 1,
        "verify": "md5",
        "io_size": JOB_BYTES,
    },
    # fio 3.33 trims a block and writes it without waiting in between, unless it is told to.
    "every block trimmed before it is written": {
        "rw": "randtrimwrite",
        "bs": "4k",
        "serialize_overlap": 1,
        "verify": "crc32c",
    },
    "flushed every 16 writes": {
        "rw": "randwrite",
        "bs": "16k",
        "fsync": 16,
        "verify": "xxhash",
        "verify_interval": 4096,
    },
    "sequential 128 KiB, twice": {
        "rw": "write",
        "bs": "128k",
        "verify": "xxhash",
        "verify_interval": 512,
        "buffer_compress_percentage": 50,
        "loops": 2,
    },
}


@pytest.fixture(params=[None, 512 * KIB], ids=["default memory", "little memory"])
def server(make_pool: MakePool, request: pytest.FixtureRequest) -> Iterator[DataPlane]:
    """With little memory, checkpoints go on under the load all the time."""
    pool = make_pool(**dict.fromkeys(DISKS, DISK_BYTES))
    with DataPlane(pool, request.param) as server:
        yield server


def test_verified_jobs(server: DataPlane, tmp_path: Path) -> None:
    uris = [server.uri(disk) for disk in DISKS]
    for name, job in JOBS.items():
        result = run_fio(tmp_path, uris, {**SHARED, **job})
        assert result.reads > 0, name
        assert result.written_bytes >= len(DISKS) * CONNECTIONS * JOB_BYTES // 4, name
        assert (result.trims > 0) == ("trim" in str(job["rw"])), name
    server.stop()
    assert_sound(server.pool)
