"""At which number of train texts systems are compared pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from gencls_core.systems.registry import UNTRAINED

__all__ = ["at_largest", "largest_sample"]


class _Sized(Protocol):
    @property
    def system(self) -> str: ...

    @property
    def sample(self) -> int | None: ...


Sized = TypeVar("Sized", bound=_Sized)


def largest_sample(systems: Sequence[_Sized]) -> int | None:
    """Give the largest sample of train texts per class; None is all of them."""
    samples = {one.sample for one in systems if one.system not in UNTRAINED}
    return None if None in samples or not samples else max(s for s in samples if s is not None)


def at_largest(systems: Sequence[Sized]) -> list[Sized]:
    """Give those with the largest sample, and those that learn nothing from the train texts."""
    largest = largest_sample(systems)
    return [one for one in systems if one.sample == largest or one.system in UNTRAINED]
