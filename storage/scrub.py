"""The scrub: reads everything that is alive in a pool, verifies it, and keeps what it found.

The core moves the bytes, a piece at a time and without the GIL; this decides what comes next and
how fast. Disks are taken by name, each before its snapshots from the newest on, so that what a
snapshot shares with its successor is read once. A clone is a disk of its own: what it shares is
read again.

States: never → running → finished, or failed for a reason that the log tells. The result of the
last one stays in the catalog. One that the pool's end interrupts leaves no trace: when it was due,
the next server begins it anew.

Concurrency: one thread, which sleeps until something is due or asked for. Clock and waiting are
arguments. Lock order: `_wake` → the catalog's lock; disks are opened and read with none held.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from storage.catalog import Catalog
from storage.errors import DiskNotFound, InvalidRequest, PoolClosed, StorageError
from storage.service import DiskState, ScrubDamage, ScrubReport
from storage.units import MIB, UnixSeconds, format_time

if TYPE_CHECKING:
    from storage import _core

SCRUB_EVERY: Final = "scrub_every"
SCRUB_RATE_BYTES: Final = "scrub_rate_bytes"
_SCRUB_LAST: Final = "scrub_last"

PERIODS_S: Final = {"daily": 86_400, "weekly": 7 * 86_400, "monthly": 30 * 86_400}
RATE_BYTES_DEFAULT: Final = 100 * MIB
"""A second; a fraction of what a drive can do, so that guests hardly notice."""
_RATE_BYTES_MAX: Final = 1 << 40
_PIECE_BYTES: Final = MIB
DAMAGES_MAX: Final = 1000
"""Places that a report names. All are counted."""

_log = logging.getLogger(__name__)


def check_pool_settings(changes: Mapping[str, Any]) -> None:
    """Raises InvalidRequest, naming the setting. None takes one back to its default."""
    for name, value in changes.items():
        if name not in (SCRUB_EVERY, SCRUB_RATE_BYTES):
            raise InvalidRequest(reason=f"pools have no setting {name!r}")
        if value is None:
            continue
        if name == SCRUB_EVERY and value not in PERIODS_S:
            raise InvalidRequest(reason=f"a scrub is {', '.join(PERIODS_S)} or off, not {value!r}")
        if name == SCRUB_RATE_BYTES:
            check_rate(value)


def check_rate(rate_bytes: object) -> None:
    """Raises InvalidRequest unless that many bytes a second make sense."""
    is_number = isinstance(rate_bytes, int) and not isinstance(rate_bytes, bool)
    if not is_number or not 1 <= rate_bytes <= _RATE_BYTES_MAX:  # type: ignore[operator]  # a number
        raise InvalidRequest(reason=f"a scrub reads 1 to {_RATE_BYTES_MAX} bytes a second")


def next_due(settings: Mapping[str, Any], now_s: float) -> float | None:
    """When the pool's settings want the next scrub, in Unix seconds; None without a schedule."""
    period_s = PERIODS_S.get(settings.get(SCRUB_EVERY, ""))
    if period_s is None:
        return None
    last = settings.get(_SCRUB_LAST, {}).get("finished_unix")
    return now_s if last is None else float(last + period_s)


@dataclass
class _Run:
    """A scrub under way; the rate allows no more reading before the moment `free_s`."""

    rate_bytes: int
    started_s: float
    began: UnixSeconds
    free_s: float
    done_bytes: int = 0
    total_bytes: int = 0
    read_bytes: int = 0
    damaged: int = 0
    damages: list[ScrubDamage] = field(default_factory=list)

    def note(self, disk: str, offset: int, length: int, detail: str) -> None:
        """Damage. What continues the place before it is one with it."""
        last = self.damages[-1] if self.damages else None
        if (
            last is not None
            and (last.disk, last.detail) == (disk, detail)
            and last.offset + last.length == offset
        ):
            self.damages[-1] = replace(last, length=last.length + length)
            return
        self.damaged += 1
        if len(self.damages) < DAMAGES_MAX:
            self.damages.append(ScrubDamage(disk, offset, length, detail))


def _refuse(name: str) -> "_core.Disk":
    """What opens disks once the pool is closed."""
    raise PoolClosed


