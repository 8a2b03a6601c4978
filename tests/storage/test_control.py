"""The control socket against clients that hang, babble, leave and come in numbers."""

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import control
from storage.control import REQUEST_BYTES_MAX, ControlClient, ControlServer
from storage.errors import (
    BadMessage,
    DiskNotFound,
    NameTaken,
    PoolClosed,
    ProtocolMismatch,
    ServerFailed,
    ServerUnreachable,
    rebuild,
)
from storage.pool import Pool
from storage.units import MIB


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def server(pool: Pool, path: Path) -> Iterator[ControlServer]:
    with ControlServer(pool, path, ["nbd+unix:///{name}?socket=/p/nbd.sock"]) as server:
        yield server


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    sock.settimeout(10)
    return sock


def ask(sock: socket.socket, line: bytes) -> dict[str, Any]:
    sock.sendall(line)
    with sock.makefile("rb") as lines:
        reply = json.loads(lines.readline())
    assert isinstance(reply, dict)
    return reply


def request(method: str, **params: Any) -> bytes:
    message = {"version": 1, "id": 7, "method": method, "params": params}
    return json.dumps(message).encode() + b"\n"


def raised(reply: dict[str, Any]) -> Exception:
    return rebuild(reply["error"]["class"], reply["error"]["fields"], reply["error"]["message"])


def wait_until_gone(pool: Pool, name: str) -> None:
    for _ in range(500):
        if name not in {disk.name for disk in pool.list_disks()}:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{name} is still there")


