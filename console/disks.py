"""``nearstone disk``: the disks of a pool. Import, export and attach have their own modules."""

import sys
import time
from typing import Annotated, Final

import typer

from console.access import open_service
from console.invocation import Invocation
from storage.errors import DiskNotFound, NeedsConfirmation
from storage.names import check_description, check_name
from storage.pool import Pool
from storage.pool_init import is_pool
from storage.service import ChangedRange, DiskDetails, DiskInfo, PoolService
from storage.settings import BANDWIDTH_BYTES, BURST_S, COMPRESSION, COMPRESSION_DEFAULT, IOPS
from storage.units import format_size, parse_disk_size

app = typer.Typer(help="Make, show, change, move and attach disks.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The disk's name.", show_default=False)]
Snapshot = Annotated[
    str,
    typer.Argument(
        metavar="NAME@SNAP", help="The disk's and the snapshot's name.", show_default=False
    ),
]
Older = Annotated[
    str, typer.Argument(metavar="NAME@OLDER", help="The earlier snapshot.", show_default=False)
]
Newer = Annotated[
    str, typer.Argument(metavar="NAME@NEWER", help="The later snapshot.", show_default=False)
]
Size = Annotated[
    str,
    typer.Argument(
        metavar="SIZE", help="For example 20G, 512MiB or 1.5T (binary units).", show_default=False
    ),
]
Description = Annotated[
    str, typer.Option("--description", metavar="TEXT", help="One line about the disk.")
]


# Else "-5G" would be taken for an option instead of being refused as a size.
_TAKES_SIZE: Final = {"ignore_unknown_options": True}


@app.command(context_settings=_TAKES_SIZE)
def create(ctx: typer.Context, name: Name, size: Size, description: Description = "") -> None:
    """Make a disk. It takes no space until something is written to it.

    A pool folder that does not exist yet is made, too.

    Examples:

    ```
    nearstone --pool /srv/nearstone disk create mail 20G
    nearstone disk create web 1.5T --description "the web server's data"
    ```
    """
    invocation = Invocation.of(ctx)
    size_bytes = parse_disk_size(size)
    check_name(name)
    check_description(description)
    if not is_pool(invocation.pool):
        Pool.init(invocation.pool)
        invocation.output.note(f"made pool {invocation.pool}")
    with open_service(invocation.pool, invocation.config.memory) as service:
        disk = service.create_disk(name, size_bytes, description)
    _tell(invocation, disk, f"made disk {disk.name} of {format_size(disk.size_bytes)}")


@app.command("list")
def list_(ctx: typer.Context) -> None:
    """List all disks.

    STORED is the space that the disk's data takes on the drives.

    Examples:

    ```
    nearstone --pool /srv/nearstone disk list
    nearstone --json disk list | jq -r '.[].name'
    ```
    """
    invocation = Invocation.of(ctx)
    with invocation.service() as service:
        disks = service.list_disks()
    invocation.output.table(
        [disk.to_json() for disk in disks],
        ["NAME", ">SIZE", ">STORED", "STATE", ">CLIENTS", "DESCRIPTION"],
        [
            [
                disk.name,
                format_size(disk.size_bytes),
                format_size(disk.stored_bytes),
                "damaged" if disk.problem else disk.state,
                str(disk.clients),
                disk.problem or disk.description,
            ]
            for disk in disks
        ],
    )


@app.command()
def show(ctx: typer.Context, name: Name) -> None:
    """Show everything about one disk.

    Example:

    ```
    nearstone --pool /srv/nearstone disk show mail
    ```
    """
    invocation = Invocation.of(ctx)
    with invocation.service() as service:
        disk = service.show_disk(name)
    invocation.output.result(disk.to_json(), "\n".join(_describe(disk)))


def _describe(disk: DiskDetails) -> list[str]:
    lines = [
        f"name         {disk.name}",
        f"id           {disk.id}",
        f"size         {format_size(disk.size_bytes)} ({disk.size_bytes} bytes)",
        f"state        {disk.state}",
        f"created      {disk.created}",
        f"description  {disk.description}".rstrip(),
        f"clients      {disk.clients}",
        f"stored       {format_size(disk.stored_bytes)}",
    ]
    if disk.mapped_bytes is not None and disk.end_of_data_bytes is not None:
        lines.append(f"data         {format_size(disk.mapped_bytes)}")
        lines.append(f"end of data  {format_size(disk.end_of_data_bytes)}")
    if limits := describe_limits(disk):
        lines.append(f"limits       {', '.join(limits)}")
    lines.append(f"compression  {compression_of(disk)}")
    if disk.problem:
        lines.append(f"problem      {disk.problem}")
    return lines