class Scrub:
    """The scrub of one open pool."""

    def __init__(
        self,
        catalog: Catalog,
        open_disk: Callable[[str], "_core.Disk"],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: open_disk: what puts a disk into service. Starts nothing."""
        self._catalog = catalog
        self._open_disk = open_disk
        self._clock = clock
        self._monotonic = monotonic
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_scheduled = False
        self._is_closed = False
        self._run: _Run | None = None
        self._wanted: _Run | None = None
        # The last result, which the catalog may have had no room for.
        self._last: dict[str, Any] = {}

    def schedule(self) -> None:
        """Scrubs when it is due, from now on: for a server."""
        with self._wake:
            self._is_scheduled = True
            self._start_thread()

    def set(self, changes: Mapping[str, Any]) -> ScrubReport:
        """Changes settings, which count at once. Raises: InvalidRequest."""
        check_pool_settings(changes)
        self._catalog.set_pool_settings(changes)
        with self._wake:
            self._wake.notify_all()
        return self.report()

    def start(self, rate_bytes: int | None = None) -> ScrubReport:
        """Begins a scrub, unless one runs already. Returns at once. Raises: InvalidRequest."""
        if rate_bytes is not None:
            check_rate(rate_bytes)
        with self._wake:
            if self._is_closed:
                raise PoolClosed
            if self._run is None and self._wanted is None:
                self._wanted = self._new_run(rate_bytes)
                self._start_thread()
                self._wake.notify_all()
        return self.report()

    def report(self) -> ScrubReport:
        """How far it is, else what the last one found."""
        settings = self._settings()
        with self._wake:
            run = self._run or self._wanted
            if run is not None:
                found = self._describe(run, "running")
            elif _SCRUB_LAST in settings:
                found = ScrubReport.from_json(settings[_SCRUB_LAST])
            else:
                found = ScrubReport(state="never")
        due = next_due(settings, self._clock()) if run is None else None
        return replace(
            found,
            every=settings.get(SCRUB_EVERY),
            next=None if due is None else format_time(UnixSeconds(int(due))),
        )

    def close(self) -> None:
        """Stops whatever runs and waits for its piece to end."""
        with self._wake:
            self._is_closed = True
            self._wake.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        # Else pool and scrub would keep each other, and with them the core's open files.
        self._open_disk = _refuse

    # -- the thread

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="scrub", daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        while (run := self._wait_for_work()) is not None:
            try:
                self._scrub(run)
            except PoolClosed:
                return
            except Exception:
                # Whatever it is, it must not end the schedule; the next time is a period away.
                _log.exception("the scrub failed")
                self._finish(run, "failed")

    def _wait_for_work(self) -> _Run | None:
        """The next scrub once it is due, or None when the pool is closed."""
        with self._wake:
            while not self._is_closed:
                if self._wanted is not None:
                    self._run, self._wanted = self._wanted, None
                    return self._run
                due = next_due(self._settings(), self._clock())
                if not self._is_scheduled or due is None:
                    self._wake.wait()
                    continue
                if (left_s := due - self._clock()) <= 0:
                    self._wanted = self._new_run(None)
                    continue
                # No longer than an hour, since the clock may be set meanwhile.
                self._wake.wait(min(left_s, 3600.0))
        return None

    def _new_run(self, rate_bytes: int | None) -> _Run:
        rate = self._catalog.pool_settings().get(SCRUB_RATE_BYTES, RATE_BYTES_DEFAULT)
        moment_s = self._monotonic()
        return _Run(rate_bytes or rate, moment_s, UnixSeconds(int(self._clock())), moment_s)

    def _scrub(self, run: _Run) -> None:
        targets = list(self._targets())
        for name, _ in targets:
            if self._is_closed:
                raise PoolClosed
            try:
                run.total_bytes += self._open_disk(name).measure_data()[0]
            except StorageError:
                continue  # what is wrong with it is said below
        # The very object: a disk that is rolled back meanwhile comes back as another one.
        verified: tuple[str, _core.Disk] | None = None
        for name, verified_name in targets:
            try:
                disk = self._open_disk(name)
                is_shared = verified is not None and verified[0] == verified_name
                self._scrub_disk(run, name, disk, verified[1] if verified and is_shared else None)
                verified = (name, disk)
            except DiskNotFound:
                continue  # deleted meanwhile
            except PoolClosed:
                if self._is_closed:
                    raise
            except StorageError as exc:
                run.note(name, 0, 0, exc.problem)
        self._finish(run, "finished")

    def _targets(self) -> Iterator[tuple[str, str | None]]:
        """Disks and snapshots, each with the one before it that shares most with it."""
        for row in self._catalog.disks():
            if row.snapshot_of is not None or row.state != DiskState.READY:
                continue
            before = row.name
            yield row.name, None
            for snapshot in reversed(self._catalog.snapshots(row.id)):
                if snapshot.state == DiskState.READY:
                    yield snapshot.name, before
                    before = snapshot.name

    def _scrub_disk(
        self, run: _Run, name: str, disk: "_core.Disk", verified: "_core.Disk | None"
    ) -> None:
        at = 0
        while at < disk.size_bytes:
            at, data_bytes, read_bytes, damages = disk.scrub(at, _PIECE_BYTES, verified)
            with self._wake:
                run.done_bytes += data_bytes
                run.read_bytes += read_bytes
                for damage in damages:
                    run.note(name, *damage)
            self._pace(run, read_bytes)

    def _pace(self, run: _Run, read_bytes: int) -> None:
        """Waits as long as the rate demands. Raises: PoolClosed."""
        moment_s = self._monotonic()
        # What was not read while it could have been is not made up for.
        run.free_s = max(run.free_s, moment_s) + read_bytes / run.rate_bytes
        ahead_s = run.free_s - moment_s
        with self._wake:
            if ahead_s > 0:
                self._wake.wait_for(lambda: self._is_closed, ahead_s)
            if self._is_closed:
                raise PoolClosed

    def _finish(self, run: _Run, state: str) -> None:
        with self._wake:
            report = {
                **self._describe(run, state).to_json(),
                "finished": format_time(UnixSeconds(int(self._clock()))),
                "finished_unix": int(self._clock()),
            }
            self._last = {_SCRUB_LAST: report}
            self._run = None
        try:
            self._catalog.set_pool_settings(self._last)
        except StorageError:
            _log.exception("the result of the scrub is known until the end of this process only")

    def _settings(self) -> dict[str, Any]:
        """The pool's settings and the last result."""
        return {**self._catalog.pool_settings(), **self._last}

    def _describe(self, run: _Run, state: str) -> ScrubReport:
        elapsed_s = max(self._monotonic() - run.started_s, 1e-9)
        share = run.done_bytes / run.total_bytes if run.total_bytes else 0.0
        left_s = elapsed_s * (1 - share) / share if 0 < share < 1 else None
        return ScrubReport(
            state=state,
            started=format_time(run.began),
            done_bytes=run.done_bytes,
            total_bytes=max(run.total_bytes, run.done_bytes),
            read_bytes=run.read_bytes,
            rate_bytes=run.rate_bytes,
            elapsed_s=round(elapsed_s, 3),
            left_s=None if left_s is None or state != "running" else round(left_s),
            damaged=run.damaged,
            damages=list(run.damages),
        )
