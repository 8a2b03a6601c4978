"""One run of nbdkit with our plugin: the command line, the process, and what it reports.

nbdkit embeds the distribution's Python and finds this environment's packages only when the
environment's ``bin`` comes first on PATH: the interpreter looks for itself by name, and a
``pyvenv.cfg`` beside it makes it that environment. That PATH is given to nbdkit alone. The
listeners are handed over by socket activation, the one way in which nbdkit serves several of them.

The child reports through a pipe whether it could open the pool (``reporting.py``).
"""

import fcntl
import os
import resource
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from nbd_plugin.listeners import FIRST_ACTIVATION_FD, LISTENERS_MAX, Listener
from nbd_plugin.reporting import raise_reported
from storage.errors import BadConfig, ServerNotStarted, ToolMissing

PLUGIN: Final = Path(__file__).with_name("plugin.py")

STOP_SIGNALS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
"""What tells the launcher to stop."""

# Requests of one connection that are worked on at a time; nbdkit's own default is 16.
_THREADS: Final = 16

# Variables that would lead nbdkit's Python elsewhere, or that speak of our own sockets.
_NOT_INHERITED: Final = (
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "VIRTUAL_ENV",
)


@dataclass(frozen=True)
class Tls:
    """What nbdkit needs for TLS. Exactly one of `certificates` and `psk` is given.

    certificates: folder with ca-cert.pem, server-cert.pem and server-key.pem. psk: a file written
    by psktool. verify_peer: whether clients need a certificate of the same authority.
    """

    certificates: Path | None
    psk: Path | None
    verify_peer: bool

    def check(self) -> None:
        """Look before nbdkit does, since it only warns and then serves without TLS.

        Raises: BadConfig
        """
        if self.certificates is not None and self.psk is not None:
            raise BadConfig(
                source="--tls-psk", detail="give either --tls-certificates or --tls-psk"
            )
        if self.verify_peer and self.certificates is None:
            raise BadConfig(source="--tls-verify-peer", detail="it needs --tls-certificates")
        if self.certificates is not None:
            for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
                _check_readable(self.certificates / name, f"--tls-certificates {self.certificates}")
        if self.psk is not None:
            _check_readable(self.psk, f"--tls-psk {self.psk}")

    def arguments(self) -> list[str]:
        """nbdkit's options. `on`, not `require`: the plugin demands TLS of network clients, see
        clients.py.
        """
        arguments = ["--tls=on"]
        if self.certificates is not None:
            arguments.append(f"--tls-certificates={self.certificates.absolute()}")
        if self.psk is not None:
            arguments.append(f"--tls-psk={self.psk.absolute()}")
        if self.verify_peer:
            arguments.append("--tls-verify-peer")
        return arguments


def _check_readable(path: Path, source: str) -> None:
    try:
        with path.open("rb") as file:
            is_empty = not file.read(1)
    except OSError as exc:
        raise BadConfig(
            source=source, detail=f"{path.name}: {os.strerror(exc.errno or 0)}"
        ) from exc
    if is_empty:
        raise BadConfig(source=source, detail=f"{path.name} is empty")


def find_nbdkit() -> str:
    """The path of nbdkit. Raises: ToolMissing"""
    found = shutil.which(
        "nbdkit", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
    )
    if found is None:
        raise ToolMissing(tool="nbdkit", package="nbdkit nbdkit-plugin-python")
    return found


def environment() -> dict[str, str]:
    """The environment variables with which nbdkit's Python becomes the Python that runs this
    function.
    """
    variables = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    variables["PATH"] = f"{sys.prefix}/bin:{variables.get('PATH', os.defpath)}"
    variables["PYTHONNOUSERSITE"] = "1"
    return variables


