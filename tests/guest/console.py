"""The shell of a guest, at the other end of a serial line."""

import itertools
import select
import socket
import time
from collections.abc import Callable
from typing import Final

# For guests that an emulated processor of a busy machine runs: a bound for hangs, not a measure.
TIMEOUT_S: Final = 180.0

_READY: Final = b"guest is ready\n"


class GuestError(AssertionError):
    """A command failed in the guest, or the guest did not answer."""


class Console:
    """Runs commands in a guest, one after another, each in a shell of its own."""

    def __init__(self, line: socket.socket, what_else: Callable[[], str]) -> None:
        """Args: what_else: more to say when the guest is silent, such as its kernel's log."""
        self._line = line
        self._what_else = what_else
        self._received = b""
        self._numbers = itertools.count()

    def wait_until_ready(self, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until the guest has started. Raises: GuestError"""
        self._read_until(_READY, "the guest to start", timeout_s)

    def __call__(self, command: str, timeout_s: float = TIMEOUT_S) -> str:
        """What a shell command printed, errors included. Raises: GuestError if it fails."""
        mark = f"end-of-command-{next(self._numbers)}"
        # In two pieces, so that the mark is not in the command itself should it be echoed.
        text = f"( {command}\n) < /dev/null 2>&1; echo {mark[:6]}''{mark[6:]} $?\n"
        self._line.sendall(text.encode())
        printed = self._read_until(f"{mark} ".encode(), command, timeout_s)
        status = self._read_until(b"\n", command, timeout_s)
        output = printed.decode(errors="replace")
        if int(status) != 0:
            raise GuestError(f"{command}: status {int(status)}: {output}{self._what_else()}")
        return output

    def begin(self, command: str) -> None:
        """Start a command and leave it running; its output is for `read_line`."""
        self._line.sendall(f"{command}\n".encode())

    def read_line(self, timeout_s: float = TIMEOUT_S) -> str:
        """The next line that what was begun prints. Raises: GuestError"""
        return self._read_until(b"\n", "a line", timeout_s).decode()

    def close(self) -> None:
        """Let go of the line."""
        self._line.close()

    def _read_until(self, end: bytes, what: str, timeout_s: float) -> bytes:
        """What comes before `end`, which is taken off the line too."""
        deadline_s = time.monotonic() + timeout_s
        while end not in self._received:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([self._line], [], [], left_s)[0]:
                raise GuestError(
                    f"waited {timeout_s} s for {what}; {self._received!r}{self._what_else()}"
                )
            received = self._line.recv(1 << 16)
            if not received:
                raise GuestError(f"the guest has gone during: {what}{self._what_else()}")
            self._received += received
        before, _, self._received = self._received.partition(end)
        return before
