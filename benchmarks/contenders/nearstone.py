"""Nearstone itself: a pool on the same drive, served as a user would serve it."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from benchmarks.contenders.base import Contender, Place, first_line
from benchmarks.errors import ToolMissing

_DISK = "bench"


def _program(place: Place) -> Path | None:
    """Return the `nearstone` program: the given one, else this environment's, else PATH's."""
    if place.nearstone is not None:
        return place.nearstone if os.access(place.nearstone, os.X_OK) else None
    beside = Path(sys.executable).parent / "nearstone"
    if beside.exists():
        return beside
    found = shutil.which("nearstone")
    return Path(found) if found else None


class Nearstone(Contender):
    """A pool in a folder, with every default."""

    name = "nearstone"
    title = "Nearstone"
    remark = "log-structured pool; compresses, and verifies a checksum on every read"
    tools: ClassVar[tuple[tuple[str, str], ...]] = (
        ("nbdkit", "apt-get install nbdkit nbdkit-plugin-python"),
    )
    # What is overwritten stays in the log until its whole segment is dead, or the drive is full:
    # 4.7 times the disk after two quick rounds over 256 MiB.
    drive_share = 5.0

    @classmethod
    def check(cls, place: Place) -> None:
        super().check(place)
        if _program(place) is None:
            where = place.nearstone or "this environment"
            raise ToolMissing("nearstone", cls.name, f"not in {where}; run 'make build'")

    @classmethod
    def version(cls, place: Place) -> str:
        return first_line([str(cls._found(place)), "--version"])

    @classmethod
    def _found(cls, place: Place) -> Path:
        program = _program(place)
        if program is None:
            raise ToolMissing("nearstone", cls.name, "run 'make build'")
        return program

    @property
    def _pool(self) -> Path:
        return self._place.folder / "pool"

    @property
    def socket_path(self) -> Path:
        return self._pool / "nbd.sock"

    @property
    def uri(self) -> str:
        return f"nbd+unix:///{_DISK}?socket={self.socket_path}"

    def backing_files(self) -> list[Path]:
        return sorted(path for path in self._pool.rglob("*") if path.is_file())

    def _prepare(self) -> None:
        self._ask("disk", "create", _DISK, str(self._place.size_bytes))

    def _ask(self, *arguments: str) -> None:
        self._run([str(self._found(self._place)), "--pool", str(self._pool), *arguments])

    def _command(self) -> list[str]:
        return [str(self._found(self._place)), "--pool", str(self._pool), "serve"]

    def _environment(self) -> Mapping[str, str]:
        # Its defaults are measured, whatever the caller has set for another pool.
        return {k: v for k, v in os.environ.items() if not k.startswith("NEARSTONE_")}


class NearstoneUncompressed(Nearstone):
    """The same with compression off: what reducing costs and gains."""

    name = "uncompressed"
    title = "Nearstone, not compressing"
    remark = "log-structured pool with `--compression none`; verifies a checksum on every read"

    def _prepare(self) -> None:
        super()._prepare()
        self._ask("disk", "set", _DISK, "--compression", "none")
