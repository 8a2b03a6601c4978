"""The load of ``load.rs`` in a guest, from a test's point of view."""

import re
from dataclasses import dataclass
from typing import Final

from tests.guest.console import Console
from tests.system.data_plane import wait_until

_STOP: Final = "/run/stop"
_OPERATIONS_MIN: Final = 100


@dataclass(frozen=True)
class Done:
    """What the load has done, and the longest that one request took."""

    writes: int
    flushes: int
    longest_s: float


class Load:
    """Verified load on an empty device of a guest, from now until `finish`."""

    def __init__(self, shell: Console, device: str, length_bytes: int, seed: int = 1) -> None:
        self.shell = shell
        shell(
            f"(verified-load {device} {length_bytes} {seed} {_STOP} /run/progress > /run/load 2>&1;"
            " echo $? > /run/load-status) &"
        )

    def progress(self) -> int:
        """How many requests it has made."""
        return int(self.shell("cat /run/progress 2> /dev/null || echo 0") or 0)

    def wait_for_progress(self) -> None:
        """Wait until it has made many more. Raises: AssertionError: it does not."""
        before = self.progress()
        wait_until(
            lambda: self.progress() >= before + _OPERATIONS_MIN, "the load goes on", timeout_s=180
        )

    def finish(self) -> Done:
        """Stop it, and all that ends with it; it reads everything back.

        Raises: AssertionError with its words: a request failed or the bytes were wrong.
        """
        self.shell(f"touch {_STOP}; while [ ! -e /run/load-status ]; do sleep 0.1; done")
        printed = self.shell("cat /run/load")
        assert self.shell("cat /run/load-status") == "0\n", printed
        found = re.fullmatch(r"writes=(\d+) reads=\d+ flushes=(\d+) longest_ms=(\d+)\n", printed)
        assert found is not None, printed
        return Done(int(found[1]), int(found[2]), int(found[3]) / 1000)
