"""How the data plane stops: connections first, then nbdkit, then the pool.

1. A signal to stop arrives. nbdkit's own handlers never run: the signals are blocked before any
   thread exists that could serve a client, and one thread waits for them.
2. New clients are refused (`Stopping.is_stopping`), the connections of the others are broken (see
   ``clients.py`` for why), nbdkit is asked to shut down.
3. nbdkit waits until its connections are gone, then calls `cleanup`, which closes the pool.

A crash in between is like any other crash: nothing that was acknowledged is lost.
"""

import ctypes
import signal
import threading
from collections.abc import Callable

from nbd_plugin.clients import break_connections, listeners

SIGNALS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

# Only while stopping: how often to look for a client that slipped in between the refusal and the
# shutdown.
_LOOK_AGAIN_S = 0.05


def outlive_parent() -> None:
    """Go on when the process that started this one dies.

    nbdkit up to 1.32 always asks the kernel to end it then, whether ``--exit-with-parent`` was
    given or not; a launcher that is killed must not take guests' disks with it. Main thread only.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)


class Stopping:
    """Waits for the signal to stop, and carries it out. One for the process."""

    def __init__(self, shut_down_nbdkit: Callable[[], None]) -> None:
        """Note on what nbdkit listens; make this in `after_fork`, before other sockets are opened.

        Args:
            shut_down_nbdkit: asks nbdkit to end, without waiting.
        """
        self._shut_down_nbdkit = shut_down_nbdkit
        self._served = listeners()
        self._is_stopping = threading.Event()
        self._is_over = threading.Event()

    def start(self) -> None:
        """Take the signals over.

        Concurrency: call in the main thread before any other thread is started, since threads
        inherit which signals are blocked.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=self._wait_and_stop, name="stopping", daemon=True).start()

    @property
    def is_stopping(self) -> bool:
        """Whether new clients are to be refused."""
        return self._is_stopping.is_set()

    def finish(self) -> None:
        """No client is connected any more; called by `cleanup`."""
        self._is_over.set()

    def _wait_and_stop(self) -> None:
        signal.sigwait(SIGNALS)
        self._is_stopping.set()
        break_connections(self._served)
        self._shut_down_nbdkit()
        while not self._is_over.wait(_LOOK_AGAIN_S):
            break_connections(self._served)
