"""A client that fills a disk until the drives are full."""

import errno
from typing import Final

import nbd

from tests.system.data_plane import DataPlane, wait_until
from tests.system.load import read_whole
from tests.system.stamps import SECTOR_BYTES, Ledger

CHUNK_SECTORS: Final = 256
CHUNK_BYTES: Final = CHUNK_SECTORS * SECTOR_BYTES


class Filler:
    """A client that writes noise to one disk and notes what was answered; one request at a time."""

    def __init__(self, server: DataPlane, disk: str, size_bytes: int) -> None:
        self.ledger = Ledger(size_bytes // SECTOR_BYTES, is_noise_only=True)
        self._server, self._disk = server, disk
        self._at = 0
        self.connect()

    def connect(self) -> None:
        """Anew, after the server was restarted."""
        self.connection = self._server.connect(self._disk)

    def write_chunks(self, length_bytes: int) -> None:
        """Fill the start of the disk, for which there must be room."""
        for first in range(0, length_bytes // SECTOR_BYTES, CHUNK_SECTORS):
            assert self.can_write(first)

    def fill(self) -> int:
        """Write from where it stopped last until the drive is full. Returns: bytes written."""
        written_bytes = 0
        while self.can_write(self._at):
            self._at = (self._at + CHUNK_SECTORS) % self.ledger.sectors
            written_bytes += CHUNK_BYTES
        return written_bytes

    def can_write(self, first: int, sectors: int = CHUNK_SECTORS) -> bool:
        """Write. Returns: whether there was room; any other error is raised."""
        request = self.ledger.issue(first, first + sectors)
        try:
            self.connection.pwrite(request.content(), first * SECTOR_BYTES)
        except nbd.Error as exc:
            if exc.errnum != errno.ENOSPC:
                raise
            return False
        self.ledger.acknowledge(request)
        return True

    def trim(self, first: int, sectors: int) -> None:
        request = self.ledger.issue(first, first + sectors, is_zero=True)
        self.connection.trim(sectors * SECTOR_BYTES, first * SECTOR_BYTES)
        self.ledger.acknowledge(request)

    def trim_all(self) -> None:
        self.trim(0, self.ledger.sectors)

    def judge(self) -> None:
        """Everything that was acknowledged can be read."""
        self.ledger.judge(read_whole(self.connection, self.ledger.sectors * SECTOR_BYTES))

    def wait_for_room(self, bytes_wanted: int, why: str) -> None:
        """Space may come back in the background. Raises: AssertionError: it did not."""
        written_bytes = 0

        def is_done() -> bool:
            nonlocal written_bytes
            written_bytes += self.fill()
            return written_bytes >= bytes_wanted

        wait_until(is_done, f"room for {bytes_wanted} bytes after {why}")
