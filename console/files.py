"""``nearstone inspect``: what one of the pool's files holds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from console.invocation import Invocation
from storage.errors import UnreadableFile
from storage.faces import EXIT_UNEXPECTED
from storage.format.damage import Damage
from storage.format.inspection import inspect as inspect_file


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("inspect")(inspect)


def inspect(
    ctx: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            readable=False,
            help="A segment, an anchor, the catalog or a drive's label.",
            show_default=False,
        ),
    ],
    has_records: Annotated[
        bool, typer.Option("--records", help="List every record of a segment.")
    ] = False,
) -> None:
    """Print what one of the pool's files holds, and what is damaged in it.

    Reads the file by itself: no pool is needed, and a server may run. Exit status 1 means damage.

    Examples:

    ```
    nearstone inspect /srv/nearstone/anchors/00000001.anchor
    nearstone inspect /srv/nearstone/segments/00000001/00000001.seg --records
    ```
    """
    invocation = Invocation.of(ctx)
    try:
        description = inspect_file(file, with_records=has_records)
    except Damage as exc:
        raise UnreadableFile(path=str(file), detail=exc.reason) from exc
    except OSError as exc:
        raise UnreadableFile(path=str(file), detail=exc.strerror or str(exc)) from exc
    invocation.output.result(description, "\n".join(_lines(description, "")))
    if description["damage"]:
        raise typer.Exit(EXIT_UNEXPECTED)


def _lines(value: Any, indent: str) -> Iterator[str]:
    """A nested description as indented lines."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _entry(f"{indent}{key}:", inner, indent)
    else:
        for inner in value:
            yield from _entry(f"{indent}-", inner, indent)


def _entry(head: str, inner: Any, indent: str) -> Iterator[str]:
    if isinstance(inner, dict | list) and inner:
        if isinstance(inner, dict) and not any(
            isinstance(one, dict | list) for one in inner.values()
        ):
            yield f"{head} " + ", ".join(f"{key} {_word(one)}" for key, one in inner.items())
        else:
            yield head
            yield from _lines(inner, f"{indent}  ")
    else:
        yield f"{head} {_word(inner)}"


def _word(value: Any) -> str:
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
