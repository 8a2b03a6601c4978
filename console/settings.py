"""``nearstone disk set``: the one command for what can be set for a disk."""

from typing import Annotated, Final

import typer

from console.disks import Name, compression_of, describe_limits
from console.invocation import Invocation
from storage.errors import InvalidRequest
from storage.settings import BANDWIDTH_BYTES, BURST_S, COMPRESSION, COMPRESSIONS, IOPS
from storage.units import parse_size

_OFF: Final = "off"


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("set")(set_)


def set_(
    ctx: typer.Context,
    name: Name,
    iops: Annotated[
        str | None,
        typer.Option(
            metavar="N|off", help="Most requests a second that its clients get.", show_default=False
        ),
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE|off",
            help="Most bytes a second, read and written together: 100M, 1.5G.",
            show_default=False,
        ),
    ] = None,
    burst: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS|off",
            help="For how long an idle disk saves up what it did not use; 1 if never set.",
            show_default=False,
        ),
    ] = None,
    compression: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(COMPRESSIONS),
            help="How data is stored from now on; lz4 if never set.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Change a disk's settings. What is not named stays; "off" takes a limit away.

    Limits hold for all clients of the disk together, and count at once. Requests beyond them wait,
    in the order in which they came. Flushes do not count. `disk show` shows them.

    Compression counts for what is written or moved from then on; what is stored stays readable
    as it is. "none" suits data that its writer compresses or encrypts.

    Examples:

    ```
    nearstone disk set mail --iops 500 --bandwidth 100M
    nearstone disk set mail --iops 500 --burst 30
    nearstone disk set mail --iops off --bandwidth off
    nearstone disk set vault --compression none
    ```
    """
    invocation = Invocation.of(ctx)
    changes: dict[str, int | str | None] = {}
    if iops is not None:
        changes[IOPS] = None if iops == _OFF else _parse_number("--iops", iops)
    if bandwidth is not None:
        changes[BANDWIDTH_BYTES] = None if bandwidth == _OFF else parse_size(bandwidth)
    if burst is not None:
        changes[BURST_S] = 0 if burst == _OFF else _parse_number("--burst", burst)
    if compression is not None:
        changes[COMPRESSION] = compression
    if not changes:
        raise InvalidRequest(reason="nothing to set; `nearstone disk set --help` lists what can be")
    with invocation.service() as service:
        disk = service.set_disk(name, changes)
    limits = ", ".join(describe_limits(disk)) or "no limits"
    text = f"{limits}; compression {compression_of(disk)}"
    invocation.output.result(disk.to_json(), f"disk {disk.name}: {text}")


def _parse_number(option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InvalidRequest(reason=f"{option} is a whole number or {_OFF}, not {text!r}")
    return int(text)
