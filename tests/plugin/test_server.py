"""`nearstone serve` with the real nbdkit: what clients see, how it starts, stops and comes back."""

import errno
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest

from storage.pool import Pool
from tests.serving import NEARSTONE, Server, nearstone

MIB = 1 << 20
DISK_SIZE_BYTES = 64 * MIB


@pytest.fixture
def pool(folder: Path) -> Path:
    """A pool with the disks `one` and `two`, closed."""
    path = folder / "pool"
    Pool.init(path)
    with Pool.open(path) as pool:
        pool.create_disk("one", DISK_SIZE_BYTES, "the first")
        pool.create_disk("two", DISK_SIZE_BYTES)
    return path


@pytest.fixture
def server(pool: Path) -> Iterator[Server]:
    with Server(pool) as server:
        yield server


def _exports(*arguments: str) -> list[dict[str, object]]:
    found = subprocess.run(
        ["nbdinfo", "--json", *arguments], capture_output=True, text=True, check=True
    )
    exports: list[dict[str, object]] = json.loads(found.stdout)["exports"]
    return exports


# --------------------------------------------------------------------------- what clients see


def test_capabilities(server: Server) -> None:
    (export,) = _exports(server.uri("one"))
    expected = {
        "export-name": "one",
        "description": "the first",
        "export-size": DISK_SIZE_BYTES,
        "is_rotational": False,
        "is_read_only": False,
        "can_cache": True,
        "can_df": True,
        "can_fast_zero": True,
        "can_flush": True,
        "can_fua": True,
        "can_multi_conn": True,
        "can_trim": True,
        "can_zero": True,
        "block_size_minimum": 1,
        "block_size_preferred": 4096,
        "block_size_maximum": 32 * MIB,
        "contexts": ["base:allocation"],
    }
    assert {name: export.get(name) for name in expected} == expected


def test_the_list_of_exports(server: Server) -> None:
    exports = _exports("--list", server.uri(""))
    assert [(export["export-name"], export["description"]) for export in exports] == [
        ("one", "the first"),
        ("two", "a disk of 64 MiB"),
    ]


def test_an_unknown_export(server: Server) -> None:
    with pytest.raises(nbd.Error) as caught:
        server.connect("three")
    assert caught.value.errnum == errno.ENOENT


def test_bytes_come_back_through_every_connection(server: Server) -> None:
    first, second, other = (server.connect(name) for name in ("one", "one", "two"))
    first.pwrite(b"\x5a" * 10_000, 123)
    assert second.pread(10_000, 123) == b"\x5a" * 10_000
    assert other.pread(10_000, 123) == bytes(10_000)
    second.trim(4096, 4096)
    second.flush()
    assert first.pread(4096, 4096) == bytes(4096)
    assert first.pread(1, 4095) == b"\x5a"
    extents: list[tuple[int, int]] = []

    def take(context: str, offset: int, entries: list[int], error: object) -> int:
        extents.extend(zip(entries[::2], entries[1::2], strict=True))
        return 0

    first.block_status(16384, 0, take)
    hole = nbd.STATE_HOLE | nbd.STATE_ZERO
    assert extents[:3] == [(4096, 0), (4096, hole), (4096, 0)]


def test_a_disk_made_while_it_runs(server: Server) -> None:
    made = nearstone(server.pool, "disk", "create", "three", "1M")
    assert made.returncode == 0, made.stderr
    assert server.connect("three").get_size() == MIB
    assert server.connect("one").get_size() == DISK_SIZE_BYTES


def test_a_new_size_is_seen_by_the_next_connection(server: Server) -> None:
    before = server.connect("one")
    grown = nearstone(server.pool, "disk", "resize", "one", "128M")
    assert grown.returncode == 0, grown.stderr
    assert before.get_size() == DISK_SIZE_BYTES
    assert server.connect("one").get_size() == 2 * DISK_SIZE_BYTES


# ---------------------------------------------------------------------------- start and refuse


def test_one_line_says_where(server: Server) -> None:
    assert server.ready_line == (
        f"Nearstone is ready: nbd+unix:///NAME?socket={server.pool}/nbd.sock\n"
    )
    assert server.process is not None
    server.process.terminate()
    assert server.process.communicate()[0] == ""


def test_a_folder_becomes_a_pool(folder: Path) -> None:
    with Server(folder / "new") as server:
        assert (server.pool / "catalog.sqlite").exists()


