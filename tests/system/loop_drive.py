"""A small drive: an ext4 file system in a file, mounted for the duration of a test."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def demand_mount() -> None:
    """Skip the test, saying why, where file systems cannot be mounted."""
    for tool, package in (("mkfs.ext4", "e2fsprogs"), ("mount", "mount")):
        if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            pytest.skip(f"{tool} is missing (package {package})")
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")


class LoopDrive:
    """An empty file system of `size_bytes` at `place`, mounted from `mount` to `unmount`."""

    def __init__(self, place: Path, size_bytes: int) -> None:
        demand_mount()
        self.place = place
        self._image = place.with_suffix(".img")
        with self._image.open("xb") as file:
            file.truncate(size_bytes)
        # No journal: it would take a quarter of so small a drive.
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", str(self._image))
        place.mkdir()
        self.mount()

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.place))

    def unmount(self) -> None:
        """Take it away: an empty folder is left in its place."""
        _run("umount", str(self.place))


@contextmanager
def mounted_drive(place: Path, size_bytes: int) -> Iterator[LoopDrive]:
    """A drive that is there during the block."""
    drive = LoopDrive(place, size_bytes)
    try:
        yield drive
    finally:
        if place.is_mount():
            drive.unmount()


def free_bytes(folder: Path) -> int:
    """What may still be written to the file system of `folder`."""
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize


def _run(*command: str) -> None:
    subprocess.run(
        command,
        check=True,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )
