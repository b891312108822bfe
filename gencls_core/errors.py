"""Every error that a user of gencls can cause.

    GenclsError
    ├── UsageError          a flag, a run file or a combination of them (exit code 2)
    ├── DataError           a dataset that cannot be read or used
    │   └── ColumnError     a column that a file lacks (gencls_core.datasets.reading)
    ├── ModelError          a model or tokenizer that cannot be loaded or used
    ├── ResourceError       memory, CPUs or GPUs that do not suffice
    ├── TrainingError       training that cannot go on (for example a NaN loss)
    ├── IncompleteError     some texts could not be scored; everything else is committed
    └── StoreError          a run directory or score store that is missing, torn or foreign
        └── OwnershipError  a run that another process owns (gencls_core.ownership)

A message says five things, in this order, as far as they apply: the place (file and line), what was
found, what was expected, and the remedy. `GenclsError.of` puts them together, so that no caller
formats its own. Nothing but these classes is caught at the command line: any other exception is a
bug of ours and keeps its traceback.
"""

from __future__ import annotations

from typing import Self

__all__ = [
    "DataError",
    "GenclsError",
    "IncompleteError",
    "ModelError",
    "ResourceError",
    "StoreError",
    "TrainingError",
    "UsageError",
    "counted",
]


class GenclsError(Exception):
    """An error that the user can mend; its text is the whole message to show."""

    exit_code = 1

    @classmethod
    def of(
        cls,
        problem: str,
        *,
        place: object = None,
        line: int | None = None,
        found: str | None = None,
        expected: str | None = None,
        remedy: str | None = None,
    ) -> Self:
        """Build the message `place:line: problem` followed by found, expected and remedy lines."""
        where = "" if place is None else str(place)
        if line is not None:
            where = f"{where}:{line}" if where else f"line {line}"
        parts = [f"{where}: {problem}" if where else problem]
        for name, value in (("found", found), ("expected", expected), ("remedy", remedy)):
            if value:
                parts.append(f"  {name}: {value}")
        return cls("\n".join(parts))


class UsageError(GenclsError):
    """A flag, run file or combination of them that cannot be obeyed."""

    exit_code = 2


class DataError(GenclsError):
    """A dataset that cannot be read, or that cannot be used for classification."""


class ModelError(GenclsError):
    """A model or tokenizer that cannot be loaded, or that is of the wrong kind."""


class ResourceError(GenclsError):
    """Work that does not fit into the memory, CPUs or GPUs that there are."""


class TrainingError(GenclsError):
    """Training that cannot go on; says the class and the step."""


class IncompleteError(GenclsError):
    """All was tried and some rows could not be made; what could be is committed."""


class StoreError(GenclsError):
    """A run directory or score store that is missing, torn or written by something else."""


def counted(number: int, noun: str) -> str:
    """Give a number with its noun, as messages say it: `1 shard`, `2,000 shards`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
