"""``nearstone pool scrub`` and ``pool set``: reading everything that is alive, now or at times."""

import time
from typing import Annotated, Any, Final

import typer

from console.invocation import Invocation
from storage.errors import InvalidRequest
from storage.faces import EXIT_UNEXPECTED
from storage.scrub import SCRUB_EVERY, SCRUB_RATE_BYTES
from storage.service import PoolService, ScrubReport
from storage.units import format_size, parse_size

_OFF: Final = "off"
# How often a command that waits for a scrub asks how far it is.
_LOOK_S: Final = 0.25


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.command()(scrub)
    app.command("set")(set_)


def scrub(
    ctx: typer.Context,
    is_now: Annotated[
        bool, typer.Option("--now", help="Begin one, unless one runs, and wait for its end.")
    ] = False,
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="With --now: read at most so much a second; else what `pool set` says.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show what the last scrub found, and how far one is that runs; or, with --now, make one.

    A scrub reads the data of all disks and snapshots, while they are used, and compares checksums.
    Exit status 1 means that something is damaged. Ctrl-C ends the waiting; a server goes on.

    Examples:

    ```
    nearstone pool scrub --now --rate 200M
    nearstone pool scrub
    nearstone pool set --scrub weekly
    ```
    """
    invocation = Invocation.of(ctx)
    if rate is not None and not is_now:
        raise InvalidRequest(reason="--rate goes with --now; `pool set --scrub-rate` is for good")
    with invocation.service() as service:
        if is_now:
            report = service.start_scrub(None if rate is None else parse_size(rate))
            report = _wait(invocation, service, report)
        else:
            report = service.scrub_report()
    lines = [describe_scrub(report)]
    lines += [
        f"damaged: disk {damage.disk!r}"
        + (f", {damage.length} bytes from byte {damage.offset}" if damage.length else "")
        + f": {damage.detail}"
        for damage in report.damages
    ]
    if report.damaged > len(report.damages):
        lines.append(f"and {report.damaged - len(report.damages)} more places")
    invocation.output.result(report.to_json(), "\n".join(lines))
    if report.damaged or report.state == "failed":
        raise typer.Exit(EXIT_UNEXPECTED)


def _wait(invocation: Invocation, service: PoolService, report: ScrubReport) -> ScrubReport:
    with invocation.output.progress("scrubbing") as tell:
        while report.state == "running":
            tell(report.done_bytes / report.total_bytes if report.total_bytes else 0.0)
            time.sleep(_LOOK_S)
            report = service.scrub_report()
    return report


def describe_scrub(report: ScrubReport) -> str:
    """A report in one line, without the places."""
    schedule = f"{report.every or 'no schedule'}"
    if report.next is not None:
        schedule += f", next {report.next}"
    if report.state == "never":
        return f"never made; {schedule}"
    damage = f"{report.damaged} damaged place(s)" if report.damaged else "no damage"
    speed = f"{format_size(int(report.read_bytes / max(report.elapsed_s, 0.001)))}/s"
    if report.state != "running":
        return (
            f"{report.state} {report.finished}, {format_size(report.done_bytes)} of data,"
            f" {format_size(report.read_bytes)} read at {speed}, {damage}; {schedule}"
        )
    percent = 100 * report.done_bytes // max(report.total_bytes, 1)
    left = "" if report.left_s is None else f", {report.left_s} s left"
    return f"running, {percent} % of {format_size(report.total_bytes)}, {speed}{left}, {damage}"


def set_(
    ctx: typer.Context,
    scrub: Annotated[
        str | None,
        typer.Option(
            metavar="daily|weekly|monthly|off",
            help="How often a server scrubs by itself.",
            show_default=False,
        ),
    ] = None,
    scrub_rate: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE|off",
            help="How much a scrub reads a second at most; off: 100M, as if never set.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Change the pool's settings. What is not named stays.

    The first scrub of a schedule begins at once, the next a day, a week or 30 days after the end of
    the last one. One that fell due while no server ran begins with the next server.

    Examples:

    ```
    nearstone pool set --scrub weekly --scrub-rate 50M
    nearstone pool set --scrub off
    ```
    """
    invocation = Invocation.of(ctx)
    changes: dict[str, Any] = {}
    if scrub is not None:
        changes[SCRUB_EVERY] = None if scrub == _OFF else scrub
    if scrub_rate is not None:
        changes[SCRUB_RATE_BYTES] = None if scrub_rate == _OFF else parse_size(scrub_rate)
    if not changes:
        raise InvalidRequest(reason="nothing to set; `nearstone pool set --help` lists what can be")
    with invocation.service() as service:
        report = service.set_pool(changes)
    invocation.output.result(report.to_json(), f"scrub: {describe_scrub(report)}")
