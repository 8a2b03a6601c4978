"""Live migration between two QEMUs over one disk, under verified load."""

from pathlib import Path
from typing import Final

from storage.units import MIB
from tests.guest.disks import VIRTIO_BLK, VIRTIO_SCSI, attach, command
from tests.guest.load import Load
from tests.guest.machine import Hardware, Machine
from tests.serving import Server
from tests.system.data_plane import wait_until

DISK_BYTES: Final = 256 * MIB
LOAD_BYTES: Final = 32 * MIB


def test_a_guest_moves_and_notices_nothing(folder: Path, accelerator: str) -> None:
    with Server(folder / "pool") as server:
        arguments = []
        for name, bus in (("raw", VIRTIO_BLK), ("files", VIRTIO_SCSI)):
            command(server.pool, "disk", "create", name, str(DISK_BYTES))
            arguments += attach(server.pool, name, bus)
        hardware = Hardware(accelerator, arguments)
        uri = f"unix:{folder}/migration"
        with Machine(folder, hardware) as source:
            source.shell("mkfs.ext4 -q -F /dev/sda && mount -t ext4 /dev/sda /mnt")
            source.shell(
                "cp -a /lib /mnt && cd /mnt && find . -type f -exec sha256sum {} + > /run/sums"
            )
            load = Load(source.shell, "/dev/vda", LOAD_BYTES)
            load.wait_for_progress()
            with Machine(folder, hardware).launch("-incoming", uri) as target:
                _migrate(source, target, uri)
                source.kill()
                load.shell = target.shell
                load.wait_for_progress()
                load.finish()
                target.shell("echo 3 > /proc/sys/vm/drop_caches; cd /mnt && sha256sum -c /run/sums")
                target.shell("umount /mnt && e2fsck -f -n /dev/sda")
                assert "BLOCK_IO_ERROR" not in target.qmp.event_names()
                assert "I/O error" not in target.shell("dmesg")


def _migrate(source: Machine, target: Machine, uri: str) -> None:
    # The load changes memory all the time: enough bandwidth for an end.
    source.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 32, "downtime-limit": 1000})
    source.qmp("migrate", uri=uri)

    def is_over() -> bool:
        status = source.qmp("query-migrate").get("status")
        assert status not in ("failed", "cancelled"), target.log()
        return bool(status == "completed")

    wait_until(is_over, "the migration ends", timeout_s=180)
    wait_until(lambda: target.qmp("query-status")["status"] == "running", "the guest runs on", 180)
    assert source.qmp("query-status")["status"] == "postmigrate"
