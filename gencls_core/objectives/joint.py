"""One causal language model, tuned so that its likelihoods tell the classes apart.

A text x of class y, read after the prefix of each class c, has S_c = log P(x | c). The loss is

    −log softmax_c(s · S_c + log π_c)[y]  −  λ / T̄ · S_y

the class's log-probability by Bayes' rule, and the language model's own loss, which keeps
likelihoods what they are (GeDi, Krause et al. 2020, https://arxiv.org/abs/2009.06367; joint
generative and discriminative training, Lasserre et al. 2006). π are the class frequencies of the
train texts, T̄ their mean length in tokens; s = 1 / √T̄, because a sum of T̄ tokens' noise grows with
√T̄. The true scale is fitted afterwards, on held-out texts (`gencls_core.calibration`).

All S_c of a step go through the model twice: first without gradients, which gives each its weight
in the loss's gradient,

    −∂loss/∂S_c = s · ([c = y] − P(c | x)) + λ / T̄ · [c = y]

then those whose weight counts as Σ −w_c · S_c, in passes as small as need be. The gradient is the
loss's own, the memory that of a pass however many classes there are, and what is told apart
already costs no more than a language model's training. Where many classes count, some of them are
drawn, each as often as its weight is large, and share the weight of all: the expected gradient is
the same. Dropout, where a model has it, is off in the first pass and on in the second: weights are
those of the whole model.

Shapes: M texts, K compared classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import Tensor

from gencls_core.models import CausalLM
from gencls_core.objectives.causal import windows_nll
from gencls_core.objectives.prefixed import LabelledText, PrefixedTexts
from gencls_core.objectives.texts import OfTexts
from gencls_core.scoring import score_texts
from gencls_core.tokenization import (
    TokenizedText,
    Window,
    batches_by_token_budget,
    windows_of,
)
from gencls_core.training_task import TrainingTask

__all__ = ["NEGLIGIBLE", "JointObjective"]

TEXTS_AT_ONCE = 1024
"""Held-out texts whose tokens are laid out after every class's prefix at once."""

NEGLIGIBLE = 1e-3
"""Another class's likelihood gets no gradient where its probability is smaller."""


@dataclass(frozen=True)
class _Pass:
    """Some texts after some prefixes, each with its weight in the gradient."""

    texts: list[TokenizedText]
    windows: list[Window]
    weights: NDArray[np.float64]
    """Of each text."""
    constant: float
    """What makes the sum over a step's passes its loss."""


