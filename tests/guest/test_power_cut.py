"""Guests that lose their power: the journal is replayed, and nothing committed is missing."""

from pathlib import Path
from typing import Final

import pytest

from storage.units import MIB
from tests.guest.disks import VIRTIO_BLK, VIRTIO_SCSI, attach, command
from tests.guest.machine import Hardware, Machine
from tests.serving import Server

DISK_BYTES: Final = 512 * MIB
COMMITS: Final = 40
FILE_SYSTEMS: Final = (
    ("blk", VIRTIO_BLK, "/dev/vda", "ext4", "mkfs.ext4 -q -F", "e2fsck -f -n"),
    ("scsi", VIRTIO_SCSI, "/dev/sda", "xfs", "mkfs.xfs -q", "xfs_repair -n"),
)


@pytest.mark.parametrize("is_server_lost", [False, True], ids=["guest", "guest-and-server"])
def test_only_the_journal_is_replayed(
    folder: Path, accelerator: str, *, is_server_lost: bool
) -> None:
    server = Server(folder / "pool").start()
    arguments = []
    for name, bus, *_ in FILE_SYSTEMS:
        command(server.pool, "disk", "create", name, str(DISK_BYTES))
        arguments += attach(server.pool, name, bus)
    hardware = Hardware(accelerator, arguments)

    with Machine(folder, hardware) as machine:
        for name, _, device, kind, mkfs, _ in FILE_SYSTEMS:
            _prepare(machine, name, device, f"{mkfs} {device}", kind)
        committed = _commit_until_cut(machine)
    if is_server_lost:
        server.kill()
        server.start()

    with Machine(folder, hardware) as machine:
        for name, _, device, kind, _, check in FILE_SYSTEMS:
            machine.shell(f"mkdir -p /mnt/{name} && mount -t {kind} {device} /mnt/{name}")
            sqlite = f"sqlite3 /mnt/{name}/db"
            # With the rollback journal that the cut has left, if any.
            assert machine.shell(f"{sqlite} 'pragma integrity_check'") == "ok\n"
            rows = machine.shell(f"{sqlite} 'select count(*), max(number) from rows'")
            count, last = map(int, rows.split("|"))
            assert count == last
            assert last >= committed
            machine.shell(f"umount /mnt/{name} && {check} {device}")
        dmesg = machine.shell("dmesg").lower()
        assert "recovery complete" in dmesg  # ext4
        assert "ending recovery" in dmesg  # xfs
        assert "corrupt" not in dmesg
    server.stop()


def _prepare(machine: Machine, name: str, device: str, mkfs: str, kind: str) -> None:
    machine.shell(f"{mkfs} && mkdir /mnt/{name} && mount -t {kind} {device} /mnt/{name}")
    machine.shell(
        f"sqlite3 /mnt/{name}/db 'create table rows (number integer primary key, content blob)'"
        " && sync"
    )


def _commit_until_cut(machine: Machine) -> int:
    """Commit on all file systems and to files beside them, and cut the power in the midst of it.

    Returns: the last commit that the guest has reported on each.
    """
    insert = "insert into rows values ($i, randomblob(3000));"
    databases = " && ".join(
        f'sqlite3 -cmd "pragma synchronous=extra" /mnt/{name}/db "{insert}"'
        for name, *_ in FILE_SYSTEMS
    )
    # New files and names keep the journals of the file systems busy, too.
    files = "; ".join(
        f"mkdir -p /mnt/{name}/d$i && cp /etc/modules /mnt/{name}/d$i/file"
        for name, *_ in FILE_SYSTEMS
    )
    machine.shell.begin(f"i=1; while {databases}; do echo $i; {files}; i=$((i+1)); done")
    committed = 0
    while committed < COMMITS:
        committed = int(machine.shell.read_line())
    machine.kill()
    return committed
