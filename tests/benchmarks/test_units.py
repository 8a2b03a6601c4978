import pytest

from benchmarks.units import GIB, MIB, format_figure, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "length_bytes"),
    [("4G", 4 * GIB), ("256MiB", 256 * MIB), ("64 m", 64 * MIB), ("4096", 4096), ("1kb", 1024)],
)
def test_sizes_are_read_with_binary_suffixes(text: str, length_bytes: int) -> None:
    assert parse_size(text) == length_bytes


@pytest.mark.parametrize("text", ["", "G", "-1G", "1.5G", "4X", "four"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


def test_sizes_are_written_in_the_largest_unit_that_fits() -> None:
    assert format_size(0) == "0 B"
    assert format_size(1023) == "1023 B"
    assert format_size(1536) == "1.5 KiB"
    assert format_size(4 * GIB) == "4.0 GiB"
    assert format_size(3 << 40) == "3.0 TiB"


def test_figures_keep_about_three_digits() -> None:
    values = (0, 0.0541, 1.2345, 12.345, 842.4, 1234.0, 71_249.0, 104_870.0, -2.5)
    assert [format_figure(value) for value in values] == [
        "0",
        "0.054",
        "1.23",
        "12.3",
        "842",
        "1,230",
        "71,200",
        "105,000",
        "-2.50",
    ]
