"""Real servers: every contender serves, is measured, and leaves nothing behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.accounting import birth_of, tree_pids
from benchmarks.contenders import CONTENDERS, Place, foreground
from benchmarks.errors import ContenderFailed, RequirementMissing
from benchmarks.fio import FioRun, run_fio
from benchmarks.server import Server
from benchmarks.units import MIB
from benchmarks.workload import PREFILL, WRITE_FLUSH_8

SIZE_BYTES = 16 * MIB


@pytest.mark.parametrize("name", list(CONTENDERS))
def test_a_contender_serves_and_stops(name: str, folder: Path) -> None:
    place = Place(folder, SIZE_BYTES)
    try:
        CONTENDERS[name].check(place)
    except RequirementMissing as missing:
        pytest.skip(str(missing))
    contender = CONTENDERS[name](place)
    try:
        uri = contender.start()
        filled, _ = run_fio(FioRun(PREFILL, uri, SIZE_BYTES, None, 1), folder)
        assert filled.written_bytes == SIZE_BYTES
        flushed, _ = run_fio(FioRun(WRITE_FLUSH_8, uri, SIZE_BYTES, 0.2, 2), folder)
        assert flushed.latency["flush"].p50_us > 0
        pids = tree_pids(contender.pid)
        assert contender.is_alive()
        assert contender.memory_bytes() > 0
        stored = contender.stored_bytes()
        assert stored is None or 0 < stored < 4 * SIZE_BYTES
        assert str(folder) not in contender.command_line()
        assert contender.version(place) != "unknown"
    finally:
        contender.stop()
    assert not contender.is_alive()
    wait_until_ended(pids)


def wait_until_ended(pids: set[int]) -> None:
    """A process that was sent SIGKILL takes a moment; one that was not stays."""
    deadline = time.monotonic() + 10
    while living := [pid for pid in pids if birth_of(pid) is not None]:
        assert time.monotonic() < deadline, f"still running: {living}"
        time.sleep(0.02)


def test_a_server_that_ends_at_once_is_an_error_with_its_last_words(folder: Path) -> None:
    command = ["sh", "-c", "echo no such luck; exit 3"]
    server = Server("luckless", command, folder / "s", folder / "log", os.environ)
    with pytest.raises(ContenderFailed, match=r"(?s)luckless: .* status 3.*no such luck"):
        server.start()
    assert not server.is_alive()


def test_children_that_outlive_their_server_are_ended(folder: Path) -> None:
    # A greeting, then a child that ignores SIGTERM.
    script = (
        "import socket, subprocess\n"
        f"listener = socket.socket(socket.AF_UNIX); listener.bind({str(folder / 's')!r})\n"
        "listener.listen()\n"
        "subprocess.Popen(['sh', '-c', 'trap \"\" TERM; while :; do sleep 1; done'])\n"
        "while True:\n"
        "    listener.accept()[0].send(b'NBDMAGIC')\n"
    )
    command = [sys.executable, "-S", "-c", script]
    server = Server("untidy", command, folder / "s", folder / "log", os.environ)
    server.start()
    pids = tree_pids(server.pid)
    assert len(pids) >= 2
    server.stop()
    wait_until_ended(pids)


def test_a_daemon_is_kept_in_the_foreground(folder: Path) -> None:
    pid_file = folder / "pid"
    daemon = f"setsid sh -c 'echo $$ > {pid_file}; exec sleep 60' &"
    process = subprocess.Popen([sys.executable, "-S", foreground.__file__, "sh", "-c", daemon])
    while not (pid_file.exists() and pid_file.read_text().strip()):
        assert process.poll() is None
    pid = int(pid_file.read_text())
    assert pid in tree_pids(process.pid)
    process.terminate()
    process.wait(30)
    assert birth_of(pid) is None
