"""qemu-nbd: what people use for a disk image in a file, as qcow2 and as raw."""

from pathlib import Path
from typing import ClassVar

from benchmarks.contenders.base import Contender, Place, first_line
from benchmarks.errors import ContenderFailed


class _Qemu(Contender):
    image_format: ClassVar[str]
    tools: ClassVar[tuple[tuple[str, str], ...]] = (
        ("qemu-nbd", "apt-get install qemu-utils"),
        ("qemu-img", "apt-get install qemu-utils"),
    )

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        # The faster of the two; not every kernel and container permits it, so `start` tries.
        self._aio = "io_uring"

    @classmethod
    def version(cls, place: Place) -> str:
        return first_line(["qemu-nbd", "--version"])

    @property
    def _image(self) -> Path:
        return self._place.folder / f"disk.{self.image_format}"

    def backing_files(self) -> list[Path]:
        return [self._image]

    def start(self) -> str:
        self._prepare()
        try:
            self._launch(self._command())
        except ContenderFailed:
            self._aio = "threads"
            self._launch(self._command())
        return self.uri

    def _prepare(self) -> None:
        self._run(self._create_command())

    def _create_command(self) -> list[str]:
        image, size = str(self._image), str(self._place.size_bytes)
        return ["qemu-img", "create", "-q", "-f", self.image_format, image, size]

    def _command(self) -> list[str]:
        return [
            "qemu-nbd",
            "--persistent",
            "--shared=0",  # any number of clients: one workload has eight
            f"--socket={self.socket_path}",
            f"--format={self.image_format}",
            "--cache=writeback",
            f"--aio={self._aio}",
            "--discard=unmap",
            str(self._image),
        ]


class QemuQcow2(_Qemu):
    """A qcow2 image with its default cluster size."""

    name = "qcow2"
    title = "qemu-nbd qcow2"
    image_format = "qcow2"
    remark = "one qcow2 file through the page cache; snapshots possible, no reduction, no checksums"
    # Refcounts and tables beside the data.
    drive_share = 1.02


class QemuRaw(_Qemu):
    """A raw image."""

    name = "raw"
    title = "qemu-nbd raw"
    image_format = "raw"
    remark = "one raw file through the page cache; reduces and protects nothing"
    drive_share = 1.0
