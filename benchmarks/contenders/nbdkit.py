"""nbdkit's own plugins in C: memory, the protocol's ceiling; and file, a plain file."""

from pathlib import Path
from typing import ClassVar

from benchmarks.contenders.base import Contender, Place, first_line


class _Nbdkit(Contender):
    tools: ClassVar[tuple[tuple[str, str], ...]] = (("nbdkit", "apt-get install nbdkit"),)

    @classmethod
    def version(cls, place: Place) -> str:
        return first_line(["nbdkit", "--version"])

    def _serve(self, *plugin: str) -> list[str]:
        return ["nbdkit", "--foreground", "--unix", str(self.socket_path), *plugin]


class NbdkitMemory(_Nbdkit):
    """A disk in memory: what any server that speaks this protocol could reach at most."""

    name = "memory"
    title = "nbdkit memory plugin"
    remark = "in memory; keeps, reduces and protects nothing: the ceiling of the protocol"
    drive_share = 0.0
    memory_share = 1.05

    def _prepare(self) -> None:
        pass

    def _command(self) -> list[str]:
        return self._serve("memory", str(self._place.size_bytes))


class NbdkitFile(_Nbdkit):
    """A raw file through the page cache."""

    name = "file"
    title = "nbdkit file plugin"
    remark = "one raw file through the page cache; reduces and protects nothing"
    drive_share = 1.0

    @property
    def _image(self) -> Path:
        return self._place.folder / "disk.raw"

    def backing_files(self) -> list[Path]:
        return [self._image]

    def _prepare(self) -> None:
        self._make_raw_file(self._image.name)

    def _command(self) -> list[str]:
        return self._serve("file", str(self._image))
