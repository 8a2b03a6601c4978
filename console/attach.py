"""``nearstone disk attach``: how to attach a disk to what, ready to paste.

The recipes share these choices:

- *Reconnect.* A client waits for a server that restarts instead of failing the guest's requests.
- *Stop.* Should the wait end, or the pool be full, the machine is paused, not told of errors: a
  guest's file system that saw one turns read-only (``werror=stop``, ``rerror=stop``).
- *Discard.* What the guest trims, and zeroes that it writes, give space back.

Sources: QEMU's qapi/block-core.json (BlockdevOptionsNbd), libvirt's formatdomain (disk, source,
reconnect), fio's HOWTO (nbd engine), nbd-client(8).
"""

import shlex
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote

import typer

from console.access import unix_socket
from console.disks import Name
from console.invocation import Invocation
from storage.service import DiskInfo

_RECONNECT_S: Final = 300
"""Longer than any restart, shorter than the patience of whoever looks at a hung machine."""


class Target(StrEnum):
    """What a disk can be attached to."""

    QEMU = "qemu"
    LIBVIRT = "libvirt"
    FIO = "fio"
    NBD_CLIENT = "nbd-client"


def uri(name: str, socket: Path) -> str:
    """The disk as an NBD URI (github.com/NetworkBlockDevice/nbd, doc/uri.md)."""
    return f"nbd+unix:///{name}?socket={quote(str(socket))}"


def _for_qemu(disk: DiskInfo, socket: Path) -> str:
    # Named by number: a node's name has at most 31 characters, a disk's may have more.
    node = f"nearstone-{disk.id}"
    path = str(socket).replace(",", ",,")
    blockdev = (
        f"driver=nbd,node-name={node},server.type=unix,server.path={path},export={disk.name},"
        f"reconnect-delay={_RECONNECT_S},cache.direct=on,discard=unmap,detect-zeroes=unmap"
    )
    device = f"virtio-blk-pci,drive={node},serial={disk.name[:20]},werror=stop,rerror=stop"
    return f"-blockdev {shlex.quote(blockdev)} \\\n-device {shlex.quote(device)}"


def _for_libvirt(disk: DiskInfo, socket: Path) -> str:
    element = ET.Element("disk", type="network", device="disk")
    driver = {
        "name": "qemu",
        "type": "raw",
        "cache": "none",
        "error_policy": "stop",
        "rerror_policy": "stop",
        "discard": "unmap",
        "detect_zeroes": "unmap",
    }
    ET.SubElement(element, "driver", driver)
    source = ET.SubElement(element, "source", protocol="nbd", name=disk.name)
    ET.SubElement(source, "host", transport="unix", socket=str(socket))
    ET.SubElement(source, "reconnect", delay=str(_RECONNECT_S))
    ET.SubElement(element, "target", dev="vdb", bus="virtio")
    ET.SubElement(element, "serial").text = disk.name[:20]
    ET.indent(element)
    return ET.tostring(element, encoding="unicode")


def _for_fio(disk: DiskInfo, socket: Path) -> str:
    return (
        f"fio --name={disk.name} --ioengine=nbd --uri={shlex.quote(uri(disk.name, socket))}"
        " --rw=randread --bs=4k --iodepth=32 --time_based --runtime=10"
    )


def _for_nbd_client(disk: DiskInfo, socket: Path) -> str:
    return (
        "modprobe nbd && nbd-client"
        f" -unix {shlex.quote(str(socket))} /dev/nbd0 -name {disk.name}"
        " -connections 4 -persist"
    )


_RECIPES: Final[Mapping[Target, Callable[[DiskInfo, Path], str]]] = {
    Target.QEMU: _for_qemu,
    Target.LIBVIRT: _for_libvirt,
    Target.FIO: _for_fio,
    Target.NBD_CLIENT: _for_nbd_client,
}


_CAVEATS: Final[Mapping[Target, str]] = {
    Target.LIBVIRT: "libvirt 9.0 and older refuse <reconnect>: leave that line out there",
    Target.NBD_CLIENT: "a mounted /dev/nbd0 does not survive a restart of the server",
}


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command()(attach)


def attach(
    ctx: typer.Context,
    name: Name,
    target: Annotated[
        Target, typer.Option("--as", help="What to attach it to.", show_default=False)
    ],
) -> None:
    """Print what attaches a disk to a virtual machine or program, ready to paste.

    Nothing is attached by this command itself. The libvirt XML goes into a domain's <devices>, or
    to `virsh attach-device`; change its target if vdb is taken.

    Examples:

    ```
    nearstone disk attach mail --as qemu
    nearstone disk attach mail --as libvirt > mail.xml
    ```
    """
    invocation = Invocation.of(ctx)
    with invocation.service() as service:
        disk = service.show_disk(name)
        status = service.status()
    socket = unix_socket(status, invocation.pool)
    text = _RECIPES[target](disk, socket)
    fields = {"name": disk.name, "as": target, "uri": uri(disk.name, socket), "text": text}
    invocation.output.result(fields, text)
    if target in _CAVEATS:
        invocation.output.note(_CAVEATS[target])
    if status.server_pid is None:
        pool = shlex.quote(str(invocation.pool))
        invocation.output.note(f"no server runs; start it with: nearstone --pool {pool} serve")
