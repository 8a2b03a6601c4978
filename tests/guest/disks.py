"""Disks of a pool as parts of a virtual machine."""

import json
import shlex
from pathlib import Path
from typing import Final

from storage.control import CONTROL_SOCKET, ControlClient
from storage.service import DiskInfo
from tests.serving import nearstone

VIRTIO_BLK: Final = "virtio-blk"
VIRTIO_SCSI: Final = "virtio-scsi"


def command(pool: Path, *arguments: str) -> str:
    """What a command of ours printed. Raises: AssertionError if it failed."""
    done = nearstone(pool, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def attach(pool: Path, name: str, bus: str = VIRTIO_BLK) -> list[str]:
    """QEMU's arguments for a disk: those that `disk attach` prints; on virtio-scsi, those with
    another device."""
    printed = json.loads(command(pool, "--json", "disk", "attach", name, "--as", "qemu"))
    words = shlex.split(printed["text"].replace("\\\n", ""))
    if bus == VIRTIO_BLK:
        return words
    *blockdev, _, device = words
    controller = f"controller-{name}"
    disk = device.replace("virtio-blk-pci,", f"scsi-hd,bus={controller}.0,")
    return [*blockdev, "-device", f"virtio-scsi-pci,id={controller}", "-device", disk]


def show(pool: Path, name: str) -> DiskInfo:
    """What the server says of a disk."""
    with ControlClient(pool / CONTROL_SOCKET) as control:
        return control.show_disk(name)