def command(
    pool: Path, memory_bytes: int | None, tls: Tls | None, needs_network_tls: bool
) -> list[str]:
    """nbdkit's command line but for the report's descriptor, which is known only when it is
    started.
    """
    arguments = [find_nbdkit(), "--foreground", "--log=stderr", f"--threads={_THREADS}"]
    arguments += tls.arguments() if tls is not None else ["--tls=off"]
    arguments += ["python", str(PLUGIN), f"pool={pool}", f"environment={sys.prefix}"]
    if memory_bytes is not None:
        arguments.append(f"memory={memory_bytes}")
    if needs_network_tls:
        arguments.append("network-tls=yes")
    return arguments


@dataclass
class DataPlane:
    """A running nbdkit.

    pidfd: readable when the process has ended. report_fd: the reading end of its report.
    """

    pid: int
    pidfd: int
    report_fd: int

    @classmethod
    def start(cls, arguments: Sequence[str], listeners: Sequence[Listener]) -> "DataPlane":
        """Start nbdkit on the listeners, in a session of its own: no signal of a terminal reaches
        it.

        Concurrency: forks; the caller has one thread, or none that holds a lock which exec would
            need.
        """
        if len(listeners) > LISTENERS_MAX:
            raise BadConfig(source="--listen", detail=f"more than {LISTENERS_MAX} addresses")
        report_fd, write_fd = os.pipe()
        variables = environment()
        # A signal that reached the child between fork and exec would meet our handler there and
        # come back to us through the pipe that both share.
        signals_before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        pid = os.fork()
        if pid == 0:
            _become_nbdkit(
                arguments, [listener.sock.fileno() for listener in listeners], write_fd, variables
            )
        signal.pthread_sigmask(signal.SIG_SETMASK, signals_before)
        os.close(write_fd)
        return cls(pid, os.pidfd_open(pid), report_fd)

    def report(self) -> None:
        """Read the report; blocks until it is there.

        Raises: the StorageError that kept the pool from being opened; ServerNotStarted when there
            was no report.
        """
        with os.fdopen(self.report_fd, "rb", closefd=False) as pipe:
            line = pipe.readline()
        if not line:
            raise ServerNotStarted(
                detail=f"nbdkit {self.wait()} before it was ready; its own message is above"
            )
        raise_reported(line)

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return

    def wait(self) -> "Ending":
        """Wait until it has ended."""
        ending = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT)
        if ending is None:
            raise ServerNotStarted(detail="its process cannot be waited for")
        return Ending(is_signal=ending.si_code != os.CLD_EXITED, status=ending.si_status)

    def close(self) -> None:
        """Forget the process. One that still runs is killed: it was given up in an error."""
        self.signal(signal.SIGKILL)
        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        os.close(self.pidfd)
        os.close(self.report_fd)


@dataclass(frozen=True)
class Ending:
    """How a process ended: its exit status, or the signal that ended it."""

    is_signal: bool
    status: int

    @property
    def is_clean(self) -> bool:
        """Whether it closed the pool and left by itself."""
        return not self.is_signal and self.status == 0

    def __str__(self) -> str:
        if self.is_signal:
            return f"was ended by {signal.Signals(self.status).name}"
        return f"ended with status {self.status}"


def _become_nbdkit(
    arguments: Sequence[str], listener_fds: Sequence[int], write_fd: int, variables: dict[str, str]
) -> NoReturn:
    """In the child: put the descriptors where socket activation wants them, and exec."""
    try:
        os.setsid()
        os.chdir("/")
        # Each disk in use has files open; the soft limit is made for programs that use select().
        _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
        # First out of the way of the numbers that are wanted.
        first_free = FIRST_ACTIVATION_FD + LISTENERS_MAX + 1
        aside = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first_free) for fd in listener_fds]
        report_fd = fcntl.fcntl(write_fd, fcntl.F_DUPFD, first_free)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        for number, fd in enumerate(aside, FIRST_ACTIVATION_FD):
            os.dup2(fd, number)
        variables["LISTEN_PID"] = str(os.getpid())
        variables["LISTEN_FDS"] = str(len(aside))
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execve(arguments[0], [*arguments, f"report-fd={report_fd}"], variables)
    except BaseException as exc:
        os.write(2, f"nearstone: cannot start {arguments[0]}: {exc}\n".encode())
        os._exit(127)
