"""What commands print: results on standard output, everything else on standard error.

With ``--json`` a result is one JSON document, an error another one (on standard error), and nothing
else is printed. Without, results are for people: tables are cut to the terminal's width only when
standard output is a terminal, so that pipes get whole lines.
"""

import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from storage.errors import StorageError
from storage.faces import EXIT_REFUSED, face_of

_PIPE_COLUMNS: Final = 10_000

Report = Callable[[float], None]
"""Told how much of the work is done, from 0 to 1."""


class Output:
    """Where one command prints."""

    def __init__(self, is_json: bool) -> None:
        self.is_json = is_json
        is_terminal = sys.stdout.isatty()
        self._out = Console(width=None if is_terminal else _PIPE_COLUMNS, highlight=False)
        self._err = Console(stderr=True, highlight=False, soft_wrap=True)

    def result(self, fields: Any, text: str) -> None:
        """The command's result: `fields` for machines, `text` for people, as it is."""
        if self.is_json:
            print(json.dumps(fields, indent=2, ensure_ascii=False))
        else:
            print(text)

    def table(self, fields: Any, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A result of several lines; columns whose title begins with ">" are set to the right."""
        if self.is_json:
            self.result(fields, "")
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            is_right = column.startswith(">")
            table.add_column(
                column.removeprefix(">"),
                justify="right" if is_right else "left",
                overflow="fold",
            )
        for row in rows:
            table.add_row(*map(escape, row))
        with self._out.capture() as capture:
            self._out.print(table)
        print("\n".join(line.rstrip() for line in capture.get().splitlines()))

    def note(self, text: str) -> None:
        """Something worth knowing besides the result."""
        if not self.is_json:
            self._err.print(escape(text))

    def error(self, problem: str, next_step: str) -> None:
        """What went wrong and what to do about it, for people."""
        self._err.print(f"[bold red]error:[/] {escape(problem)}")
        self._err.print(f"       {escape(next_step)}")

    @contextmanager
    def progress(self, what: str) -> Iterator[Report]:
        """A bar on the terminal for the block; silent when nobody watches."""
        if self.is_json or not self._err.is_terminal:
            yield lambda done: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._err, transient=True) as progress:
            task = progress.add_task(escape(what), total=1.0)
            yield lambda done: progress.update(task, completed=done)

    def failure(self, exc: BaseException, is_debug: bool) -> int:
        """Shows an exception that ends the command. Returns: the exit status."""
        face = face_of(exc)
        if is_debug:
            traceback.print_exception(exc)
        if isinstance(exc, StorageError):
            problem, next_step, fields = exc.problem, exc.next_step, exc.fields()
        else:
            problem = f"unexpected {type(exc).__name__}: {exc}"
            next_step = "this is a fault of Nearstone; --debug shows where, please report it"
            fields = {}
        self._failure(type(exc).__name__, fields, problem, next_step, face.exit_status)
        return face.exit_status

    def usage(self, problem: str, command: str) -> int:
        """Shows that the command line was wrong. Returns: the exit status."""
        next_step = f"`{command} --help` explains it"
        self._failure("UsageError", {}, problem, next_step, EXIT_REFUSED)
        return EXIT_REFUSED

    def _failure(
        self, class_name: str, fields: Any, problem: str, next_step: str, exit_status: int
    ) -> None:
        if not self.is_json:
            self.error(problem, next_step)
            return
        error = {
            "class": class_name,
            "fields": fields,
            "problem": problem,
            "next_step": next_step,
            "exit_status": exit_status,
        }
        print(json.dumps({"error": error}, indent=2, ensure_ascii=False), file=sys.stderr)
