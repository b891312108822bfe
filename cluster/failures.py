"""Failures of one model that need not be those of a whole run."""

from __future__ import annotations

from gencls_core.errors import (
    GenclsError,
    IncompleteError,
    ModelError,
    ResourceError,
    TrainingError,
    UsageError,
)

__all__ = ["FAILURES", "LASTING", "reason_of"]

FAILURES = (IncompleteError, ModelError, ResourceError, TrainingError, UsageError)
"""What may be wrong with one candidate and not with the next."""

LASTING = (ModelError, TrainingError, UsageError)
"""Those of them that come again when the same command is run again. Of the others, a lack of memory
or a worker that died, a larger or a quieter machine may know nothing."""


def reason_of(error: GenclsError) -> str:
    """Say in one line why a candidate failed."""
    return f"it failed: {str(error).splitlines()[0]}"
