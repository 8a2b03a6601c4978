"""Ctrl-C, SIGTERM and SIGHUP as KeyboardInterrupt, but never between a process and its cleanup.

An interrupt inside `subprocess.Popen` would lose a child that already runs. Blocking signals would
not do, since the child inherits the mask; so the handler itself waits while `deferred` is active.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_depth = 0
_is_pending = False


def install() -> None:
    """Handle the signals from now on (SIGINT too: a shell has it ignored in the background)."""
    for number in _SIGNALS:
        signal.signal(number, _handle)


def _handle(_number: int, _frame: object) -> None:
    global _is_pending
    if _depth:
        _is_pending = True
    else:
        raise KeyboardInterrupt


@contextmanager
def deferred() -> Iterator[None]:
    """Let an interrupt wait until the end of the block, and raise it there.

    What the block starts must be known to an enclosing `try` by then.
    """
    global _depth, _is_pending
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _is_pending and not _depth:
            _is_pending = False
            raise KeyboardInterrupt
