"""What the one model of all classes reads before a text: its file in the model's folder.

`prefixes.json` maps every class to its prefix. It is committed with the weights, which mean nothing
without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from gencls_core.errors import StoreError
from gencls_core.storage import read_json, write_json

__all__ = ["read_prefixes", "write_prefixes"]

_NAME = "prefixes.json"


def write_prefixes(folder: Path, prefixes: Mapping[str, str]) -> None:
    """Write the prefix of every class beside the weights."""
    write_json(folder / _NAME, dict(prefixes))


def read_prefixes(folder: Path, classes: Sequence[str]) -> dict[str, str]:
    """Read the prefixes of a committed model's classes.

    Raises:
        StoreError: when there are none, or a class has none.
    """
    place = folder / _NAME
    try:
        found = read_json(place)
        return {name: str(found[name]) for name in classes}
    except FileNotFoundError:
        problem = "no such file"
    except (json.JSONDecodeError, TypeError) as error:
        problem = str(error)
    except KeyError as error:
        problem = f"nothing for class {error}"
    raise StoreError.of(
        "a model of all classes without the prefixes of its classes",
        place=place,
        found=problem,
        remedy="run the training command again",
    )
