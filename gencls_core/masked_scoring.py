"""Texts × masked models of classes → score rows, pseudo or sampled (`SystemsConfig`).

`pseudo` masks each token once and is exact; its rows have no standard error. `sampled` estimates
the any-order bound, and its rows have the standard error of the estimate where there are two draws
or more. Neither is the exact log-likelihood of a text, so both say `pseudo_log_likelihood`
(`gencls_core.masked_likelihood`). Every class is asked with the same windows and the same masks.

With prompts (`gencls_core.prompts`), one model serves all classes: it reads a prompt that names
the class before each window. Prompt and text are tokenised apart, so that every class scores the
same tokens. Several prompts are an equal mixture. With L_p the score of a text after prompt p,

    L = log 1/P Σ_p exp L_p        SE(L) = SE( Σ_p w_p L_p ),   w = softmax(L_1 … L_P)

The standard error is by the delta method: w is the gradient of L. Draws are paired over prompts as
they are over classes, so the estimates of each draw are combined with these weights first, and
what is common to the prompts is not counted as if it were independent. Where the L_p are estimates
with errors e_p, L lies too high by about half of E Σ_p w_p (e_p − Σ_q w_q e_q)²: nothing, as far as
errors are common to the prompts. The tokens of a text are guessed in no order, so the mixture's
score is not a sum over them: with several prompts there are no token scores.

Shapes: P prompts, N texts, S draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

from gencls_core.config import ScoringConfig, SequenceConfig
from gencls_core.loaded_models import LoadedClassModels, ready_to_score
from gencls_core.masked_draws import standard_error
from gencls_core.masked_likelihood import MaskedScores, MaskedText, score_masked, score_pseudo
from gencls_core.masked_loading import load_masked_lm, masked_tokenizer_digest
from gencls_core.masked_models import MaskedLM
from gencls_core.precision import scoring_dtype
from gencls_core.prompts import prompts_for, refuse_unusable_tokens
from gencls_core.scores import SCORE_SCHEMA
from gencls_core.scoring_job import ScoringJob

__all__ = ["MaskedClassModels", "PromptedMaskedModel"]

FloatArray = NDArray[np.float64]
OnBatch = Callable[[int], None] | None


class MaskedClassModels:
    """Masked models of some classes, one each, ready to score."""

    def __init__(self, job: ScoringJob, classes: frozenset[str]) -> None:
        """Load the committed models of `classes`; LoRA adapters share one base.

        Raises:
            ModelError: when one cannot be loaded, or when they do not share one tokenizer.
        """
        dtype = scoring_dtype(job.precision)
        self._job = job
        self._loaded: LoadedClassModels[MaskedLM] = LoadedClassModels(
            [model for model in job.models if model.class_name in classes],
            job.base,
            load=lambda resolved: load_masked_lm(resolved, dtype),
            tokenizer_of=masked_tokenizer_digest,
            device=job.device,
            setting="--masked-model",
            compiled=job.compiled,
        )

    def encode(self, examples: pa.Table) -> list[list[int]]:
        """Tokenise the examples' texts once for all classes."""
        return self._loaded.any.encode(examples.column("text").to_pylist())

    def score(
        self,
        examples: pa.Table,
        class_name: str,
        sequence: SequenceConfig,
        scoring: ScoringConfig,
        *,
        encoded: list[list[int]] | None = None,
        on_batch: OnBatch = None,
    ) -> pa.Table:
        """Score examples under one class; see `scoring_job.Models`.

        Raises:
            ModelError: when a log-probability is not a finite number.
        """
        lm = self._loaded.model(class_name)
        ids = encoded if encoded is not None else self.encode(examples)
        texts = _cut(ids, lm.window_of(sequence.window), sequence)
        found = _scores(self._job, lm, texts, examples, scoring, on_batch)
        return _table(examples, texts, [found], scoring)


