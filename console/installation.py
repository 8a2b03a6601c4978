"""``nearstone doctor``: is this installation whole?"""

import dataclasses

import typer

from console.doctor import CheckResult, run_checks
from console.invocation import Invocation
from storage.faces import EXIT_UNEXPECTED


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command()(doctor)


def doctor(ctx: typer.Context) -> None:
    """Check the installation (and the pool's folder, if one is named), one line each.

    Exit status 1 means that something is missing that serving needs.

    Examples:

    ```
    nearstone doctor
    nearstone --pool /srv/nearstone doctor
    ```
    """
    invocation = Invocation.of(ctx)
    results = run_checks(invocation.pool_or_none)
    is_whole = all(result.ok for result in results if result.is_required)
    invocation.output.result(
        {"ok": is_whole, "checks": [dataclasses.asdict(result) for result in results]},
        "\n".join(line for result in results for line in _lines(result)),
    )
    if not is_whole:
        raise typer.Exit(EXIT_UNEXPECTED)


def _lines(result: CheckResult) -> list[str]:
    mark = "ok  " if result.ok else "BAD " if result.is_required else "note"
    lines = [f"{mark}  {result.name}: {result.detail}"]
    return [*lines, f"      {result.fix}"] if result.fix and not result.ok else lines
