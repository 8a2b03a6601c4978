"""The control socket: the operations of `PoolService` on a pool that another process holds.

One JSON object a line, over a Unix socket that only its owner may use::

    → {"version": 1, "id": 7, "method": "disk.create", "params": {"name": "a", "size_bytes": 4096}}
    ← {"id": 7, "result": {"id": 3, "name": "a", …}}
    ← {"id": 7, "error": {"class": "NameTaken", "fields": {"name": "a"}, "message": "a disk …"}}

A connection carries one request at a time. Errors travel as the class and the fields of a leaf of
`storage.errors` and are raised as that leaf at the client.

An import belongs to the connection that began it: when that ends before `disk.finish_import`, the
server deletes the disk, so that a client that was killed leaves nothing behind.

Concurrency: one thread accepts, each connection has a thread of its own, all of them block and none
polls. A client that hangs therefore holds up nobody; when there are too many, the one that has been
silent for longest is let go.
"""

import contextlib
import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

from storage.errors import (
    BadMessage,
    PoolClosed,
    ProtocolMismatch,
    ServerFailed,
    ServerUnreachable,
    StorageError,
    rebuild,
)
from storage.service import (
    ChangedRanges,
    DiskDetails,
    DiskInfo,
    DiskState,
    PoolService,
    PoolStatus,
    ScrubReport,
)

PROTOCOL_VERSION: Final = 1
CONTROL_SOCKET: Final = "control.sock"

REQUEST_BYTES_MAX: Final = 64 << 10
"""A longer line ends its connection: no request comes near it."""
_REPLY_BYTES_MAX: Final = 64 << 20  # a list of 100,000 disks
_CONNECTIONS_MAX: Final = 64
# How long a reply may wait for a client that does not read. Its thread waits, nobody else.
_SEND_TIMEOUT_S: Final = 30
# sizeof(sun_path) less the final zero, see unix(7).
_SOCKET_PATH_BYTES_MAX: Final = 107

_log = logging.getLogger(__name__)

Params = Mapping[str, Any]


def _text(params: Params, name: str, default: str | None = None) -> str:
    value = params.get(name, default)
    if not isinstance(value, str):
        raise BadMessage(reason=f"{name} must be a string")
    return value


def _texts(params: Params, name: str) -> list[str]:
    values = params.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadMessage(reason=f"{name} must be a list of strings")
    return values


def _number(params: Params, name: str) -> int:
    value = params.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadMessage(reason=f"{name} must be a whole number")
    return value


def _flag(params: Params, name: str) -> bool:
    value = params.get(name, False)
    if not isinstance(value, bool):
        raise BadMessage(reason=f"{name} must be true or false")
    return value


def _changes(params: Params) -> Mapping[str, Any]:
    changes = params.get("changes")
    if not isinstance(changes, dict):
        raise BadMessage(reason="changes must be an object")
    return changes


# What each method does on the server; whatever it returns is fit for JSON.
_METHODS: Final[Mapping[str, Callable[[PoolService, Params], Any]]] = {
    "pool.status": lambda pool, p: pool.status().to_json(),
    "pool.set": lambda pool, p: pool.set_pool(_changes(p)).to_json(),
    "pool.scrub": lambda pool, p: pool.start_scrub(
        None if p.get("rate_bytes") is None else _number(p, "rate_bytes")
    ).to_json(),
    "pool.scrub_report": lambda pool, p: pool.scrub_report().to_json(),
    "disk.list": lambda pool, p: [disk.to_json() for disk in pool.list_disks()],
    "disk.show": lambda pool, p: pool.show_disk(_text(p, "name")).to_json(),
    "disk.create": lambda pool, p: pool.create_disk(
        _text(p, "name"),
        _number(p, "size_bytes"),
        _text(p, "description", ""),
        _flag(p, "importing"),
    ).to_json(),
    "disk.finish_import": lambda pool, p: pool.finish_import(_text(p, "name")).to_json(),
    "disk.resize": lambda pool, p: pool.resize_disk(
        _text(p, "name"), _number(p, "size_bytes"), _flag(p, "force")
    ).to_json(),
    "disk.rename": lambda pool, p: pool.rename_disk(
        _text(p, "name"), _text(p, "new_name")
    ).to_json(),
    "disk.snapshot": lambda pool, p: [
        disk.to_json() for disk in pool.snapshot_disks(_texts(p, "names"), _text(p, "snapshot"))
    ],
    "disk.snapshots": lambda pool, p: [
        disk.to_json() for disk in pool.list_snapshots(_text(p, "name"))
    ],
    "disk.changed": lambda pool, p: pool.changed_ranges(
        _text(p, "older"), _text(p, "newer"), _number(p, "offset")
    ).to_json(),
    "disk.clone": lambda pool, p: pool.clone_disk(_text(p, "name"), _text(p, "new_name")).to_json(),
    "disk.rollback": lambda pool, p: pool.rollback_disk(_text(p, "name")).to_json(),
    "disk.set": lambda pool, p: pool.set_disk(_text(p, "name"), _changes(p)).to_json(),
    "disk.delete": lambda pool, p: pool.delete_disk(_text(p, "name"), _flag(p, "force")),
}


