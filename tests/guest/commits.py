"""Databases on several file systems of a guest, committed to one after another for ever.

What is on the disks at any instant, after a power cut or in a snapshot, is then known well: each
database holds the rows from 1 without a gap, none that the guest has reported is missing, and a
later file system is at most one row behind an earlier one.
"""

import itertools
from dataclasses import dataclass
from typing import Final

from storage.units import MIB
from tests.guest.disks import VIRTIO_BLK, VIRTIO_SCSI
from tests.guest.machine import Machine

DISK_BYTES: Final = 512 * MIB


@dataclass(frozen=True)
class Place:
    """A disk with a file system, and the commands for it."""

    disk: str
    bus: str
    device: str
    kind: str
    mkfs: str
    check: str

    def mount(self, device: str) -> str:
        """The command that mounts it, from whatever device it is on this time."""
        return f"mkdir -p /mnt/{self.disk} && mount -t {self.kind} {device} /mnt/{self.disk}"


PLACES: Final = (
    Place("blk", VIRTIO_BLK, "/dev/vda", "ext4", "mkfs.ext4 -q -F", "e2fsck -f -n"),
    Place("scsi", VIRTIO_SCSI, "/dev/sda", "xfs", "mkfs.xfs -q", "xfs_repair -n"),
)


def prepare(machine: Machine) -> None:
    """Make and mount the file systems and their databases, durable on return."""
    for place in PLACES:
        machine.shell(f"{place.mkfs} {place.device} && {place.mount(place.device)}")
        machine.shell(
            f"sqlite3 /mnt/{place.disk}/db"
            " 'create table rows (number integer primary key, content blob)' && sync"
        )


def begin(machine: Machine) -> None:
    """Commit for ever, and write files beside the databases; the guest reports each commit as a
    line with its number, once it is on all file systems."""
    insert = "insert into rows values ($i, randomblob(3000));"
    databases = " && ".join(
        f'sqlite3 -cmd "pragma synchronous=extra" /mnt/{place.disk}/db "{insert}"'
        for place in PLACES
    )
    # New files and names keep the journals of the file systems busy, too.
    files = "; ".join(
        f"mkdir -p /mnt/{place.disk}/d$i && cp /etc/modules /mnt/{place.disk}/d$i/file"
        for place in PLACES
    )
    machine.shell.begin(f"i=1; while {databases}; do echo $i; {files}; i=$((i+1)); done")


def wait_for_commit(machine: Machine, number: int) -> int:
    """Wait until at least `number` commits have been reported. Returns: how many have."""
    committed = 0
    while committed < number:
        committed = int(machine.shell.read_line())
    return committed


def verify(machine: Machine, devices: dict[str, str], committed: int) -> None:
    """Hold what a guest finds on the devices against what must be there, file systems included.

    Args: devices: by the disk's name in `PLACES`, not mounted since; their journals are replayed.
    """
    rows = []
    machine.shell("dmesg -c > /dev/null")
    for place in PLACES:
        device = devices[place.disk]
        machine.shell(place.mount(device))
        sqlite = f"sqlite3 /mnt/{place.disk}/db"
        # With the rollback journal that was left, if any.
        assert machine.shell(f"{sqlite} 'pragma integrity_check'") == "ok\n"
        printed = machine.shell(f"{sqlite} 'select count(*), max(number) from rows'")
        count, last = map(int, printed.split("|"))
        assert count == last
        assert last >= committed
        rows.append(last)
        machine.shell(f"umount /mnt/{place.disk} && {place.check} {device}")
    assert all(later <= earlier <= later + 1 for earlier, later in itertools.pairwise(rows))
    dmesg = machine.shell("dmesg").lower()
    assert "recovery complete" in dmesg  # ext4
    assert "ending recovery" in dmesg  # xfs
    assert "corrupt" not in dmesg
