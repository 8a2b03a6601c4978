"""``nearstone disk set``: limits and compression, seen and felt."""

from pathlib import Path

import nbd
import pytest

from tests.console.conftest import Cli
from tests.serving import Server


def test_limits_are_set_shown_and_taken_away(either: Cli) -> None:
    either("disk", "create", "vm1", "1G")
    done = either("disk", "set", "vm1", "--iops", "500", "--bandwidth", "1.5M", "--burst", "30")
    assert done.out == "disk vm1: 500 requests/s, 1.5 MiB/s, burst 30 s; compression lz4\n"
    shown = either("disk", "show", "vm1").out
    assert "limits       500 requests/s, 1.5 MiB/s, burst 30 s\n" in shown
    done = either("disk", "set", "vm1", "--iops", "off", "--burst", "off", "--json")
    assert done.json["settings"] == {"bandwidth_bytes": 3 << 19, "burst_s": 0}
    done = either("disk", "set", "vm1", "--bandwidth", "off")
    assert done.out == "disk vm1: no limits; compression lz4\n"
    assert "limits" not in either("disk", "show", "vm1").out


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--iops", "0"),
        ("--iops", "5.5"),
        ("--bandwidth", "much"),
        ("--burst", "99999"),
        ("--compression", "zip"),
    ],
)
def test_nonsense_is_refused(either: Cli, options: tuple[str, ...]) -> None:
    either("disk", "create", "vm1", "1G")
    assert either("disk", "set", "vm1", *options).status == 2
    assert either("disk", "show", "vm1", "--json").json["settings"] == {}


def test_compression_is_switched_while_clients_write(cli: Cli, pool_dir: Path) -> None:
    text = b"all work and no play makes Jack a dull boy. " * 3000
    data = text[: len(text) // 4096 * 4096]

    def stored_by(client: nbd.NBD, offset: int) -> int:
        def stored() -> int:
            statistics = cli("disk", "show", "vm1", "--json").json["statistics"]
            return int(statistics["appended_bytes"] - statistics["metadata_bytes"])

        before = stored()
        client.pwrite(data, offset)
        return stored() - before

    cli("disk", "create", "vm1", "10M")
    with Server(pool_dir) as server:
        client = server.connect("vm1")
        assert stored_by(client, 0) < len(data) // 4
        done = cli("disk", "set", "vm1", "--compression", "none")
        assert done.out == "disk vm1: no limits; compression none\n"
        assert stored_by(client, 1 << 20) == len(data)
        assert "compression  none\n" in cli("disk", "show", "vm1").out
        assert server.stop() == 0
    with Server(pool_dir) as server:
        client = server.connect("vm1")
        assert stored_by(client, 2 << 20) == len(data)
        assert cli("disk", "set", "vm1", "--compression", "lz4").status == 0
        assert stored_by(client, 3 << 20) < len(data) // 4
        assert all(client.pread(len(data), at << 20) == data for at in range(4))


def _write_in_background(client: nbd.NBD) -> int:
    """Sends a write; its cookie."""
    data = nbd.Buffer.from_bytearray(bytearray(b"x" * 4096))
    return int(client.aio_pwrite(data, 0))


def test_who_waits_for_a_limit_goes_on_when_it_is_lifted(cli: Cli, pool_dir: Path) -> None:
    cli("disk", "create", "vm1", "1M")
    # More than an hour for one block.
    assert cli("disk", "set", "vm1", "--bandwidth", "1", "--burst", "off").status == 0
    with Server(pool_dir) as server:
        client = server.connect("vm1")
        cookie = _write_in_background(client)
        client.poll(100)
        assert not client.aio_command_completed(cookie)
        client.flush()  # not held up
        assert cli("disk", "set", "vm1", "--bandwidth", "off").status == 0
        while not client.aio_command_completed(cookie):
            client.poll(-1)
        assert client.pread(4096, 0) == b"x" * 4096


def test_a_server_stops_and_a_disk_goes_while_requests_wait(cli: Cli, pool_dir: Path) -> None:
    for name in ("vm1", "vm2"):
        cli("disk", "create", name, "1M")
        assert cli("disk", "set", name, "--bandwidth", "1", "--burst", "off").status == 0
    with Server(pool_dir) as server:
        doomed = server.connect("vm2")
        cookie = _write_in_background(doomed)
        doomed.poll(100)
        assert cli("disk", "delete", "vm2", "--force", "--yes").status == 0
        with pytest.raises(nbd.Error):  # answered, with an error
            while not doomed.aio_command_completed(cookie):
                doomed.poll(-1)
        client = server.connect("vm1")
        _write_in_background(client)
        client.poll(100)
        assert server.stop() == 0
