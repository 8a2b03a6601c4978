"""One NBD server process: started, waited for, and stopped by its process id.

It runs in a session of its own, so that Ctrl-C in the terminal reaches only the benchmark, which
then stops everything in order; should the benchmark itself be killed, the kernel sends the server
SIGTERM (parent-death signal).
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import interrupt
from benchmarks.accounting import birth_of, tree_pids
from benchmarks.errors import ContenderFailed

# The first 8 bytes any NBD server sends (NBD protocol, "newstyle negotiation").
_GREETING = b"NBDMAGIC"
_LOG_TAIL_BYTES = 2000
# A store may write a checkpoint when it is asked to stop.
_STOP_TIMEOUT_S = 60.0
_READY_TIMEOUT_S = 60.0
_POLL_S = 0.05


class Server:
    """A server process and its socket.

    Args:
        contender: for error messages.
        command: what to run; it must stay in the foreground.
        socket_path: the Unix socket on which it will speak NBD.
        log_path: takes its standard output and error.
        environment: its whole environment.
    """

    def __init__(
        self,
        contender: str,
        command: Sequence[str],
        socket_path: Path,
        log_path: Path,
        environment: Mapping[str, str],
    ) -> None:
        self._contender = contender
        self._command = ["setpriv", "--pdeathsig", "TERM", "--", *command]
        self._socket_path = socket_path
        self._log_path = log_path
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id while it runs (setpriv replaces itself by the server)."""
        if self._process is None:
            raise ContenderFailed(self._contender, "its server is not running")
        return self._process.pid

    def is_alive(self) -> bool:
        """Say whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and return when it greets a client.

        Raises:
            ContenderFailed: it ended or did not answer; nothing is left running.
        """
        try:
            with interrupt.deferred(), self._log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    start_new_session=True,
                )
            self._await_greeting(self._process)
        except BaseException:  # an interrupt, too, must leave nothing running
            self.stop()
            raise

    def _await_greeting(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not self._greets():
            if process.poll() is not None:
                cause = f"its server ended with status {process.returncode}"
                raise ContenderFailed(self._contender, cause, self.log_tail())
            if time.monotonic() > deadline:
                cause = f"its server did not answer within {_READY_TIMEOUT_S:.0f} s"
                raise ContenderFailed(self._contender, cause, self.log_tail())
            time.sleep(_POLL_S)

    def _greets(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            try:
                client.connect(str(self._socket_path))
                return client.recv(len(_GREETING)) == _GREETING
            except OSError:
                return False

    def stop(self) -> None:
        """Ask the server to end, wait, and end it and its children by force if it does not."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        births = {pid: birth_of(pid) for pid in tree_pids(process.pid)}
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            births |= {pid: birth_of(pid) for pid in tree_pids(process.pid)}
            process.kill()
            process.wait()
        # Children that outlive their parent would keep the drive's space and the cores busy. The
        # birth proves that a process id has not been used anew.
        for pid, birth in births.items():
            if birth is not None and birth_of(pid) == birth:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def log_tail(self) -> str:
        """Return the end of what the server printed."""
        try:
            return self._log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        except FileNotFoundError:
            return ""
