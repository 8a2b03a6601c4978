"""``nearstone pool scrub`` and ``pool set``, on real segments with flipped bytes."""

import random
from pathlib import Path

import nbd
import pytest

from tests.console.conftest import Cli
from tests.serving import Server

EXTENT = 64 << 10


def _flip(pool: Path, content: bytes) -> None:
    """Changes one byte of an extent that holds `content`, which does not compress."""
    for file in pool.glob("segments/*/*.seg"):
        at = file.read_bytes().find(content[:64])
        if at >= 0:
            with file.open("r+b") as out:
                out.seek(at + 9)
                out.write(bytes([content[9] ^ 1]))
            return
    raise AssertionError("the content is in no segment")


def test_a_flipped_byte_is_named_and_a_deleted_one_is_not(cli: Cli, pool_dir: Path) -> None:
    choose = random.Random(3)
    kept, dead, frozen = (choose.randbytes(EXTENT) for _ in range(3))
    cli("disk", "create", "vm1", "64M")
    assert cli("pool", "scrub", "--json").json["state"] == "never"
    with Server(pool_dir) as server:
        client = server.connect("vm1")
        for at, content in enumerate((kept, dead, frozen)):
            client.pwrite(content, at << 20)
        client.trim(EXTENT, 1 << 20)
        client.flush()
        assert cli("disk", "snapshot", "vm1", "monday").status == 0
        client.pwrite(kept, 2 << 20)
        client.flush()
        sound = cli("pool", "scrub", "--now", "--json")
        assert (sound.status, sound.json["damages"]) == (0, [])
        assert sound.json["read_bytes"] == 3 * EXTENT, "what the snapshot shares is read once"
        _flip(pool_dir, dead)
        assert cli("pool", "scrub", "--now").status == 0
        _flip(pool_dir, frozen)
        found = cli("pool", "scrub", "--now", "--rate", "1G")
        assert found.status == 1
        assert "damaged: disk 'vm1@monday', 4096 bytes from byte 2097152: segment " in found.out
        assert "problem   the scrub found 1 damaged place(s)" in cli("pool", "status").out
        with pytest.raises(nbd.Error):
            server.connect("vm1@monday").pread(4096, 2 << 20)
    again = cli("pool", "scrub", "--json")
    assert (again.status, again.json["damaged"]) == (1, 1), "known after the server's end"


def test_a_schedule_runs_in_a_server(cli: Cli, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "1M")
    assert "weekly" in cli("pool", "set", "--scrub", "weekly", "--scrub-rate", "50M").out
    with Server(pool_dir):
        while cli("pool", "scrub", "--json").json["state"] != "finished":
            pass
        shown = cli("pool", "scrub", "--json").json
        assert (shown["every"], shown["rate_bytes"]) == ("weekly", 50 << 20)
        assert shown["next"] > shown["finished"]
        assert "weekly, next " in cli("pool", "status").out
    assert cli("pool", "set", "--scrub", "off", "--json").json["next"] is None


@pytest.mark.parametrize(
    "arguments",
    [
        ("set",),
        ("set", "--scrub", "hourly"),
        ("set", "--scrub-rate", "fast"),
        ("scrub", "--now", "--rate", "0"),
        ("scrub", "--rate", "5M"),
    ],
)
def test_nonsense_is_refused(either: Cli, arguments: tuple[str, ...]) -> None:
    assert either("pool", *arguments).status == 2


def test_without_a_server_the_command_reads_itself(cli: Cli, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "1M")
    done = cli("pool", "scrub", "--now")
    assert done.status == 0
    assert done.out.startswith("finished ")
