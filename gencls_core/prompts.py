"""What a model that was not trained reads before a text, so that the text's likelihood has a class.

A prompt names a class; only the text's own tokens are scored after it. Several prompts are a
mixture with equal weights, whose likelihood is the mean of theirs:

    log P(x | c) = log 1/P Σ_p exp log P(x | prompt_p(c))

Shapes: P prompts, N texts.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp

from gencls_core.config import SystemsConfig
from gencls_core.score_matrix import FloatArray

__all__ = ["mixture", "prompts_for"]


def prompts_for(systems: SystemsConfig, class_name: str) -> tuple[str, ...]:
    """Give the prompts of a class: every `{class}` is replaced by its words."""
    words = systems.class_words.get(class_name, class_name)
    return tuple(prompt.replace("{class}", words) for prompt in systems.prompts)


def mixture(log_likelihoods_PN: FloatArray) -> FloatArray:
    """Give the log-likelihoods of an equal mixture of the prompts: [N], nats."""
    mixed_N: FloatArray = logsumexp(log_likelihoods_PN, axis=0) - math.log(len(log_likelihoods_PN))
    return np.asarray(mixed_N, dtype=np.float64)
