"""`nearstone serve`: binds the listeners, runs the data plane on them, and keeps it running.

Life of a server
1. Take the pool's folder (flock on the folder itself), so that two launchers cannot bind one
   socket; and see that no data plane holds ``pool.lock``: one may have outlived its launcher. Only
   then is a stale socket removed.
2. Bind the listeners; keep them to the end.
3. Start the data plane and wait for its report; print the one line. From here on it depends on the
   launcher no more: guests keep their disks if that is killed.
4. SIGTERM, SIGINT and SIGHUP stop it: the data plane lets go of its clients, closes the pool and
   ends. A second signal kills it, which costs a recovery at the next start and nothing else.
5. A data plane that ends without having been told to is started again on the same listeners:
   clients find a queue, not a refusal. Five times within a minute is too often.
"""

import contextlib
import fcntl
import os
import select
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nbd_plugin.dataplane import STOP_SIGNALS, DataPlane, Ending, Tls, command
from nbd_plugin.listeners import Listener, demand_protection, inherited, listen_tcp, listen_unix
from storage.catalog import CATALOG_FILE
from storage.errors import BadConfig, PoolBusy, PoolFolderUnusable, ServerFailed
from storage.lock import LOCK_FILE, PoolLock
from storage.pool import Pool

SOCKET_NAME: Final = "nbd.sock"

# Our own signal, before the data plane had opened anything and minded it.
_ENDED_BEFORE_SERVING: Final = Ending(is_signal=True, status=signal.SIGTERM)

_RESTARTS_MAX: Final = 5
_RESTARTS_WITHIN_S: Final = 60.0


@dataclass(frozen=True)
class ServeOptions:
    """What `nearstone serve` was told.

    socket: of the Unix listener, POOL/nbd.sock when None. listen: TCP addresses, see
    `listeners.listen_tcp`. memory_bytes: of the store, its default when None. restart: whether a
    crashed data plane is started again.
    """

    pool: Path
    socket: Path | None = None
    listen: Sequence[str] = ()
    tls_certificates: Path | None = None
    tls_psk: Path | None = None
    tls_verify_peer: bool = False
    insecure: bool = False
    memory_bytes: int | None = None
    restart: bool = True

    def tls(self) -> Tls | None:
        """The TLS settings, checked. Raises: BadConfig"""
        tls = Tls(self.tls_certificates, self.tls_psk, self.tls_verify_peer)
        tls.check()
        return tls if tls.certificates is not None or tls.psk is not None else None


def serve(options: ServeOptions) -> int:
    """Serve the pool in the foreground until a signal says to stop. Main thread only.

    A folder that is no pool yet becomes one.

    Returns: 0 after a clean stop, 1 when the stop had to be forced.
    Raises: StorageError: it could not start, or the data plane crashed and may not be started
        again.
    """
    with contextlib.ExitStack() as stack:
        arguments, listeners, has_tls = _prepare(options, stack, inherited(os.environ))
        signals = stack.enter_context(_signal_pipe())
        arguments.append("outlive-launcher=yes")
        ready_line = f"Nearstone is ready: {' and '.join(_uris(listeners, has_tls, 'NAME'))}"
        return _supervise(arguments, listeners, signals, ready_line, options.restart)


@contextlib.contextmanager
def private_server(pool: Path, memory_bytes: int | None = None) -> Iterator[Path]:
    """A server for the caller alone, on a Unix socket in a temporary folder, for the duration of
    the block.

    Yields: the path of its socket. The server ends when this process does, however that happens.
    Raises: StorageError: it could not start.
    """
    with (
        tempfile.TemporaryDirectory(prefix="nearstone-") as folder,
        contextlib.ExitStack() as stack,
    ):
        options = ServeOptions(pool, socket=Path(folder, SOCKET_NAME), memory_bytes=memory_bytes)
        arguments, listeners, _ = _prepare(options, stack, [])
        data_plane = DataPlane.start(
            [arguments[0], "--exit-with-parent", *arguments[1:]], listeners
        )
        try:
            data_plane.report()
            yield Path(folder, SOCKET_NAME)
        finally:
            data_plane.signal(signal.SIGTERM)
            data_plane.wait()
            data_plane.close()


