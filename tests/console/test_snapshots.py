"""``nearstone disk snapshot``, ``clone`` and ``rollback`` with a server and without."""

from pathlib import Path

import nbd
import pytest

from tests.console.conftest import Cli
from tests.serving import Server


def test_a_snapshot_from_its_making_to_its_end(either: Cli) -> None:
    either("disk", "create", "vm1", "1G")
    made = either("disk", "snapshot", "vm1", "monday", "--json").json
    assert [(one["name"], one["snapshot_of"]) for one in made] == [("vm1@monday", "vm1")]
    assert either("disk", "snapshot", "vm1", "monday").status == 2
    assert either("disk", "snapshot", "vm1", "tuesday").out == "made vm1@tuesday\n"
    listed = either("disk", "snapshots", "vm1").out.splitlines()
    assert [line.split()[0] for line in listed] == ["NAME", "vm1@monday", "vm1@tuesday"]
    assert [disk["name"] for disk in either("disk", "list", "--json").json] == ["vm1"]
    assert either("disk", "resize", "vm1@monday", "2G").status == 2
    assert either("disk", "rename", "vm1", "vm2").status == 0
    refused = either("disk", "delete", "vm2", "--yes")
    assert (refused.status, "2 snapshot(s)" in refused.err) == (2, True)
    assert either("disk", "clone", "vm2@monday", "vm3").status == 0
    for name in ("vm2@monday", "vm2@tuesday", "vm2", "vm3"):
        assert either("disk", "delete", name, "--yes").out == f"deleted disk {name}\n"
    assert either("disk", "list", "--json").json == []


def test_a_group_is_named_alike(either: Cli) -> None:
    for name in ("vm1", "vm2"):
        either("disk", "create", name, "1G")
    assert either("disk", "snapshot", "vm2", "--group", "vm1", "--json").status == 0
    (first,) = either("disk", "snapshots", "vm1", "--json").json
    (second,) = either("disk", "snapshots", "vm2", "--json").json
    assert first["name"].partition("@")[2] == second["name"].partition("@")[2]


def test_snapshots_are_served_read_only_and_rolled_back_to(cli: Cli, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "1M")
    with Server(pool_dir) as server:
        client = server.connect("vm1")
        client.pwrite(b"a" * 8192, 4096)
        assert cli("disk", "snapshot", "vm1", "then").status == 0
        client.pwrite(b"b" * 4096, 4096)
        snapshot = server.connect("vm1@then")
        assert snapshot.is_read_only()
        assert snapshot.pread(12288, 0) == bytes(4096) + b"a" * 8192
        assert cli("disk", "clone", "vm1@then", "vm2").status == 0
        clone = server.connect("vm2")
        clone.pwrite(b"c" * 4096, 8192)
        assert clone.pread(12288, 0) == bytes(4096) + b"a" * 4096 + b"c" * 4096
        assert snapshot.pread(12288, 0) == bytes(4096) + b"a" * 8192
        assert client.pread(12288, 0) == bytes(4096) + b"b" * 4096 + b"a" * 4096
        assert cli("disk", "rollback", "vm1@then", "--yes").status == 2, "it is in use"
        client.shutdown()
        assert cli("disk", "delete", "vm1@then", "--yes").status == 2, "it is in use"
        outcome = None
        for _ in range(100):
            outcome = cli("disk", "rollback", "vm1@then", "--yes")
            if outcome.status == 0:
                break
        assert outcome is not None
        assert outcome.status == 0, outcome.err
        assert server.connect("vm1").pread(12288, 0) == bytes(4096) + b"a" * 8192
        with pytest.raises(nbd.Error):
            server.connect("vm1@ghost")
    assert cli("pool", "check").status == 0


def test_what_changed_between_two_snapshots(cli: Cli, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "1T")
    with Server(pool_dir) as server:
        client = server.connect("vm1")
        client.pwrite(b"a" * 16384, 4096)
        assert cli("disk", "snapshot", "vm1", "a").status == 0
        client.pwrite(b"b" * 8192, 1 << 39)
        client.trim(4096, 8192)
        assert cli("disk", "snapshot", "vm1", "b").status == 0
        client.pwrite(b"c" * 4096, 0)
        found = cli("disk", "diff", "vm1@a", "vm1@b", "--json").json
    assert found["changed_bytes"] == 12288
    assert found["ranges"] == [
        {"offset": 8192, "length": 4096, "is_hole": True},
        {"offset": 1 << 39, "length": 8192, "is_hole": False},
    ]
    lines = cli("disk", "diff", "vm1@a", "vm1@b").out.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["8192", "4096", "hole"],
        [str(1 << 39), "8192", "data"],
    ]
    assert cli("disk", "diff", "vm1@b", "vm1@b", "--json").json["ranges"] == []
    refused = cli("disk", "diff", "vm1@a", "vm1")
    assert (refused.status, "snapshot" in refused.err) == (2, True)