class ControlServer:
    """Serves a pool on a control socket from `start` to `close`."""

    def __init__(self, pool: PoolService, path: Path, uris: Sequence[str] = ()) -> None:
        """Binds the socket; clients wait in its queue until `start`. A socket file that is there
        already is a dead server's, since the caller holds the pool's lock.

        Args: uris: where this process serves NBD; `{name}` in them stands for a disk's name.
        """
        self._pool = pool
        self._path = path
        self._uris = list(uris)
        self._mutex = threading.Lock()
        self._connections: set[_Connection] = set()
        self._is_closed = False
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # Before bind, so that there is no moment at which others may connect: bind gives the
            # file the mode of the socket (unix(7) leaves it to the umask, Linux takes both).
            os.fchmod(self._listener.fileno(), 0o600)
            with _reachable(path) as address:
                self._listener.bind(address)
            self._listener.listen(_CONNECTIONS_MAX)
        except BaseException:
            self._listener.close()
            raise
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)

    def start(self) -> None:
        """Begins to answer. Starts a thread: call after the last fork."""
        self._thread.start()

    def close(self) -> None:
        """Stops listening, ends all connections and waits for what they are doing."""
        with self._mutex:
            if self._is_closed:
                return
            self._is_closed = True
            connections = list(self._connections)
        self._path.unlink(missing_ok=True)
        # Wakes accept() and recv(); closing alone would leave their threads asleep.
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            connection.end()
        if self._thread.ident is not None:
            self._thread.join()
        self._listener.close()
        for connection in connections:
            connection.thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                if self._is_closed:
                    return
                _log.exception("control socket: accept failed")
                time.sleep(0.1)  # out of descriptors, most likely: give others time to close some
                continue
            connection = _Connection(self, sock)
            with self._mutex:
                if self._is_closed:
                    sock.close()
                    return
                if len(self._connections) >= _CONNECTIONS_MAX:
                    min(self._connections, key=lambda one: one.keep_rank).end()
                self._connections.add(connection)
                connection.thread.start()

    def forget(self, connection: "_Connection") -> None:
        """A connection has ended, and with it what it had begun."""
        with self._mutex:
            self._connections.discard(connection)

    def answer(self, method: str, params: Params) -> Any:
        """What the request's result is. Raises: a leaf of StorageError."""
        if self._is_closed:
            raise PoolClosed
        action = _METHODS.get(method)
        if action is None:
            raise BadMessage(reason=f"there is no method {method!r}")
        if method == "pool.status":
            status = replace(self._pool.status(), server_pid=os.getpid(), uris=self._uris)
            return status.to_json()
        return action(self._pool, params)

    def abandon_import(self, disk_id: int) -> None:
        """Deletes a disk whose importer is gone, if it still is what that one made."""
        try:
            for disk in self._pool.list_disks():
                if (disk.id, disk.state) == (disk_id, DiskState.IMPORTING):
                    self._pool.delete_disk(disk.name, force=True)
        except StorageError as exc:
            # Not lost: the disk is not READY, so the next start deletes it.
            _log.warning("disk %d: unfinished import not deleted: %s", disk_id, exc.problem)


