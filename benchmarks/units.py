"""Sizes and figures as people write and read them."""

import re

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_SUFFIXES = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}
_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes that `text` ("4G", "256MiB", "4096") stands for; suffixes are binary.

    Raises:
        ValueError: `text` is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 256M or 4G")
    return int(match[1]) * _SUFFIXES[match[2].upper()]


def format_size(length_bytes: float) -> str:
    """Return `length_bytes` with the largest binary unit that leaves a figure of at least 1."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if length_bytes < 1024:
            return f"{length_bytes:.0f} B" if unit == "B" else f"{length_bytes:.1f} {unit}"
        length_bytes /= 1024
    return f"{length_bytes:.1f} TiB"


def format_figure(value: float) -> str:
    """Return `value` with about three digits that mean something: 71,200; 842; 12.3; 0.054."""
    magnitude = abs(value)
    if magnitude >= 1000:
        digits = len(str(int(magnitude)))
        return f"{round(value, 3 - digits):,.0f}"
    if magnitude >= 100 or value == 0:
        return f"{value:.0f}"
    if magnitude >= 10:
        return f"{value:.1f}"
    if magnitude >= 1:
        return f"{value:.2f}"
    return f"{value:.3f}"
