"""``nearstone disk import`` and ``export``: between disks and image files.

Both copy over NBD: from and to the running server, or one of our own for the duration.

An import, step by step, and what a crash after each step leaves:

1. The image is looked at: nothing.
2. The disk is made, provisional (``importing``): the server deletes it when our connection to its
   control socket ends, or when it starts the next time.
3. The image is copied: as above.
4. The disk is flushed and kept.

An export writes a hidden file beside the target and renames it when it is whole and on stable
storage. A crash before leaves that hidden file, which the next export to the same target replaces.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from console.access import demand_pool
from console.attach import uri
from console.conversion import (
    ImageFormat,
    copy_from_disk,
    copy_to_disk,
    find_qemu_img,
    probe_image,
)
from console.disks import Description, Name
from console.invocation import Invocation
from storage.drives import sync_folder
from storage.errors import BadSize, StorageError, TargetExists, TargetUnusable
from storage.names import check_description, check_name
from storage.service import PoolService
from storage.units import check_disk_size, format_size, parse_disk_size


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.command("import")(import_)
    app.command("export")(export)


def import_(
    ctx: typer.Context,
    name: Name,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", readable=False, help="The image file.", show_default=False),
    ],
    image_format: Annotated[
        ImageFormat | None,
        typer.Option("--format", help="The image's format; found out by itself without it."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="SIZE",
            help="Make the disk larger than the image.",
            show_default=False,
        ),
    ] = None,
    description: Description = "",
) -> None:
    """Make a disk out of an image file: raw, qcow2, vmdk or vhdx.

    Holes and zeroes take no space. If it fails or is interrupted, the disk is gone again. For a
    raw image from a stranger give --format raw: its content could pretend to be another format.

    Examples:

    ```
    nearstone --pool /srv/nearstone disk import mail debian-12.qcow2
    nearstone disk import web web.img --format raw --size 100G
    ```
    """
    invocation = Invocation.of(ctx)
    pool = invocation.pool
    check_name(name)
    check_description(description)
    wanted_bytes = None if size is None else parse_disk_size(size)
    image = probe_image(file, image_format)
    size_bytes = check_disk_size(image.size_bytes if wanted_bytes is None else wanted_bytes)
    if size_bytes < image.size_bytes:
        reason = f"the disk in the image has {image.size_bytes} bytes"
        raise BadSize(size=size or str(size_bytes), reason=reason)
    with invocation.data_plane() as data_plane:
        service = data_plane.service
        service.create_disk(name, size_bytes, description, importing=True)
        try:
            with invocation.output.progress(f"importing {name}") as report:
                copy_to_disk(image, uri(name, data_plane.socket), pool, report)
            disk = service.finish_import(name)
        except BaseException:
            _undo(service, name)
            raise
    fields = {**disk.to_json(), "source": str(image.path), "source_format": image.format}
    sizes = f"{format_size(disk.size_bytes)}, {format_size(disk.stored_bytes)} stored"
    invocation.output.result(fields, f"imported {image.path.name} as disk {name}: {sizes}")


def _undo(service: PoolService, name: str) -> None:
    """Deletes what was imported so far. If the server is gone, it does that at its next start."""
    with contextlib.suppress(StorageError):
        service.delete_disk(name, force=True)


def export(
    ctx: typer.Context,
    name: Name,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", readable=False, help="The file to write.", show_default=False
        ),
    ],
    image_format: Annotated[
        ImageFormat | None,
        typer.Option(
            "--format", help="Of the file; without it by its suffix, else raw.", show_default=False
        ),
    ] = None,
    is_forced: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Write a disk to an image file: raw, qcow2, vmdk or vhdx.

    The file appears when it is whole, and is sparse where the disk has holes. Shut a guest that
    uses the disk down first, or the image mixes states of different moments.

    Examples:

    ```
    nearstone --pool /srv/nearstone disk export mail mail.qcow2
    nearstone disk export web /backup/web.img --force
    ```
    """
    invocation = Invocation.of(ctx)
    demand_pool(invocation.pool)
    find_qemu_img()
    chosen = image_format or _format_of(file)
    _check_target(file, is_forced)
    with _partial_file(file) as partial, invocation.data_plane() as data_plane:
        disk = data_plane.service.show_disk(name)
        if disk.clients:
            invocation.output.note(f"disk {name} is in use: the image may mix different moments")
        with invocation.output.progress(f"exporting {name}") as report:
            copy_from_disk(uri(name, data_plane.socket), partial, chosen, report)
        _put_in_place(partial, file, is_forced)
    stored_bytes = file.stat().st_blocks * 512
    fields = {
        "name": name,
        "path": str(file.absolute()),
        "format": chosen,
        "size_bytes": disk.size_bytes,
        "stored_bytes": stored_bytes,
    }
    invocation.output.result(
        fields,
        f"exported disk {name} to {file} ({chosen}, {format_size(stored_bytes)} on the drive)",
    )


def _format_of(file: Path) -> ImageFormat:
    suffix = file.suffix.removeprefix(".").lower()
    return ImageFormat(suffix) if suffix in list(ImageFormat) else ImageFormat.RAW


def _check_target(file: Path, is_forced: bool) -> None:
    """Refuses a target that is taken. Raises: TargetExists, TargetUnusable."""
    try:
        mode = file.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as exc:
        raise TargetUnusable(path=str(file), detail=exc.strerror or str(exc)) from exc
    if stat.S_ISDIR(mode):
        raise TargetUnusable(path=str(file), detail="it is a folder")
    if not is_forced:
        raise TargetExists(path=str(file))
    if not stat.S_ISREG(mode):
        raise TargetUnusable(path=str(file), detail="it is not a regular file")


@contextlib.contextmanager
def _partial_file(file: Path) -> Iterator[Path]:
    """The file to write beside `file`; whatever is there after the block is removed.

    Raises: TargetUnusable when no file can be made there.
    """
    partial = file.with_name(f".{file.name}.nearstone-partial")
    try:
        partial.write_bytes(b"")
    except OSError as exc:
        raise TargetUnusable(path=str(file), detail=exc.strerror or str(exc)) from exc
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _put_in_place(partial: Path, file: Path, is_forced: bool) -> None:
    """Gives the finished file its name. Durable at return. Raises: TargetExists, TargetUnusable."""
    try:
        fd = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if os.path.lexists(file) and not is_forced:  # it came into being meanwhile
            raise TargetExists(path=str(file))
        partial.replace(file)
        sync_folder(file.parent)
    except OSError as exc:
        raise TargetUnusable(path=str(file), detail=exc.strerror or str(exc)) from exc
