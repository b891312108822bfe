"""What a label cell means: a class name, or the number of a declared class."""

from __future__ import annotations

import re

__all__ = ["is_integer", "label_name", "sorted_classes"]

_INTEGER = re.compile(r"-?\d+")


def is_integer(name: str) -> bool:
    """Tell whether a label is written as an integer."""
    return _INTEGER.fullmatch(name) is not None


def label_name(value: object, classes: tuple[str, ...] | None) -> str | None:
    """Give the class name of a label cell; None where the cell is empty.

    With declared classes an integer N is the N-th of them, unless a class is itself named by an
    integer: then numbers are names. What names no class comes back as it is written.
    """
    if value is None or value != value:  # NaN: how a table library writes an empty cell
        return None
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    name = str(value).strip()
    if not name:
        return None
    if classes is None or name in classes or not is_integer(name):
        return name
    if 0 <= int(name) < len(classes) and not any(is_integer(known) for known in classes):
        return classes[int(name)]
    return name


def sorted_classes(names: list[str]) -> tuple[str, ...]:
    """Sort class names, numerically where all of them are integers."""
    if all(is_integer(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
