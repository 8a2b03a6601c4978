"""Disks under load whose server is killed again and again."""

import random
from collections.abc import Callable
from pathlib import Path

import nbd

from tests.system.agreement import assert_sound
from tests.system.data_plane import DataPlane
from tests.system.load import Client, Weights, drain, keep_busy, read_whole, seconds_from_now
from tests.system.stamps import SECTOR_BYTES, Ledger

CONNECTIONS_PER_DISK = 2
DEPTH = 16


class Victim:
    """A pool with disks under load, its server, and the ledgers of what was acknowledged."""

    def __init__(
        self,
        pool: Path,
        disks: dict[str, int],
        seed: int,
        memory_bytes: int | None = None,
        weights: Weights | None = None,
    ) -> None:
        """Args: disks: name and size in bytes of each; they exist and are empty."""
        self.server = DataPlane(pool, memory_bytes)
        self.random = random.Random(seed)
        self.weights = weights or Weights()
        self.ledgers = {
            name: Ledger(size_bytes // SECTOR_BYTES) for name, size_bytes in disks.items()
        }

    def connect(self) -> list[Client]:
        """Several connections to every disk."""
        return [
            Client(self.server.connect(name), ledger, DEPTH, self.random, self.weights)
            for name, ledger in self.ledgers.items()
            for _ in range(CONNECTIONS_PER_DISK)
        ]

    def work_and_kill(self, seconds: float, kill: Callable[[], None] | None = None) -> None:
        """Load for so long, and then the end: `kill -9` unless `kill` does something else."""
        clients = self.connect()
        keep_busy(clients, seconds_from_now(seconds))
        (kill or self.server.kill)()
        drain(clients)

    def judge(self) -> None:
        """Everything acknowledged is there, and nothing that cannot be."""
        for name, ledger in self.ledgers.items():
            connection = self.server.connect(name)
            ledger.judge(read_whole(connection, ledger.sectors * SECTOR_BYTES))
            connection.shutdown()

    def round(self, seconds: float) -> None:
        """Start, look what the last crash has left, work, and crash."""
        self.server.start()
        self.judge()
        self.work_and_kill(seconds)

    def interrupted_recovery(self, seconds: float) -> None:
        """Start, let the disks be opened, which recovers them, and crash while that goes on."""
        self.server.start()
        opening = []
        for name in self.ledgers:
            client = nbd.NBD()
            client.set_export_name(name)
            client.aio_connect_unix(str(self.server.socket))
            opening.append(client)
        is_over = seconds_from_now(seconds)
        while not is_over():
            for client in opening:
                if client.aio_is_connecting() or client.aio_is_negotiating():
                    client.poll(1)
        self.server.kill()

    def finish(self) -> None:
        """A last look, a stop in order, and the second reader's opinion."""
        self.server.start()
        self.judge()
        self.server.stop()
        assert_sound(self.server.pool)
        for ledger in self.ledgers.values():
            assert ledger.acknowledged > 0
