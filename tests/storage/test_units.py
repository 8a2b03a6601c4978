"""Sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import BadSize
from storage.units import (
    DISK_SIZE_BYTES_MAX,
    GIB,
    KIB,
    MIB,
    TIB,
    UnixSeconds,
    check_disk_size,
    format_size,
    format_time,
    parse_disk_size,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("20G", 20 * GIB),
        ("20GB", 20 * GIB),
        ("20gib", 20 * GIB),
        ("512MiB", 512 * MIB),
        ("1.5T", 3 * TIB // 2),
        (" 4 K ", 4 * KIB),
        ("4096", 4096),
        ("512B", 512),
        ("0", 0),
        ("0.5K", 512),
        ("256T", DISK_SIZE_BYTES_MAX),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-1",
        "-20G",
        "+1G",
        "G",
        "1X",
        "1GiBB",
        "1e9",
        "0x10",
        "1_000",
        "nan",
        "inf",
        "1..5G",
        "1.5",
        "0.3K",
        "٣G",
        "1,5G",
        "1G 2G",
        "9" * 400,
        "20 G B",
        "1.0000000000000000000000001K",
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadSize) as caught:
        parse_size(text)
    assert caught.value.size == text


@pytest.mark.parametrize("text", ["0", "511", "513", "1000", "257T", "999999P", "256.5T"])
def test_sizes_no_disk_can_have(text: str) -> None:
    with pytest.raises(BadSize):
        parse_disk_size(text)


def test_a_ragged_size_is_told_its_neighbours() -> None:
    with pytest.raises(BadSize, match="512 or 1024"):
        check_disk_size(1000)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1 KiB"),
        (GIB - 1, "1 GiB"),
        (1536, "1.5 KiB"),
        (20 * GIB, "20 GiB"),
        (3 * TIB // 2, "1.5 TiB"),
        (150 * MIB, "150 MiB"),
        (DISK_SIZE_BYTES_MAX, "256 TiB"),
    ],
)
def test_sizes_for_people(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.integers(0, 1 << 60))
def test_what_is_shown_is_near_what_is(size_bytes: int) -> None:
    shown = parse_near(format_size(size_bytes))
    assert abs(shown - size_bytes) <= max(size_bytes * 0.006, 1)


def parse_near(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}[unit]


@given(st.integers(1, DISK_SIZE_BYTES_MAX // 512))
def test_every_whole_number_of_sectors_is_a_size(sectors: int) -> None:
    assert parse_disk_size(str(sectors * 512)) == sectors * 512


def test_times_are_utc() -> None:
    assert format_time(UnixSeconds(0)) == "1970-01-01T00:00:00Z"
