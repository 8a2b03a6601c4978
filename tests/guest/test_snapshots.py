"""Snapshots of a guest's disks, taken while it writes to them."""

from pathlib import Path
from typing import Final

from tests.guest import commits
from tests.guest.disks import VIRTIO_BLK, attach, command
from tests.guest.machine import Hardware, Machine
from tests.serving import Server

COMMITS_BETWEEN: Final = 15
SNAPSHOTS: Final = 3


def test_clones_of_a_busy_guest_need_only_their_journals(folder: Path, accelerator: str) -> None:
    disks = [place.disk for place in commits.PLACES]
    with Server(folder / "pool") as server:
        arguments = []
        for place in commits.PLACES:
            command(server.pool, "disk", "create", place.disk, str(commits.DISK_BYTES))
            arguments += attach(server.pool, place.disk, place.bus)
        committed: list[int] = []
        with Machine(folder, Hardware(accelerator, arguments)) as machine:
            commits.prepare(machine)
            commits.begin(machine)
            for number in range(SNAPSHOTS):
                wanted = (committed[-1] if committed else 0) + COMMITS_BETWEEN
                committed.append(commits.wait_for_commit(machine, wanted))
                # Both disks at one instant: a guest's file systems may refer to each other.
                first, second = disks
                command(server.pool, "disk", "snapshot", first, f"at{number}", "--group", second)
            # The guest has not noticed.
            commits.wait_for_commit(machine, committed[-1] + COMMITS_BETWEEN)
            assert machine.qmp("query-status")["status"] == "running"
            assert "BLOCK_IO_ERROR" not in machine.qmp.event_names()

        arguments = []
        for number in range(SNAPSHOTS):
            for disk in disks:
                clone = f"{disk}-{number}"
                command(server.pool, "disk", "clone", f"{disk}@at{number}", clone)
                arguments += attach(server.pool, clone, VIRTIO_BLK)
        letters = iter("abcdefghijklmnop")
        with Machine(folder, Hardware(accelerator, arguments)) as machine:
            for number in range(SNAPSHOTS):
                devices = {disk: f"/dev/vd{next(letters)}" for disk in disks}
                commits.verify(machine, devices, committed[number])
