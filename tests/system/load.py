"""Clients that keep a server busy: several connections, several requests in flight on each, one
thread.
"""

import random
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import nbd

from tests.system.stamps import SECTOR_BYTES, Ledger, Request

_BLOCK_SECTORS: Final = 8
_LARGE_SECTORS: Final = 2048  # 1 MiB


@dataclass
class Weights:
    """How often each kind of request comes; the rest are aligned 4 KiB writes."""

    ragged: float = 0.2
    large: float = 0.03
    zero: float = 0.04
    flush: float = 0.02
    fua: float = 0.05


@dataclass
class Client:
    """One connection to a disk, which keeps `depth` requests in flight."""

    connection: nbd.NBD
    ledger: Ledger
    depth: int
    random: random.Random
    weights: Weights = field(default_factory=Weights)
    in_flight: int = 0
    errors: list[int] = field(default_factory=list)

    def top_up(self) -> None:
        """Send requests until enough are in flight."""
        while self.in_flight < self.depth:
            self._send()

    def _send(self) -> None:
        kind, weights = self.random.random(), self.weights
        if kind < weights.flush:
            self.in_flight += 1
            self.connection.aio_flush(completion=self._when_done(None))
        elif kind < weights.flush + weights.zero:
            self._send_zero()
        else:
            self._send_write(*self._choose_range(kind - weights.flush - weights.zero))

    def _choose_range(self, kind: float) -> tuple[int, int]:
        sectors = self.ledger.sectors
        if kind < self.weights.ragged:
            length = self.random.randint(1, 4 * _BLOCK_SECTORS)
            first = self.random.randrange(sectors - length)
        elif kind < self.weights.ragged + self.weights.large:
            length = self.random.choice((_LARGE_SECTORS, self.random.randint(1, _LARGE_SECTORS)))
            first = self.random.randrange(sectors - length)
        else:
            length = _BLOCK_SECTORS
            first = self.random.randrange(sectors // length) * length
        return first, first + length

    def _send_write(self, first: int, end: int) -> None:
        request = self.ledger.issue(first, end)
        self.in_flight += 1
        self.connection.aio_pwrite(
            nbd.Buffer.from_buffer(request.content()),
            first * SECTOR_BYTES,
            completion=self._when_done(request),
            flags=nbd.CMD_FLAG_FUA if self.random.random() < self.weights.fua else 0,
        )

    def _send_zero(self) -> None:
        if self.ledger.is_zeroing:
            return
        length = self.random.randint(1, _LARGE_SECTORS)
        first = self.random.randrange(self.ledger.sectors - length)
        request = self.ledger.issue(first, first + length, is_zero=True)
        self.in_flight += 1
        send = self.random.choice((self.connection.aio_trim, self.connection.aio_zero))
        send(length * SECTOR_BYTES, first * SECTOR_BYTES, completion=self._when_done(request))

    def _when_done(self, request: Request | None) -> Callable[[int], int]:
        def note(error: int) -> int:
            self.in_flight -= 1
            if error:
                self.errors.append(error)
            elif request is not None:
                self.ledger.acknowledge(request)
            return 1  # libnbd may forget the request

        return note

    @property
    def is_alive(self) -> bool:
        """Whether the connection can still carry requests."""
        return not (self.connection.aio_is_dead() or self.connection.aio_is_closed())


def keep_busy(clients: Sequence[Client], is_over: Callable[[], bool]) -> None:
    """Let the clients work until `is_over`, or until all have lost their connection."""
    while not is_over():
        living = [client for client in clients if client.is_alive]
        if not living:
            return
        for client in living:
            client.top_up()
        _turn(living, timeout_s=0.01)


def drain(clients: Sequence[Client]) -> None:
    """Wait until nothing is in flight any more: answered, or given up with the connection."""
    while living := [client for client in clients if client.is_alive and client.in_flight]:
        _turn(living, timeout_s=1.0)


def _turn(clients: Sequence[Client], timeout_s: float) -> None:
    """Move bytes in and out where it is possible."""
    poll = select.poll()
    by_fd = {client.connection.aio_get_fd(): client for client in clients}
    for fd, client in by_fd.items():
        direction = client.connection.aio_get_direction()
        wants_in = select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0
        wants_out = select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0
        poll.register(fd, wants_in | wants_out)
    for fd, event in poll.poll(timeout_s * 1000):
        connection = by_fd[fd].connection
        try:
            # Like libnbd's own poll: one of the two, since the first may change the direction.
            if event & (select.POLLIN | select.POLLHUP | select.POLLERR):
                connection.aio_notify_read()
            elif event & select.POLLOUT:
                connection.aio_notify_write()
        except nbd.Error:
            # The server is gone; the requests in flight were given up.
            if by_fd[fd].is_alive:
                raise


def read_whole(connection: nbd.NBD, length: int, chunk_bytes: int = 8 << 20) -> bytes:
    """The first `length` bytes of a disk."""
    parts = [
        connection.pread(min(chunk_bytes, length - at), at) for at in range(0, length, chunk_bytes)
    ]
    return b"".join(parts)


def seconds_from_now(seconds: float) -> Callable[[], bool]:
    """What becomes true after so many seconds."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end