@pytest.mark.parametrize("options", [(), ("--socket", "other.sock")])
def test_a_second_server_is_refused(server: Server, options: tuple[str, ...]) -> None:
    second = nearstone(server.pool, "serve", *options)
    assert second.returncode == 2
    assert second.stdout == ""
    assert second.stderr.count("error:") == 1
    assert str(server.data_plane_pid) in second.stderr
    assert server.connect("one").get_size() == DISK_SIZE_BYTES


def test_a_busy_pool_is_refused(pool: Path) -> None:
    with Pool.open(pool):
        refused = nearstone(pool, "serve")
    assert refused.returncode == 2
    assert f"pid {os.getpid()}" in refused.stderr
    assert not (pool / "nbd.sock").exists()


def test_without_nbdkit(pool: Path) -> None:
    refused = subprocess.run(
        [str(NEARSTONE), "--pool", str(pool), "serve"],
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "apt install nbdkit" in refused.stderr


def test_a_python_on_path_does_not_matter(pool: Path, folder: Path) -> None:
    (folder / "bin").mkdir()
    (folder / "bin" / "python3").write_text("#!/bin/sh\nexit 1\n")
    (folder / "bin" / "python3").chmod(0o755)
    environment = {
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "PYTHONHOME": str(folder),
        "PYTHONPATH": str(folder),
        "VIRTUAL_ENV": str(folder),
    }
    # The command itself must not see PYTHONHOME, nbdkit must not even if it is set later.
    del environment["PYTHONHOME"]
    with Server(pool, env=environment) as server:
        assert server.connect("one").get_size() == DISK_SIZE_BYTES


def test_another_place_for_the_socket(pool: Path, folder: Path) -> None:
    path = folder / "my disks.sock"
    with Server(pool, "--socket", str(path)) as server:
        assert "my%20disks.sock" in server.ready_line
        client = nbd.NBD()
        client.set_export_name("one")
        client.connect_unix(str(path))
        assert not (pool / "nbd.sock").exists()
    assert not path.exists()


def test_sockets_handed_over_by_a_service_manager(pool: Path, folder: Path) -> None:
    paths = [folder / "first.sock", folder / "second.sock"]
    sockets = [socket.socket(socket.AF_UNIX) for _ in paths]
    for sock, path in zip(sockets, paths, strict=True):
        sock.bind(str(path))
        sock.listen()
    fds = [sock.fileno() for sock in sockets]
    shell = f'export LISTEN_PID=$$ LISTEN_FDS=2; exec "$0" "$@" 3<&{fds[0]} 4<&{fds[1]}'
    process = subprocess.Popen(
        ["bash", "-c", shell, str(NEARSTONE), "--pool", str(pool), "serve"],
        pass_fds=fds,
        stdout=subprocess.PIPE,
        text=True,
    )
    # Clients need not wait for the server to come up.
    clients = [nbd.NBD() for _ in paths]
    for client, path in zip(clients, paths, strict=True):
        client.set_export_name("two")
        client.connect_unix(str(path))
        assert client.get_size() == DISK_SIZE_BYTES
    assert not (pool / "nbd.sock").exists()
    process.terminate()
    assert process.communicate()[0].count("nbd+unix:///NAME?socket=") == 2
    assert process.returncode == 0
    assert [path.is_socket() for path in paths] == [True, True]
    for sock in sockets:
        sock.close()


def test_sockets_handed_over_are_all_there_is(pool: Path, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "given.sock"))
        sock.listen()
        shell = f'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$0" "$@" 3<&{sock.fileno()}'
        refused = subprocess.run(
            ["bash", "-c", shell, str(NEARSTONE), "--pool", str(pool), "serve", "--socket", "x"],
            pass_fds=[sock.fileno()],
            capture_output=True,
            text=True,
            check=False,
        )
    assert refused.returncode == 2
    assert "LISTEN_FDS" in refused.stderr


# ------------------------------------------------------------------------- stop and come back


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_it(pool: Path, number: int) -> None:
    server = Server(pool).start()
    server.connect("one").pwrite(b"x" * 4096, 0)
    assert server.stop(number) == 0
    assert not (pool / "nbd.sock").exists()
    with Pool.open(pool) as opened:
        assert opened.open_disk("one").read(0, 4096) == b"x" * 4096


