"""Lengths of time, as people write and read them."""

from __future__ import annotations

import re

__all__ = ["duration", "seconds_of"]

_PART = re.compile(r"(\d+(?:\.\d+)?)([hms]?)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "": 1.0}


def duration(seconds: float) -> str:
    """Give a time in the two largest units that matter: `27.4 s`, `3 min 12 s`, `2 d 5 h`."""
    seconds = max(seconds, 0.0)  # clocks of two machines may differ
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = whole // 60
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 60 // 24} d {minutes // 60 % 24} h"


def seconds_of(text: str) -> float:
    """Read a length of time: `90s`, `10m`, `1h30m`, or a number of seconds.

    Raises:
        ValueError: when it is none.
    """
    parts = _PART.findall(text)
    if not parts or "".join(map("".join, parts)) != text.strip():
        raise ValueError("no length of time: write 90s, 10m, 1h30m, or seconds")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)
