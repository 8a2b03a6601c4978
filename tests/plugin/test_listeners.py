"""The launcher's sockets: addresses, stale files, who may listen where, what is handed over."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nbd_plugin import clients
from nbd_plugin.listeners import (
    Listener,
    demand_protection,
    inherited,
    listen_tcp,
    listen_unix,
)
from storage.errors import BadConfig


@pytest.fixture
def unix(folder: Path) -> Iterator[Listener]:
    with closing(listen_unix(folder / "a b.sock")) as listener:
        yield listener


@pytest.fixture
def loopback() -> Iterator[Listener]:
    (listener,) = listen_tcp("127.0.0.1:0")
    with closing(listener):
        yield listener


def test_uris(unix: Listener, loopback: Listener) -> None:
    assert unix.path is not None
    assert unix.uri(False, "d") == f"nbd+unix:///d?socket={unix.path.parent}/a%20b.sock"
    port = loopback.sock.getsockname()[1]
    assert loopback.uri(False, "d") == f"nbd://127.0.0.1:{port}/d"
    assert loopback.uri(True, "d") == f"nbds://127.0.0.1:{port}/d"


def test_the_file_goes_with_its_listener(folder: Path) -> None:
    listener = listen_unix(folder / "s")
    assert (folder / "s").is_socket()
    listener.close()
    assert not (folder / "s").exists()


@pytest.mark.parametrize(("umask", "mode"), [(0, 0o660), (0o022, 0o640), (0o077, 0o600)])
def test_others_may_never_connect(folder: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with closing(listen_unix(folder / "s")):
            assert stat.S_IMODE((folder / "s").stat().st_mode) == mode
    finally:
        os.umask(before)


def test_another_ones_file_stays(folder: Path) -> None:
    listener = listen_unix(folder / "s")
    (folder / "s").unlink()
    with closing(listen_unix(folder / "s")):
        listener.close()
        assert (folder / "s").is_socket()


def test_a_stale_socket_is_replaced(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(folder / "s"))
    listen_unix(folder / "s").close()


def test_a_socket_in_use_is_not_touched(unix: Listener) -> None:
    assert unix.path is not None
    with pytest.raises(BadConfig, match="another program listens"):
        listen_unix(unix.path)
    assert unix.path.is_socket()


def test_a_file_that_is_no_socket_is_not_touched(folder: Path) -> None:
    (folder / "s").write_text("precious")
    with pytest.raises(BadConfig, match="not a socket"):
        listen_unix(folder / "s")
    assert (folder / "s").read_text() == "precious"


def test_a_path_too_long_for_a_socket(folder: Path) -> None:
    with pytest.raises(BadConfig, match="107 bytes"):
        listen_unix(folder / ("x" * 107))


def test_a_folder_that_is_not_there(folder: Path) -> None:
    with pytest.raises(BadConfig, match="No such file"):
        listen_unix(folder / "none" / "s")


@pytest.mark.parametrize(
    "address", ["host:port", "127.0.0.1:65536", "[::1", "[::1]x", "127.0.0.1:-1", "no host:1"]
)
def test_bad_addresses(address: str) -> None:
    with pytest.raises(BadConfig, match="--listen"):
        listen_tcp(address)


def test_a_port_in_use(loopback: Listener) -> None:
    port = loopback.sock.getsockname()[1]
    with pytest.raises(BadConfig, match="in use"):
        listen_tcp(f"127.0.0.1:{port}")


def test_ipv6() -> None:
    (listener,) = listen_tcp("[::1]:0")
    with closing(listener):
        assert listener.uri(False, "d").startswith("nbd://[::1]:")


def test_every_address_gets_the_same_port() -> None:
    listeners = listen_tcp(":0")
    ports = {listener.sock.getsockname()[1] for listener in listeners}
    for listener in listeners:
        listener.close()
    assert len(ports) == 1


def test_the_network_needs_tls_or_insistence() -> None:
    demand_protection([], has_tls=False, is_insecure=False)
    demand_protection(["127.0.0.1:1"], has_tls=True, is_insecure=False)
    demand_protection(["127.0.0.1:1"], has_tls=False, is_insecure=True)
    with pytest.raises(BadConfig, match="--tls-certificates"):
        demand_protection(["127.0.0.1:1"], has_tls=False, is_insecure=False)
    with pytest.raises(BadConfig, match="HOST:PORT"):
        demand_protection(["127.0.0.1:x"], has_tls=True, is_insecure=False)


def _report_inherited(fds: str, pid: str, give: socket.socket) -> subprocess.CompletedProcess[str]:
    """What `inherited` finds in a process that got `give` as descriptor 3."""
    program = f"""
import os
os.dup2({give.fileno()}, 3)
from nbd_plugin.listeners import inherited
pid = str(os.getpid()) if {pid!r} == "own" else {pid!r}
found = inherited({{"LISTEN_PID": pid, "LISTEN_FDS": {fds!r}}})
print([str(listener.path) for listener in found])
"""
    return subprocess.run(
        [sys.executable, "-c", program],
        pass_fds=[give.fileno()],
        capture_output=True,
        text=True,
        check=False,
    )


def test_sockets_are_taken_over(unix: Listener) -> None:
    found = _report_inherited("1", "own", unix.sock)
    assert found.stdout.strip() == str([str(unix.path)])


def test_sockets_for_another_process_are_not(unix: Listener) -> None:
    assert _report_inherited("1", "1", unix.sock).stdout.strip() == "[]"
    assert inherited({}) == []


@pytest.mark.parametrize("fds", ["0", "17", "many", ""])
def test_a_count_that_cannot_be(fds: str) -> None:
    with pytest.raises(BadConfig, match="LISTEN_FDS"):
        inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": fds})


def test_what_is_handed_over_must_listen(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        found = _report_inherited("1", "own", deaf)
    assert "does not listen" in found.stderr


def test_connections_are_broken_and_nothing_else(unix: Listener, loopback: Listener) -> None:
    served = clients.listeners()
    assert unix.path is not None
    with (
        closing(listen_unix(unix.path.with_name("other"))) as other,
        socket.socket(socket.AF_UNIX) as a,
        socket.socket(socket.AF_UNIX) as b,
        socket.socket() as c,
    ):
        assert other.path is not None
        accepted = []
        for client, listener, address in (
            (a, unix, str(unix.path)),
            (b, other, str(other.path)),
            (c, loopback, loopback.sock.getsockname()),
        ):
            client.connect(address)
            accepted.append(listener.sock.accept()[0])
        assert clients.break_connections(served) == 2
        b.sendall(b"x")
        assert accepted[1].recv(1) == b"x"
        assert a.recv(1) == b""
        assert c.recv(1) == b""
        for sock in accepted:
            sock.close()
        with socket.socket(socket.AF_UNIX) as late:
            late.connect(str(unix.path))  # the listener itself still listens
