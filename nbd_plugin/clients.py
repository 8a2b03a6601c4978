"""Who the clients of this nbdkit process are, and how to let go of them.

Both are needed because nbdkit leaves a gap:

- *TLS for TCP only.* nbdkit's ``--tls=require`` binds every listener, and ``--tls=on`` none. A
  server with a Unix socket (guarded by the permissions of its file) and a TCP port runs with
  ``--tls=on``, and the plugin turns away whoever came over the network without encryption, before
  anything about a disk was said.
- *Stopping.* nbdkit, told to stop, answers ESHUTDOWN to what its clients still ask, which a guest
  takes for a broken disk, and waits for as long as an idle client stays connected. So the plugin
  breaks the connections first: a client that can reconnect repeats what it has no answer to, on the
  next server.

nbdkit's Python module has no ``is_tls`` or ``peer_name`` before 1.36; the C functions behind them
are part of its stable plugin interface and are called directly.
"""

import ctypes
import functools
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_ADDRESS_SIZE_BYTES = 128  # sizeof (struct sockaddr_storage)
_FDS = Path("/proc/self/fd")
_TCP = (socket.AF_INET, socket.AF_INET6)

Address = str | bytes | tuple[object, ...]


@functools.cache
def _nbdkit_functions() -> ctypes.CDLL | None:
    """The C functions of the nbdkit process that we are in, or None outside of one."""
    process = ctypes.CDLL(None)
    if not (hasattr(process, "nbdkit_is_tls") and hasattr(process, "nbdkit_peer_name")):
        return None
    return process


def can_tell_clients_apart() -> bool:
    """Whether `came_over_network` and `is_encrypted` can answer; False outside nbdkit."""
    return _nbdkit_functions() is not None


def came_over_network() -> bool:
    """Whether the client that is being served in this thread connected by anything but a Unix
    socket.

    True when that cannot be found out: the answer decides whether TLS is demanded.
    """
    functions = _nbdkit_functions()
    if functions is None:
        return True
    address = ctypes.create_string_buffer(_ADDRESS_SIZE_BYTES)
    size_bytes = ctypes.c_uint32(_ADDRESS_SIZE_BYTES)
    if functions.nbdkit_peer_name(address, ctypes.byref(size_bytes)) != 0:
        return True
    family = ctypes.c_ushort.from_buffer(address).value
    return family != socket.AF_UNIX


def is_encrypted() -> bool:
    """Whether the client that is being served in this thread uses TLS. Valid in `open` and later
    callbacks.
    """
    functions = _nbdkit_functions()
    return functions is not None and functions.nbdkit_is_tls() == 1


@dataclass(frozen=True)
class _Endpoint:
    """One socket of this process."""

    family: int
    local_address: Address
    is_listening: bool


def _endpoint(sock: socket.socket) -> _Endpoint | None:
    try:
        is_listening = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        return _Endpoint(sock.family, sock.getsockname(), is_listening)
    except OSError:
        return None


def _sockets_of_this_process() -> Iterable[socket.socket]:
    """A duplicate of every socket that is open at the moment; the caller closes each.

    Descriptors come and go meanwhile. Whatever a number stood for when it was listed, the caller
    judges and uses the duplicate, so that it never acts on another socket than the one it looked
    at.
    """
    for name in os.listdir(_FDS):  # noqa: PTH208  the entries are numbers, not paths to follow
        try:
            duplicate = os.dup(int(name))
        except OSError:
            continue
        try:
            sock = socket.socket(fileno=duplicate)
        except OSError:
            os.close(duplicate)
            continue
        yield sock


def listeners() -> frozenset[tuple[int, Address]]:
    """Family and address of every socket on which this process listens at the moment.

    Called before the plugin opens sockets of its own, this is what nbdkit serves clients on.
    """
    found = set()
    for sock in _sockets_of_this_process():
        with sock:
            endpoint = _endpoint(sock)
        if endpoint is not None and endpoint.is_listening:
            found.add((endpoint.family, endpoint.local_address))
    return frozenset(found)


def _came_through(endpoint: _Endpoint, served: frozenset[tuple[int, Address]]) -> bool:
    """Whether this socket is a connection that one of the listeners `served` accepted."""
    if endpoint.is_listening:
        return False
    if endpoint.family == socket.AF_UNIX:
        return (endpoint.family, endpoint.local_address) in served
    if endpoint.family not in _TCP or not isinstance(endpoint.local_address, tuple):
        return False
    # A listener on the wildcard address accepts on many local addresses, all with its port; and one
    # for IPv6 may accept IPv4.
    ports = {
        address[1] for family, address in served if family in _TCP and isinstance(address, tuple)
    }
    return endpoint.local_address[1] in ports


def break_connections(served: frozenset[tuple[int, Address]]) -> int:
    """Break every connection that came in through one of the listeners `served`; return how many.

    Requests already read go on to their end, but their answers go nowhere: the client sees the
    connection fail, never an error of the disk.
    """
    broken = 0
    for sock in _sockets_of_this_process():
        with sock:
            endpoint = _endpoint(sock)
            if endpoint is None or not _came_through(endpoint, served):
                continue
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the client went by itself
            broken += 1
    return broken
