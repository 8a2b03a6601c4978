"""A real server for tests: `nearstone serve` as a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import nbd

NEARSTONE = Path(sys.prefix, "bin", "nearstone")


def nearstone(pool: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one command on a pool to its end."""
    return subprocess.run(
        [str(NEARSTONE), "--pool", str(pool), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


class Server:
    """`nearstone serve` on a pool, from `start` until `stop` or `kill`; a context manager."""

    def __init__(
        self,
        pool: Path,
        *options: str,
        pass_fds: Sequence[int] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        self.pool = pool
        self.options = options
        self.pass_fds = pass_fds
        self.env = env
        self.ready_line = ""
        self.process: subprocess.Popen[str] | None = None
        self._log = pool.parent / f"{pool.name}.log"

    def start(self) -> Self:
        """Start it and wait until it is ready. Raises: RuntimeError with what it said instead."""
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                [str(NEARSTONE), "--pool", str(self.pool), "serve", *self.options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                pass_fds=self.pass_fds,
                env=self.env,
            )
        if self.process.stdout is None:
            raise RuntimeError("no pipe")
        self.ready_line = self.process.stdout.readline()
        if not self.ready_line:
            raise RuntimeError(f"status {self.process.wait()}: {self.log()}")
        return self

    def log(self) -> str:
        """All that it wrote to its standard error, over all its runs."""
        return self._log.read_text()

    def uri(self, disk: str) -> str:
        """Where the disk is on the default Unix socket."""
        return f"nbd+unix:///{disk}?socket={self.pool}/nbd.sock"

    def connect(self, disk: str) -> nbd.NBD:
        """A libnbd client of the disk."""
        client = nbd.NBD()
        client.add_meta_context("base:allocation")
        client.connect_uri(self.uri(disk))
        return client

    @property
    def data_plane_pid(self) -> int:
        """The nbdkit process that holds the pool now."""
        while True:
            text = (self.pool / "pool.lock").read_text().strip()
            if text:
                return int(text)
            time.sleep(0.01)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal to the launcher and return its exit status."""
        if self.process is None:
            raise RuntimeError("it was not started")
        self.process.send_signal(number)
        return self._ended()

    def kill(self) -> None:
        """Kill launcher and data plane at once: what `kill -9` or the OOM killer would do."""
        if self.process is None:
            raise RuntimeError("it was not started")
        data_plane = self.data_plane_pid
        # The launcher first, or it would start the data plane again.
        self.process.kill()
        os.kill(data_plane, signal.SIGKILL)
        self._ended()
        while Path(f"/proc/{data_plane}/fd").exists() and _is_alive(data_plane):
            time.sleep(0.005)

    def _ended(self) -> int:
        if self.process is None or self.process.stdout is None:
            raise RuntimeError("it was not started")
        status = self.process.wait()
        self.process.stdout.close()
        self.process = None
        return status

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()


def _is_alive(pid: int) -> bool:
    """Whether the process still runs, and is not merely waiting for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
