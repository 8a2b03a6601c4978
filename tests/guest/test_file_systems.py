"""Daily life of a guest's file systems, on virtio-blk and on virtio-scsi, ext4 and XFS."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from storage.units import GIB, MIB
from tests.guest.disks import VIRTIO_BLK, VIRTIO_SCSI, attach, command, show
from tests.guest.machine import Hardware, Machine
from tests.serving import Server
from tests.system.data_plane import list_runs, wait_until

DISK_BYTES: Final = GIB
ROWS: Final = 200
PAYLOAD_BYTES: Final = 256 * MIB

MKFS: Final = {"ext4": "mkfs.ext4 -q -F", "xfs": "mkfs.xfs -q -f"}
MOUNT: Final = {
    # With the default of 5 s, a slow guest would strew its journal over all that it writes.
    "ext4": "mount -t ext4 -o commit=300",
    "xfs": "mount -t xfs",
}
CHECK: Final = {"ext4": "e2fsck -f -n", "xfs": "xfs_repair -n"}


@dataclass(frozen=True)
class Place:
    """A file system of the guest, mounted on /mnt."""

    guest: Machine
    server: Server
    disk: str
    partition: str
    kind: str

    def mapped_bytes(self) -> int:
        """How much of the disk holds data, as its clients see it."""
        client = self.server.connect(self.disk)
        runs = list_runs(client, 0, DISK_BYTES)
        client.shutdown()
        return sum(length for length, is_hole in runs if not is_hole)

    def stored_bytes(self) -> int:
        """What the disk takes on the host's drive."""
        return show(self.server.pool, self.disk).stored_bytes

    def mount_anew(self) -> None:
        """Unmount, and mount with nothing in the page cache."""
        self.guest.shell("umount /mnt && echo 3 > /proc/sys/vm/drop_caches")
        self.guest.shell(f"{MOUNT[self.kind]} {self.partition} /mnt")


@pytest.fixture(scope="module")
def guest(module_folder: Path, server: Server, accelerator: str) -> Iterator[Machine]:
    """A guest with two disks, each with two partitions."""
    arguments = []
    for name, bus in (("blk", VIRTIO_BLK), ("scsi", VIRTIO_SCSI)):
        command(server.pool, "disk", "create", name, str(DISK_BYTES))
        arguments += attach(server.pool, name, bus)
    with Machine(module_folder, Hardware(accelerator, arguments)) as machine:
        for device in ("/dev/vda", "/dev/sda"):
            machine.shell(f"printf ',500M\\n,\\n' | sfdisk -q --label gpt {device}")
        yield machine
        assert machine.qmp("query-status")["status"] == "running"
        assert "BLOCK_IO_ERROR" not in machine.qmp.event_names()
        assert "I/O error" not in machine.shell("dmesg")


@pytest.fixture(
    params=[
        ("blk", "/dev/vda1", "ext4"),
        ("blk", "/dev/vda2", "xfs"),
        ("scsi", "/dev/sda1", "ext4"),
        ("scsi", "/dev/sda2", "xfs"),
    ],
    ids=["blk-ext4", "blk-xfs", "scsi-ext4", "scsi-xfs"],
)
def place(request: pytest.FixtureRequest, guest: Machine, server: Server) -> Iterator[Place]:
    """A new file system, which must be without fault when the test has ended."""
    disk, partition, kind = request.param
    guest.shell(f"{MKFS[kind]} {partition} && {MOUNT[kind]} {partition} /mnt")
    yield Place(guest, server, disk, partition, kind)
    guest.shell(f"umount /mnt && {CHECK[kind]} {partition}")


def test_a_tree_keeps_its_checksums(place: Place) -> None:
    shell = place.guest.shell
    shell("mkdir /mnt/tree && cp -a /bin /lib /sbin /mnt/tree")
    shell("cd /mnt/tree && find . -type f -exec sha256sum {} + > /run/sums")
    files = int(shell("wc -l < /run/sums"))
    assert files > 40
    place.mount_anew()
    assert shell("cd /mnt/tree && sha256sum -c /run/sums").count(": OK\n") == files
    shell("cd / && find bin lib sbin -type f -exec cmp {} /mnt/tree/{} ';'")


def test_sqlite_commits(place: Place) -> None:
    shell = place.guest.shell
    shell("sqlite3 /mnt/db 'create table rows (number integer primary key, content blob)'")
    shell(
        f'for i in $(seq {ROWS}); do echo "insert into rows values ($i, randomblob(500));"; done'
        " | sqlite3 -cmd 'pragma synchronous=full' /mnt/db"
    )
    dump = shell("sqlite3 /mnt/db .dump | sha256sum")
    place.mount_anew()
    assert shell("sqlite3 /mnt/db 'pragma integrity_check'") == "ok\n"
    assert shell("sqlite3 /mnt/db 'select count(*), sum(number) from rows'") == (
        f"{ROWS}|{ROWS * (ROWS + 1) // 2}\n"
    )
    assert shell("sqlite3 /mnt/db .dump | sha256sum") == dump


def test_trimmed_space_comes_back(place: Place) -> None:
    shell = place.guest.shell
    shell("fstrim /mnt")
    empty_bytes = place.mapped_bytes()
    shell(f"dd if=/dev/urandom of=/mnt/large bs=1M count={PAYLOAD_BYTES // MIB} && sync")
    assert place.mapped_bytes() >= empty_bytes + PAYLOAD_BYTES
    stored_bytes = place.stored_bytes()
    assert stored_bytes >= PAYLOAD_BYTES
    shell("rm /mnt/large")

    def is_trimmed() -> bool:
        shell("sync && fstrim /mnt")  # XFS frees the blocks of a file some time after its removal
        return place.mapped_bytes() < empty_bytes + PAYLOAD_BYTES // 10

    wait_until(is_trimmed, "the guest trims what it has freed")
    # On the drive: segments that hold nothing else are removed. Where metadata of the file system
    # lies among the garbage, the cleaner waits until space is wanted.
    wait_until(
        lambda: place.stored_bytes() < stored_bytes - PAYLOAD_BYTES // 4, "the space comes back"
    )
