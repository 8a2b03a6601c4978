"""Snapshots, clones, rollbacks and deletions in any order: every copy holds what it must, with the
core and without it, and the offline check finds nothing.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.format import PoolFolder, check_pool
from storage.format.check import Severity
from storage.format.layout import DiskId
from storage.pool import Pool

EXAMPLES: Final = 5_000 if os.environ.get("NEARSTONE_SOAK") == "1" else 60
BLOCK: Final = 4096
BLOCKS: Final = 40

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["write"] * 6
            + [
                "trim",
                "snapshot",
                "snapshot",
                "clone",
                "rollback",
                "delete",
                "checkpoint",
                "reopen",
            ]
        ),
        st.integers(0, 7),
        st.integers(0, BLOCKS - 1),
    ),
    max_size=40,
)


class Copies:
    """A pool, and what each of its disks and snapshots must hold."""

    def __init__(self, path: Path) -> None:
        Pool.init(path)
        self.path = path
        self.pool = Pool.open(path)
        self.pool.create_disk("d0", BLOCKS * BLOCK)
        self.contents = {"d0": bytearray(BLOCKS * BLOCK)}
        self.made = 0

    def do(self, action: str, which: int, block: int) -> None:
        """One step; nothing if there is nothing that it could be done to."""
        if action == "reopen":
            self.pool.close()
            self.pool = Pool.open(self.path)
            return
        wanted = action in ("clone", "rollback")
        names = [name for name in self.contents if action == "delete" or ("@" in name) == wanted]
        if names:
            self.made += 1
            getattr(self, action)(names[which % len(names)], block)

    def write(self, name: str, block: int) -> None:
        data = (self.made % 255 + 1).to_bytes(1, "little") * BLOCK
        disk = self.pool.open_disk(name)
        disk.write(block * BLOCK, data)
        self.pool.release_disk(disk)
        self.contents[name][block * BLOCK : (block + 1) * BLOCK] = data

    def trim(self, name: str, block: int) -> None:
        disk = self.pool.open_disk(name)
        disk.trim(block * BLOCK, (BLOCKS - block) * BLOCK)
        self.pool.release_disk(disk)
        self.contents[name][block * BLOCK :] = bytes((BLOCKS - block) * BLOCK)

    def checkpoint(self, name: str, _: int) -> None:
        disk = self.pool.open_disk(name)
        disk.checkpoint()
        self.pool.release_disk(disk)

    def snapshot(self, name: str, block: int) -> None:
        others = [other for other in self.contents if "@" not in other and other != name]
        for frozen in self.pool.snapshot_disks([name, *others[: block % 3]], f"s{self.made}"):
            self.contents[frozen.name] = bytearray(self.contents[frozen.snapshot_of or ""])

    def clone(self, name: str, _: int) -> None:
        self.pool.clone_disk(name, f"d{self.made}")
        self.contents[f"d{self.made}"] = bytearray(self.contents[name])

    def rollback(self, name: str, _: int) -> None:
        disk = self.pool.rollback_disk(name)
        self.contents[disk.name] = bytearray(self.contents[name])

    def delete(self, name: str, _: int) -> None:
        if any(other.startswith(f"{name}@") for other in self.contents):
            return
        self.pool.delete_disk(name)
        del self.contents[name]

    def compare(self) -> None:
        """With the core, then without."""
        for name, content in self.contents.items():
            disk = self.pool.open_disk(name)
            assert disk.read(0, BLOCKS * BLOCK) == content, name
            self.pool.release_disk(disk)
        self.pool.close()
        report = check_pool(self.path)
        assert [one for one in report.findings if one.severity is not Severity.LEFTOVER] == []
        folder = PoolFolder.open(self.path)
        assert folder.catalog is not None
        numbers = {row.name: disk for disk, row in folder.catalog.disks.items()}
        for name, content in self.contents.items():
            with folder.open_disk(DiskId(numbers[name])) as offline:
                assert offline.read(0, BLOCKS * BLOCK) == content, name

    def delete_everything(self) -> None:
        """Snapshots first, since a disk is not deleted before them."""
        with Pool.open(self.path) as pool:
            for name in sorted(self.contents, key=lambda name: "@" not in name):
                pool.delete_disk(name)
        files = [path for path in self.path.rglob("*.seg") if path.is_file()]
        assert files == []
        assert list((self.path / "anchors").iterdir()) == []


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_copies_stand_for_themselves(folder: Path, steps: list[tuple[str, int, int]]) -> None:
    path = Path(tempfile.mkdtemp(dir=folder), "pool")
    copies = Copies(path)
    try:
        for step in steps:
            copies.do(*step)
        copies.compare()
    finally:
        copies.pool.close()
    copies.delete_everything()
    shutil.rmtree(path.parent)
