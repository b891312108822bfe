"""Other systems than class language models, one file each, behind one Protocol.

Every system writes the same score rows, one table per class, so that posteriors, metrics, reports
and queries never ask which system wrote them. What differs is the quantity: a generative system
gives log P(text | class) and Bayes' rule still has to be applied; a discriminative one gives
log P(class | text), to which it must not be applied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gencls_core.datasets.dataset import Dataset, SplitInfo
from gencls_core.errors import GenclsError
from gencls_core.score_matrix import FloatArray
from gencls_core.scores import Quantity

__all__ = ["BatchScores", "Scorer", "System"]


@dataclass(frozen=True, eq=False)
class BatchScores:
    """What a system says of B texts."""

    scores: FloatArray
    """[B, C] in nats, columns in the order of the dataset's classes."""
    num_tokens: Sequence[int]
    """[B]: how many words or tokens of each text were counted."""
    truncated: Sequence[bool] | None = None
    """[B]: which texts have more than was read; None: none has."""


Scorer = Callable[[list[str]], BatchScores]
"""A system that has learned: B texts → their scores."""


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

    def digest(self, dataset: Dataset, scored: SplitInfo) -> str:
        """Name everything the rows depend on (texts, settings, format): 64 hex digits.

        Rows that are committed under this digest need not be computed again.

        Args:
            dataset: what the system learns from.
            scored: the texts that are scored, of this dataset or another one.
        """

    def fit(self, dataset: Dataset) -> Scorer:
        """Learn from the train split.

        Raises:
            DataError: when the dataset lacks what the system learns from.
        """
