"""`kill -9` of the server under load: every acknowledged write is there afterwards."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from storage.format.disk import read_anchor
from tests.system.conftest import MakePool
from tests.system.crashes import Victim
from tests.system.load import Weights

KIB, MIB = 1 << 10, 1 << 20
ROUNDS = 3000 if os.environ.get("NEARSTONE_SOAK") == "1" else 50

# So little that a checkpoint is always going on, and no node stays in the cache.
MEMORY_BYTES_TINY = 64 * KIB

MakeVictim = Callable[..., Victim]


@pytest.fixture
def make_victim(make_pool: MakePool) -> Iterator[MakeVictim]:
    """Makes pools with two disks whose servers do not outlive the test."""
    victims: list[Victim] = []

    def make(
        seed: int,
        size_bytes: int = 8 * MIB,
        memory_bytes: int | None = None,
        weights: Weights | None = None,
    ) -> Victim:
        disks = {"one": size_bytes, "two": size_bytes}
        victims.append(Victim(make_pool(**disks), disks, seed, memory_bytes, weights))
        return victims[-1]

    yield make
    for victim in victims:
        if victim.server.is_running:
            victim.server.kill()


def test_at_random_moments(make_victim: MakeVictim) -> None:
    victim = make_victim(seed=1)
    for _ in range(ROUNDS):
        victim.round(victim.random.uniform(0.0, 0.25))
    victim.finish()


def test_while_checkpoints_are_made(make_victim: MakeVictim) -> None:
    victim = make_victim(seed=2, memory_bytes=MEMORY_BYTES_TINY)
    for _ in range(ROUNDS // 2):
        victim.round(victim.random.uniform(0.0, 0.25))
    checkpoints = [
        read_anchor(path).root.seq for path in sorted((victim.server.pool / "anchors").iterdir())
    ]
    assert min(checkpoints) > ROUNDS, "too few checkpoints to hit one"
    victim.finish()


def test_while_every_write_is_flushed(make_victim: MakeVictim) -> None:
    """Then segments are filled with zeros beforehand, and MARKs are written all the time."""
    victim = make_victim(seed=3, weights=Weights(ragged=0.1, large=0, flush=0.1, fua=1))
    for _ in range(ROUNDS // 2):
        victim.round(victim.random.uniform(0.0, 0.25))
    victim.finish()


def test_while_it_recovers(make_victim: MakeVictim) -> None:
    victim = make_victim(seed=4, weights=Weights(large=0.3))
    for _ in range(ROUNDS // 4):
        victim.round(victim.random.uniform(0.1, 0.3))
        for _ in range(victim.random.randrange(4)):
            victim.interrupted_recovery(victim.random.uniform(0.0, 0.03))
    victim.finish()


def test_while_it_stops(make_victim: MakeVictim) -> None:
    victim = make_victim(seed=5)

    def stop_and_kill() -> None:
        victim.server.process.send_signal(signal.SIGTERM)
        time.sleep(victim.random.uniform(0.0, 0.08))
        victim.server.kill()

    for _ in range(ROUNDS // 4):
        victim.server.start()
        victim.judge()
        victim.work_and_kill(victim.random.uniform(0.0, 0.15), stop_and_kill)
    victim.finish()
