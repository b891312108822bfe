"""A comparison that was made before, read again."""

from __future__ import annotations

import pydantic

from gencls_core.comparison.schema import Comparison
from gencls_core.errors import StoreError
from gencls_core.remote_path import Location
from gencls_core.storage import read_json

__all__ = ["read_comparison"]


def read_comparison(folder: Location) -> Comparison:
    """Read the report.json of a comparison.

    Raises:
        StoreError: when there is none, or it is of another format.
    """
    try:
        return Comparison.model_validate(read_json(folder / "report.json"))
    except FileNotFoundError:
        found = "no report.json"
    except (ValueError, pydantic.ValidationError) as error:
        found = str(error).splitlines()[0]
    raise StoreError.of(
        "not the folder of a comparison",
        place=folder,
        found=found,
        expected="the --output-dir of a `gencls compare`",
        remedy="make that comparison again",
    )