class _Connection:
    """One client of a `ControlServer`."""

    def __init__(self, server: ControlServer, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self._imports: list[int] = []
        self._is_busy = False
        self._heard_s = time.monotonic()
        self.thread = threading.Thread(target=self._serve, name="control client", daemon=True)

    @property
    def keep_rank(self) -> tuple[bool, float]:
        """The connection with the lowest rank is the first to be let go."""
        return self._is_busy or bool(self._imports), self._heard_s

    def end(self) -> None:
        """Wakes the thread up, which then ends. From any thread."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        self._sock.settimeout(None)
        timeval = struct.pack("@ll", _SEND_TIMEOUT_S, 0)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        try:
            with self._sock, self._sock.makefile("rb") as lines:
                while line := lines.readline(REQUEST_BYTES_MAX + 1):
                    self._is_busy = True
                    self._reply(line)
                    self._is_busy = False
                    self._heard_s = time.monotonic()
                    if len(line) > REQUEST_BYTES_MAX:
                        break
        except OSError:
            pass  # the client is gone, or does not read what it asked for
        finally:
            for disk_id in self._imports:
                self._server.abandon_import(disk_id)
            # Last, so that a server that closes meanwhile waits for what came before.
            self._server.forget(self)

    def _reply(self, line: bytes) -> None:
        request_id = None
        try:
            request_id, method, params = _decode_request(line)
            message = {"id": request_id, "result": self._answer(method, params)}
        except StorageError as exc:
            message = {"id": request_id, "error": _encode_error(exc)}
        except Exception as exc:
            _log.exception("control request failed")
            failure = ServerFailed(kind=type(exc).__name__, detail=str(exc))
            message = {"id": request_id, "error": _encode_error(failure)}
        self._sock.sendall(json.dumps(message).encode() + b"\n", socket.MSG_NOSIGNAL)

    def _answer(self, method: str, params: Params) -> Any:
        result = self._server.answer(method, params)
        if method == "disk.create" and params.get("importing"):
            self._imports.append(result["id"])
        return result


def _decode_request(line: bytes) -> tuple[int, str, Params]:
    """Id, method and parameters. Raises: BadMessage, ProtocolMismatch."""
    if not line.endswith(b"\n"):
        raise BadMessage(reason=f"a request is one line of at most {REQUEST_BYTES_MAX} bytes")
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise BadMessage(reason="not JSON") from exc
    if not isinstance(request, dict):
        raise BadMessage(reason="not an object")
    if request.get("version") != PROTOCOL_VERSION:
        version = request.get("version")
        client_version = version if isinstance(version, int) else 0
        raise ProtocolMismatch(client_version=client_version, server_version=PROTOCOL_VERSION)
    params = request.get("params", {})
    if not isinstance(params, dict):
        raise BadMessage(reason="params must be an object")
    return _number(request, "id"), _text(request, "method"), params


def _encode_error(exc: StorageError) -> dict[str, Any]:
    return {"class": type(exc).__name__, "fields": exc.fields(), "message": str(exc)}


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name for the socket at `path` that fits into a socket address, however long `path` is."""
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES_MAX:
        yield str(path)
        return
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


class ControlClient:
    """A pool behind a control socket; implements `PoolService`. One request at a time."""

    def __init__(self, path: Path) -> None:
        """Connects. Raises: ServerUnreachable."""
        self._path = path
        self._mutex = threading.Lock()
        self._next_id = 1
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with _reachable(path) as address:
                self._sock.connect(address)
        except OSError as exc:
            self._sock.close()
            raise self._unreachable(exc.strerror or str(exc)) from exc
        self._lines = self._sock.makefile("rb")

    def close(self) -> None:
        self._lines.close()
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def status(self) -> PoolStatus:
        return PoolStatus.from_json(self._call("pool.status"))

    def set_pool(self, changes: Mapping[str, int | str | None]) -> ScrubReport:
        return ScrubReport.from_json(self._call("pool.set", changes=dict(changes)))

    def start_scrub(self, rate_bytes: int | None = None) -> ScrubReport:
        return ScrubReport.from_json(self._call("pool.scrub", rate_bytes=rate_bytes))

    def scrub_report(self) -> ScrubReport:
        return ScrubReport.from_json(self._call("pool.scrub_report"))

    def list_disks(self) -> list[DiskInfo]:
        return [DiskInfo.from_json(disk) for disk in self._call("disk.list")]

    def show_disk(self, name: str) -> DiskDetails:
        return DiskDetails.from_json(self._call("disk.show", name=name))

    def create_disk(
        self, name: str, size_bytes: int, description: str = "", importing: bool = False
    ) -> DiskInfo:
        result = self._call(
            "disk.create",
            name=name,
            size_bytes=size_bytes,
            description=description,
            importing=importing,
        )
        return DiskInfo.from_json(result)

    def finish_import(self, name: str) -> DiskInfo:
        return DiskInfo.from_json(self._call("disk.finish_import", name=name))

    def resize_disk(self, name: str, size_bytes: int, force: bool = False) -> DiskInfo:
        result = self._call("disk.resize", name=name, size_bytes=size_bytes, force=force)
        return DiskInfo.from_json(result)

    def rename_disk(self, name: str, new_name: str) -> DiskInfo:
        return DiskInfo.from_json(self._call("disk.rename", name=name, new_name=new_name))

    def set_disk(self, name: str, changes: Mapping[str, int | str | None]) -> DiskDetails:
        return DiskDetails.from_json(self._call("disk.set", name=name, changes=dict(changes)))

    def delete_disk(self, name: str, force: bool = False) -> None:
        self._call("disk.delete", name=name, force=force)

    def snapshot_disks(self, names: Sequence[str], snapshot: str) -> list[DiskInfo]:
        result = self._call("disk.snapshot", names=list(names), snapshot=snapshot)
        return [DiskInfo.from_json(disk) for disk in result]

    def list_snapshots(self, name: str) -> list[DiskInfo]:
        return [DiskInfo.from_json(disk) for disk in self._call("disk.snapshots", name=name)]

    def changed_ranges(self, older: str, newer: str, offset: int = 0) -> ChangedRanges:
        result = self._call("disk.changed", older=older, newer=newer, offset=offset)
        return ChangedRanges.from_json(result)

    def clone_disk(self, name: str, new_name: str) -> DiskInfo:
        return DiskInfo.from_json(self._call("disk.clone", name=name, new_name=new_name))

    def rollback_disk(self, name: str) -> DiskInfo:
        return DiskInfo.from_json(self._call("disk.rollback", name=name))

    def _unreachable(self, detail: str) -> ServerUnreachable:
        return ServerUnreachable(socket=str(self._path), detail=detail)

    def _call(self, method: str, **params: Any) -> Any:
        """One request and its reply. Waits as long as the server works on it, which a connection
        that breaks ends. Raises: what the server raised, ServerUnreachable, ProtocolMismatch."""
        with self._mutex:
            request_id = self._next_id
            self._next_id += 1
            request = {
                "version": PROTOCOL_VERSION,
                "id": request_id,
                "method": method,
                "params": params,
            }
            try:
                self._sock.sendall(json.dumps(request).encode() + b"\n", socket.MSG_NOSIGNAL)
                line = self._lines.readline(_REPLY_BYTES_MAX)
            except (OSError, ValueError) as exc:
                raise self._unreachable(str(exc)) from exc
        return self._result(line, request_id)

    def _result(self, line: bytes, request_id: int) -> Any:
        if not line.endswith(b"\n"):
            raise self._unreachable("it closed the connection")
        try:
            reply = json.loads(line)
            error = reply.get("error")
            if error is not None:
                raise rebuild(error["class"], error["fields"], error["message"])
            if reply["id"] != request_id:
                raise ValueError(f"a reply to request {reply['id']}")
            return reply["result"]
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise self._unreachable(f"it sent nonsense: {exc}") from exc
