"""SetFit: a sentence encoder tuned on pairs of texts, and logistic regression on its embeddings.

A discriminative system for few labelled texts (Tunstall et al. 2022, "Efficient Few-Shot Learning
Without Prompts", https://arxiv.org/abs/2209.11055). It learns from the train split in two steps:

1. *The encoder.* In each of R rounds every text is paired with another one of its class and with
   one of another class, both drawn at random. The cosine of two embeddings is driven to 1 for the
   former and to 0 for the latter (squared error); every pair is seen once.
2. *The head.* Multinomial logistic regression on the tuned encoder's embeddings of the same texts.

Scores are log P(class | text). The authors' package `setfit` does the same and is not used: it
trains on any GPU that the process sees, without asking, indexes all N² pairs in memory, and draws
the same ones whatever the seed.

Cost. N texts make 2·R·N pairs, but at most `max_pairs`: for a larger train split R becomes less,
and beyond `max_pairs`/2 texts both steps learn from a stratified sample of that many. By default R
is the paper's 20 for up to 256 texts, and at most 5,120 texts are learned from.

Shapes: N texts to learn from, K of them of one class, R rounds, P pairs, B texts of a batch,
D embedding, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gencls_core.datasets.dataset import Dataset, SplitInfo
from gencls_core.datasets.sampling import choose, proportional
from gencls_core.errors import GenclsError
from gencls_core.score_matrix import FloatArray, IntArray
from gencls_core.scores import Quantity
from gencls_core.storage import digest_of
from gencls_core.systems import BatchScores, Scorer
from gencls_core.systems.bag_of_words import (
    Learner,
    digest_parts,
    labelled_texts,
    log_posteriors,
    train_targets,
)
from gencls_core.systems.sentence_encoder import (
    Pairs,
    embed,
    encoder_digest_parts,
    encoder_folder,
    load_encoder,
    tokens_read,
    tune,
    why_no_encoder,
)

__all__ = ["SETFIT", "SetFitSystem", "draw_pairs"]

SETFIT = "setfit"
SETFIT_FORMAT = 1

_LEARNER = Learner("SetFit", f"leave {SETFIT} out of the systems")
_SAMPLE, _PAIRS = range(2)
"""What the seed is used for."""


@dataclass(frozen=True)
class SetFitSystem:
    """SetFit, trained on the dataset's train split when it scores."""

    seed: int = 0
    """Of the sample of texts, of the pairs and their order, and of dropout."""
    model: str | None = None
    """The folder of a sentence-transformers model; None: all-MiniLM-L6-v2, if it is installed."""
    pairs_per_text: int = 20
    """R of the paper."""
    max_pairs: int = 10_240
    """Pairs at most; at most half as many texts are learned from."""

    def __post_init__(self) -> None:
        if self.pairs_per_text < 1 or self.max_pairs < 2:
            raise ValueError("pairs_per_text must be at least 1, and max_pairs at least 2")

    @property
    def name(self) -> str:
        """`setfit`."""
        return SETFIT

    @property
    def quantity(self) -> Quantity:
        """Log-probability of the class given the text."""
        return "log_posterior"

    def why_not(self) -> GenclsError | None:
        """Give the error with which this system would refuse here; None where it can work.

        Quick, and nothing heavy is imported: to be asked before work starts.
        """
        return why_no_encoder(self.model, _LEARNER)

    def digest(self, dataset: Dataset, scored: SplitInfo) -> str:
        """Name everything the rows depend on: 64 hex digits.

        Raises:
            UsageError: when sentence-transformers is not installed, or no model is there.
            ModelError: when the folder holds no encoder that can be used.
        """
        settings = {
            "system": SETFIT,
            "format": SETFIT_FORMAT,
            "pairs_per_text": self.pairs_per_text,
            "max_pairs": self.max_pairs,
            **encoder_digest_parts(self._usable_folder()),
        }
        return digest_of(digest_parts(dataset, scored, self.seed) | settings)

    def fit(self, dataset: Dataset) -> Scorer:
        """Learn from the train split.

        Returns:
            What gives log P(class | text) in nats, whose exponentials add up to 1 over the
            classes; `num_tokens` counts the tokens that the encoder reads of the text, without
            the special ones around it; `truncated` says that the text has more.

        Raises:
            UsageError: when sentence-transformers is not installed, or no model is there.
            ModelError: when the folder holds no encoder that can be used.
            DataError: when there are fewer than two classes, or a class has no train text.
        """
        folder = self._usable_folder()
        texts, targets_N = self._texts_to_learn_from(dataset)
        encoder = load_encoder(folder)
        rounds = max(1, min(self.pairs_per_text, self.max_pairs // (2 * len(texts))))
        pairs = draw_pairs(targets_N, rounds, np.random.default_rng([self.seed, _PAIRS]))
        tune(encoder, texts, pairs, self.seed)
        head = _fit_head(embed(encoder, texts), targets_N)

        def score(batch: list[str]) -> BatchScores:
            read_B, more_B = tokens_read(encoder, batch)
            return BatchScores(log_posteriors(head, embed(encoder, batch)), read_B, more_B)

        return score

    def _usable_folder(self) -> Path:
        refusal = self.why_not()
        if refusal is not None:
            raise refusal
        folder = encoder_folder(self.model)
        assert folder is not None
        return folder

    def _texts_to_learn_from(self, dataset: Dataset) -> tuple[list[str], IntArray]:
        """Read the train texts, or a sample of them, with their class numbers, [N]."""
        targets_N = train_targets(dataset, _LEARNER)
        counts = np.bincount(targets_N).tolist()
        wanted = proportional(counts, max(self.max_pairs // 2, len(counts)))
        chosen_N = choose(
            targets_N.astype(np.int32),
            np.ones(len(targets_N), np.bool_),
            wanted,
            self.seed,
            _SAMPLE,
        )
        rows = zip(labelled_texts(dataset), chosen_N, strict=True)
        return [text for (text, _), chosen in rows if chosen], targets_N[chosen_N]


def draw_pairs(targets_N: IntArray, rounds: int, generator: np.random.Generator) -> Pairs:
    """Pair every text `rounds` times with another of its class, as often with one of another class.

    Only a text that is alone in its class is paired with itself.

    Args:
        targets_N: class numbers, of two classes at least.
        rounds: R.
        generator: draws the partners.

    Returns:
        2·R·N pairs; a text is the first of 2·R.
    """
    firsts, seconds, alike = [], [], []
    for target in np.unique(targets_N):
        members_K = np.flatnonzero(targets_N == target)
        count = len(members_K)
        shape = (rounds, count)
        # A step of 1 … K − 1 from a text's own place ends on each of the others equally often.
        steps_RK = generator.integers(1, count, shape) if count > 1 else np.zeros(shape, np.int64)
        partners_RK = members_K[(np.arange(count) + steps_RK) % count]
        strangers_RK = generator.choice(np.flatnonzero(targets_N != target), shape)
        firsts.append(np.tile(members_K, 2 * rounds))
        seconds.append(np.concatenate([partners_RK, strangers_RK]).ravel())
        alike.append(np.repeat([1, 0], rounds * count))
    return Pairs(np.concatenate(firsts), np.concatenate(seconds), np.concatenate(alike))


def _fit_head(embeddings_ND: FloatArray, targets_N: IntArray) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000).fit(embeddings_ND, targets_N)
