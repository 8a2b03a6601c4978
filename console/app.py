"""The command ``nearstone``: its root, and how every way of ending it looks to the caller.

Exit statuses: 0 done · 1 a check found something, or a fault of ours · 2 refused, nothing changed ·
3 failed while it was carried out · 130 interrupted with Ctrl-C · 143 ended by SIGTERM.
"""

import importlib.metadata
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer
from typer.exceptions import Abort, TyperException

from console import attach, disks, files, images, installation, pools, scrubbing, serving, settings
from console.invocation import Invocation
from console.output import Output
from console.prose import EVERYWHERE

EXIT_INTERRUPTED: Final = 130
EXIT_TERMINATED: Final = 143
EXIT_PIPE_CLOSED: Final = 141

_SHARED_FLAGS: Final = ("--json", "--debug")
_SHARED_VALUE: Final = "--pool"


def gather_shared_options(arguments: Sequence[str]) -> list[str]:
    """The arguments, the options that all commands share in front, where the root reads them.

    People write ``disk list --pool DIR`` as readily as ``--pool DIR disk list``. What follows
    ``--`` stays where it is.
    """
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    shared: list[str] = []
    rest: list[str] = []
    at = 0
    while at < end:
        argument = arguments[at]
        if argument == _SHARED_VALUE and at + 1 < end:
            shared += [argument, arguments[at + 1]]
            at += 1
        elif argument in _SHARED_FLAGS or argument.startswith(f"{_SHARED_VALUE}="):
            shared.append(argument)
        else:
            rest.append(argument)
        at += 1
    return [*shared, *rest, *arguments[end:]]


app = typer.Typer(
    name="nearstone",
    help="Virtual disks on local drives: log-structured, compressed, crash-safe, served over NBD.",
    epilog=EVERYWHERE,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(pools.app, name="pool")
app.add_typer(disks.app, name="disk")
scrubbing.register(pools.app)
images.register(disks.app)
attach.register(disks.app)
settings.register(disks.app)
serving.register(app)
files.register(app)
installation.register(app)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"nearstone {importlib.metadata.version('nearstone')}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    pool: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            readable=False,  # the storage says it better
            help="The pool's folder. Without it: NEARSTONE_POOL, else the configuration file.",
            show_default=False,
        ),
    ] = None,
    is_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; sizes are in bytes, keys are stable.")
    ] = False,
    is_debug: Annotated[
        bool, typer.Option("--debug", help="Show where in the program an error came from.")
    ] = False,
    is_version_wanted: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Virtual disks on local drives: log-structured, compressed, crash-safe, served over NBD."""
    ctx.obj = Invocation(pool, is_json)


class _TerminatedError(BaseException):
    """SIGTERM arrived; what the command had begun is undone on the way out."""


def _terminate(*_: object) -> NoReturn:
    raise _TerminatedError


def run(arguments: Sequence[str]) -> int:
    """One command line. Returns: the exit status."""
    arguments = gather_shared_options(arguments)
    output = Output(is_json="--json" in arguments)
    try:
        status = app(list(arguments), prog_name="nearstone", standalone_mode=False)
        sys.stdout.flush()
    except TyperException as exc:
        problem = " ".join(exc.format_message().replace("Value error, ", "").split())
        context = getattr(exc, "ctx", None)
        if not problem:  # a group without a command: its help has been printed
            return exc.exit_code
        return output.usage(problem, context.command_path if context else "nearstone")
    except (Abort, KeyboardInterrupt):
        output.note("interrupted")
        return EXIT_INTERRUPTED
    except _TerminatedError:
        return EXIT_TERMINATED
    except (BrokenPipeError, SystemExit) as exc:
        if isinstance(exc, SystemExit) and exc.code != 1:
            raise  # shell completion has done its work
        # Whoever read our output has enough (typer turns that into an exit with 1 in between);
        # Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE_CLOSED
    except Exception as exc:
        return output.failure(exc, is_debug="--debug" in arguments)
    return status if isinstance(status, int) else 0


def main() -> NoReturn:
    """The entry point of the installed script."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))
