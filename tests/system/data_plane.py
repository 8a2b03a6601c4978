"""The data plane as tests need it: nbdkit with our plugin, started by the test itself.

There is no launcher that would start it again, so a test decides when it dies and when it comes
back, and a start takes a tenth of a second.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import nbd

from nbd_plugin.dataplane import command, environment
from storage.control import CONTROL_SOCKET, ControlClient

BASE_ALLOCATION: Final = "base:allocation"

# An NBD request's length has 32 bits.
_BLOCK_STATUS_BYTES_MAX: Final = 2 << 30


class DataPlane:
    """One pool's server, from `start` until `stop` or `kill`, as often as wanted.

    A context manager. What the server prints goes to a file beside the pool.
    """

    def __init__(self, pool: Path, memory_bytes: int | None = None) -> None:
        self.pool = pool
        self.socket = pool / "nbd.sock"
        self.memory_bytes = memory_bytes
        self._log = pool.parent / f"{pool.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> int:
        """Start it without waiting. Returns: what `wait_until_ready` wants."""
        self.socket.unlink(missing_ok=True)
        report_fd, write_fd = os.pipe()
        program, *options = command(self.pool, self.memory_bytes, None, False)
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [program, f"--unix={self.socket}", *options, f"report-fd={write_fd}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
                pass_fds=[write_fd],
            )
        os.close(write_fd)
        return report_fd

    def wait_until_ready(self, report_fd: int) -> None:
        """Wait until clients can be served. Raises: RuntimeError with what it said instead."""
        with os.fdopen(report_fd, "rb") as pipe:
            line = pipe.readline()
        if not line or not json.loads(line).get("ready"):
            raise RuntimeError(f"the data plane did not start: {line!r}\n{self.log()}")

    def start(self) -> Self:
        """Start it and wait until clients can be served."""
        self.wait_until_ready(self.launch())
        return self

    @property
    def is_running(self) -> bool:
        """Whether it was started and neither stopped nor killed."""
        return self._process is not None

    def is_alive(self) -> bool:
        """Whether it has not ended by itself."""
        return self.process.poll() is None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The nbdkit process."""
        if self._process is None:
            raise RuntimeError("the data plane is not running")
        return self._process

    def kill(self) -> None:
        """`kill -9`, and wait until the process is gone."""
        self.process.kill()
        self.process.wait()
        self._process = None

    def stop(self, is_damaged: bool = False) -> None:
        """Stop it in order.

        Args:
            is_damaged: the pool may not let itself be closed, which status 1 says.

        Raises: RuntimeError if it did not end as it should.
        """
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait()
        self._process = None
        if status != 0 and not (is_damaged and status == 1):
            raise RuntimeError(f"the data plane ended with status {status}\n{self.log()}")

    def log(self) -> str:
        """All that it printed, over all its runs."""
        return self._log.read_text()

    def uri(self, disk: str) -> str:
        """Where clients find the disk."""
        return f"nbd+unix:///{disk}?socket={self.socket}"

    def connect(self, disk: str) -> nbd.NBD:
        """A libnbd client of the disk that may ask for its extents."""
        client = nbd.NBD()
        client.add_meta_context(BASE_ALLOCATION)
        client.connect_uri(self.uri(disk))
        return client

    def control(self) -> ControlClient:
        """A client of the control socket."""
        return ControlClient(self.pool / CONTROL_SOCKET)

    def resident_bytes(self) -> int:
        """The resident memory of the process."""
        return self._memory_bytes("VmRSS")

    def peak_resident_bytes(self) -> int:
        """The most that it ever had."""
        return self._memory_bytes("VmHWM")

    def _memory_bytes(self, name: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) << 10

    def __enter__(self) -> Self:
        return self if self.is_running else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.is_running:
            return
        if kind is None:
            self.stop()
        else:
            self.kill()


def list_runs(client: nbd.NBD, offset: int, length: int) -> list[tuple[int, bool]]:
    """What the server says of the range: lengths, and whether each is a hole; neighbours differ.

    Raises: AssertionError when an answer makes no sense.
    """
    runs: list[tuple[int, bool]] = []
    at, end = offset, offset + length
    while at < end:
        answer = _ask_block_status(client, at, min(end - at, _BLOCK_STATUS_BYTES_MAX))
        assert answer, f"no progress at {at}"
        for run_bytes, flags in answer:
            assert run_bytes > 0
            assert flags in (0, nbd.STATE_HOLE | nbd.STATE_ZERO)
            # The last run of an answer may go beyond what was asked for.
            inside_bytes = min(run_bytes, end - at)
            at += inside_bytes
            before_bytes = runs.pop()[0] if runs and runs[-1][1] == (flags != 0) else 0
            runs.append((before_bytes + inside_bytes, flags != 0))
    return runs


def _ask_block_status(client: nbd.NBD, offset: int, length: int) -> list[tuple[int, int]]:
    entries: list[int] = []

    def take(context: str, start: int, found: list[int], error: object) -> int:
        assert (context, start) == (BASE_ALLOCATION, offset)
        entries.extend(found)
        return 0

    client.block_status(length, offset, take)
    return list(zip(entries[::2], entries[1::2], strict=True))


def wait_until(is_so: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Wait for something that happens in the background. Raises: AssertionError: it did not."""
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)
