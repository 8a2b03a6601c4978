"""How every way of ending a command looks: one message, the right status, never a traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from console import app, pools
from console.app import gather_shared_options
from storage.service import PoolService
from tests.console.conftest import Cli
from tests.serving import NEARSTONE


@pytest.mark.parametrize(
    ("given", "gathered"),
    [
        ("disk list --pool P", "--pool P disk list"),
        ("disk list --pool=P --json", "--pool=P --json disk list"),
        ("--debug disk show a", "--debug disk show a"),
        ("disk create a 1G -- --json", "disk create a 1G -- --json"),
        ("disk list --pool", "disk list --pool"),
        ("", ""),
    ],
)
def test_shared_options_may_stand_anywhere(given: str, gathered: str) -> None:
    assert gather_shared_options(given.split()) == gathered.split()


@pytest.mark.parametrize("arguments", [(), ("disk",), ("pool",)])
def test_a_command_that_is_missing_gets_help(bare: Cli, arguments: tuple[str, ...]) -> None:
    outcome = bare(*arguments)
    assert outcome.status == 2
    assert "Commands" in outcome.out
    assert outcome.err == ""


def test_version(bare: Cli) -> None:
    outcome = bare("--version")
    assert outcome.status == 0
    assert outcome.out.startswith("nearstone 0.")


@pytest.mark.parametrize(
    "arguments",
    [
        ("disk", "crate"),
        ("disk", "create"),
        ("disk", "create", "a"),
        ("disk", "create", "a", "1G", "more"),
        ("disk", "list", "--frob"),
        ("disk", "attach", "a"),
        ("disk", "attach", "a", "--as", "toaster"),
        ("disk", "export", "a", "b", "--format", "tiff"),
        ("--frob",),
        ("disk", "list", "--pool"),
    ],
)
def test_a_wrong_command_line(cli: Cli, arguments: tuple[str, ...], pool_dir: Path) -> None:
    outcome = cli(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    lines = outcome.err.splitlines()
    assert lines[0].startswith("error: ")
    assert "--help` explains it" in lines[1]
    assert len(lines) == 2
    assert not pool_dir.exists()
    machine = cli("--json", *arguments)
    assert (machine.status, machine.json["error"]["class"]) == (2, "UsageError")
    assert machine.json["error"]["exit_status"] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("pool", "init"),
        ("pool", "status"),
        ("pool", "check"),
        ("serve",),
        ("disk", "create", "a", "1G"),
        ("disk", "list"),
        ("disk", "import", "a", "/dev/zero"),
        ("disk", "export", "a", "b"),
    ],
)
def test_no_pool_was_named(bare: Cli, arguments: tuple[str, ...]) -> None:
    outcome = bare(*arguments)
    assert outcome.status == 2
    assert "no pool was named" in outcome.err
    assert "NEARSTONE_POOL" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("pool", "status"),
        ("pool", "check"),
        ("disk", "list"),
        ("disk", "show", "a"),
        ("disk", "resize", "a", "1G"),
        ("disk", "rename", "a", "b"),
        ("disk", "delete", "a", "--yes"),
        ("disk", "export", "a", "b"),
        ("disk", "attach", "a", "--as", "fio"),
    ],
)
def test_a_pool_that_is_not_there(cli: Cli, arguments: tuple[str, ...], pool_dir: Path) -> None:
    outcome = cli(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert f"{pool_dir} is not a pool" in outcome.err
    assert not pool_dir.exists()
    assert cli("--json", *arguments).json["error"]["fields"] == {"pool": str(pool_dir)}


def test_a_pool_that_cannot_even_be_looked_for(bare: Cli) -> None:
    for arguments in (("disk", "list"), ("disk", "create", "a", "1G"), ("pool", "init")):
        outcome = bare("--pool", "/tmp/" + "x" * 300, *arguments)
        assert (outcome.status, outcome.out) == (2, "")
        assert "File name too long" in outcome.err


def test_somebody_elses_pool(cli: Cli, pool_dir: Path, folder: Path) -> None:
    """As an ordinary user, whom this process can only try to be when it is root."""
    cli("disk", "create", "vm1", "1M")
    folder.chmod(0o755)
    # Not before everything is loaded, by a first call that is refused: the other user may
    # not be able to read the sources.
    code = (
        "import os, sys, storage._core\n"
        "from console.app import main\n"
        "given = sys.argv[:]\n"
        "sys.argv[2] = '/dev/null/nothing'\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.argv = given\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "main()\n"
    )
    command: list[str | Path] = [sys.executable, "-c", code, "--pool", pool_dir]
    for rest in (["disk", "list"], ["disk", "create", "a", "1G"], ["pool", "check"]):
        done = subprocess.run(
            [*command, *rest],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(app.__file__).parents[1],
            env={**os.environ, "XDG_CONFIG_HOME": "/nowhere"},
        )
        if os.getuid() == 0:
            assert (done.returncode, done.stdout) == (2, "")
            assert "Permission denied" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_fault_of_ours_is_one_line_and_debug_shows_more(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("pool", "init")

    def fail(found: PoolService) -> list[str]:
        raise KeyError("surprise")

    monkeypatch.setattr(pools, "_describe", fail)
    outcome = cli("pool", "status")
    assert outcome.status == 1
    assert "unexpected KeyError: 'surprise'" in outcome.err
    assert "Traceback" not in outcome.err
    assert "Traceback" in cli("pool", "status", "--debug").err


def test_interrupted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("pool", "init")

    def interrupt(found: PoolService) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(pools, "_describe", interrupt)
    outcome = cli("pool", "status")
    assert (outcome.status, outcome.out) == (app.EXIT_INTERRUPTED, "")


def test_whoever_reads_us_may_stop_reading(cli: Cli, pool_dir: Path) -> None:
    cli("pool", "init")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [NEARSTONE, "--pool", pool_dir, "disk", "list"],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert done.returncode == app.EXIT_PIPE_CLOSED
    assert done.stderr == b""


def test_sigterm_ends_a_command_quietly(folder: Path) -> None:
    fifo = folder / "image"
    os.mkfifo(fifo)
    with subprocess.Popen(
        [NEARSTONE, "inspect", fifo], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        with fifo.open("wb"):  # opened when the command has opened it
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate()
    assert (process.returncode, out, err) == (app.EXIT_TERMINATED, b"", b"")
