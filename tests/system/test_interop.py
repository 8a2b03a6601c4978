"""Other people's tools on our disks: a real file system goes in and comes out unchanged."""

import hashlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from storage.format import PoolFolder
from storage.units import KIB, MIB
from tests.system.agreement import assert_sound, find_disk
from tests.system.conftest import MakePool
from tests.system.data_plane import DataPlane

IMAGE_BYTES: Final = 96 * MIB
DISK_BYTES: Final = 64 * MIB


def run(*command: str | Path) -> str:
    """What the command printed. Raises: AssertionError with what it complained of."""
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ext4 file system with files of all kinds in it."""
    if shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip("mkfs.ext4 is missing (package e2fsprogs)")
    folder = tmp_path_factory.mktemp("image")
    tree = folder / "tree"
    noise = random.Random(80)
    for number in range(40):
        place = tree / f"folder {number % 5}" / f"file-{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(noise.randbytes(noise.randrange(200 * KIB)))
    (tree / "text").write_text("All work and no play makes Jack a dull boy.\n" * 40_000)
    (tree / "link").symlink_to("text")
    with (tree / "sparse").open("wb") as file:
        file.seek(10 * MIB)
        file.write(b"the end")
    path = folder / "ext4.img"
    run("mkfs.ext4", "-q", "-F", "-d", tree, path, f"{IMAGE_BYTES // KIB}k")
    return path


@pytest.fixture
def server(make_pool: MakePool) -> Iterator[DataPlane]:
    server = DataPlane(make_pool(image=IMAGE_BYTES, disk=DISK_BYTES)).start()
    yield server
    if server.is_running:
        server.kill()


@pytest.mark.parametrize("tool", ["qemu-img", "nbdcopy"])
def test_a_file_system_goes_in_and_comes_out(
    tool: str, server: DataPlane, image: Path, tmp_path: Path
) -> None:
    uri = server.uri("image")
    if tool == "qemu-img":
        run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, uri)
    else:
        run("nbdcopy", "--flush", image, uri)
    for attempt in ("running", "restarted"):
        by_nbdcopy, by_qemu = tmp_path / f"{attempt}.nbdcopy", tmp_path / f"{attempt}.qemu"
        run("nbdcopy", uri, by_nbdcopy)
        run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, by_qemu)
        assert checksum(by_nbdcopy) == checksum(by_qemu) == checksum(image)
        server.stop()
        server.start()
    assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri)
    run("e2fsck", "-f", "-n", by_nbdcopy)
    assert_holes_take_no_space(server, image)


def assert_holes_take_no_space(server: DataPlane, image: Path) -> None:
    """What is stored is less than what the image has of blocks that are not zero."""
    content = image.read_bytes()
    blocks = (content[at : at + 4096] for at in range(0, len(content), 4096))
    data_bytes = 4096 * sum(1 for block in blocks if any(block))
    with server.control() as control:
        disk = control.show_disk("image")
    assert disk.mapped_bytes == data_bytes
    assert disk.stored_bytes < data_bytes


def test_the_second_reader_reads_the_file_system(
    server: DataPlane, image: Path, tmp_path: Path
) -> None:
    run("nbdcopy", image, server.uri("image"))
    server.kill()
    assert_sound(server.pool)
    copy = tmp_path / "copy"
    with PoolFolder.open(server.pool).open_disk(find_disk(server.pool, "image")) as offline:
        copy.write_bytes(offline.read(0, IMAGE_BYTES))
    assert checksum(copy) == checksum(image)


def test_qemu_io(server: DataPlane) -> None:
    commands = (
        "write -P 0x11 0 1M",
        "write -P 0x22 64k 4k",
        "write -f -P 0x33 1000448 512",
        "read -P 0x11 0 64k",
        "read -P 0x22 64k 4k",
        "read -P 0x11 68k 908k",
        "read -P 0x33 1000448 512",
        "discard 64k 64k",
        "read -P 0 64k 64k",
        "write -z -u 512k 128k",
        "read -P 0 512k 128k",
        "flush",
        "aio_write -P 0x44 2M 1M",
        "aio_write -P 0x55 3M 1M",
        "aio_flush",
        "read -P 0x44 2M 1M",
        "read -P 0x55 3M 1M",
        "read -P 0 4M 60M",
    )
    words = [word for command in commands for word in ("-c", command)]
    printed = run("qemu-io", "-f", "raw", *words, server.uri("disk"))
    assert "Pattern verification failed" not in printed
    assert "error" not in printed
    assert printed.count("read ") == sum(command.startswith("read ") for command in commands)


def test_nbdinfo_says_what_the_disk_can(server: DataPlane) -> None:
    (export,) = json.loads(run("nbdinfo", "--json", server.uri("disk")))["exports"]
    for ability in ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"):
        assert export[f"can_{ability}"] is True, ability
    assert export["export-size"] == DISK_BYTES
    assert export["is_read_only"] is False
    assert export["is_rotational"] is False
    sizes = [export[f"block_size_{size}"] for size in ("minimum", "preferred", "maximum")]
    assert sizes == [1, 4 * KIB, 32 * MIB]


def test_nbdinfo_maps_data_and_holes(server: DataPlane) -> None:
    client = server.connect("disk")
    data = random.Random(81).randbytes(256 * KIB)
    client.pwrite(data, 0)
    client.trim(64 * KIB, 64 * KIB)
    client.trim(7 * KIB, 11 * KIB)  # one whole block lies in it
    client.zero(8 * KIB, 32 * KIB)
    client.pwrite(bytes(16 * KIB), 48 * KIB)  # zeros written are holes too
    client.pwrite(b"x", 10 * MIB + 5000)
    client.pwrite(b"y", DISK_BYTES - 1)
    found = [
        (extent["offset"], extent["length"], extent["type"])
        for extent in json.loads(run("nbdinfo", "--json", "--map", server.uri("disk")))
    ]
    data_type, hole_type = 0, 3
    ends = [
        (12, data_type),
        (16, hole_type),
        (32, data_type),
        (40, hole_type),
        (48, data_type),
        (128, hole_type),
        (256, data_type),
        (10 * KIB + 4, hole_type),
        (10 * KIB + 8, data_type),
        (DISK_BYTES // KIB - 4, hole_type),
        (DISK_BYTES // KIB, data_type),
    ]
    starts = [0, *(end for end, _ in ends)]
    expected = [
        (start * KIB, (end - start) * KIB, kind)
        for start, (end, kind) in zip(starts, ends, strict=False)
    ]
    assert found == expected
    totals = json.loads(run("nbdinfo", "--json", "--map", "--totals", server.uri("disk")))
    assert sum(total["size"] for total in totals) == DISK_BYTES
