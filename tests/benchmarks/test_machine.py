from pathlib import Path

from benchmarks.machine import describe_machine, parse_mounts

MOUNTS = """\
/dev/vda / ext4 rw 0 0
tmpfs /run tmpfs rw 0 0
/dev/vdb /run/data xfs rw 0 0
/dev/vdc /run/data xfs rw 0 0
"""


def test_the_deepest_and_latest_mount_holds_a_path() -> None:
    assert parse_mounts(MOUNTS, "/home/x") == ("/dev/vda", "ext4")
    assert parse_mounts(MOUNTS, "/run") == ("tmpfs", "tmpfs")
    assert parse_mounts(MOUNTS, "/run/data/x") == ("/dev/vdc", "xfs")
    assert parse_mounts(MOUNTS, "/running") == ("/dev/vda", "ext4")
    assert parse_mounts("", "/") == ("unknown", "unknown")


def test_this_machine_has_a_description(tmp_path: Path) -> None:
    machine = describe_machine(tmp_path)
    assert machine.cores > 0
    assert machine.memory_bytes > 0
    assert machine.kernel
    assert machine.fio.startswith("fio-")
    assert str(tmp_path) not in machine.drive
