"""`kill -9` while disks are made, resized, renamed, deleted: each change is done or is not."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nbd
import pytest

from storage.errors import ServerUnreachable, StorageError
from storage.units import MIB
from tests.system.agreement import assert_sound
from tests.system.conftest import MakePool
from tests.system.data_plane import DataPlane

ROUNDS: Final = 500 if os.environ.get("NEARSTONE_SOAK") == "1" else 20
_MARK_BYTES: Final = 64 << 10

Disks = dict[str, int]  # name → size in bytes


@dataclass
class Change:
    """What is being asked of the server, and what the disks would be after it."""

    before: Disks
    after: Disks
    request: Callable[[], object]


class Operator:
    """Changes disks one after the other until the server is gone."""

    def __init__(self, server: DataPlane, seed: int) -> None:
        self.disks: Disks = {}
        self.acknowledged = 0
        self.marked: set[str] = set()
        self.refused: list[StorageError] = []
        self._server = server
        self._random = random.Random(seed)
        self._made = 0
        self._change: Change | None = None

    def work(self) -> None:
        """Runs until the server dies; `possible` says what may be found then."""
        try:
            with self._server.control() as control:
                self._control = control
                while True:
                    self._change = self._choose()
                    self._change.request()
                    self.disks = self._change.after
                    self._change = None
                    self.acknowledged += 1
        except (ServerUnreachable, nbd.Error):
            return
        except StorageError as exc:
            self.refused.append(exc)

    def possible(self) -> list[Disks]:
        """The disks as they were before or after the change that was cut off."""
        return [self._change.before, self._change.after] if self._change else [self.disks]

    def found(self, disks: Disks) -> None:
        """The server came back with these."""
        self.disks, self._change = disks, None

    def _choose(self) -> Change:
        if len(self.disks) < 3:
            return self._create()
        name = self._random.choice(sorted(self.disks))
        return self._random.choice((self._create, self._resize, self._rename, self._delete))(name)

    def _create(self, _: str = "") -> Change:
        self._made += 1
        name, size = f"disk-{self._made}", self._random.randint(1, 512) * MIB

        def request() -> None:
            self._control.create_disk(name, size)
            self._mark(name)

        return Change(self.disks, {**self.disks, name: size}, request)

    def _mark(self, name: str) -> None:
        """Put something on the disk that resizing leaves alone: its number."""
        connection = self._server.connect(name)
        connection.pwrite(mark_of(name), 0)
        self.marked.add(name)
        connection.shutdown()

    def _resize(self, name: str) -> Change:
        size = self._random.randint(1, 512) * MIB
        after = {**self.disks, name: size}
        return Change(self.disks, after, lambda: self._control.resize_disk(name, size, force=True))

    def _rename(self, name: str) -> Change:
        new_name = f"{name}x"
        after = {new_name if old == name else old: size for old, size in self.disks.items()}
        return Change(self.disks, after, lambda: self._control.rename_disk(name, new_name))

    def _delete(self, name: str) -> Change:
        after = {old: size for old, size in self.disks.items() if old != name}
        return Change(self.disks, after, lambda: self._control.delete_disk(name, force=True))


def mark_of(name: str) -> bytes:
    """What the disk holds at its start, whatever it is called meanwhile."""
    return name.rstrip("x").encode().ljust(32) * (_MARK_BYTES // 32)


@pytest.fixture
def server(make_pool: MakePool) -> Iterator[DataPlane]:
    server = DataPlane(make_pool())
    yield server
    if server.is_running:
        server.kill()


def test_kill_while_disks_change(server: DataPlane) -> None:
    operator = Operator(server, seed=6)
    moments = random.Random(7)
    for _ in range(ROUNDS):
        server.start()
        _look(server, operator)
        worker = threading.Thread(target=operator.work)
        worker.start()
        worker.join(moments.uniform(0.0, 0.3))
        server.kill()
        worker.join()
        assert not operator.refused
        assert_sound(server.pool)
    assert operator.acknowledged > ROUNDS
    server.start()
    _look(server, operator)
    server.stop()
    _assert_nothing_is_left_over(server.pool, len(operator.disks))


def _look(server: DataPlane, operator: Operator) -> None:
    with server.control() as control:
        found = {disk.name: disk.size_bytes for disk in control.list_disks()}
        assert found in operator.possible()
        operator.found(found)
        for name, size in found.items():
            connection = server.connect(name)
            assert connection.get_size() == size
            found_mark = connection.pread(_MARK_BYTES, 0)
            # Between its creation and its mark a disk is empty.
            is_empty = name.rstrip("x") not in operator.marked and not any(found_mark)
            assert is_empty or found_mark == mark_of(name)
            assert not any(connection.pread(_MARK_BYTES, size - _MARK_BYTES))
            connection.shutdown()


def _assert_nothing_is_left_over(pool: Path, disks: int) -> None:
    anchors = {path.stem for path in (pool / "anchors").iterdir()}
    folders = {path.name for path in (pool / "segments").iterdir()}
    assert len(anchors) == disks
    assert folders <= anchors
