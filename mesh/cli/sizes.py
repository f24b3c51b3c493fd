"""Sizes and times as people write and read them: `25MiB` in, `25.0 MiB` and `3 min ago` out."""

from __future__ import annotations

import re

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", 1)}
_UNITS |= {f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_size(text: str) -> int:
    """Bytes. Raises ValueError with a sentence."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"{text!r} is not a size; write bytes or a unit, as in 26214400, 25MiB, 1.5GiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def show_size(size_bytes: int) -> str:
    """With three digits or so: `812 B`, `3.4 KiB`, `25.0 MiB`."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    size = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def show_age(seconds: float) -> str:
    """Of something past: `12 s`, `3 min`, `5 h`, `2 d`."""
    for limit, divisor, unit in ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h")):
        if seconds < limit:
            return f"{max(0, round(seconds / divisor))} {unit}"
    return f"{round(seconds / 86_400)} d"
