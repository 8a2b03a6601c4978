"""``nearstone disk`` with a server and without."""

import os
import pty
import subprocess
from pathlib import Path

import nbd
import pytest

from storage.units import GIB, MIB
from tests.console.conftest import Cli
from tests.serving import NEARSTONE, Server

DISK_KEYS = {
    "id",
    "name",
    "size_bytes",
    "state",
    "created",
    "description",
    "stored_bytes",
    "clients",
    "problem",
    "snapshot_of",
}


def write(pool: Path, name: str, offset: int) -> None:
    """Some data through a running server."""
    client = nbd.NBD()
    client.connect_uri(f"nbd+unix:///{name}?socket={pool}/nbd.sock")
    client.pwrite(b"x" * 4096, offset)
    client.shutdown()


def test_a_disk_from_its_making_to_its_end(either: Cli) -> None:
    assert either("disk", "create", "vm1", "1G", "--description", "words").status == 0
    shown = either("disk", "show", "vm1")
    assert "1 GiB" in shown.out
    assert "words" in shown.out
    assert either("disk", "resize", "vm1", "2G").status == 0
    assert either("disk", "rename", "vm1", "vm2").status == 0
    listed = either("disk", "list").out.splitlines()
    assert listed[0].split() == ["NAME", "SIZE", "STORED", "STATE", "CLIENTS", "DESCRIPTION"]
    words = listed[1].split()
    assert (words[:3], words[5:]) == (["vm2", "2", "GiB"], ["ready", "0", "words"])
    assert either("disk", "delete", "vm2", "--yes").out == "deleted disk vm2\n"
    assert len(either("disk", "list").out.splitlines()) == 1


