"""``nearstone disk``: the disks of a pool. Import, export and attach have their own modules."""

import sys
from typing import Annotated, Final

import typer

from console.access import open_service
from console.invocation import Invocation
from storage.errors import NeedsConfirmation
from storage.pool import Pool, check_description, check_name
from storage.pool_init import is_pool
from storage.service import DiskDetails, DiskInfo
from storage.units import format_size, parse_disk_size

app = typer.Typer(help="Make, show, change, move and attach disks.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The disk's name.", show_default=False)]
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
    if disk.problem:
        lines.append(f"problem      {disk.problem}")
    return lines


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
    """Delete a disk and all its data.

    Asks first on a terminal; elsewhere --yes is needed.

    Example:

    ```
    nearstone disk delete scratch --yes
    ```
    """
    invocation = Invocation.of(ctx)
    with invocation.service() as service:
        disk = next((disk for disk in service.list_disks() if disk.name == name), None)
        if disk is not None and not is_confirmed:
            _ask(invocation, disk)
        service.delete_disk(name, is_forced)
    invocation.output.result({"deleted": name}, f"deleted disk {name}")


def _ask(invocation: Invocation, disk: DiskInfo) -> None:
    """Returns if the operator agrees to the deletion. Raises: NeedsConfirmation."""
    action = f"delete disk {disk.name} ({format_size(disk.size_bytes)}) and all its data"
    if invocation.output.is_json or not sys.stdin.isatty():
        raise NeedsConfirmation(action=action)
    if not typer.confirm(f"{action[0].upper()}{action[1:]}?", err=True):
        raise NeedsConfirmation(action=action)


def _tell(invocation: Invocation, disk: DiskInfo, text: str) -> None:
    invocation.output.result(disk.to_json(), text)