class PromptedMaskedModel:
    """One masked model that was not trained, with the tokenised prompts of all classes."""

    def __init__(self, job: ScoringJob) -> None:
        """Load the base model, and tokenise the prompts.

        Raises:
            ModelError: when the base cannot be loaded, when its tokenizer makes nothing of a
                prompt, or the same of the prompts of two classes.
        """
        self._job = job
        self._lm = load_masked_lm(job.base, scoring_dtype(job.precision))
        ready_to_score(self._lm.model, job.device, compiled=job.compiled)
        self._prompted = _with_prompts(
            self._lm, {name: prompts_for(job.systems, name) for name in job.classes}
        )

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
        on_batch: OnBatch = None,
    ) -> pa.Table:
        """Score examples after the prompts of one class; see `scoring_job.Models`.

        Raises:
            ModelError: when a prompt of any class leaves no room for a text, or when a
                log-probability is not a finite number.
        """
        ids = encoded if encoded is not None else self.encode(examples)
        # Of all classes: masks are drawn by windows, and are to be the same for each class.
        window = min(
            lm.window_of(sequence.window) for of_class in self._prompted.values() for lm in of_class
        )
        texts = _cut(ids, window, sequence)
        before = done = 0

        def count(tokens: int) -> None:
            nonlocal done
            done = before + tokens
            if on_batch is not None:
                on_batch(done)

        found = []
        for lm in self._prompted[class_name]:
            before = done
            found.append(_scores(self._job, lm, texts, examples, scoring, count))
        return _table(examples, texts, found, scoring)


def _with_prompts(
    lm: MaskedLM, prompts: Mapping[str, Sequence[str]]
) -> dict[str, tuple[MaskedLM, ...]]:
    """Give the model once for each prompt of each class, refusing prompts that say nothing."""
    tokens = {name: lm.encode(list(of_class)) for name, of_class in prompts.items()}
    refuse_unusable_tokens(tokens, str(lm.tokenizer.name_or_path))
    return {
        name: tuple(lm.with_prompt(ids) for ids in of_class) for name, of_class in tokens.items()
    }


def _cut(ids: Sequence[list[int]], window: int, sequence: SequenceConfig) -> list[MaskedText]:
    return [MaskedText.of(own, window=window, max_length=sequence.max_length) for own in ids]


def _scores(
    job: ScoringJob,
    lm: MaskedLM,
    texts: Sequence[MaskedText],
    examples: pa.Table,
    scoring: ScoringConfig,
    on_batch: OnBatch,
) -> MaskedScores:
    budget = scoring.batch_tokens(job.device)
    if job.systems.masked_likelihood == "pseudo":
        return score_pseudo(lm, texts, tokens_per_batch=budget, on_batch=on_batch)
    return score_masked(
        lm,
        texts,
        examples.column("example_id").to_pylist(),
        samples=job.systems.mask_samples,
        seed=job.seed,
        tokens_per_batch=budget,
        on_batch=on_batch,
    )


def _mixture(parts: Sequence[MaskedScores]) -> tuple[FloatArray, FloatArray | None]:
    """Give the scores of an equal mixture, and their standard errors: [N] each, in nats."""
    if len(parts) == 1:
        return parts[0].log_likelihoods, parts[0].standard_errors
    values_PNS = np.stack([part.values_NS for part in parts])
    scores_PN = values_PNS.mean(axis=2)
    mixed_N = logsumexp(scores_PN, axis=0) - math.log(len(parts))
    if values_PNS.shape[2] == 1:
        return mixed_N, None
    combined_NS = (softmax(scores_PN, axis=0)[..., None] * values_PNS).sum(axis=0)
    return mixed_N, standard_error(combined_NS)


def _table(
    examples: pa.Table,
    texts: Sequence[MaskedText],
    parts: Sequence[MaskedScores],
    scoring: ScoringConfig,
) -> pa.Table:
    """Put one class's scores after each of its prompts, or without any, into SCORE_SCHEMA."""
    rows = len(texts)
    scores_N, errors_N = _mixture(parts)
    per_token = scoring.per_token and len(parts) == 1
    columns = {
        "example_id": examples.column("example_id"),
        "label": examples.column("label"),
        "score": pa.array(scores_N, pa.float64()),
        "standard_error": pa.nulls(rows, pa.float64())
        if errors_N is None
        else pa.array(errors_N, pa.float64()),
        "quantity": pa.array(["pseudo_log_likelihood"] * rows, pa.string()),
        "num_tokens": pa.array([len(text) for text in texts], pa.int32()),
        "truncated": pa.array([text.truncated for text in texts], pa.bool_()),
        "num_windows": pa.array([len(text.windows) for text in texts], pa.int32()),
        "loss_score": pa.nulls(rows, pa.float64()),
        "token_ids": pa.array(
            [text.ids if per_token else None for text in texts], pa.list_(pa.int32())
        ),
        "token_scores": pa.array(
            [scores if per_token else None for scores in parts[0].token_scores],
            pa.list_(pa.float32()),
        ),
    }
    return pa.table(columns, schema=SCORE_SCHEMA)
