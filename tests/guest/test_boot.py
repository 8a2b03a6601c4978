"""Machines that start from their own disks, by a boot loader, alone and together."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from storage.units import MIB
from tests.guest.disks import attach, command
from tests.guest.machine import ARTIFACTS, Hardware, Machine
from tests.serving import Server
from tests.space import taken_bytes

MACHINES: Final = 8
CLONE_BYTES_MAX: Final = 8 * MIB
"""What a clone that has booted and written a name may add to the pool, at most."""


def test_machines_boot_together_from_clones_of_one_image(folder: Path, accelerator: str) -> None:
    names = [f"vm{number}" for number in range(MACHINES)]
    with Server(folder / "pool") as server:
        command(server.pool, "disk", "import", "golden", str(ARTIFACTS / "disk.img"))
        command(server.pool, "disk", "snapshot", "golden", "ready")
        bytes_before = taken_bytes(server.pool)
        for name in names:
            command(server.pool, "disk", "clone", "golden@ready", name)
        hardware = [
            Hardware(accelerator, attach(server.pool, name), boots_itself=True) for name in names
        ]
        with _booted(folder, hardware) as machines:
            for name, machine in zip(names, machines, strict=True):
                assert "/dev/vda2 / ext4 rw" in machine.shell("cat /proc/mounts")
                machine.shell(f"echo {name} > /name && sync")
        assert taken_bytes(server.pool) - bytes_before < MACHINES * CLONE_BYTES_MAX
        # Each has kept what was written to it, and nothing of the others.
        with _booted(folder, hardware[:1]) as (machine,):
            assert machine.shell("cat /name") == "vm0\n"
        with Machine(folder, _beside(accelerator, server, names)) as machine:
            for letter, name in zip("abcdefgh", names, strict=True):
                device = f"/dev/vd{letter}2"
                # The journal first: these machines were switched off, not shut down.
                machine.shell(f"mount -t ext4 {device} /mnt && grep -x {name} /mnt/name")
                machine.shell(f"umount /mnt && e2fsck -f -n {device}")


def test_root_on_a_disk_and_the_kernel_from_the_host(folder: Path, accelerator: str) -> None:
    with Server(folder / "pool") as server:
        command(server.pool, "disk", "import", "vm", str(ARTIFACTS / "disk.img"))
        hardware = Hardware(accelerator, attach(server.pool, "vm"), kernel_options="root=/dev/vda2")
        with Machine(folder, hardware) as machine:
            assert "/dev/vda2 / ext4 rw" in machine.shell("cat /proc/mounts")


@contextlib.contextmanager
def _booted(folder: Path, hardware: list[Hardware]) -> Iterator[list[Machine]]:
    """Machines that start at the same time, all of them up."""
    with contextlib.ExitStack() as stack:
        machines = [Machine(folder, one).launch() for one in hardware]
        for machine in machines:
            stack.callback(machine.kill)
        for machine in machines:
            machine.shell.wait_until_ready()
        yield machines


def _beside(accelerator: str, server: Server, names: list[str]) -> Hardware:
    words = [word for name in names for word in attach(server.pool, name)]
    return Hardware(accelerator, words)
