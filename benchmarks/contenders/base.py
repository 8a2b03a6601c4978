"""What every contender offers: start, stop, and what it holds."""

import os
import shlex
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.accounting import tree_memory_bytes
from benchmarks.errors import ContenderFailed, ToolMissing
from benchmarks.page_cache import allocated_bytes
from benchmarks.server import Server

_PREPARATION_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Place:
    """Where a contender works, and how large its disk is.

    Args:
        folder: empty, its own; the benchmark removes it afterwards.
        size_bytes: size of the disk.
        nearstone: path of the `nearstone` program, or None to look for it.
    """

    folder: Path
    size_bytes: int
    nearstone: Path | None = None


class Contender(ABC):
    """A server of one disk over a Unix socket.

    Life: `check` (before anything is started), `start`, any number of clients, `stop`. The disk's
    contents need not outlive `stop`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    # What a reader must know to judge the figures: what it keeps where, what it protects.
    remark: ClassVar[str]
    # (program, how to get it)
    tools: ClassVar[tuple[tuple[str, str], ...]]
    # What may be on the drive at most, and in memory, per byte of the disk.
    drive_share: ClassVar[float]
    memory_share: ClassVar[float] = 0.0

    def __init__(self, place: Place) -> None:
        self._place = place
        self._server: Server | None = None

    @classmethod
    def check(cls, place: Place) -> None:
        """Raise ToolMissing when this contender cannot run here; `place` need not exist yet."""
        for program, remedy in cls.tools:
            if shutil.which(program) is None:
                raise ToolMissing(program, cls.name, remedy)

    @property
    def socket_path(self) -> Path:
        """The Unix socket that the server listens on."""
        return self._place.folder / "nbd.sock"

    @property
    def uri(self) -> str:
        """The NBD URI of the disk, for fio, nbdcopy and the like."""
        return f"nbd+unix:///?socket={self.socket_path}"

    @property
    def pid(self) -> int:
        """Root of the server's process tree."""
        return self._running.pid

    @property
    def _running(self) -> Server:
        if self._server is None:
            raise ContenderFailed(self.name, "its server is not running")
        return self._server

    def start(self) -> str:
        """Make the disk, start the server, and return the disk's URI."""
        self._prepare()
        self._launch(self._command())
        return self.uri

    def stop(self) -> None:
        """Stop the server; harmless when it does not run."""
        if self._server is not None:
            self._server.stop()

    def is_alive(self) -> bool:
        """Say whether the server runs."""
        return self._server is not None and self._server.is_alive()

    def log_tail(self) -> str:
        """Return the end of what the server printed."""
        return "" if self._server is None else self._server.log_tail()

    def memory_bytes(self) -> int:
        """Return the server's memory without the file pages it has mapped."""
        return tree_memory_bytes(self.pid)

    def backing_files(self) -> list[Path]:
        """Return the files that hold the disk's data; none for a disk in memory."""
        return []

    def stored_bytes(self) -> int | None:
        """Return what the disk takes on the drive; None for a disk in memory."""
        files = self.backing_files()
        return allocated_bytes(files) if files else None

    def command_line(self) -> str:
        """Return the server's command for the report, folders shortened to DIR."""
        return self._shorten(self._command())

    def _shorten(self, command: list[str]) -> str:
        program, *arguments = command
        line = shlex.join([Path(program).name, *arguments])
        return line.replace(str(self._place.folder), "DIR")

    @classmethod
    @abstractmethod
    def version(cls, place: Place) -> str:
        """Return the server's version in one line."""

    @abstractmethod
    def _prepare(self) -> None:
        """Make what the server needs in the folder."""

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the command that serves in the foreground."""

    def _environment(self) -> Mapping[str, str]:
        return os.environ

    def _launch(self, command: list[str]) -> None:
        log_path = self._place.folder / "server.log"
        environment = self._environment()
        self._server = Server(self.name, command, self.socket_path, log_path, environment)
        self._server.start()

    def _make_raw_file(self, name: str) -> Path:
        """Make an empty file of the disk's size; the prefill writes all of it."""
        path = self._place.folder / name
        with path.open("xb") as file:
            file.truncate(self._place.size_bytes)
        return path

    def _run(self, command: list[str]) -> str:
        """Run a command that prepares the disk; return what it printed."""
        try:
            done = subprocess.run(
                command,
                check=False,
                capture_output=True,
                text=True,
                timeout=_PREPARATION_TIMEOUT_S,
                env=self._environment(),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ContenderFailed(self.name, f"{self._shorten(command)}: {error}") from error
        if done.returncode != 0:
            raise ContenderFailed(
                self.name,
                f"{self._shorten(command)} ended with status {done.returncode}",
                done.stderr.strip(),
            )
        return done.stdout


def first_line(command: list[str]) -> str:
    """Return the first line that a command prints (its version), or "unknown"."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0].strip() if lines else "unknown"
