"""One class's texts under a masked language model: the expected loss is minus a bound on log P(x).

Texts are cut into windows as scoring will cut them, masks and loss are those of
`gencls_core.masked_training`: each epoch masks each window once, anew.

The held-out texts are scored by the scoring code, with `HELD_OUT_DRAWS` sets of masked tokens that
are the same after every epoch. So the noise of the draws is common to the epochs, and which of them
is best hardly depends on it; the figure itself is an estimate of the bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from gencls_core.errors import TrainingError
from gencls_core.masked_batches import MaskedRow
from gencls_core.masked_likelihood import MaskedText, score_masked
from gencls_core.masked_loading import load_masked_lm, masked_tokenizer_digest
from gencls_core.masked_models import MaskedLM
from gencls_core.masked_training import mask_for_training, masked_loss
from gencls_core.models import attach_lora
from gencls_core.objectives.texts import OfTexts, write_model
from gencls_core.tokenization import Window, batches_by_token_budget
from gencls_core.training_task import TrainingTask

__all__ = ["HELD_OUT_DRAWS", "MaskedObjective"]

HELD_OUT_DRAWS = 8
"""Four strata of two: few and many masked tokens get their share.

Measured with `scratch:masked-tiny` on ten held-out texts of the demo: with the seed of the draws,
the figure varies by 0.03 nats per token, but the difference of two epochs by 0.005, where a single
draw leaves 0.015. Twice as many draws gain little.
"""

_Pass = list[MaskedRow]


class MaskedObjective(OfTexts[MaskedLM, MaskedText]):
    """A masked language model and the tokenised texts of one class.

    Masked or not, the loss stands for all own tokens of a text.
    """

    def __init__(
        self, lm: MaskedLM, texts: list[MaskedText], held_out: list[MaskedText], seed: int
    ) -> None:
        """Take texts with a token each, cut with one window; `seed` is that of all masks."""
        super().__init__(lm, texts, held_out)
        self._seed = seed

    @classmethod
    def of(cls, task: TrainingTask) -> MaskedObjective:
        """Load the base and tokenise the texts; see `load_objective`."""
        lm = load_masked_lm(task.base)
        if task.lora_rank is not None:
            lm = attach_lora(lm, task.lora_rank, task.lora_alpha, task_type=None)
        texts = _tokenize(lm, task.texts, task)
        if not texts:
            raise TrainingError.of("no tokens to train on", place=task.title)
        return cls(lm, texts, _tokenize(lm, task.validation_texts, task), task.training.seed)

    def passes(self, numbers: Sequence[int], tokens: int, epoch: int) -> Iterator[_Pass]:
        """Cut texts into windows, mask each as the epoch says, and group them into passes."""
        windows = [
            Window(number, start, start, stop, context=self._lm.num_special)
            for number in numbers
            for start, stop in self._texts[number].windows
        ]
        for group in batches_by_token_budget(windows, tokens, fewest=True):
            rows = [self._texts[window.text].ids[window.start : window.stop] for window in group]
            yield [(ids, mask_for_training(ids, seed=self._seed, epoch=epoch)) for ids in rows]

    def loss(self, part: _Pass) -> Tensor:
        """Give a pass's share of minus the bound, in nats; exact on average over the masks."""
        loss, _ = masked_loss(self._computing, self._computing.batch(part))
        return loss

    def held_out_nll(self, tokens: int) -> float:
        """Give minus the bound in nats per token, estimated with the same masks each time."""
        scores = score_masked(
            self._computing,
            self._held_out,
            [str(number) for number in range(len(self._held_out))],
            samples=HELD_OUT_DRAWS,
            seed=self._seed,
            tokens_per_batch=tokens,
        )
        return float(-scores.log_likelihoods.sum() / sum(map(len, self._held_out)))

    def save(self, folder: Path) -> str:
        """Write weights (or adapter) and tokenizer."""
        write_model(self._lm, folder)
        return masked_tokenizer_digest(self._lm)


def _tokenize(lm: MaskedLM, texts: list[str], task: TrainingTask) -> list[MaskedText]:
    window = lm.window_of(task.sequence.window)
    encoded = [
        MaskedText.of(ids, window=window, max_length=task.sequence.max_length)
        for ids in lm.encode(texts)
    ]
    return [text for text in encoded if len(text)]