def test_only_the_owner_may_connect(server: ControlServer, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_dead_servers_socket_is_replaced(pool: Pool, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with ControlServer(pool, path), ControlClient(path) as client:
        assert client.list_disks() == []
    assert not path.exists()


def test_a_path_longer_than_a_socket_address(pool: Pool, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    path = folder / "control.sock"
    with ControlServer(pool, path), ControlClient(path) as client:
        assert path.is_socket()
        assert client.list_disks() == []


def test_nobody_there(path: Path) -> None:
    with pytest.raises(ServerUnreachable) as caught:
        ControlClient(path)
    assert caught.value.socket == str(path)


def test_the_reply_on_the_wire(server: ControlServer, path: Path) -> None:
    with connect(path) as sock:
        assert ask(sock, request("disk.list")) == {"id": 7, "result": []}
        reply = ask(sock, request("disk.show", name="ghost"))
        assert reply["id"] == 7
        assert reply["error"] == {
            "class": "DiskNotFound",
            "fields": {"disk": "ghost"},
            "message": str(DiskNotFound(disk="ghost")),
        }


def test_status_names_the_server(server: ControlServer, path: Path) -> None:
    with ControlClient(path) as client:
        status = client.status()
    assert status.server_pid == os.getpid()
    assert status.uris == ["nbd+unix:///{name}?socket=/p/nbd.sock"]


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"nonsense\n",
        b"[]\n",
        b"\xff\xfe\n",
        b"[" * 50_000 + b"\n",
        b'{"version": 1}\n',
        b'{"version": 1, "id": 7, "method": "disk.create", "params": []}\n',
        b'{"version": 1, "id": true, "method": "disk.list"}\n',
        request("disk.fly"),
        request("disk.show"),
        request("disk.show", name=3),
        request("disk.create", name="a", size_bytes="4096"),
        request("disk.create", name="a", size_bytes=True),
        request("disk.create", name="a", size_bytes=4096.0),
        request("disk.create", name="a", size_bytes=4096, importing=1),
        request("disk.delete", name="a", force="yes"),
    ],
)
def test_nonsense_is_answered_and_the_connection_stays(
    server: ControlServer, path: Path, line: bytes
) -> None:
    with connect(path) as sock:
        assert isinstance(raised(ask(sock, line)), BadMessage)
        assert ask(sock, request("disk.list"))["result"] == []


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_refused(server: ControlServer, path: Path, version: object) -> None:
    line = json.dumps({"version": version, "id": 1, "method": "disk.list"}).encode() + b"\n"
    with connect(path) as sock:
        assert isinstance(raised(ask(sock, line)), ProtocolMismatch)


def test_a_line_without_end_is_cut_off(server: ControlServer, path: Path) -> None:
    with connect(path) as sock:
        reply = ask(sock, b" " * (REQUEST_BYTES_MAX + 1))
        assert isinstance(raised(reply), BadMessage)
        assert sock.recv(1) == b""
    with connect(path) as sock:
        assert ask(sock, request("disk.list"))["result"] == []


def test_hung_clients_harm_nobody(server: ControlServer, path: Path) -> None:
    hung = [connect(path) for _ in range(control._CONNECTIONS_MAX + 10)]
    for sock in hung[:20]:
        with_half_a_request = b'{"version": 1'
        try:
            sock.sendall(with_half_a_request)
        except OSError:
            continue  # let go already
    with ControlClient(path) as client:
        for turn in range(3):
            client.create_disk(f"vm{turn}", MIB)
    for sock in hung:
        sock.close()


def test_a_client_that_reads_nothing_harms_nobody(server: ControlServer, path: Path) -> None:
    with connect(path) as greedy, ControlClient(path) as client:
        client.create_disk("vm1", MIB, "x" * 1000)
        greedy.setblocking(False)
        try:
            for _ in range(10_000):
                greedy.sendall(request("disk.list"))
        except BlockingIOError:
            pass
        assert [disk.name for disk in client.list_disks()] == ["vm1"]


def test_several_clients_at_once(server: ControlServer, path: Path) -> None:
    outcomes: list[str] = []

    def work(seed: int) -> None:
        with ControlClient(path) as client:
            for turn in range(5):
                client.create_disk(f"vm-{seed}-{turn}", MIB)
            try:
                client.create_disk("same", MIB)
                outcomes.append("made")
            except NameTaken:
                outcomes.append("taken")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["made"] + ["taken"] * 5
    with ControlClient(path) as client:
        assert len(client.list_disks()) == 31


class TestImport:
    def test_is_undone_when_the_importer_goes(
        self, server: ControlServer, path: Path, pool: Pool
    ) -> None:
        with ControlClient(path) as client:
            client.create_disk("vm1", MIB, importing=True)
            pool.open_disk("vm1").write(0, b"half")
        wait_until_gone(pool, "vm1")

    def test_stays_when_it_is_finished(self, server: ControlServer, path: Path, pool: Pool) -> None:
        with ControlClient(path) as client:
            client.create_disk("vm1", MIB, importing=True)
            client.finish_import("vm1")
            client.create_disk("vm2", MIB, importing=True)
        wait_until_gone(pool, "vm2")
        assert [disk.name for disk in pool.list_disks()] == ["vm1"]

    def test_is_not_mistaken_for_a_later_disk_of_the_name(
        self, server: ControlServer, path: Path, pool: Pool
    ) -> None:
        with ControlClient(path) as client:
            client.create_disk("vm1", MIB, importing=True)
            client.create_disk("vm2", MIB, importing=True)
            pool.delete_disk("vm1")
            pool.create_disk("vm1", MIB)
        wait_until_gone(pool, "vm2")
        assert [disk.name for disk in pool.list_disks()] == ["vm1"]

    def test_is_undone_when_the_server_goes(self, pool: Pool, path: Path) -> None:
        with ControlServer(pool, path), ControlClient(path) as client:
            client.create_disk("vm1", MIB, importing=True)
        assert pool.list_disks() == []


def test_a_closed_server_says_so(pool: Pool, path: Path) -> None:
    server = ControlServer(pool, path)
    server.start()
    with ControlClient(path) as client:
        server.close()
        server.close()
        with pytest.raises(ServerUnreachable):
            client.list_disks()


def test_a_pool_that_closes_first(server: ControlServer, path: Path, pool: Pool) -> None:
    with ControlClient(path) as client:
        pool.close()
        with pytest.raises(PoolClosed):
            client.list_disks()


def test_a_fault_of_ours_is_one_error_not_a_dead_connection(
    server: ControlServer, path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Pool) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(Pool, "list_disks", fail)
    with ControlClient(path) as client:
        with pytest.raises(ServerFailed, match="surprise"):
            client.list_disks()
        monkeypatch.undo()
        assert client.list_disks() == []


@pytest.mark.parametrize(
    "line", [b"", b"nonsense\n", b"[]\n", b"{}\n", b'{"id": 99, "result": []}\n', b'{"error": 1}\n']
)
def test_a_server_that_talks_nonsense(path: Path, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def babble() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1000)
                sock.sendall(line)

        thread = threading.Thread(target=babble)
        thread.start()
        with ControlClient(path) as client, pytest.raises(ServerUnreachable):
            client.list_disks()
        thread.join()
