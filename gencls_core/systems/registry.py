"""Every system by its name. Light ones learn and score in one go; the others are made of language
models, which are trained, committed and held by actors. What they need is loaded when they work."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from gencls_core.config import SystemsConfig
from gencls_core.errors import UsageError
from gencls_core.scoring_job import ModelSystem
from gencls_core.systems import System
from gencls_core.systems.class_lm import ClassLm
from gencls_core.systems.conditional_lm import ConditionalLm, JointLm
from gencls_core.systems.discriminative import Discriminative
from gencls_core.systems.masked_lm import MaskedLm, UntrainedMaskedLm
from gencls_core.systems.zero_shot import ZeroShot

__all__ = [
    "LIGHT_SYSTEMS",
    "MODEL_SYSTEMS",
    "UNTRAINED",
    "check_names",
    "light_system",
    "system_names",
]

MODEL_SYSTEMS: Mapping[str, ModelSystem] = MappingProxyType(
    {
        system.name: system
        for system in (
            ClassLm(),
            ConditionalLm(),
            JointLm(),
            ZeroShot(),
            Discriminative(),
            MaskedLm(),
            UntrainedMaskedLm(),
        )
    }
)
"""Name → system, in the order in which they are shown."""

UNTRAINED = frozenset(name for name, system in MODEL_SYSTEMS.items() if system.objective is None)
"""Systems that learn nothing from the train texts: the same at every number of them."""

Factory = Callable[[int, SystemsConfig], System]
"""seed, settings → system."""


def _tfidf(seed: int, _settings: SystemsConfig) -> System:
    from gencls_core.systems.tfidf import TfidfSystem

    return TfidfSystem(seed)


def _nbsvm(seed: int, _settings: SystemsConfig) -> System:
    from gencls_core.systems.nbsvm import NbsvmSystem

    return NbsvmSystem(seed)


def _naive_bayes(seed: int, _settings: SystemsConfig) -> System:
    from gencls_core.systems.naive_bayes import NaiveBayesSystem

    return NaiveBayesSystem(seed)


def _majority(_seed: int, _settings: SystemsConfig) -> System:
    from gencls_core.systems.majority import MajoritySystem

    return MajoritySystem()  # draws nothing


def _setfit(seed: int, settings: SystemsConfig) -> System:
    from gencls_core.systems.setfit import SetFitSystem

    # Where a worker runs, a relative path would mean another place.
    model = settings.setfit_model and str(Path(settings.setfit_model).expanduser().absolute())
    return SetFitSystem(seed, model)


LIGHT_SYSTEMS: Mapping[str, Factory] = MappingProxyType(
    {
        "setfit": _setfit,
        "tfidf": _tfidf,
        "nbsvm": _nbsvm,
        "naive-bayes": _naive_bayes,
        "majority": _majority,
    }
)
"""Name → factory, in the order in which they are shown."""


def system_names() -> tuple[str, ...]:
    """Give the names of all systems."""
    return (*MODEL_SYSTEMS, *LIGHT_SYSTEMS)


def check_names(names: Sequence[str]) -> None:
    """Refuse a name that no system has.

    Raises:
        UsageError: naming it, with the closest that there is.
    """
    for name in names:
        if name not in system_names():
            close = difflib.get_close_matches(name, system_names(), n=1)
            raise UsageError.of(
                "no such system",
                found=repr(name),
                expected=", ".join(system_names()),
                remedy=f"did you mean {close[0]!r}?" if close else None,
            )


def light_system(name: str, seed: int = 0, settings: SystemsConfig | None = None) -> System:
    """Make a light system by its name.

    Raises:
        UsageError: when there is none of that name.
    """
    check_names([name])
    return LIGHT_SYSTEMS[name](seed, settings or SystemsConfig())
