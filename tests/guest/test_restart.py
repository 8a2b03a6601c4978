"""Guests whose server is killed under load and comes back: a pause, and never an error."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from storage.units import MIB
from tests.guest.disks import VIRTIO_BLK, VIRTIO_SCSI, attach, command
from tests.guest.load import Load
from tests.guest.machine import Hardware, Machine
from tests.serving import Server
from tests.system.agreement import assert_sound
from tests.system.data_plane import wait_until

DISK_BYTES: Final = 256 * MIB
LOAD_BYTES: Final = 32 * MIB
STALL_S_MAX: Final = 5.0
"""The longest that a request of the guest may take while its server restarts."""


@pytest.fixture
def guest(folder: Path, accelerator: str) -> Iterator[tuple[Server, Machine]]:
    server = Server(folder / "pool").start()
    arguments = []
    for name, bus in (("raw", VIRTIO_BLK), ("files", VIRTIO_SCSI)):
        command(server.pool, "disk", "create", name, str(DISK_BYTES))
        arguments += attach(server.pool, name, bus)
    with Machine(folder, Hardware(accelerator, arguments)) as machine:
        yield server, machine
    server.stop()
    assert_sound(server.pool)


def test_the_server_is_killed_under_load(guest: tuple[Server, Machine]) -> None:
    server, machine = guest
    shell = machine.shell
    shell("mkfs.ext4 -q -F /dev/sda && mount -t ext4 /dev/sda /mnt")
    shell("sqlite3 /mnt/db 'create table rows (number integer primary key, content blob)'")
    shell(
        "(while [ ! -e /run/stop ]; do echo 'insert into rows (content) values (randomblob(500));';"
        " done | sqlite3 /mnt/db > /run/sqlite 2>&1; echo $? > /run/sqlite-status) &"
    )
    load = Load(shell, "/dev/vda", LOAD_BYTES)
    load.wait_for_progress()

    for _ in range(2):  # the data plane alone: the launcher starts it again
        _kill_data_plane(server)
        load.wait_for_progress()
    server.kill()  # the launcher too: somebody starts the server again
    server.start()
    load.wait_for_progress()

    done = load.finish()
    assert done.longest_s < STALL_S_MAX
    shell("while [ ! -e /run/sqlite-status ]; do sleep 0.1; done")
    assert shell("cat /run/sqlite /run/sqlite-status") == "0\n"
    assert shell("sqlite3 /mnt/db 'pragma integrity_check'") == "ok\n"
    shell("umount /mnt && e2fsck -f -n /dev/sda")
    assert machine.qmp("query-status")["status"] == "running"
    assert "BLOCK_IO_ERROR" not in machine.qmp.event_names()
    assert "I/O error" not in shell("dmesg")


def _kill_data_plane(server: Server) -> None:
    killed = server.data_plane_pid
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: server.data_plane_pid != killed, "the data plane is started again")
