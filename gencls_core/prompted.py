"""One causal language model × prompts that name a class → score rows.

Prompt and text are tokenised apart. So no token spans the seam, and every class and every prompt
scores the same tokens: the text's own, and EOS. A text alone is read as class models read it.

Shapes: P prompts of a class, N texts, T scored tokens of one text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gencls_core.config import ScoringConfig, SequenceConfig
from gencls_core.models import CausalLM
from gencls_core.prompts import mixture, refuse_unusable_tokens
from gencls_core.scoring import TextScores, score_table, score_texts
from gencls_core.tokenization import SequencePolicy, TokenizedText

__all__ = ["PromptedModel"]


class PromptedModel:
    """A causal language model with the tokenised prompts of each class."""

    def __init__(self, lm: CausalLM, prompts: Mapping[str, Sequence[str]]) -> None:
        """Tokenise the prompts.

        Args:
            lm: the model; its device and dtype are used as they are.
            prompts: class → its prompts, as many for each.

        Raises:
            ModelError: when the tokenizer makes nothing of a prompt, or the same of the prompts of
                two classes.
        """
        self._lm = lm
        self._prompts = {name: lm.encode(list(of_class)) for name, of_class in prompts.items()}
        refuse_unusable_tokens(self._prompts, str(lm.tokenizer.name_or_path))
        self._longest = max(len(ids) for of_class in self._prompts.values() for ids in of_class)

    def encode(self, examples: pa.Table) -> list[list[int]]:
        """Tokenise the examples' texts once for all classes and prompts."""
        return self._lm.encode(examples.column("text").to_pylist())

    def score(
        self,
        examples: pa.Table,
        class_name: str,
        sequence: SequenceConfig,
        scoring: ScoringConfig,
        *,
        encoded: list[list[int]] | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> pa.Table:
        """Score examples (EXAMPLE_SCHEMA) under one class; gives rows in SCORE_SCHEMA, in order.

        Token scores are those of the mixture of the prompts. The loss of the original experiment
        has no prompts and is not computed.

        Args:
            encoded: token ids of the examples' texts, where the caller scores several classes.
            on_batch: called with the number of tokens scored so far, once for each prompt.

        Raises:
            ModelError: when a prompt leaves no room for a text.
        """
        lm = self._lm
        policy = SequencePolicy.resolve(
            sequence, bos_id=lm.bos_id, eos_id=lm.eos_id, context=lm.context
        )
        ids = encoded if encoded is not None else self.encode(examples)
        texts_PN = [
            [TokenizedText.of(tokens, policy, prompt) for tokens in ids]
            for prompt in self._prompts[class_name]
        ]
        # The same windows after every prompt of every class: the longest leaves the least room.
        windows_P = [
            policy.window - (self._longest - len(prompt)) for prompt in self._prompts[class_name]
        ]
        scores_PN: list[list[NDArray[np.float32]]] = []
        done = 0

        def count(tokens: int) -> None:
            if on_batch is not None:
                on_batch(done + tokens)

        for texts_N, window in zip(texts_PN, windows_P, strict=True):
            found = score_texts(
                lm,
                texts_N,
                window=window,
                tokens_per_batch=scoring.batch_tokens(lm.device.type),
                on_batch=count,
            )
            scores_PN.append(found.token_scores)
            done += sum(map(len, texts_N))
        mixed = [
            mixture(np.stack(scores_P)).astype(np.float32)
            for scores_P in zip(*scores_PN, strict=True)
        ]
        read = replace(policy, window=windows_P[0])
        return score_table(examples, texts_PN[0], TextScores(mixed), read, scoring)
