"""A client of QEMU's machine protocol (QMP)."""

import json
import socket
import time
from pathlib import Path
from typing import Any, Self


class QmpError(Exception):
    """QEMU refused a command; the text is its own."""


class Qmp:
    """One connection to a QEMU; not for several threads.

    Events are kept in `events`, in the order in which they came.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.events: list[dict[str, Any]] = []
        self._socket = connection
        self._lines = connection.makefile("rb")
        self._lines.readline()
        self("qmp_capabilities")

    @classmethod
    def connect(cls, path: Path, timeout_s: float) -> Self:
        """Connect to the socket that a QEMU that just starts is about to make."""
        connection = connect_unix(path, timeout_s)
        connection.settimeout(timeout_s)
        return cls(connection)

    def __call__(self, command: str, **arguments: object) -> Any:
        """Run a command. Returns: its result. Raises: QmpError, ConnectionError"""
        request = {"execute": command, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self._receive()
            if "error" in answer:
                raise QmpError(answer["error"]["desc"])
            if "return" in answer:
                return answer["return"]

    def event_names(self) -> set[str]:
        """The names of all events that came before now."""
        self("query-status")  # its answer comes behind them
        return {event["event"] for event in self.events}

    def close(self) -> None:
        """End the connection; QEMU goes on."""
        self._lines.close()
        self._socket.close()

    def _receive(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise ConnectionError("QEMU has gone")
        message: dict[str, Any] = json.loads(line)
        if "event" in message:
            self.events.append(message)
        return message


def connect_unix(path: Path, timeout_s: float) -> socket.socket:
    """Connect to a Unix socket that is about to appear. Raises: OSError: it did not in time."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)
        else:
            return connection
