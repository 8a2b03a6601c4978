"""A peer that reduces data too: qcow2 on btrfs with zstd, on a loop device.

The file system is mounted in a mount namespace of the server's own, so that the kernel takes mount
and loop device away with the process, however that ends. From outside its files are reached through
/proc/PID/root.
"""

import os
import shlex
from pathlib import Path
from typing import ClassVar

from benchmarks.contenders.base import Place
from benchmarks.contenders.qemu import QemuQcow2
from benchmarks.errors import PermissionMissing
from benchmarks.units import GIB

# btrfs keeps a whole compressed extent while any block of it is in use, and needs room to work.
_VOLUME_SHARE = 2
_VOLUME_SPARE_BYTES = GIB


class Qcow2OnBtrfs(QemuQcow2):
    """A qcow2 image on a compressing, checksumming file system."""

    name = "btrfs"
    title = "qemu-nbd qcow2 on btrfs with zstd"
    remark = "compresses and verifies checksums in the file system; on a loop device"
    drive_share = 1.5
    tools: ClassVar[tuple[tuple[str, str], ...]] = (
        *QemuQcow2.tools,
        ("mkfs.btrfs", "apt-get install btrfs-progs"),
        ("unshare", "part of util-linux"),
    )

    @classmethod
    def check(cls, place: Place) -> None:
        super().check(place)
        if os.geteuid() != 0:
            raise PermissionMissing("mount btrfs", "run as root, or leave 'btrfs' out")

    @property
    def _volume(self) -> Path:
        return self._place.folder / "btrfs.img"

    @property
    def _mount_point(self) -> Path:
        return self._place.folder / "btrfs"

    @property
    def _image(self) -> Path:
        return self._mount_point / "disk.qcow2"

    def _seen_from_outside(self, path: Path) -> Path:
        return Path(f"/proc/{self.pid}/root{path}")

    def backing_files(self) -> list[Path]:
        return [self._seen_from_outside(self._image)]

    def stored_bytes(self) -> int:
        # What the file system has given away, its own metadata included. The volume's file on the
        # drive would not do: it shrinks only as fast as btrfs gets round to discarding.
        found = os.statvfs(self._seen_from_outside(self._mount_point))
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def _prepare(self) -> None:
        self._mount_point.mkdir()
        with self._volume.open("xb") as volume:
            volume.truncate(_VOLUME_SHARE * self._place.size_bytes + _VOLUME_SPARE_BYTES)
        self._run(["mkfs.btrfs", "--quiet", str(self._volume)])

    def _command(self) -> list[str]:
        mount = ["mount", "-o", "loop,compress=zstd,discard=async"]
        mount += [str(self._volume), str(self._mount_point)]
        script = (
            f"{shlex.join(mount)} && {shlex.join(self._create_command())} && "
            f"exec {shlex.join(super()._command())}"
        )
        return ["unshare", "--mount", "--", "sh", "-c", script]
