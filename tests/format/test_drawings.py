"""docs/format.md draws what the code defines: sizes, fields, checksums, limits, kinds."""

import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from storage.format import layout
from storage.format.layout import LAYOUTS, Layout
from storage.format.location import BITS
from storage.format.record import Codec, Kind

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"


class Drawing(NamedTuple):
    size_bytes: int
    rows: list[tuple[str, ...]]
    text: str


def read_sections() -> dict[str, str]:
    text = DOCUMENT.read_text()
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {title.lower(): body for title, body in zip(parts[1::2], parts[2::2], strict=True)}


SECTIONS = read_sections()


def read_drawing(title: str) -> Drawing:
    body = SECTIONS[title]
    size = re.search(r"Size (\d+) bytes", body)
    box = re.search(r"```text\n┌.*?└[^\n]*\n```", body, flags=re.DOTALL)
    assert size and box, title
    lines = [line for line in box[0].splitlines() if line.startswith("│")]
    rows = [tuple(cell.strip() for cell in line.strip("│").split("│")) for line in lines]
    return Drawing(int(size[1]), rows[1:], body)


def title_of(structure: Layout) -> str:
    return "record" if structure.name == "record header" else structure.name


@pytest.mark.parametrize("structure", LAYOUTS, ids=lambda structure: structure.name)
def test_drawing_and_code_agree(structure: Layout) -> None:
    drawing = read_drawing(title_of(structure))
    assert drawing.size_bytes == structure.size
    drawn = [(int(row[0]), int(row[1]), row[2], row[3]) for row in drawing.rows]
    assert drawn == [(f.offset, f.size, f.name, f.type) for f in structure.fields]
    checksum = re.search(r"Checksum: `(\w+)` covers\s+bytes 0\.\.(\d+)", drawing.text)
    if structure.checksum is None:
        assert checksum is None
    else:
        assert checksum
        assert (checksum[1], int(checksum[2])) == (
            structure.checksum.name,
            structure.checksum.offset,
        )


def test_location_and_code_agree() -> None:
    drawing = read_drawing("location")
    assert drawing.size_bytes == 8
    drawn = [(row[0], row[1]) for row in drawing.rows]
    assert drawn == [(f"{bits.low}..{bits.high}", bits.name) for bits in BITS]
    assert BITS[0].low == 0 and BITS[-1].high == 63
    for lower, upper in pairwise(BITS):
        assert lower.high + 1 == upper.low


def test_limits_and_code_agree() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", SECTIONS["limits"], flags=re.MULTILINE)
    assert len(rows) == 9
    for name, value in rows:
        assert getattr(layout, name) == int(value), name


def test_kinds_and_codecs_agree() -> None:
    body = SECTIONS["record"]
    kinds = re.findall(r"^\| (\d) \| ([A-Z]+) \|", body, flags=re.MULTILINE)
    assert [(int(number), name) for number, name in kinds] == [(k.value, k.name) for k in Kind]
    codecs = re.findall(r"Codec (\d) \(([A-Z0-9_]+)\)", body)
    assert [(int(number), name) for number, name in codecs] == [(c.value, c.name) for c in Codec]


def test_every_structure_is_drawn_once() -> None:
    drawn = [title for title, body in SECTIONS.items() if "│ offset │" in body]
    assert sorted(drawn) == sorted(title_of(structure) for structure in LAYOUTS)


def test_links_within_the_document_lead_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w\- ]", "", title).replace(" ", "-").lower() for title in read_sections()
    }
    for target in re.findall(r"\]\(#([\w-]+)\)", DOCUMENT.read_text()):
        assert target in anchors, target
    for target in re.findall(r"\]\(((?!#|http)[^)#]+)", DOCUMENT.read_text()):
        assert (DOCUMENT.parent / target).exists(), target
