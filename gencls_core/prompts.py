"""What a model that was not trained reads before a text, so that the text's likelihood has a class.

A prompt names a class; only the text's own tokens t1 … tT are scored after it. Several prompts are
a mixture with equal weights, whose likelihood is the mean of theirs:

    log P(x | c) = log 1/P Σ_p exp log P(x | prompt_p(c))

Shapes: P prompts, T scored tokens of one text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from gencls_core.config import RecipeConfig, SystemsConfig
from gencls_core.datasets.reading import closest
from gencls_core.errors import ModelError, UsageError
from gencls_core.score_matrix import FloatArray

__all__ = [
    "check_prompts",
    "mixture",
    "prefixes_for",
    "prompt_parts",
    "prompts_for",
    "refuse_unusable_tokens",
]


def prompts_for(systems: SystemsConfig, class_name: str) -> tuple[str, ...]:
    """Give the prompts of a class: every `{class}` is replaced by its words."""
    return tuple(_filled(prompt, systems, class_name) for prompt in systems.prompts)


def prefixes_for(
    recipe: RecipeConfig, systems: SystemsConfig, classes: Sequence[str]
) -> tuple[str, ...]:
    """Give what the one model of all classes reads before a text, class by class."""
    return tuple(_filled(recipe.prefix, systems, name) for name in classes)


def _filled(prompt: str, systems: SystemsConfig, class_name: str) -> str:
    return prompt.replace("{class}", systems.class_words.get(class_name, class_name))


def prompt_parts(
    systems: SystemsConfig, classes: Sequence[str], class_name: str
) -> dict[str, list[str]]:
    """Give what a class's rows depend on: its prompts, and through the windows those of all.

    All classes are read in the windows that the longest of all prompts leaves. How long that is,
    only the tokenizer tells, which is not loaded for it: any other prompt counts.
    """
    every = {prompt for name in classes for prompt in prompts_for(systems, name)}
    return {
        "prompts": list(prompts_for(systems, class_name)),
        "prompts_of_all": sorted(every),
    }


def check_prompts(systems: SystemsConfig, classes: Sequence[str]) -> None:
    """Check that every class has prompts of its own.

    Raises:
        UsageError: when words are given for a class that there is not, when a class's words are
            blank, or when two classes have the same words, under which they would always tie.
    """
    for name in systems.class_words:
        if name not in classes:
            raise UsageError.of(
                "words for a class that the data does not have",
                place="--class-words",
                found=repr(name),
                expected=f"one of the classes: {', '.join(classes)}",
                remedy=closest(name, classes),
            )
    of_prompts: dict[tuple[str, ...], str] = {}
    for name in classes:
        if not systems.class_words.get(name, name).strip():
            raise UsageError.of(
                "a class without words for its prompts",
                place="--class-words",
                found=f"nothing but white space for class {name!r}",
                expected="what a prompt's `{class}` becomes",
                remedy=f'--class-words {name}="what its texts are about"',
            )
        other = of_prompts.setdefault(prompts_for(systems, name), name)
        if other != name:
            raise UsageError.of(
                "two classes have the same prompts, so they would always tie",
                place="--class-words",
                found=f"{systems.class_words.get(name, name)!r} for {other!r} and {name!r}",
                remedy="other words for one of them",
            )


def refuse_unusable_tokens(tokens: Mapping[str, Sequence[Sequence[int]]], place: str) -> None:
    """Check what a tokenizer made of the prompts of each class.

    Raises:
        ModelError: when it made no tokens of a prompt, or the same of two classes' prompts.
    """
    of_prompts: dict[tuple[tuple[int, ...], ...], str] = {}
    for name, of_class in tokens.items():
        other = of_prompts.setdefault(tuple(map(tuple, of_class)), name)
        if not all(of_class) or other != name:
            raise ModelError.of(
                "the tokenizer makes no tokens of a prompt"
                if other == name
                else "the tokenizer makes the same tokens of the prompts of two classes, so they "
                "would always tie",
                place=place,
                found=" and ".join(f"class {each!r}" for each in dict.fromkeys([other, name])),
                remedy="other words for the class (--class-words), or other prompts",
            )


def mixture(token_scores_PT: NDArray[np.floating]) -> FloatArray:
    """Give the log-probability of each token of a text under the mixture of its prompts: [T], nats.

        log P(t_i | t_<i) = log Σ_p P(t_1 … t_i | p) − log Σ_p P(t_1 … t_<i | p)

    Prompts gain weight with what they foretold so far; the sum over the text is the logarithm of
    their mean likelihood.

    Args:
        token_scores_PT: log-probabilities of the same tokens after each prompt, in nats.
    """
    if len(token_scores_PT) == 1:
        # Sums and their differences would not give the same bits.
        return np.asarray(token_scores_PT[0], dtype=np.float64)
    up_to_PT = np.cumsum(token_scores_PT, axis=1, dtype=np.float64)
    mixed_T = logsumexp(up_to_PT, axis=0) - math.log(len(up_to_PT))
    return np.diff(mixed_T, prepend=0.0)
