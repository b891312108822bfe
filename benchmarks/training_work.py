"""What the peers of training share: the sequences, the clock of the steps, and the loss after them.

All take as many optimiser steps on the same tokens with the same settings of AdamW, in the order of
our batches unless they group texts by length. Texts are cut where the original cut them, at 256
tokens, BOS and EOS among them.

Measured are the trained tokens, padding not counted, over the wall time between the ends of two
steps: the second one, or the last one that compiled something, and the last of all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Measurement, Stopwatch, read_texts
from gencls_core.config import ResolvedTraining, SequenceConfig
from gencls_core.tokenization import SequencePolicy, TokenizedText

__all__ = ["PADDED_LENGTH", "SEQUENCE", "StepClock", "Work", "with_held_out_loss"]

PADDED_LENGTH = 256
SEQUENCE = SequenceConfig(max_length=PADDED_LENGTH - 2)
SKIPPED_STEPS = 2


@dataclass(frozen=True)
class Work:
    """What every peer trains on, read from a case: `batch_size` and `held_out` are its options."""

    tokenizer: Any
    config: ResolvedTraining
    texts: list[str]
    sequences: list[TokenizedText]
    """Of the texts, in their order."""
    held_out: list[TokenizedText]
    """Of the last `held_out` texts of the file, which are not trained on."""

    @classmethod
    def of(cls, case: Case) -> Work:
        """Read and tokenise the texts."""
        from transformers import AutoTokenizer

        from gencls_core.models import document_separator, tokenize

        tokenizer = AutoTokenizer.from_pretrained(case.model)
        bos_id, eos_id = document_separator(tokenizer)
        policy = SequencePolicy.resolve(
            SEQUENCE, bos_id=bos_id, eos_id=eos_id, context=PADDED_LENGTH
        )
        texts = read_texts(case)
        sequences = [TokenizedText.of(ids, policy) for ids in tokenize(tokenizer, texts)]
        trained = len(texts) - int(case.options["held_out"])
        config = ResolvedTraining(
            epochs=1,
            learning_rate=5e-5,
            warmup=0.1,
            average_weights=False,
            batch_size=int(case.options["batch_size"]),
        )
        return cls(tokenizer, config, texts[:trained], sequences[:trained], sequences[trained:])

    @property
    def lengths(self) -> list[int]:
        """Trained tokens of each text."""
        return [len(sequence) for sequence in self.sequences]

    def batches(self) -> list[list[int]]:
        """Give the numbers of the texts of each of our steps."""
        from gencls_core.training_batches import Batches

        return list(Batches(self.lengths, self.config))


class StepClock:
    """Notes when steps end."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] = (0, 0.0)

    def tick(self, step: int, *, compiled: bool = False) -> None:
        """Note that a step has ended; `compiled` when something was compiled in it."""
        now = time.perf_counter()
        if step >= SKIPPED_STEPS and (self._first is None or compiled):
            self._first = (step, now)
            self._watch.first_batch()
        self._last = (step, now)

    def measurement(self, tokens_of_steps: Sequence[int], train_loss: float) -> Measurement:
        """Give what was measured up to now, memory included.

        Raises:
            RuntimeError: when there was no step in steady state.
        """
        if self._first is None or self._last[0] <= self._first[0]:
            raise RuntimeError(f"no steady state in {self._last[0]} steps: more texts are needed")
        (first, began), (last, ended) = self._first, self._last
        values = {
            "train_loss": train_loss,
            "trained_tokens": float(sum(tokens_of_steps)),
            "steps": float(last),
            "steady_steps": float(last - first),
        }
        measured = self._watch.measurement(sum(tokens_of_steps[first:last]), values)
        return replace(measured, seconds=ended - began)


def with_held_out_loss(measured: Measurement, trained: Path, work: Work) -> Measurement:
    """Add a saved model's loss on the held-out texts, nats per token: plain formula, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32).eval()
    nats = 0.0
    with torch.inference_mode():
        for text in work.held_out:
            ids_BT = torch.from_numpy(text.inputs).long()[None]
            logits_TV = model(input_ids=ids_BT, use_cache=False).logits[0]
            targets_T = torch.from_numpy(text.targets).long()
            nats += torch.nn.functional.cross_entropy(logits_TV, targets_T, reduction="sum").item()
    loss = nats / sum(map(len, work.held_out))
    return replace(measured, values={**measured.values, "held_out_loss": loss})