def compression_of(disk: DiskDetails) -> str:
    """How new data of the disk is stored."""
    return str(disk.settings.get(COMPRESSION, COMPRESSION_DEFAULT))


def describe_limits(disk: DiskDetails) -> list[str]:
    """The disk's limits for people; empty when it has none."""
    found = []
    if IOPS in disk.settings:
        found.append(f"{disk.settings[IOPS]} requests/s")
    if BANDWIDTH_BYTES in disk.settings:
        found.append(f"{format_size(disk.settings[BANDWIDTH_BYTES])}/s")
    if found and BURST_S in disk.settings:
        found.append(f"burst {disk.settings[BURST_S]} s")
    return found


@app.command(context_settings=_TAKES_SIZE)
def resize(
    ctx: typer.Context,
    name: Name,
    size: Size,
    is_forced: Annotated[
        bool, typer.Option("--force", help="Shrink even if that cuts data off, or in use.")
    ] = False,
) -> None:
    """Change a disk's size. Clients see the new size when they connect again.

    Shrinking below the end of the data is refused without --force.

    Examples:

    ```
    nearstone disk resize mail 40G
    nearstone disk resize scratch 1G --force
    ```
    """
    invocation = Invocation.of(ctx)
    size_bytes = parse_disk_size(size)
    with invocation.service() as service:
        disk = service.resize_disk(name, size_bytes, is_forced)
    _tell(invocation, disk, f"disk {disk.name} has {format_size(disk.size_bytes)} now")
    if disk.clients:
        invocation.output.note(f"its {disk.clients} client(s) see that when they connect again")


@app.command()
def rename(
    ctx: typer.Context,
    name: Name,
    new_name: Annotated[
        str, typer.Argument(metavar="NEW_NAME", help="What to call it.", show_default=False)
    ],
) -> None:
    """Give a disk another name. Clients must use it when they connect again.

    Example:

    ```
    nearstone disk rename mail mail-old
    ```
    """
    invocation = Invocation.of(ctx)
    with invocation.service() as service:
        disk = service.rename_disk(name, new_name)
    _tell(invocation, disk, f"disk {name} is called {disk.name} now")
    if disk.clients:
        invocation.output.note(
            f"its {disk.clients} client(s) cannot connect again under the old name"
        )


@app.command()
def snapshot(
    ctx: typer.Context,
    name: Name,
    snapshot_name: Annotated[
        str,
        typer.Argument(metavar="[SNAP]", help="What to call it; the time of day if left out."),
    ] = "",
    group: Annotated[
        list[str] | None,
        typer.Option("--group", metavar="NAME", help="Another disk to freeze at the same instant."),
    ] = None,
) -> None:
    """Freeze a disk as it is now, as NAME@SNAP. Clients go on meanwhile.

    A snapshot is served read-only under that name. It takes no space but for what the disk changes
    afterwards. With --group, several disks are frozen at one instant: all of them, or none.

    Examples:

    ```
    nearstone disk snapshot mail before-upgrade
    nearstone disk snapshot database nightly --group database-log --group mail
    ```
    """
    invocation = Invocation.of(ctx)
    snapshot_name = snapshot_name or time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    with invocation.service() as service:
        made = service.snapshot_disks([name, *(group or [])], snapshot_name)
    names = ", ".join(disk.name for disk in made)
    invocation.output.result([disk.to_json() for disk in made], f"made {names}")


@app.command()
def snapshots(ctx: typer.Context, name: Name) -> None:
    """List a disk's snapshots, oldest first.

    Example:

    ```
    nearstone disk snapshots mail
    ```
    """
    invocation = Invocation.of(ctx)
    with invocation.service() as service:
        found = service.list_snapshots(name)
    invocation.output.table(
        [disk.to_json() for disk in found],
        ["NAME", ">SIZE", "CREATED", ">CLIENTS"],
        [
            [disk.name, format_size(disk.size_bytes), disk.created, str(disk.clients)]
            for disk in found
        ],
    )


