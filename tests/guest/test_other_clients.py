"""Other ways into a guest: the guest's own NBD client, and qemu-storage-daemon."""

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from storage.units import MIB
from tests.guest.console import TIMEOUT_S
from tests.guest.disks import attach, command
from tests.guest.machine import Hardware, Machine
from tests.guest.qmp import connect_unix
from tests.serving import Server

DISK_BYTES: Final = 512 * MIB
MEMORY_MIB: Final = 256
HOST: Final = "10.0.2.2"
"""The host's loopback, as QEMU's user networking shows it to the guest."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _use(machine: Machine, device: str, mkfs: str, kind: str, check: str) -> None:
    """A file system with contents, read back from the device, trimmed and checked."""
    shell = machine.shell
    shell(f"{mkfs} {device} && mount -t {kind} {device} /mnt")
    shell("cp -a /lib /mnt && cd /mnt && find . -type f -exec sha256sum {} + > /run/sums")
    shell("umount /mnt && echo 3 > /proc/sys/vm/drop_caches")
    shell(f"mount -t {kind} {device} /mnt && cd /mnt && sha256sum -c /run/sums")
    shell(f"rm -r /mnt/lib && sync && fstrim /mnt && umount /mnt && {check} {device}")
    assert "I/O error" not in shell("dmesg")


def test_the_kernels_own_nbd_client(folder: Path, accelerator: str) -> None:
    port = _free_port()
    network = ("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net")
    hardware = Hardware(accelerator, extra=network)
    with Server(folder / "pool", "--listen", f"127.0.0.1:{port}", "--insecure") as server:
        command(server.pool, "disk", "create", "disk", str(DISK_BYTES))
        with Machine(folder, hardware) as machine:
            machine.shell("ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up")
            machine.shell(f"nbd-client {HOST} {port} /dev/nbd0 -name disk -connections 2")
            assert int(machine.shell("blockdev --getsize64 /dev/nbd0")) == DISK_BYTES
            _use(machine, "/dev/nbd0", "mkfs.ext4 -q -F", "ext4", "e2fsck -f -n")
            machine.shell("nbd-client -d /dev/nbd0")


@contextlib.contextmanager
def _storage_daemon(folder: Path, blockdev: str) -> Iterator[Path]:
    """qemu-storage-daemon with one vhost-user-blk export of a disk. Yields: its socket."""
    path = folder / "vhost"
    node = dict(pair.split("=", 1) for pair in blockdev.split(","))["node-name"]
    process = subprocess.Popen(
        [
            "qemu-storage-daemon",
            "--blockdev",
            blockdev,
            "--export",
            json.dumps(
                {
                    "type": "vhost-user-blk",
                    "id": "export",
                    "node-name": node,
                    "addr": {"type": "unix", "path": str(path)},
                    "writable": True,
                }
            ),
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        # It takes one client at a time, and the next when that has gone.
        connect_unix(path, TIMEOUT_S).close()
        yield path
    finally:
        process.kill()
        process.wait()


def test_vhost_user_of_qemu_storage_daemon(folder: Path, accelerator: str) -> None:
    with Server(folder / "pool") as server:
        command(server.pool, "disk", "create", "disk", str(DISK_BYTES))
        blockdev = attach(server.pool, "disk")[1]
        with _storage_daemon(folder, blockdev) as path:
            extra = (
                *("-object", f"memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on"),
                *("-machine", "memory-backend=memory"),
                *("-chardev", f"socket,id=vhost,path={path}"),
                *("-device", "vhost-user-blk-pci,chardev=vhost"),
            )
            hardware = Hardware(accelerator, memory_mib=MEMORY_MIB, extra=extra)
            with Machine(folder, hardware) as machine:
                _use(machine, "/dev/vda", "mkfs.xfs -q", "xfs", "xfs_repair -n")
