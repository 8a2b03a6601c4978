"""Keep a server that insists on becoming a daemon in the foreground: `foreground.py COMMAND…`.

The kernel gives orphans to the nearest ancestor that asked for them ("child subreaper"), so the
daemon and its children stay in this process's tree, where their CPU time can be counted and where
they can be stopped. Runs as a script of its own, with nothing but the standard library.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def _stop_children(_number: int, _frame: object) -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for pid in children:
        os.kill(int(pid), signal.SIGTERM)


def main(command: list[str]) -> int:
    """Run `command` and return when it and everything it left behind has ended."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    signal.signal(signal.SIGTERM, _stop_children)
    os.posix_spawnp(command[0], command, os.environ)
    failed = False
    while True:
        try:
            _, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return int(failed)
        failed = failed or os.waitstatus_to_exitcode(status) > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