def _prepare(
    options: ServeOptions, stack: contextlib.ExitStack, handed_over: Sequence[Listener]
) -> tuple[list[str], Sequence[Listener], bool]:
    """Take the pool's folder and bind the listeners, for as long as `stack` is open.

    Returns: nbdkit's command line, the listeners, whether there is TLS.
    """
    pool = Path(os.path.abspath(options.pool))  # noqa: PTH100  links stay as the operator wrote them
    if handed_over and (options.socket or options.listen):
        raise BadConfig(
            source="LISTEN_FDS", detail="--socket and --listen cannot add to its sockets"
        )
    tls = options.tls()
    network = [listener.address for listener in handed_over if listener.is_network]
    demand_protection([*network, *options.listen], tls is not None, options.insecure)
    arguments = command(pool, options.memory_bytes, tls, tls is not None and not options.insecure)
    if not (pool / CATALOG_FILE).exists():
        Pool.init(pool)
    stack.enter_context(_folder_taken(pool))
    listeners = list(handed_over)
    if not listeners:
        listeners.append(listen_unix(options.socket or pool / SOCKET_NAME))
        stack.callback(listeners[0].close)
        for address in options.listen:
            for listener in listen_tcp(address):
                listeners.append(listener)
                stack.callback(listener.close)
    arguments += [f"uri={uri}" for uri in _uris(listeners, tls is not None, "{name}")]
    return arguments, listeners, tls is not None


def _uris(listeners: Sequence[Listener], has_tls: bool, disk: str) -> list[str]:
    return [listener.uri(has_tls and listener.is_network, disk) for listener in listeners]


@contextlib.contextmanager
def _folder_taken(pool: Path) -> Iterator[None]:
    """Keep other launchers away from the pool. Raises: PoolBusy, PoolFolderUnusable"""
    try:
        folder_fd = os.open(pool, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise PoolFolderUnusable(pool=str(pool), detail=os.strerror(exc.errno or 0)) from exc
    try:
        try:
            fcntl.flock(folder_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PoolBusy(pool=str(pool), pid=_holder(pool)) from None
        # A data plane whose launcher was killed, or an offline command, has the pool itself.
        PoolLock(pool).release()
        yield
    finally:
        os.close(folder_fd)


def _holder(pool: Path) -> int | None:
    try:
        return int((pool / LOCK_FILE).read_text())
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _signal_pipe() -> Iterator[int]:
    """Turn the stop signals into bytes. Yields: the descriptor to read them from."""
    reading_fd, writing_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
    wakeup_before = signal.set_wakeup_fd(writing_fd, warn_on_full_buffer=False)
    try:
        yield reading_fd
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading_fd)
        os.close(writing_fd)


def _supervise(
    arguments: Sequence[str],
    listeners: Sequence[Listener],
    signals_fd: int,
    ready_line: str,
    may_restart: bool,
) -> int:
    """Run data planes, one after the other, until one ends that should. Returns and raises like
    `serve`.
    """
    starts_s: deque[float] = deque(maxlen=_RESTARTS_MAX + 1)
    is_first = True
    while True:
        starts_s.append(time.monotonic())
        ending, signals_seen = _run(
            arguments, listeners, signals_fd, ready_line if is_first else None
        )
        is_first = False
        if signals_seen or ending.is_clean:
            return 0 if ending.is_clean or ending == _ENDED_BEFORE_SERVING else 1
        if not may_restart:
            raise ServerFailed(kind="nbdkit", detail=str(ending))
        if len(starts_s) > _RESTARTS_MAX and time.monotonic() - starts_s[0] < _RESTARTS_WITHIN_S:
            raise ServerFailed(
                kind="nbdkit", detail=f"{ending}, {_RESTARTS_MAX + 1} times in a row"
            )
        print(f"nearstone: the data plane {ending}; starting it again", file=sys.stderr, flush=True)


def _run(
    arguments: Sequence[str], listeners: Sequence[Listener], signals_fd: int, ready_line: str | None
) -> tuple[Ending, int]:
    """One data plane from start to end. Returns: how it ended, and how many signals to stop came
    meanwhile.
    """
    data_plane = DataPlane.start(arguments, listeners)
    signals_seen = 0
    waiting_for = [data_plane.report_fd, data_plane.pidfd, signals_fd]
    try:
        while True:
            readable, _, _ = select.select(waiting_for, [], [])
            if signals_fd in readable:
                os.read(signals_fd, 16)
                signals_seen += 1
                data_plane.signal(signal.SIGTERM if signals_seen == 1 else signal.SIGKILL)
            if data_plane.report_fd in readable:
                waiting_for.remove(data_plane.report_fd)
                if not signals_seen:
                    data_plane.report()
                    if ready_line is not None:
                        print(ready_line, flush=True)
            elif data_plane.pidfd in readable:
                return data_plane.wait(), signals_seen
    finally:
        data_plane.close()
