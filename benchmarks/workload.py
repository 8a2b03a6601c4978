"""The workloads, as data.

Every workload runs over the whole disk, which was written completely beforehand, through fio's
nbd engine. Writes carry data that LZ4 halves: each 4 KiB chunk is half random and half one
repeated pattern, and no two blocks are alike.
"""

from dataclasses import dataclass
from enum import StrEnum


class Headline(StrEnum):
    """The figure by which a workload is judged."""

    OPERATIONS = "operations"  # operations a second
    BANDWIDTH = "bandwidth"  # bytes a second
    LATENCY = "latency"  # median of one operation


class Access(StrEnum):
    """Whether a workload reads, writes, or does both."""

    READ = "read"
    WRITE = "write"
    MIXED = "mixed"


@dataclass(frozen=True)
class Workload:
    """One fio job.

    Invariant: `options` holds only what differs between workloads; what they share (engine,
    data, seeds, duration) is added by `benchmarks.fio`.
    """

    name: str
    title: str
    access: Access
    headline: Headline
    options: tuple[tuple[str, str], ...]

    @property
    def has_reads(self) -> bool:
        return self.access is not Access.WRITE


# Why these options: `refill_buffers` gives every request new bytes (otherwise fio repeats its
# buffers and a deduplicating store would be flattered); the chunk of 4k makes each block halve
# by itself, whatever the request's size.
DATA_OPTIONS: tuple[tuple[str, str], ...] = (
    ("refill_buffers", "1"),
    ("buffer_compress_percentage", "50"),
    ("buffer_compress_chunk", "4k"),
)

PREFILL = Workload(
    "prefill",
    "fill the disk, sequential 128 KiB writes",
    Access.WRITE,
    Headline.BANDWIDTH,
    (("rw", "write"), ("bs", "128k"), ("iodepth", "16"), ("end_fsync", "1")),
)

READ_AGAIN = Workload(
    "read-again",
    "read the whole disk, so that its data are in the page cache",
    Access.READ,
    Headline.BANDWIDTH,
    (("rw", "read"), ("bs", "1m"), ("iodepth", "8")),
)

RANDOM_READ = Workload(
    "random-read",
    "4 KiB random read, depth 32",
    Access.READ,
    Headline.OPERATIONS,
    (("rw", "randread"), ("bs", "4k"), ("iodepth", "32")),
)
RANDOM_WRITE = Workload(
    "random-write",
    "4 KiB random write, depth 32",
    Access.WRITE,
    Headline.OPERATIONS,
    (("rw", "randwrite"), ("bs", "4k"), ("iodepth", "32")),
)
MIXED = Workload(
    "mixed",
    "4 KiB random, 70 % reads, depth 32",
    Access.MIXED,
    Headline.OPERATIONS,
    (("rw", "randrw"), ("rwmixread", "70"), ("bs", "4k"), ("iodepth", "32")),
)
WRITE_FLUSH = Workload(
    "write-flush",
    "4 KiB random write + flush, one client",
    Access.WRITE,
    Headline.OPERATIONS,
    (("rw", "randwrite"), ("bs", "4k"), ("iodepth", "1"), ("fsync", "1")),
)
WRITE_FLUSH_8 = Workload(
    "write-flush-8",
    "4 KiB random write + flush, eight clients",
    Access.WRITE,
    Headline.OPERATIONS,
    (("rw", "randwrite"), ("bs", "4k"), ("iodepth", "1"), ("fsync", "1"), ("numjobs", "8")),
)
SEQUENTIAL_READ = Workload(
    "sequential-read",
    "128 KiB sequential read, depth 16",
    Access.READ,
    Headline.BANDWIDTH,
    (("rw", "read"), ("bs", "128k"), ("iodepth", "16")),
)
SEQUENTIAL_WRITE = Workload(
    "sequential-write",
    "128 KiB sequential write, depth 16",
    Access.WRITE,
    Headline.BANDWIDTH,
    (("rw", "write"), ("bs", "128k"), ("iodepth", "16")),
)
LATENCY_READ = Workload(
    "latency-read",
    "4 KiB random read, depth 1",
    Access.READ,
    Headline.LATENCY,
    (("rw", "randread"), ("bs", "4k"), ("iodepth", "1")),
)
LATENCY_WRITE = Workload(
    "latency-write",
    "4 KiB random write, depth 1",
    Access.WRITE,
    Headline.LATENCY,
    (("rw", "randwrite"), ("bs", "4k"), ("iodepth", "1")),
)

# The order within a round. Sequential reads come first: in the first round the disk still lies
# as it was filled, in the later ones it has been overwritten at random by all the others, so the
# spread of that row shows what fragmentation costs.
WORKLOADS: tuple[Workload, ...] = (
    SEQUENTIAL_READ,
    RANDOM_READ,
    LATENCY_READ,
    LATENCY_WRITE,
    RANDOM_WRITE,
    MIXED,
    WRITE_FLUSH,
    WRITE_FLUSH_8,
    SEQUENTIAL_WRITE,
)
