"""Driving qemu-img: looking at an image, and copying between an image and an NBD export."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Final

from console.output import Report
from storage.errors import NoSpace, ToolFailed, ToolMissing, UnreadableImage
from storage.units import SECTOR_SIZE_BYTES

_PROGRESS: Final = re.compile(rb"\(([0-9.]+)/100%\)")
_KILL_AFTER_S: Final = 10


class ImageFormat(StrEnum):
    """Formats that are imported and exported."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VHDX = "vhdx"


@dataclass(frozen=True)
class Image:
    """An image file that qemu-img understands. `size_bytes` is that of the disk in it."""

    path: Path
    format: ImageFormat
    size_bytes: int


def probe_image(path: Path, image_format: ImageFormat | None) -> Image:
    """Looks at an image file, without changing anything.

    Args: image_format: what it is taken for; None leaves that to qemu-img.
    Raises: ToolMissing; UnreadableImage, also for an image that refers to other files: they could
        be any file of this machine.
    """
    _check_readable(path)
    command = [find_qemu_img(), "info", "--output=json"]
    if image_format is not None:
        command += ["-f", image_format]
    # Absolute, since qemu-img takes what stands before a colon for a protocol.
    done = subprocess.run(
        [*command, str(path.absolute())], capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        raise UnreadableImage(path=str(path), detail=_complaint(done.stderr, path))
    found = json.loads(done.stdout)
    if found["format"] not in list(ImageFormat):
        detail = f"its format is {found['format']}, not one of {', '.join(ImageFormat)}"
        raise UnreadableImage(path=str(path), detail=detail)
    other = _find_other_file(path, found)
    if other is not None:
        detail = f"it refers to another file, {other}; flatten it first with qemu-img convert"
        raise UnreadableImage(path=str(path), detail=detail)
    if found.get("encrypted"):
        raise UnreadableImage(path=str(path), detail="it is encrypted")
    if image_format is None and found["format"] == ImageFormat.RAW:
        _check_looks_raw(path)
    return Image(path.absolute(), ImageFormat(found["format"]), found["virtual-size"])


def _find_other_file(path: Path, found: dict[str, Any]) -> str | None:
    """A file that reading the image would read besides, and that does not lie beside it."""
    specific = found.get("format-specific", {}).get("data", {})
    other = found.get("backing-filename") or specific.get("data-file")
    if other is not None:
        return str(other)
    # A vmdk may come in pieces, which then lie in the same folder.
    for extent in specific.get("extents", ()):
        if Path(extent["filename"]).absolute().parent != path.absolute().parent:
            return str(extent["filename"])
    return None


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb"):
            return
    except OSError as exc:
        raise UnreadableImage(path=str(path), detail=exc.strerror or str(exc)) from exc


def _check_looks_raw(path: Path) -> None:
    """Refuses what qemu-img calls raw only because any file can be that: a text, an archive."""
    if path.is_file() and path.stat().st_size % SECTOR_SIZE_BYTES:
        detail = f"no known format, and no raw disk: not a multiple of {SECTOR_SIZE_BYTES} bytes"
        raise UnreadableImage(path=str(path), detail=detail)


def copy_to_disk(image: Image, uri: str, pool: Path, report: Report) -> None:
    """Copies an image to an export that reads as zeroes and is at least as large.

    Zeroes and holes of the image are left out. Flushed when it returns.

    Raises: NoSpace, UnreadableImage (it broke off in the middle), ToolFailed.
    """
    command = [find_qemu_img(), "convert", "-p", "-n", "--target-is-zero", "-W", "-t", "writeback"]
    command += ["-f", image.format, "-O", "raw", str(image.path), uri]
    complaint = _run(command, image.path, report)
    if complaint is None:
        return
    if "No space left" in complaint:
        raise NoSpace(pool=str(pool))
    if "while reading" in complaint:
        raise UnreadableImage(path=str(image.path), detail=complaint)
    raise ToolFailed(tool="qemu-img", detail=complaint)


def copy_from_disk(uri: str, path: Path, image_format: ImageFormat, report: Report) -> None:
    """Copies an export to a new image file. Raises: ToolFailed."""
    command = [find_qemu_img(), "convert", "-p", "-t", "writeback", "-f", "raw", "-O", image_format]
    complaint = _run([*command, uri, str(path.absolute())], path, report)
    if complaint is not None:
        raise ToolFailed(tool="qemu-img", detail=complaint)


def find_qemu_img() -> str:
    """The path of qemu-img. Raises: ToolMissing."""
    found = shutil.which("qemu-img")
    if found is None:
        raise ToolMissing(tool="qemu-img", package="qemu-utils")
    return found


def _run(command: Sequence[str], path: Path, report: Report) -> str | None:
    """Runs qemu-img to its end, and ends it when an exception ends us.

    Returns: None when it succeeded, else what it complained of.
    """
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            if process.stdout is not None:
                _follow(process.stdout, report)
            _, errors = process.communicate()
        except BaseException:
            process.terminate()
            try:
                process.wait(_KILL_AFTER_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    return None if process.returncode == 0 else _complaint(errors, path)


def _follow(progress: IO[bytes], report: Report) -> None:
    """Reads what `qemu-img -p` prints, which overwrites one line for ever, until it ends."""
    tail = b""
    while chunk := progress.read1(4096):  # type: ignore[attr-defined]  # a BufferedReader
        tail = (tail + chunk)[-64:]
        found = _PROGRESS.findall(tail)
        if found:
            report(float(found[-1]) / 100)


def _complaint(errors: bytes, path: Path) -> str:
    """The first line of an error message, without the names that ours gives anyway."""
    lines = errors.decode(errors="replace").strip().splitlines() or ["it does not say why"]
    text = lines[0].removeprefix("qemu-img: ")
    for prefix in ("Could not open", "error while converting"):
        text = text.removeprefix(f"{prefix} '{path.absolute()}': ")
    return text
