"""nbd-server, the reference implementation; it forks a process for each client."""

import sys
from pathlib import Path
from typing import ClassVar

from benchmarks.contenders import foreground
from benchmarks.contenders.base import Contender, Place, first_line

_EXPORT = "disk"


class NbdServer(Contender):
    """A raw file through the page cache."""

    name = "nbd-server"
    title = "nbd-server"
    remark = "one raw file through the page cache; reduces and protects nothing"
    drive_share = 1.0
    tools: ClassVar[tuple[tuple[str, str], ...]] = (("nbd-server", "apt-get install nbd-server"),)

    @classmethod
    def version(cls, place: Place) -> str:
        return first_line(["nbd-server", "--version"])

    @property
    def uri(self) -> str:
        return f"nbd+unix:///{_EXPORT}?socket={self.socket_path}"

    @property
    def _image(self) -> Path:
        return self._place.folder / "disk.raw"

    @property
    def _configuration(self) -> Path:
        return self._place.folder / "nbd-server.conf"

    def backing_files(self) -> list[Path]:
        return [self._image]

    def _prepare(self) -> None:
        self._make_raw_file(self._image.name)
        # `flush` makes it honour NBD FLUSH by fdatasync, as all the others do.
        self._configuration.write_text(
            f"[generic]\nunixsock = {self.socket_path}\n"
            f"[{_EXPORT}]\nexportname = {self._image}\nflush = true\nfua = true\ntrim = true\n"
        )

    def command_line(self) -> str:
        return self._shorten(self._serve())

    def _command(self) -> list[str]:
        return [sys.executable, "-S", foreground.__file__, *self._serve()]

    def _serve(self) -> list[str]:
        # Its own option to stay in the foreground (-d) makes it end after one client.
        pid_file = self._place.folder / "pid"
        return ["nbd-server", "-C", str(self._configuration), "-p", str(pid_file)]
