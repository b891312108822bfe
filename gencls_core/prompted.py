"""One causal language model × prompts that name a class → score rows.

Prompt and text are tokenised apart. So no token spans the seam, and every class and every prompt
scores the same tokens: the text's own, and EOS. A text alone is read as class models read it.

Shapes: P prompts of a class, N texts, T scored tokens of one text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gencls_core.config import ScoringConfig, SequenceConfig
from gencls_core.models import CausalLM
from gencls_core.prompts import mixture, refuse_unusable_tokens
from gencls_core.scoring import TextScores, score_table, score_texts
from gencls_core.tokenization import SequencePolicy, TokenizedText

__all__ = ["PromptTokens", "PromptedModel"]


@dataclass(frozen=True)
class PromptTokens:
    """The prompts of each class, tokenised."""

    of_class: dict[str, list[list[int]]]
    """Class → the token ids of its prompts."""

    @classmethod
    def of(cls, lm: CausalLM, prompts: Mapping[str, Sequence[str]]) -> Self:
        """Tokenise the prompts of each class.

        Raises:
            ModelError: when the tokenizer makes nothing of a prompt, or the same of the prompts of
                two classes.
        """
        of_class = {name: lm.encode(list(of_class)) for name, of_class in prompts.items()}
        refuse_unusable_tokens(of_class, str(lm.tokenizer.name_or_path))
        return cls(of_class)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt of any class."""
        return max(len(ids) for of_class in self.of_class.values() for ids in of_class)

    def window(self, policy: SequencePolicy, prompt: Sequence[int]) -> int:
        """Give the tokens to read at once after a prompt.

        So a text has the same windows after every prompt of every class: the longest leaves the
        least room.
        """
        return policy.window - (self.longest - len(prompt))


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
        self._prompts = PromptTokens.of(lm, prompts)

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
        policy = lm.policy(sequence)
        ids = encoded if encoded is not None else self.encode(examples)
        prompts_P = self._prompts.of_class[class_name]
        texts_PN = [
            [TokenizedText.of(tokens, policy, prompt) for tokens in ids] for prompt in prompts_P
        ]
        windows_P = [self._prompts.window(policy, prompt) for prompt in prompts_P]
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
