"""The systems that need no language model, by name; scikit-learn is loaded when one scores."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType

from gencls_core.errors import UsageError
from gencls_core.systems import System

__all__ = ["LIGHT_SYSTEMS", "light_system"]

Factory = Callable[[int], System]
"""seed → system."""


def _tfidf(seed: int) -> System:
    from gencls_core.systems.tfidf import TfidfSystem

    return TfidfSystem(seed)


def _nbsvm(seed: int) -> System:
    from gencls_core.systems.nbsvm import NbsvmSystem

    return NbsvmSystem(seed)


def _naive_bayes(seed: int) -> System:
    from gencls_core.systems.naive_bayes import NaiveBayesSystem

    return NaiveBayesSystem(seed)


def _majority(seed: int) -> System:
    from gencls_core.systems.majority import MajoritySystem

    return MajoritySystem()  # draws nothing


LIGHT_SYSTEMS: Mapping[str, Factory] = MappingProxyType(
    {"tfidf": _tfidf, "nbsvm": _nbsvm, "naive-bayes": _naive_bayes, "majority": _majority}
)
"""Name → factory, in the order in which they are shown."""


def light_system(name: str, seed: int = 0) -> System:
    """Make a system by its name.

    Raises:
        UsageError: when there is none of that name.
    """
    if name not in LIGHT_SYSTEMS:
        close = difflib.get_close_matches(name, LIGHT_SYSTEMS, n=1)
        raise UsageError.of(
            "no such system",
            found=repr(name),
            expected=", ".join(LIGHT_SYSTEMS),
            remedy=f"did you mean {close[0]!r}?" if close else None,
        )
    return LIGHT_SYSTEMS[name](seed)
