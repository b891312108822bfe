"""Runs can be compared where their test texts are the same: asked before anything is made."""

from __future__ import annotations

from collections.abc import Sequence

from gencls_core.errors import UsageError
from gencls_core.remote_path import uri_of
from gencls_core.run import RunDirectory

__all__ = ["require_same_texts", "with_other_texts"]


def require_same_texts(runs: Sequence[RunDirectory]) -> None:
    """Refuse runs whose prepared test texts, labels or classes differ from those of the first.

    Raises:
        DataError: when a run has no dataset.
        UsageError: naming the first that differs.
    """
    first = runs[0].dataset()
    for run in runs[1:]:
        other = run.dataset()
        same = other.split("test").fingerprint == first.split("test").fingerprint
        if not same or other.classes != first.classes:
            raise with_other_texts(runs[0], run)


def with_other_texts(run: RunDirectory, other: RunDirectory) -> UsageError:
    """Say that two runs were not made for the same test texts."""

    def words(of: RunDirectory) -> str:
        split = of.dataset().split("test")
        return f"{split.rows:,} texts, test split {split.fingerprint[:12]}"

    return UsageError.of(
        "these runs were not scored on the same test texts",
        place=other.path,
        found=words(other),
        expected=f"{words(run)}, as in {uri_of(run.path)}",
        remedy="compare runs with the same test set; the same --split-seed where it is cut "
        "from the data",
    )
