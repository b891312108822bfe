"""Texts that a program gives: checked, before a model sees any of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gencls_core.errors import UsageError

__all__ = ["checked_texts"]


def checked_texts(texts: Iterable[str]) -> list[str]:
    """Give texts as a list: of any sequence, array, Series or Arrow column of strings.

    Raises:
        UsageError: for one text instead of several, for a table, or for what is not a text, by
            its index.
    """
    if isinstance(texts, str | bytes):
        raise UsageError.of(
            "one text where several are expected",
            place="texts",
            found=type(texts).__name__,
            expected="a list of str",
            remedy="put it into a list: [text]",
        )
    shape: tuple[int, ...] = getattr(texts, "shape", (0,))
    if len(shape) > 1:
        raise UsageError.of(
            "a table where one column of texts is expected",
            place="texts",
            found=f"{type(texts).__name__} of shape {tuple(shape)}",
            remedy="give one column: frame['text'], array[:, 0]",
        )
    to_list: Any = getattr(texts, "to_pylist", None)  # of Arrow, whose own items are no strings
    try:
        found = list(texts if to_list is None else to_list())
    except TypeError:  # a number, an array without dimensions
        raise UsageError.of(
            "not a sequence of texts",
            place="texts",
            found=type(texts).__name__,
            expected="a list, array or Series of str",
        ) from None
    for index, text in enumerate(found):
        if not isinstance(text, str):
            raise UsageError.of(
                "not a text",
                place=f"texts[{index}]",
                found=_described(text),
                expected="str",
                remedy="leave missing texts out; give numbers as str",
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError.of(
                "a text that is not valid Unicode",
                place=f"texts[{index}]",
                found=f"half of a surrogate pair at character {error.start}",
                remedy="remove the character: it stands for nothing",
            ) from None
    return [str(text) for text in found]  # not NumPy's own kind of str


def _described(value: object) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 40 else shown[:37] + '...'}"
