"""What the objectives share: they hold tokenised texts, to learn from and held out."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Generic, TypeVar

__all__ = ["OfTexts"]

Text = TypeVar("Text", bound=Sized)


class OfTexts(Generic[Text]):
    """Tokenised texts, counted in tokens; the base of every objective."""

    def __init__(self, texts: list[Text], held_out: list[Text]) -> None:
        self._texts = texts
        self._held_out = held_out

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text: those that count for its loss, or are read for it."""
        return [len(text) for text in self._texts]

    @property
    def held_out(self) -> int:
        """Number of held-out texts."""
        return len(self._held_out)

    def units(self, numbers: Sequence[int]) -> int:
        """Count tokens: the loss is per token."""
        return sum(len(self._texts[number]) for number in numbers)