def test_a_second_signal_kills_what_does_not_end(pool: Path) -> None:
    server = Server(pool).start()
    assert server.process is not None
    data_plane = server.data_plane_pid
    os.kill(data_plane, signal.SIGSTOP)
    while not _is_stopped(data_plane):
        time.sleep(0.01)
    server.process.terminate()
    while not _has_pending(data_plane, signal.SIGTERM):
        time.sleep(0.01)
    assert server.stop() == 1
    assert not (pool / "nbd.sock").exists()


def _is_stopped(pid: int) -> bool:
    """Whether every thread stands still; until then one of them may still take a signal."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return all(
        (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T" for thread in threads
    )


def _has_pending(pid: int, number: int) -> bool:
    """Whether the process was sent a signal that it has not taken yet."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pending = next(int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd"))
    return bool(pending >> (number - 1) & 1)


def test_stopping_does_not_wait_for_idle_clients(pool: Path) -> None:
    server = Server(pool).start()
    client = server.connect("one")
    assert server.stop() == 0
    with pytest.raises(nbd.Error) as caught:
        client.pread(512, 0)
    assert caught.value.errnum == errno.ENOTCONN


def test_a_busy_client_sees_a_lost_connection_never_a_failed_disk(pool: Path) -> None:
    server = Server(pool).start()
    errors: list[int] = []
    is_busy = threading.Barrier(5)

    def write() -> None:
        client = server.connect("one")
        client.pwrite(bytes(4096), 0)
        is_busy.wait()
        try:
            while True:
                client.pwrite(b"y" * 65536, 0)
        except nbd.Error as exc:
            errors.append(exc.errnum)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    is_busy.wait()
    assert server.stop() == 0
    for writer in writers:
        writer.join()
    assert set(errors) <= {errno.ENOTCONN, errno.EPIPE, errno.ECONNRESET}
    assert len(errors) == 4


def test_a_crash_loses_nothing_and_refuses_nobody(server: Server) -> None:
    server.connect("one").pwrite(b"acknowledged", 777)
    for _ in range(3):
        os.kill(server.data_plane_pid, signal.SIGKILL)
        # No waiting: the socket has been listening all the time.
        client = server.connect("one")
        assert client.pread(12, 777) == b"acknowledged"
    assert server.log().count("was ended by SIGKILL; starting it again") == 3


def test_crashing_again_and_again_ends_it(pool: Path) -> None:
    server = Server(pool).start()
    assert server.process is not None
    for _ in range(6):
        server.connect("one")
        os.kill(server.data_plane_pid, signal.SIGKILL)
    assert server.process.wait() == 3
    assert "6 times in a row" in server.log()


def test_no_restart(pool: Path) -> None:
    server = Server(pool, "--no-restart").start()
    assert server.process is not None
    os.kill(server.data_plane_pid, signal.SIGKILL)
    assert server.process.wait() == 3
    assert "was ended by SIGKILL" in server.log()
    assert not (pool / "nbd.sock").exists()


def test_a_data_plane_outlives_its_launcher(pool: Path) -> None:
    server = Server(pool).start()
    assert server.process is not None
    data_plane = server.data_plane_pid
    server.process.kill()
    server.process.wait()
    assert server.connect("one").get_size() == DISK_SIZE_BYTES
    refused = nearstone(pool, "serve")
    assert refused.returncode == 2
    assert f"pid {data_plane}" in refused.stderr
    pidfd = os.pidfd_open(data_plane)
    os.kill(data_plane, signal.SIGTERM)
    select.select([pidfd], [], [])
    os.close(pidfd)
    # Its socket is stale now; the next server clears it away.
    with Server(pool) as again:
        assert again.connect("one").get_size() == DISK_SIZE_BYTES


def test_after_kill_9_of_everything(pool: Path) -> None:
    server = Server(pool).start()
    server.connect("two").pwrite(b"acknowledged", 4095)
    server.kill()
    assert (pool / "nbd.sock").is_socket()
    with server:
        assert server.connect("two").pread(12, 4095) == b"acknowledged"


def test_ending_the_data_plane_by_hand_ends_the_server(pool: Path) -> None:
    server = Server(pool).start()
    assert server.process is not None
    os.kill(server.data_plane_pid, signal.SIGTERM)
    assert server.process.wait() == 0
