"""The order of runs: interleaved, and rotated from round to round.

Within a round each workload is run by all contenders one after the other, so that the runs that
are compared lie seconds apart. The order of contenders moves on by one each round, so that nobody
always follows the same neighbour:

    round 0    random-read: A B C    random-write: A B C
    round 1    random-read: B C A    random-write: B C A
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.workload import Workload


@dataclass(frozen=True)
class Step:
    """One measured run to carry out."""

    round_number: int
    workload: Workload
    contender: str
    # The same for all contenders of the round and workload, different for every other.
    seed: int


def rotated(names: Sequence[str], by: int) -> list[str]:
    """Return `names` starting `by` places later, cyclically."""
    start = by % len(names) if names else 0
    return [*names[start:], *names[:start]]


def steps(contenders: Sequence[str], workloads: Sequence[Workload], rounds: int) -> Iterator[Step]:
    """Yield every step of the benchmark in order."""
    for round_number in range(rounds):
        for index, workload in enumerate(workloads):
            seed = 1000 * (round_number + 1) + index
            for contender in rotated(contenders, round_number):
                yield Step(round_number, workload, contender, seed)
