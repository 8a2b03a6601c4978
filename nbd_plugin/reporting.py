"""What a data plane tells the launcher that started it: one line of JSON through a pipe.

``{"ready": true}`` when clients can be served, or ``{"error": {"class", "fields", "message"}}``
with the leaf of ``storage.errors`` that kept the pool from being opened. A pipe that closes without
a line belongs to a data plane that died.
"""

import json
import os
from collections.abc import Mapping

from storage.errors import ServerFailed, StorageError, rebuild


def write_ready(fd: int | None) -> None:
    """Report that clients can be served, and close the pipe, if there is one."""
    if fd is not None:
        _write(fd, {"ready": True})


def write_error(fd: int, exc: Exception) -> None:
    """Report why clients cannot be served, and close the pipe."""
    error = exc if isinstance(exc, StorageError) else ServerFailed(type(exc).__name__, str(exc))
    described = {"class": type(error).__name__, "fields": error.fields(), "message": str(error)}
    _write(fd, {"error": described})


def raise_reported(line: bytes) -> None:
    """Take a line apart: return when it says that clients are served, else raise what it says."""
    report = json.loads(line)
    error = report.get("error")
    if isinstance(error, Mapping):
        raise rebuild(str(error["class"]), error["fields"], str(error["message"]))


def _write(fd: int, report: Mapping[str, object]) -> None:
    with os.fdopen(fd, "wb") as pipe:
        pipe.write(json.dumps(report).encode() + b"\n")
