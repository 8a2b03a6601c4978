"""`inspect` describes each of our files, whole or damaged, in JSON types."""

import json
from pathlib import Path

import pytest

from storage.format.damage import Damage
from storage.format.inspection import inspect
from tests.format.contents import make_blocks
from tests.format.writer import DiskWriter, PoolWriter


@pytest.fixture
def saved(pool: PoolWriter, disk: DiskWriter) -> Path:
    disk.write(0, make_blocks(20, 1))
    disk.trim(3, 2)
    disk.checkpoint()
    disk.roll()
    disk.write(1, make_blocks(2, 2, is_random=True))
    disk.mark()
    pool.save()
    return pool.path


def test_segments(saved: Path) -> None:
    folder = saved / "segments" / "00000001"
    sealed = inspect(folder / "00000001.seg", with_records=True)
    assert json.loads(json.dumps(sealed)) == sealed
    assert sealed["type"] == "segment" and sealed["is_sealed"] and sealed["damage"] == []
    assert sealed["records"]["data_blocks"] == 20
    assert (sealed["records"]["node"], sealed["records"]["root"]) == (1, 1)
    kinds = [record["kind"] for record in sealed["record_list"]]
    assert kinds == ["DATA", "DATA", "HOLE", "NODE", "USAGE", "ROOT", "MARK"]
    unsealed = inspect(folder / "00000002.seg")
    assert not unsealed["is_sealed"] and "record_list" not in unsealed
    assert unsealed["durable_lsn"] == unsealed["last_lsn"] - 1
    assert unsealed["previous_segment"] == 1


def test_damaged_segments(saved: Path) -> None:
    path = saved / "segments" / "00000001" / "00000001.seg"
    whole = path.read_bytes()
    for position in (5, 140, 180, len(whole) - 100, len(whole) - 5):
        path.write_bytes(whole[:position] + b"\xff" + whole[position + 1 :])
        described = inspect(path)
        assert described["damage"], position
        assert json.loads(json.dumps(described)) == described


def test_anchors(saved: Path) -> None:
    path = saved / "anchors" / "00000001.anchor"
    described = inspect(path)
    assert json.loads(json.dumps(described)) == described
    assert described["newest_slot"] == 0 and described["damage"] == []
    newest = described["slots"][0]
    assert (newest["disk"], newest["checkpoint"], newest["mapped_blocks"]) == (1, 2, 18)
    assert newest["drives"] == [0]
    path.write_bytes(path.read_bytes()[:4096] + bytes(4096))
    described = inspect(path)
    assert described["slots"][1] == {
        "slot": 1,
        "is_valid": False,
        "reason": "no anchor: zeros",
    }
    assert described["damage"] == []
    path.write_bytes(bytes(100))
    assert "cannot be opened" in inspect(path)["damage"][-1]["reason"]


def test_an_anchor_under_another_name(saved: Path) -> None:
    raw = (saved / "anchors" / "00000001.anchor").read_bytes()
    copy = saved / "copy.anchor"
    copy.write_bytes(raw)
    assert inspect(copy)["newest_slot"] == 0


def test_label_and_catalog(saved: Path) -> None:
    label = inspect(saved / "nearstone-drive")
    assert (label["type"], label["index"], label["damage"]) == ("drive label", 0, [])
    catalog = inspect(saved / "catalog.sqlite")
    assert catalog["type"] == "catalog"
    assert catalog["disks"] == [{"id": 1, "name": "vm", "size_bytes": 1 << 40, "state": "ready"}]
    assert catalog["drives"][0]["path"] == "."
    for name in ("nearstone-drive", "catalog.sqlite"):
        (saved / name).write_bytes(b"\x00" * 50)
        assert inspect(saved / name)["damage"]


def test_inspecting_changes_nothing(saved: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in saved.rglob("*"))
    for path in list(saved.rglob("*")):
        if path.is_file():
            inspect(path)
    assert sorted((path, path.stat().st_mtime_ns) for path in saved.rglob("*")) == before


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(Damage, match="neither a segment nor"):
        inspect(path)
    with pytest.raises(FileNotFoundError):
        inspect(tmp_path / "nothing")
