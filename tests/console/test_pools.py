"""``nearstone pool``, ``inspect`` and ``doctor``."""

from pathlib import Path

import pytest

from console import installation
from console.doctor import CheckResult
from tests.console.conftest import Cli
from tests.serving import Server


def test_a_pool_on_two_drives(bare: Cli, folder: Path) -> None:
    drives = [folder / "fast", folder / "slow"]
    for drive in drives:
        drive.mkdir()
    pool = folder / "pool"
    made = bare("pool", "init", pool, "--drive", drives[0], "--drive", drives[1], "--json")
    assert made.json == {"pool": str(pool), "drives": [str(drive) for drive in drives]}
    status = bare("pool", "status", "--pool", pool, "--json").json
    assert [drive["path"] for drive in status["drives"]] == [str(drive) for drive in drives]
    assert status["problems"] == []
    drives[1].rename(folder / "away")
    shown = bare("pool", "status", "--pool", pool)
    assert shown.status == 0
    assert f"problem   drive 1: there is no folder {drives[1]}" in shown.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{pool}",), "is a pool already"),
        (("{folder}/other", "--drive", "{folder}/nowhere"), "no such folder"),
        (("{folder}/other", "--drive", "{pool}"), "already"),
        (("{folder}",), "is not empty"),
        (("/proc/nearstone",), "cannot be used"),
        (("{pool}/catalog.sqlite",), "cannot be used"),
    ],
)
def test_init_refuses(
    bare: Cli, folder: Path, pool_dir: Path, arguments: tuple[str, ...], words: str
) -> None:
    bare("pool", "init", pool_dir)
    before = sorted(path for path in folder.rglob("*"))
    filled = [argument.format(pool=pool_dir, folder=folder) for argument in arguments]
    outcome = bare("pool", "init", *filled)
    assert (outcome.status, outcome.out) == (2, "")
    assert words in outcome.err
    assert sorted(path for path in folder.rglob("*")) == before


def test_status_with_a_server(cli: Cli, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "1G")
    assert "server    none runs" in cli("pool", "status").out
    with Server(pool_dir) as server:
        status = cli("pool", "status", "--json").json
        assert status["server_pid"] == server.data_plane_pid
        assert status["uris"] == [f"nbd+unix:///{{name}}?socket={pool_dir}/nbd.sock"]
        assert f"nbd+unix:///NAME?socket={pool_dir}/nbd.sock" in cli("pool", "status").out


def test_the_keys_of_json_are_stable(cli: Cli) -> None:
    cli("pool", "init")
    status = cli("pool", "status", "--json").json
    assert set(status) == {
        "pool",
        "uuid",
        "created",
        "disks",
        "provisioned_bytes",
        "stored_bytes",
        "server_pid",
        "uris",
        "drives",
        "problems",
        "statistics",
        "scrub",
    }
    assert set(status["drives"][0]) == {
        "index",
        "uuid",
        "path",
        "state",
        "problem",
        "total_bytes",
        "free_bytes",
    }


def test_a_second_server_is_refused(cli: Cli, pool_dir: Path) -> None:
    cli("pool", "init")
    with Server(pool_dir) as server:
        outcome = cli("serve")
        assert (outcome.status, outcome.out) == (2, "")
        assert f"pid {server.data_plane_pid}" in outcome.err


def test_check_needs_the_pool_for_itself(cli: Cli, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "1G")
    outcome = cli("pool", "check")
    assert outcome.status == 0
    assert "vm1" in outcome.out
    assert cli("pool", "check", "--json").json["is_sound"]
    with Server(pool_dir):
        assert cli("pool", "check").status == 2


def test_check_and_inspect_find_damage(cli: Cli, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "1G")
    anchor = pool_dir / "anchors" / "00000001.anchor"
    assert cli("inspect", anchor).status == 0
    anchor.write_bytes(b"\xa5" * 8192)
    checked = cli("pool", "check")
    assert checked.status == 1
    assert "damage: " in checked.out
    inspected = cli("inspect", anchor, "--json")
    assert inspected.status == 1
    assert inspected.json["damage"]


def test_inspect_prints_each_kind_of_file(cli: Cli, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "1G")
    with Server(pool_dir) as server:
        client = server.connect("vm1")
        client.pwrite(b"x" * 8192, 4096)
        client.shutdown()
    segment = next((pool_dir / "segments" / "00000001").iterdir())
    for file, kind in (
        (segment, "segment"),
        (pool_dir / "anchors" / "00000001.anchor", "anchor"),
        (pool_dir / "catalog.sqlite", "catalog"),
        (pool_dir / "nearstone-drive", "drive label"),
    ):
        described = cli("inspect", file)
        assert described.status == 0, described
        assert f"type: {kind}" in described.out
        assert cli("inspect", file, "--json").json["type"] == kind
    assert "kind DATA" in cli("inspect", segment, "--records").out


@pytest.mark.parametrize("file", ["/etc/passwd", "/nowhere", "/etc", "/dev/null"])
def test_inspect_of_other_peoples_files(bare: Cli, file: str) -> None:
    outcome = bare("inspect", file)
    assert (outcome.status, outcome.out) == (2, "")
    assert f"{file} cannot be inspected" in outcome.err


def test_doctor_tells_what_is_wrong(bare: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    results = [
        CheckResult("nbdkit", True, "1.32 is there"),
        CheckResult("fio", False, "missing", "install it", is_required=False),
    ]
    monkeypatch.setattr(installation, "run_checks", lambda pool: results)
    outcome = bare("doctor")
    assert outcome.status == 0
    assert outcome.out.splitlines() == [
        "ok    nbdkit: 1.32 is there",
        "note  fio: missing",
        "      install it",
    ]
    results.append(CheckResult("core", False, "cannot be loaded", "build it"))
    assert bare("doctor").status == 1
    machine = bare("doctor", "--json")
    assert machine.status == 1
    assert machine.json["ok"] is False
    assert set(machine.json["checks"][0]) == {"name", "ok", "detail", "fix", "is_required"}
