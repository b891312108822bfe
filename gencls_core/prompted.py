"""One causal language model × prompts that name a class → score rows.

Prompt and text are tokenised apart. So no token spans the seam, and every class and every prompt
scores the same tokens: the text's own, and EOS. A text alone is read as class models read it.

Shapes: P prompts of a class, N texts, T scored tokens of one text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

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
        # The longest comes last.
        self._prompts = {
            name: sorted(lm.encode(list(of_class)), key=len) for name, of_class in prompts.items()
        }
        refuse_unusable_tokens(self._prompts, str(lm.tokenizer.name_or_path))

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

        Token scores are those of the mixture of the prompts; `num_windows` is the most that one of
        them asks for. The loss of the original experiment has no prompts and is not computed.

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
        found = score_texts(
            lm,
            [text for texts_N in texts_PN for text in texts_N],
            window=policy.window,
            tokens_per_batch=scoring.tokens_per_batch,
            on_batch=on_batch,
        ).token_scores
        mixed = [
            mixture(np.stack(found[number :: len(ids)])).astype(np.float32)
            for number in range(len(ids))
        ]
        # After the longest prompt the fewest tokens of a text fit into a window.
        return score_table(examples, texts_PN[-1], TextScores(mixed), policy, scoring)
