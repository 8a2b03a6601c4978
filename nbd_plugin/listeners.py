"""The sockets on which clients arrive: bound here, in the launcher, and handed to nbdkit.

The launcher holds them for its whole life, so that a client that connects while nbdkit is being
started again waits in the socket's queue instead of being refused. A socket handed over by systemd
(or anything that speaks its protocol, ``LISTEN_PID`` and ``LISTEN_FDS``) is used in the same way.

Rule: a TCP listener needs TLS or ``--insecure``. That includes loopback addresses: a port on
loopback is open to every local user and container with the host's network, while the Unix socket
has the permissions of a file.
"""

import os
import socket
import stat
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from storage.errors import BadConfig

NBD_PORT: Final = 10809
"""The port registered for NBD."""

FIRST_ACTIVATION_FD: Final = 3
"""Where socket activation starts to count (sd_listen_fds(3))."""

LISTENERS_MAX: Final = 16
"""nbdkit refuses to inherit more."""

# sizeof sun_path less the final zero, see unix(7).
_UNIX_PATH_BYTES_MAX: Final = 107
_BACKLOG: Final = 128


@dataclass(frozen=True)
class Listener:
    """A socket that accepts clients.

    path: of a Unix socket, None for TCP. file_id: device and inode of the socket's file where we
    made it.
    """

    sock: socket.socket
    path: Path | None
    file_id: tuple[int, int] | None = None

    @property
    def is_network(self) -> bool:
        """Whether clients can arrive without passing the permissions of a file."""
        return self.sock.family != socket.AF_UNIX

    @property
    def address(self) -> str:
        """Of a network listener: HOST:PORT."""
        host, port = self.sock.getsockname()[:2]
        return f"{f'[{host}]' if ':' in host else host}:{port}"

    def uri(self, has_tls: bool, export: str) -> str:
        """How a client names the disk `export` here (NBD URI specification)."""
        if self.path is not None:
            return f"nbd+unix:///{export}?socket={urllib.parse.quote(str(self.path))}"
        return f"{'nbds' if has_tls else 'nbd'}://{self.address}/{export}"

    def close(self) -> None:
        """Close the socket and remove its file, unless that has become another's."""
        self.sock.close()
        if self.path is None or self.file_id is None:
            return
        try:
            status = self.path.lstat()
        except OSError:
            return
        if (status.st_dev, status.st_ino) == self.file_id:
            self.path.unlink(missing_ok=True)


def listen_unix(path: Path) -> Listener:
    """Listen on a Unix socket. A socket file that nobody listens on any more is replaced.

    Concurrency: two launchers on one path are kept apart by the caller, who holds the pool.
    Raises: BadConfig: the path is taken, too long or cannot be made.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100  resolve() would follow links that the URI should keep
    source = f"--socket {path}"
    if len(os.fsencode(path)) > _UNIX_PATH_BYTES_MAX:
        raise BadConfig(
            source=source,
            detail=f"a path has at most {_UNIX_PATH_BYTES_MAX} bytes; give another with --socket",
        )
    _remove_stale(path, source)
    sock = socket.socket(socket.AF_UNIX)
    try:
        # bind gives the file the socket's mode less the umask: whoever may write to it may connect.
        # The owner may, the group where the umask lets it, others never.
        os.fchmod(sock.fileno(), 0o660)
        sock.bind(str(path))
        sock.listen(_BACKLOG)
        status = path.lstat()
    except OSError as exc:
        sock.close()
        raise BadConfig(source=source, detail=os.strerror(exc.errno or 0)) from exc
    return Listener(sock, path, (status.st_dev, status.st_ino))


def _remove_stale(path: Path, source: str) -> None:
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise BadConfig(source=source, detail=os.strerror(exc.errno or 0)) from exc
    if not is_socket:
        raise BadConfig(source=source, detail="a file is there that is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as exc:
            raise BadConfig(source=source, detail=os.strerror(exc.errno or 0)) from exc
    raise BadConfig(source=source, detail="another program listens there")


def listen_tcp(address: str) -> list[Listener]:
    """Listen on HOST:PORT, `[IPv6]:PORT`, HOST (port 10809) or :PORT (every address of the
    machine).

    Returns: one listener for each address that the name stands for.
    Raises: BadConfig: not an address, or it cannot be listened on.
    """
    source = f"--listen {address}"
    host, port = _split(address, source)
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as exc:
        raise BadConfig(source=source, detail=exc.strerror or "no such host") from exc
    listeners: list[Listener] = []
    try:
        for family, kind, protocol, _, where in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            listeners.append(Listener(sock, None))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # Else [::] would take the IPv4 port as well, and 0.0.0.0 beside it would fail.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if port == 0 and len(listeners) > 1:
                where = (where[0], listeners[0].sock.getsockname()[1], *where[2:])
            sock.bind(where)
            sock.listen(_BACKLOG)
    except OSError as exc:
        for listener in listeners:
            listener.close()
        raise BadConfig(source=source, detail=os.strerror(exc.errno or 0)) from exc
    return listeners


def _split(address: str, source: str) -> tuple[str, int]:
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        is_whole = bool(bracket) and (not rest or rest.startswith(":"))
        port = rest[1:]
    elif address.count(":") > 1:
        host, port, is_whole = address, "", True  # an IPv6 address without a port
    else:
        host, _, port = address.partition(":")
        is_whole = True
    if not is_whole or not (port == "" or port.isdecimal()) or int(port or 0) > 65535:
        raise BadConfig(
            source=source, detail="give HOST:PORT, for example 192.0.2.7:10809 or [::1]:10809"
        )
    return host, int(port) if port else NBD_PORT


def inherited(environment: Mapping[str, str]) -> list[Listener]:
    """The sockets that a service manager handed to this very process; empty when there are none.

    Raises: BadConfig: what was handed over is not a listening stream socket.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environment.get("LISTEN_FDS", "")
    if not count.isdecimal() or not 1 <= int(count) <= LISTENERS_MAX:
        raise BadConfig(
            source="LISTEN_FDS", detail=f"{count!r} is not between 1 and {LISTENERS_MAX}"
        )
    listeners = []
    for fd in range(FIRST_ACTIVATION_FD, FIRST_ACTIVATION_FD + int(count)):
        try:
            sock = socket.socket(fileno=fd)
            is_listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as exc:
            raise BadConfig(source="LISTEN_FDS", detail=f"descriptor {fd}: {exc.strerror}") from exc
        if not is_listening:
            raise BadConfig(source="LISTEN_FDS", detail=f"descriptor {fd} does not listen")
        sock.set_inheritable(False)
        path = Path(sock.getsockname()) if sock.family == socket.AF_UNIX else None
        listeners.append(Listener(sock, path))
    return listeners


def demand_protection(addresses: Sequence[str], has_tls: bool, is_insecure: bool) -> None:
    """Refuse to serve on the network without TLS, unless the operator insists.

    Args: addresses: as `listen_tcp` takes them.
    Raises: BadConfig: so it is, or one of them is not an address.
    """
    for address in addresses:
        source = f"--listen {address}"
        _split(address, source)
        if not has_tls and not is_insecure:
            raise BadConfig(
                source=source,
                detail="give --tls-certificates or --tls-psk (or --insecure, for anyone to use)",
            )
