"""Makes golden pools: ``python -m tests.format.golden handmade|core|pending FOLDER``.

Each is made once for a version of the format and then committed; its bytes must stay readable for
ever. ``expected.json`` beside the pool comes from a plain model, not from any reader: for each disk
the digests of all blocks that are not zero. "handmade" is the work of the tests' tiny writer and
holds what the core does not happen to write; "core" is the work of the core, whose process
ends without closing one of the disks.
"""

import hashlib
import json
import os
import random
import sys
from pathlib import Path

from storage.format.layout import BLOCK_SIZE_BYTES
from tests.format.contents import make_blocks
from tests.format.writer import PoolWriter

DISK_SIZE_BYTES = 1 << 44
Contents = dict[int, bytes]


def digest(content: bytes) -> str:
    """What stands for a block in expected.json."""
    return hashlib.sha256(content).hexdigest()[:16]


def save_expected(folder: Path, disks: dict[int, Contents]) -> None:
    """Writes expected.json."""
    zero = bytes(BLOCK_SIZE_BYTES)
    digests = {
        str(disk): {str(b): digest(c) for b, c in sorted(contents.items()) if c != zero}
        for disk, contents in disks.items()
    }
    (folder / "expected.json").write_text(json.dumps(digests, indent=1) + "\n")


def make_handmade(folder: Path) -> None:
    """All codecs and kinds, trees of several heights, sealed and unsealed segments."""
    pool = PoolWriter(folder / "pool")
    first = pool.add_disk(1, "first", DISK_SIZE_BYTES)
    first.write(0, make_blocks(40, 1))
    first.write(3, make_blocks(2, 2, is_random=True))
    first.checkpoint()
    first.roll()
    first.write(512**2 + 100, make_blocks(3, 3))
    first.write(512**3 - 1, make_blocks(2, 4))
    first.trim(10, 5)
    first.checkpoint()
    first.roll(seal=False)
    first.write(12, make_blocks(20, 5))
    first.mark()
    first.write(600, make_blocks(1, 6))
    second = pool.add_disk(2, "second", DISK_SIZE_BYTES)
    for number in range(4):
        second.write(number * 700, make_blocks(5, 10 + number, is_random=number == 2))
        second.roll()
    second.trim(700, 1 << 31)
    second.write(1402, make_blocks(1, 20))
    second.close()
    pool.add_disk(3, "empty", DISK_SIZE_BYTES)
    pool.save()
    save_expected(folder, {disk: writer.model for disk, (writer, _, _) in pool.disks.items()})


def make_core(folder: Path) -> None:
    """Three disks in three sessions; the last one ends without closing disk 1. Does not return."""
    from storage.pool import Pool  # needs the built core

    path = folder / "pool"
    Pool.init(path)
    contents: dict[int, Contents] = {1: {}, 2: {}, 3: {}}
    rng = random.Random(1)
    for session in range(3):
        pool = Pool.open(path)
        for number, name in enumerate(("first", "second", "empty"), start=1):
            if session == 0:
                pool.create_disk(name, DISK_SIZE_BYTES)
            disk = pool.open_disk(name)
            for step in range(8 if name != "empty" else 0):
                block = rng.choice([0, 500, 512**2 - 4, 512**3 + 9]) + rng.randrange(30)
                generation = session * 100 + step + 1
                data = make_blocks(rng.randrange(1, 20), generation, is_random=step == 3)
                disk.write(block * BLOCK_SIZE_BYTES, data)
                count = len(data) // BLOCK_SIZE_BYTES
                for index in range(count):
                    start = index * BLOCK_SIZE_BYTES
                    contents[number][block + index] = data[start : start + BLOCK_SIZE_BYTES]
                if step == 5:
                    disk.trim((block + 1) * BLOCK_SIZE_BYTES, 3 * BLOCK_SIZE_BYTES)
                    for index in range(1, 4):
                        contents[number].pop(block + index, None)
                if step in (2, 6):
                    disk.checkpoint()
            disk.flush()
            if session == 2 and name == "second":
                disk.close()
        if session < 2:
            pool.close()
    save_expected(folder, contents)
    end_without_closing(folder)


def make_pending(folder: Path) -> None:
    """A disk with a snapshot with a tree and two pending ones, and a clone. Does not return."""
    from storage.pool import Pool  # needs the built core

    path = folder / "pool"
    Pool.init(path)
    pool = Pool.open(path)
    pool.create_disk("origin", DISK_SIZE_BYTES)
    disk = pool.open_disk("origin")
    now: Contents = {}

    def write(block: int, generation: int) -> None:
        data = make_blocks(1, generation)
        disk.write(block * BLOCK_SIZE_BYTES, data)
        now[block] = data

    for number in range(5):
        write(number * 512**2, number + 1)
    settled = dict(now)
    pool.snapshot_disks(["origin"], "settled")
    pool.clone_disk("origin@settled", "clone")
    write(7, 10)
    disk.checkpoint()
    # So scattered that the process is gone before their tree is made.
    for number in range(8000):
        write(number * 100_003, number + 100)
    first, second = dict(now), {**now, 7: make_blocks(1, 11)}
    last = {**second, 512: make_blocks(1, 12)}
    save_expected(folder, {1: last, 2: settled, 3: settled, 4: first, 5: second})
    pool.snapshot_disks(["origin"], "first")
    write(7, 11)
    pool.snapshot_disks(["origin"], "second")
    write(512, 12)
    end_without_closing(folder)


def end_without_closing(folder: Path) -> None:
    """Ends the process; leaves what is part of the format."""
    # Not part of the format: the lock, and what the catalog keeps beside itself.
    for name in ("pool.lock", "catalog.reserve", "catalog.sqlite-shm"):
        (folder / "pool" / name).unlink()
    os._exit(0)


if __name__ == "__main__":
    {"handmade": make_handmade, "core": make_core, "pending": make_pending}[sys.argv[1]](
        Path(sys.argv[2])
    )