@app.command()
def diff(ctx: typer.Context, older: Older, newer: Newer) -> None:
    """List what differs between two snapshots: the ranges to copy for an incremental backup.

    Takes time in proportion to the change, whatever the size. A block that was written with what
    it held before counts as changed. With --json: `changed_bytes` and `ranges`.

    Examples:

    ```
    nearstone disk diff mail@monday mail@tuesday
    nearstone --json disk diff mail@monday mail@tuesday | jq .changed_bytes
    ```
    """
    invocation = Invocation.of(ctx)
    ranges: list[ChangedRange] = []
    offset: int | None = 0
    with invocation.service() as service:
        while offset is not None:
            piece = service.changed_ranges(older, newer, offset)
            ranges += piece.ranges
            offset = piece.next_offset
    changed_bytes = sum(one.length for one in ranges)
    fields = {"older": older, "newer": newer, "changed_bytes": changed_bytes}
    invocation.output.table(
        {**fields, "ranges": [one.to_json() for one in ranges]},
        [">OFFSET", ">LENGTH", f"NOW ({format_size(changed_bytes)} changed)"],
        [[str(one.offset), str(one.length), "hole" if one.is_hole else "data"] for one in ranges],
    )


@app.command()
def clone(
    ctx: typer.Context,
    name: Snapshot,
    new_name: Annotated[
        str, typer.Argument(metavar="NEW", help="The new disk's name.", show_default=False)
    ],
) -> None:
    """Make a disk that begins as a snapshot, at once and without copying.

    Snapshot and clone do not depend on each other: either can be deleted first.

    Example:

    ```
    nearstone disk clone debian@golden web1
    ```
    """
    invocation = Invocation.of(ctx)
    with invocation.service() as service:
        disk = service.clone_disk(name, new_name)
    _tell(invocation, disk, f"made disk {disk.name} of {format_size(disk.size_bytes)} from {name}")


@app.command()
def rollback(
    ctx: typer.Context,
    name: Snapshot,
    is_confirmed: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")
    ] = False,
) -> None:
    """Give a disk the contents and the size it had at a snapshot. What came after is lost.

    Refused while clients use the disk. All its snapshots stay. Asks first on a terminal; elsewhere
    --yes is needed.

    Example:

    ```
    nearstone disk rollback mail@before-upgrade --yes
    ```
    """
    invocation = Invocation.of(ctx)
    if not is_confirmed:
        _ask(invocation, f"lose what changed since {name}")
    with invocation.service() as service:
        disk = service.rollback_disk(name)
    _tell(invocation, disk, f"disk {disk.name} is as it was at {name}")


@app.command()
def delete(
    ctx: typer.Context,
    name: Name,
    is_confirmed: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")
    ] = False,
    is_forced: Annotated[
        bool, typer.Option("--force", help="Delete it even while clients use it.")
    ] = False,
) -> None:
    """Delete a disk and all its data, or one of its snapshots (NAME@SNAP).

    A disk that has snapshots is not deleted; its clones do not mind. Asks first on a terminal;
    elsewhere --yes is needed.

    Examples:

    ```
    nearstone disk delete scratch --yes
    nearstone disk delete mail@before-upgrade --yes
    ```
    """
    invocation = Invocation.of(ctx)
    with invocation.service() as service:
        if not is_confirmed:
            _ask(invocation, f"delete {_describe_doomed(service, name)}")
        service.delete_disk(name, is_forced)
    invocation.output.result({"deleted": name}, f"deleted disk {name}")


def _describe_doomed(service: PoolService, name: str) -> str:
    """What would be deleted. Raises: DiskNotFound."""
    disk_name, _, snapshot_name = name.partition("@")
    found = service.list_snapshots(disk_name) if snapshot_name else service.list_disks()
    disk = next((disk for disk in found if disk.name == name), None)
    if disk is None:
        raise DiskNotFound(disk=name)
    what = "snapshot" if snapshot_name else "disk"
    return f"{what} {name} ({format_size(disk.size_bytes)}) and all its data"


def _ask(invocation: Invocation, action: str) -> None:
    """Returns if the operator agrees. Raises: NeedsConfirmation."""
    if invocation.output.is_json or not sys.stdin.isatty():
        raise NeedsConfirmation(action=action)
    if not typer.confirm(f"{action[0].upper()}{action[1:]}?", err=True):
        raise NeedsConfirmation(action=action)


def _tell(invocation: Invocation, disk: DiskInfo, text: str) -> None:
    invocation.output.result(disk.to_json(), text)
