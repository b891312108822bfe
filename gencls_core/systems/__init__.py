"""Other systems than class language models, one file each, behind one Protocol.

Every system writes the same score rows, one table per class, so that posteriors, metrics, reports
and queries never ask which system wrote them. What differs is the quantity: a generative system
gives log P(text | class) and Bayes' rule still has to be applied; a discriminative one gives
log P(class | text), to which it must not be applied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pyarrow as pa

from gencls_core.datasets.dataset import Dataset, SplitName
from gencls_core.errors import GenclsError
from gencls_core.scores import Quantity

__all__ = ["System", "nothing"]


def nothing() -> None:
    """Do nothing."""


class System(Protocol):
    """Something that scores every text of a split under every class."""

    @property
    def name(self) -> str:
        """Name under which its rows are stored (`system=<name>`)."""

    @property
    def quantity(self) -> Quantity:
        """What its scores are, in nats."""

    def why_not(self) -> GenclsError | None:
        """Give the error with which it would refuse to work here; None where it can work.

        Quick, and loads nothing heavy: asked before work starts.
        """

    def digest(self, dataset: Dataset, split: SplitName) -> str:
        """Name everything the rows depend on (texts, settings, format): 64 hex digits.

        Rows that are committed under this digest need not be computed again.
        """

    def score_rows(
        self, dataset: Dataset, split: SplitName, on_trained: Callable[[], None] = nothing
    ) -> dict[str, pa.Table]:
        """Score every example of a split under every class.

        Args:
            dataset: the texts.
            split: which of them are scored.
            on_trained: called between learning and scoring, so that each can be timed.

        Returns:
            One table in SCORE_SCHEMA per class, all with the split's examples in their order.

        Raises:
            DataError: when the dataset lacks what the system learns from.
        """
