"""``nearstone pool``: making a pool, looking at it, checking it."""

from pathlib import Path
from typing import Annotated

import typer

from console.access import demand_pool
from console.invocation import Invocation
from console.scrubbing import describe_scrub
from storage.errors import PoolNotNamed
from storage.faces import EXIT_UNEXPECTED
from storage.format.check import check_pool
from storage.lock import PoolLock
from storage.pool import Pool
from storage.service import DriveInfo, PoolStatus
from storage.units import format_size

app = typer.Typer(help="Make, show and check a pool.", no_args_is_help=True)


@app.command()
def init(
    ctx: typer.Context,
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            readable=False,
            help="An empty folder, or one to be made.",
            show_default=False,
        ),
    ] = None,
    drives: Annotated[
        list[Path] | None,
        typer.Option(
            "--drive",
            metavar="FOLDER",
            readable=False,
            help="A folder on a drive that shall hold the data; give it once for each drive."
            " Without it the pool's own folder holds the data.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a pool.

    Examples:

    ```
    nearstone pool init /srv/nearstone
    nearstone pool init /srv/nearstone --drive /mnt/nvme0 --drive /mnt/nvme1
    ```
    """
    invocation = Invocation.of(ctx)
    pool = folder.expanduser().absolute() if folder else invocation.pool_or_none
    if pool is None:
        raise PoolNotNamed
    Pool.init(pool, drives or ())
    where = [str(drive.absolute()) for drive in drives or [pool]]
    invocation.output.result(
        {"pool": str(pool), "drives": where}, f"made pool {pool} on {', '.join(where)}"
    )


@app.command()
def status(ctx: typer.Context) -> None:
    """Show the pool: server, drives, space, and whatever needs attention.

    Example:

    ```
    nearstone --pool /srv/nearstone pool status
    ```
    """
    invocation = Invocation.of(ctx)
    with invocation.service() as service:
        found = service.status()
    invocation.output.result(found.to_json(), "\n".join(_describe(found)))


def _describe(found: PoolStatus) -> list[str]:
    if found.server_pid is None:
        server = "none runs"
    else:
        uris = " and ".join(uri.replace("{name}", "NAME") for uri in found.uris)
        server = f"process {found.server_pid}, {uris}"
    sizes = f"{format_size(found.provisioned_bytes)} together"
    lines = [
        f"pool      {found.pool}",
        f"uuid      {found.uuid}",
        f"created   {found.created}",
        f"server    {server}",
        f"disks     {found.disks}, {sizes}, {format_size(found.stored_bytes)} stored",
        f"scrub     {describe_scrub(found.scrub)}",
        *map(_describe_drive, found.drives),
    ]
    if not found.problems:
        return [*lines, "problems  none"]
    return lines + [f"problem   {problem}" for problem in found.problems]


def _describe_drive(drive: DriveInfo) -> str:
    line = f"drive {drive.index:<3} {drive.path}, {drive.state}"
    if drive.free_bytes is None or drive.total_bytes is None:
        return line
    return f"{line}, {format_size(drive.free_bytes)} of {format_size(drive.total_bytes)} free"


@app.command()
def check(ctx: typer.Context) -> None:
    """Read everything in the pool and verify it, without a server and without changing anything.

    Exit status 1 means that something is damaged.

    Example:

    ```
    nearstone --pool /srv/nearstone pool check
    ```
    """
    invocation = Invocation.of(ctx)
    demand_pool(invocation.pool)
    with PoolLock(invocation.pool):
        report = check_pool(invocation.pool)
    lines = [
        f"disk {disk.disk:<3} {disk.name or '(not in the catalog)'}:"
        f" {disk.segments} segments, {disk.records} records,"
        f" {format_size(disk.mapped_blocks * 4096)} of data"
        for disk in report.disks
    ]
    lines += [
        f"{finding.severity}: {finding.file} at byte {finding.offset}: {finding.reason}"
        for finding in report.findings
    ]
    lines.append("everything is as it should be" if report.is_sound else "the pool is damaged")
    invocation.output.result(report.to_dict(), "\n".join(lines))
    if not report.is_sound:
        raise typer.Exit(EXIT_UNEXPECTED)
