"""Contents that say who wrote them, and the ledger that says which of them may be there.

Every 512-byte sector of a write carries the number of the write and the sector's own place; the
rest follows from the number. So whatever a disk holds can be judged: which write it came from,
whether it is in its place, whether it is whole.

Requests may be in flight together and overlap, in any order. What a sector may hold follows from
linearizability alone. With a clock that ticks at every issue and every acknowledgement:

    a write W of the sector is gone when some other write V of it was issued after W's
    acknowledgement and has itself been acknowledged

        W  ├─────────┤ack
        V               ├─────────┤ack        → W may not be there any more

and all others may be there: also those never acknowledged, for a crash may come between the write
and its reply. What a crash has left is looked at once by `Ledger.judge`; from then on nothing that
was issued before can come back.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

SECTOR_BYTES: Final = 512
_HEADER_BYTES: Final = 16  # write number, sector
_NEVER: Final = np.iinfo(np.int64).max

Sectors = NDArray[np.int64]


# As many as 16 KiB have sectors: no two within one extent are alike.
_VARIANTS: Final = 32


def _make_bodies() -> NDArray[np.uint8]:
    """What follows the header: first the compressible variants, then those that are noise."""
    noise = np.random.default_rng(20)
    bodies = noise.integers(0, 256, (2 * _VARIANTS, SECTOR_BYTES - _HEADER_BYTES), dtype=np.uint8)
    bodies[:_VARIANTS, 40:] = bodies[:_VARIANTS, :1]
    return bodies


_BODIES: Final = _make_bodies()


def _body_of(numbers: Sectors, places: Sectors, is_noise_only: bool) -> NDArray[np.uint8]:
    """The bodies of sectors by the numbers of their writes and their places."""
    are_noise = np.ones_like(numbers) if is_noise_only else numbers % 2
    return _BODIES[are_noise * _VARIANTS + (numbers * 7 + places * 17) % _VARIANTS]


@dataclass(frozen=True)
class Request:
    """A request that was sent: number, first sector, end sector; what it writes."""

    number: int
    first: int
    end: int
    is_zero: bool
    is_noise_only: bool

    def content(self) -> bytearray:
        """The bytes to write."""
        sectors = np.empty((self.end - self.first, SECTOR_BYTES), np.uint8)
        header = sectors[:, :_HEADER_BYTES].view("<i8")
        places = np.arange(self.first, self.end)
        numbers = np.full_like(places, self.number)
        header[:, 0], header[:, 1] = numbers, places
        sectors[:, _HEADER_BYTES:] = _body_of(numbers, places, self.is_noise_only)
        return bytearray(sectors.tobytes())


class Ledger:
    """What was sent to one disk of `sectors` sectors, and what was acknowledged.

    Every other write is compressible, unless all are to be noise. At most one request that writes
    zeros may be in flight at a time: zeros do not say whose they are.
    """

    def __init__(self, sectors: int, is_noise_only: bool = False) -> None:
        self.sectors = sectors
        self._is_noise_only = is_noise_only
        self._clock = 0
        # By request number; 0 stands for the zeros of a new disk.
        self._issued: list[int] = [0]
        self._acknowledged: list[int] = [0]
        self._ranges: list[tuple[int, int]] = [(0, sectors)]
        self._judged_at = 0
        self._zeroing: int | None = None
        # By sector: what was found there last, 0 for zeros …
        self._base: Sectors = np.zeros(sectors, np.int64)
        # … when the newest acknowledged request was issued, 0 for none since the last look …
        self._floor: Sectors = np.zeros(sectors, np.int64)
        # … and until when zeros may be there: the acknowledgement of a request that wrote them.
        self._zeros_until: Sectors = np.full(sectors, -1, np.int64)

    def issue(self, first: int, end: int, is_zero: bool = False) -> Request:
        """A request is about to be sent."""
        self._clock += 1
        request = Request(len(self._issued), first, end, is_zero, self._is_noise_only)
        self._issued.append(self._clock)
        self._acknowledged.append(_NEVER)
        self._ranges.append((first, end))
        if is_zero:
            self._zeros_until[first:end] = _NEVER
            self._zeroing = request.number
        return request

    @property
    def is_zeroing(self) -> bool:
        """Whether a request that writes zeros is in flight."""
        return self._zeroing is not None

    def acknowledge(self, request: Request) -> None:
        """The server said that it is done."""
        self._clock += 1
        self._acknowledged[request.number] = self._clock
        span = slice(request.first, request.end)
        if request.is_zero:
            self._zeros_until[span] = self._clock
            self._zeroing = None
        np.maximum(self._floor[span], self._issued[request.number], out=self._floor[span])

    @property
    def acknowledged(self) -> int:
        """How many requests were acknowledged so far."""
        return sum(1 for tick in self._acknowledged[1:] if tick != _NEVER)

    def judge(self, content: bytes | bytearray) -> None:
        """Look at the whole disk while no request is in flight.

        Raises: AssertionError, when a sector holds something that it cannot hold.
        """
        sectors = np.frombuffer(content, np.uint8).reshape(self.sectors, SECTOR_BYTES)
        numbers = sectors[:, :_HEADER_BYTES].view("<i8")[:, 0].astype(np.int64)
        self._refuse("not a stamp of ours", ~self._are_whole(sectors, numbers), numbers)
        self._refuse("of a write that is gone", ~self._may_be(numbers), numbers)
        self._base = numbers
        self._floor[:] = 0
        self._zeros_until[:] = -1
        self._judged_at = self._clock
        self._zeroing = None

    def _are_whole(self, sectors: NDArray[np.uint8], numbers: Sectors) -> NDArray[np.bool_]:
        """Zeros all through, or every byte as the write of that number puts it in this place."""
        are_known = (numbers > 0) & (numbers < len(self._issued))
        places = np.arange(self.sectors)
        expected = _body_of(numbers, places, self._is_noise_only)
        are_in_place = sectors[:, :_HEADER_BYTES].view("<i8")[:, 1] == places
        are_stamps = are_known & are_in_place & (sectors[:, _HEADER_BYTES:] == expected).all(axis=1)
        return np.where(numbers == 0, ~sectors.any(axis=1), are_stamps)

    def _may_be(self, numbers: Sectors) -> NDArray[np.bool_]:
        issued = np.array(self._issued)[numbers]
        acknowledged = np.array(self._acknowledged)[numbers]
        firsts, ends = np.array(self._ranges).T
        places = np.arange(self.sectors)
        are_covered = (firsts[numbers] <= places) & (places < ends[numbers])
        are_new = (issued > self._judged_at) & are_covered & (acknowledged >= self._floor)
        are_new_zeros = self._zeros_until >= np.maximum(self._floor, 1)
        are_untouched = (numbers == self._base) & (self._floor == 0)
        may_be: NDArray[np.bool_] = np.where(numbers == 0, are_new_zeros, are_new) | are_untouched
        return may_be

    def _refuse(self, what: str, are_wrong: NDArray[np.bool_], numbers: Sectors) -> None:
        wrong = np.flatnonzero(are_wrong)
        if not len(wrong):
            return
        at = int(wrong[0])
        newest = [
            (number, self._issued[number], self._acknowledged[number])
            for number, (first, end) in enumerate(self._ranges)
            if first <= at < end
        ][-8:]
        raise AssertionError(
            f"{len(wrong)} sectors hold something {what}; the first is {at}, found {numbers[at]}, "
            f"held {self._base[at]} when judged at {self._judged_at}; the last requests there "
            f"(number, issued, acknowledged): {newest}"
        )
