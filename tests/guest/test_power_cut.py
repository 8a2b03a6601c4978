"""Guests that lose their power: the journal is replayed, and nothing committed is missing."""

from pathlib import Path
from typing import Final

import pytest

from tests.guest import commits
from tests.guest.disks import attach, command
from tests.guest.machine import Hardware, Machine
from tests.serving import Server

COMMITS: Final = 40


@pytest.mark.parametrize("is_server_lost", [False, True], ids=["guest", "guest-and-server"])
def test_only_the_journal_is_replayed(
    folder: Path, accelerator: str, *, is_server_lost: bool
) -> None:
    server = Server(folder / "pool").start()
    arguments = []
    for place in commits.PLACES:
        command(server.pool, "disk", "create", place.disk, str(commits.DISK_BYTES))
        arguments += attach(server.pool, place.disk, place.bus)
    hardware = Hardware(accelerator, arguments)

    with Machine(folder, hardware) as machine:
        commits.prepare(machine)
        commits.begin(machine)
        committed = commits.wait_for_commit(machine, COMMITS)
    if is_server_lost:
        server.kill()
        server.start()

    with Machine(folder, hardware) as machine:
        devices = {place.disk: place.device for place in commits.PLACES}
        commits.verify(machine, devices, committed)
    server.stop()