class JointObjective(OfTexts[CausalLM, LabelledText]):
    """A causal language model, a prefix for each class, and the first tokens of their texts."""

    loss_per = "text"

    def __init__(
        self,
        loaded: PrefixedTexts,
        *,
        lm_weight: float,
        compared: int,
        learned_from: int,
        seed: int,
    ) -> None:
        super().__init__(loaded.lm, loaded.texts, loaded.held_out)
        self._loaded = loaded
        self._compared = compared
        self._others = learned_from - 1
        self._seed = seed
        mean_length = float(np.mean([len(text) for text in loaded.texts]))
        self._scale = mean_length**-0.5
        self._lm_weight = lm_weight / mean_length
        counts = np.bincount(
            [text.label for text in loaded.texts], minlength=len(loaded.prefixes.ids)
        )
        # A class whose texts have no tokens has none here.
        self._log_prior = np.log(np.maximum(counts, 1) / counts.sum())

    @classmethod
    def of(cls, task: TrainingTask) -> JointObjective:
        """Load the base and tokenise the texts; see `load_objective`."""
        return cls(
            PrefixedTexts.of(task, first_tokens=task.recipe.tuned_tokens),
            lm_weight=task.recipe.lm_weight,
            compared=task.recipe.compared(len(task.classes)),
            learned_from=task.recipe.learned_from(len(task.classes)),
            seed=task.training.seed,
        )

    def passes(self, numbers: Sequence[int], tokens: int, epoch: int) -> Iterator[_Pass]:
        """Weigh each text under each compared class, and cut what counts into passes."""
        texts_M = [self._texts[number] for number in numbers]
        classes_MK = self._classes(texts_M, numbers, epoch)
        model = self._computing.model
        training = model.training
        model.eval()
        scores_MK = self._scores(texts_M, classes_MK, tokens)
        model.train(training)
        losses_M, weights_MK = self._weights(texts_M, classes_MK, scores_MK)
        weights_MK = self._what_counts(weights_MK, numbers, epoch)
        counts_MK = weights_MK != 0.0
        counts_MK[:, 0] = True  # the language model learns from it
        rows, columns = counts_MK.nonzero()
        prefixes = self._loaded.prefixes
        texts = [
            prefixes.of_other(texts_M[m], classes_MK[m, k]).tokens
            for m, k in zip(rows, columns, strict=True)
        ]
        weights = weights_MK[counts_MK]
        constant = float(losses_M.sum() + (weights * scores_MK[counts_MK]).sum())
        for windows in batches_by_token_budget(
            windows_of(texts, prefixes.policy.window), tokens, fewest=True
        ):
            yield _Pass(texts, windows, weights, constant)
            constant = 0.0

    def loss(self, part: _Pass) -> Tensor:
        """Give a pass's share of the step's loss, in nats, with the gradients of its texts."""
        nll = windows_nll(self._computing, part.texts, part.windows, part.weights)
        return nll + part.constant

    def held_out_nll(self, tokens: int) -> float:
        """Give the loss in nats per text, with the same classes compared each time."""
        total = 0.0
        for start in range(0, self.held_out, TEXTS_AT_ONCE):
            texts_M = self._held_out[start : start + TEXTS_AT_ONCE]
            numbers = range(start, start + len(texts_M))
            classes_MK = self._classes(texts_M, numbers, epoch=-1)
            scores_MK = self._scores(texts_M, classes_MK, tokens)
            losses_M, _ = self._weights(texts_M, classes_MK, scores_MK)
            total += float(losses_M.sum())
        return total / self.held_out

    def save(self, folder: Path) -> str:
        """Write weights (or adapter), tokenizer and prefixes."""
        return self._loaded.save(folder)

    def _classes(
        self, texts_M: Sequence[LabelledText], numbers: Sequence[int], epoch: int
    ) -> NDArray[np.int64]:
        """Give the classes that each text is compared under [M, K]: its own, then others.

        Others are drawn evenly where there are too many: the loss then has the same minimum, as
        ranking noise-contrastive estimation shows (Ma & Collins 2018,
        https://arxiv.org/abs/1809.01812).
        """
        count = len(self._loaded.prefixes.ids)
        rows = []
        for text, number in zip(texts_M, numbers, strict=True):
            others = np.delete(np.arange(count), text.label)
            if self._compared < count:
                draw = np.random.default_rng([self._seed, epoch + 1, number])
                others = np.sort(draw.choice(others, self._compared - 1, replace=False))
            rows.append([text.label, *others])
        return np.array(rows, dtype=np.int64).reshape(len(rows), self._compared)

    def _what_counts(
        self, weights_MK: NDArray[np.float64], numbers: Sequence[int], epoch: int
    ) -> NDArray[np.float64]:
        """Give weights [M, K] with zeros for the other classes that a step does not learn from.

        More than are to be learned from are drawn by systematic sampling: each as often, in the
        mean, as is its part of their weight, which is what the importance sampling of a gradient
        takes for least variance (Bengio & Senécal 2008, Adaptive Importance Sampling to Accelerate
        Training of a Neural Probabilistic Language Model). The own class stands first, and stays.
        """
        kept_MK = np.where(np.abs(weights_MK) < NEGLIGIBLE * self._scale, 0.0, weights_MK)
        kept_MK[:, 0] = weights_MK[:, 0]
        for weights_K, number in zip(kept_MK, numbers, strict=True):
            others = weights_K[1:]
            count, (possible,) = self._others, others.nonzero()
            if len(possible) <= count:
                continue
            ends = others[possible].cumsum() / others.sum()
            draw = np.random.default_rng([self._seed, epoch + 1, number, count])
            places = (draw.random() + np.arange(count)) / count
            drawn = possible[np.searchsorted(ends[:-1], places, side="right")]
            others[:] = np.bincount(drawn, minlength=len(others)) * (others.sum() / count)
        return kept_MK

    def _scores(
        self, texts_M: Sequence[LabelledText], classes_MK: NDArray[np.int64], tokens: int
    ) -> NDArray[np.float64]:
        """Give log P(text | class) [M, K] in nats, without gradients."""
        prefixes = self._loaded.prefixes
        texts = [
            prefixes.of_other(text, label).tokens
            for text, classes in zip(texts_M, classes_MK, strict=True)
            for label in classes
        ]
        found = score_texts(
            self._computing, texts, window=prefixes.policy.window, tokens_per_batch=tokens
        )
        return found.log_likelihoods.reshape(classes_MK.shape)

    def _weights(
        self,
        texts_M: Sequence[LabelledText],
        classes_MK: NDArray[np.int64],
        scores_MK: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give each text's loss [M], and −∂loss/∂score [M, K]."""
        log_posterior_MK = log_softmax(
            self._scale * scores_MK + self._log_prior[classes_MK], axis=1
        )
        own_MK = np.zeros_like(scores_MK)
        own_MK[:, 0] = 1.0
        losses_M = -log_posterior_MK[:, 0] - self._lm_weight * scores_MK[:, 0]
        weights_MK = self._scale * (own_MK - np.exp(log_posterior_MK)) + self._lm_weight * own_MK
        return losses_M, weights_MK