def test_the_keys_of_json_are_stable(either: Cli) -> None:
    made = either("disk", "create", "vm1", "1G", "--json").json
    assert set(made) == DISK_KEYS
    assert (made["name"], made["size_bytes"], made["state"]) == ("vm1", GIB, "ready")
    assert either("disk", "list", "--json").json == [made]
    shown = either("disk", "show", "vm1", "--json").json
    assert set(shown) == DISK_KEYS | {"mapped_bytes", "end_of_data_bytes", "statistics", "settings"}
    resized = either("disk", "resize", "vm1", "2G", "--json").json
    assert set(resized) == DISK_KEYS
    assert resized["size_bytes"] == 2 * GIB
    assert either("disk", "rename", "vm1", "vm2", "--json").json["name"] == "vm2"
    assert either("disk", "delete", "vm2", "--yes", "--json").json == {"deleted": "vm2"}
    assert either("disk", "list", "--json").json == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create", "vm1", "1G"), "exists already"),
        (("create", "a b", "1G"), "cannot name a disk"),
        (("create", "", "1G"), "empty"),
        (("create", "x" * 129, "1G"), "longer than"),
        (("create", "a", "-1G"), "not negative"),
        (("create", "a", "0"), "at least 512"),
        (("create", "a", "1000"), "512 or 1024"),
        (("create", "a", "300T"), "at most 256 TiB"),
        (("create", "a", "9" * 500), "too many digits"),
        (("create", "a", "1G", "--description", "a\nb"), "one line"),
        (("resize", "vm1", "-1G"), "not negative"),
        (("resize", "ghost", "1G"), "no disk 'ghost'"),
        (("rename", "vm1", "a/b"), "cannot name a disk"),
        (("rename", "vm1", "vm2"), "exists already"),
        (("rename", "ghost", "b"), "no disk 'ghost'"),
        (("show", "ghost"), "no disk 'ghost'"),
        (("delete", "ghost", "--yes"), "no disk 'ghost'"),
        (("delete", "vm1"), "--yes"),
        (("delete", "vm1@ghost", "--yes"), "no disk 'vm1@ghost'"),
        (("snapshot", "ghost"), "no disk 'ghost'"),
        (("snapshot", "vm1", "a@b"), "cannot name"),
        (("snapshot", "vm1", "a", "--group", "vm1"), "each once"),
        (("snapshot", "vm1", "a", "--group", "ghost"), "no disk 'ghost'"),
        (("snapshots", "ghost"), "no disk 'ghost'"),
        (("clone", "vm1", "vm3"), "not a snapshot"),
        (("clone", "vm1@ghost", "vm3"), "no disk 'vm1@ghost'"),
        (("rollback", "vm1", "--yes"), "not a snapshot"),
        (("rollback", "vm1@ghost"), "--yes"),
        (("attach", "ghost", "--as", "fio"), "no disk 'ghost'"),
        (("export", "ghost", "/dev/shm/x"), "no disk 'ghost'"),
    ],
)
def test_what_is_refused_changes_nothing(
    either: Cli, arguments: tuple[str, ...], words: str
) -> None:
    either("disk", "create", "vm1", "1M")
    either("disk", "create", "vm2", "1M")
    before = either("disk", "list", "--json").json
    outcome = either("disk", *arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 2
    assert either("--json", "disk", *arguments).json["error"]["exit_status"] == 2
    assert either("disk", "list", "--json").json == before


def test_create_makes_the_pool(cli: Cli, pool_dir: Path) -> None:
    assert cli("disk", "create", "bad name", "1G").status == 2
    assert not pool_dir.exists()
    outcome = cli("disk", "create", "vm1", "1G")
    assert outcome.status == 0
    assert str(pool_dir) in outcome.err
    assert (pool_dir / "catalog.sqlite").exists()


def test_shrinking_below_the_data_needs_force(cli: Cli, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "8M")
    with Server(pool_dir):
        write(pool_dir, "vm1", 5 * MIB)
        refused = cli("disk", "resize", "vm1", "1M")
        assert refused.status == 2
        assert "5,246,976" in refused.err
    assert cli("disk", "resize", "vm1", "1M").status == 2
    assert cli("disk", "resize", "vm1", "6M").status == 0
    assert cli("disk", "resize", "vm1", "1M", "--force").status == 0
    assert cli("disk", "show", "vm1", "--json").json["end_of_data_bytes"] == 0


def test_a_disk_in_use_is_not_deleted(cli: Cli, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "1M")
    with Server(pool_dir) as server:
        client = server.connect("vm1")
        assert cli("disk", "list", "--json").json[0]["clients"] == 1
        refused = cli("disk", "delete", "vm1", "--yes")
        assert refused.status == 2
        assert "in use" in refused.err
        resized = cli("disk", "resize", "vm1", "2M")
        assert "when they connect again" in resized.err
        assert cli("disk", "delete", "vm1", "--yes", "--force").status == 0
        with pytest.raises(nbd.Error):
            client.pread(512, 0)
        assert cli("disk", "list", "--json").json == []


def answer_at_a_terminal(pool: Path, answer: bytes) -> tuple[int, bytes]:
    """`disk delete vm1` at a terminal with somebody to answer. Returns: status, what was shown."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [NEARSTONE, "--pool", pool, "disk", "delete", "vm1"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        shown = b""
        while b"]: " not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, answer)
        status = process.wait()
    os.close(ours)
    return status, shown


def test_delete_asks_at_a_terminal(cli: Cli, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "1M")
    status, shown = answer_at_a_terminal(pool_dir, b"n\n")
    assert status == 2
    assert b"Delete disk vm1 (1 MiB) and all its data?" in shown
    assert len(cli("disk", "list", "--json").json) == 1
    assert answer_at_a_terminal(pool_dir, b"y\n")[0] == 0
    assert cli("disk", "list", "--json").json == []


def test_lines_are_not_cut_in_a_pipe(cli: Cli) -> None:
    name, description = "n" * 128, "d" * 1024
    cli("disk", "create", name, "1M", "--description", description)
    line = cli("disk", "list").out.splitlines()[1]
    assert line.startswith(name)
    assert line.endswith(description)


def test_markup_in_a_description_is_text(cli: Cli) -> None:
    cli("disk", "create", "vm1", "1M", "--description", "[red]not red[/red] [/]")
    assert "[red]not red[/red] [/]" in cli("disk", "list").out
