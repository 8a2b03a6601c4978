"""Disks that grow under mounted file systems."""

import json
from pathlib import Path
from typing import Final

from storage.units import MIB
from tests.guest.disks import VIRTIO_BLK, VIRTIO_SCSI, attach, command
from tests.guest.machine import Hardware, Machine
from tests.serving import Server

SMALL_BYTES: Final = 384 * MIB
LARGE_BYTES: Final = 640 * MIB
DISKS: Final = (
    ("blk", VIRTIO_BLK, "/dev/vda", "ext4", "mkfs.ext4 -q -F", "resize2fs /dev/vda"),
    ("scsi", VIRTIO_SCSI, "/dev/sda", "xfs", "mkfs.xfs -q", "xfs_growfs /mnt/scsi"),
)


def test_a_disk_and_its_file_system_grow_in_use(folder: Path, accelerator: str) -> None:
    with Server(folder / "pool") as server:
        arguments = []
        for name, bus, *_ in DISKS:
            command(server.pool, "disk", "create", name, str(SMALL_BYTES))
            arguments += attach(server.pool, name, bus)
        with Machine(folder, Hardware(accelerator, arguments)) as machine:
            shell = machine.shell
            for name, _, device, kind, mkfs, _ in DISKS:
                shell(
                    f"mkdir /mnt/{name} && {mkfs} {device} && mount -t {kind} {device} /mnt/{name}"
                )
                shell(f"cp -a /lib /mnt/{name}")
                command(server.pool, "disk", "resize", name, str(LARGE_BYTES))
            # QEMU learns the new size when it connects again.
            server.stop()
            server.start()
            for name, _, device, _, _, grow in DISKS:
                shell(f"dd if={device} of=/dev/null bs=4k count=1 iflag=direct")
                node = json.loads(command(server.pool, "--json", "disk", "show", name))["id"]
                machine.qmp(
                    "block_resize", **{"node-name": f"nearstone-{node}", "size": LARGE_BYTES}
                )
                if device == "/dev/sda":
                    shell("echo 1 > /sys/block/sda/device/rescan")
                assert int(shell(f"blockdev --getsize64 {device}")) == LARGE_BYTES
                shell(grow)
                free_kib = int(shell(f"df -k /mnt/{name} | tail -1 | awk '{{ print $2 }}'"))
                assert free_kib << 10 > SMALL_BYTES
                # More than the small disk had room for, and what was there before.
                shell(f"dd if=/dev/urandom of=/mnt/{name}/more bs=1M count={SMALL_BYTES // MIB}")
                shell(f"cd / && find lib -type f -exec cmp {{}} /mnt/{name}/{{}} ';'")
            shell("umount /mnt/blk /mnt/scsi && e2fsck -f -n /dev/vda && xfs_repair -n /dev/sda")
            assert "BLOCK_IO_ERROR" not in machine.qmp.event_names()
            assert "I/O error" not in shell("dmesg")
