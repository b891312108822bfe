"""First pass over a source: every text is checked, and only numbers about it are kept."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from gencls_core.datasets.labels import is_integer
from gencls_core.datasets.reading import closest, shown
from gencls_core.datasets.sampling import Codes, Hashes
from gencls_core.datasets.source import Example, Source, example_error
from gencls_core.errors import DataError

__all__ = ["CodeBook", "Survey", "survey", "text_hash"]

_MOST_CLASSES = 1000
LONGEST_TEXT = 10_000_000
"""Characters. A text is tokenised as a whole, which takes some 300 bytes of memory a token."""


class CodeBook:
    """Numbers for class names, in order of appearance, or the declared ones only."""

    def __init__(self, declared: tuple[str, ...] | None) -> None:
        self.names: list[str] = list(declared or ())
        self._closed = declared is not None
        self._codes = {name: code for code, name in enumerate(self.names)}

    def code(self, example: Example) -> int:
        """Give the number of an example's class.

        Raises:
            DataError: no label, a label outside the declared classes, or absurdly many labels.
        """
        name = example.label
        if name is None:
            raise example_error(
                example,
                "no label",
                expected="the name or number of a class",
                remedy="label the row or remove it",
            )
        code = self._codes.get(name)
        if code is not None:
            return code
        if self._closed:
            raise outside_error(example, tuple(self.names), "correct it, or add it to `--classes`")
        if len(self.names) == _MOST_CLASSES:
            raise example_error(
                example,
                f"more than {_MOST_CLASSES} different labels",
                found=", ".join(shown(known, 30) for known in self.names[:5]) + ", …",
                remedy="is `--label-column` the column of the classes?",
            )
        self._codes[name] = len(self.names)
        self.names.append(name)
        return self._codes[name]


def outside_error(example: Example, classes: tuple[str, ...], remedy: str) -> DataError:
    """Build the error about a label that is none of the classes."""
    label = example.label or ""
    names = ", ".join(f"`{name}`" for name in classes[:20]) + (", …" if len(classes) > 20 else "")
    numbers = f", or 0 to {len(classes) - 1}" if not any(map(is_integer, classes)) else ""
    hint = closest(label, classes)
    return example_error(
        example,
        "label outside the classes",
        found=shown(label),
        expected=names + numbers,
        remedy=f"{hint} {remedy}" if hint else remedy,
    )


@dataclass(frozen=True)
class Survey:
    """What is known of the rows of one source split."""

    split: str
    codes: Codes
    texts: Hashes
    """Hash of each text with its runs of white space made one space."""
    ids: Hashes | None
    """Hash of each user id; None where rows are numbered."""
    first: dict[int, Example]
    """The first example of each class number."""

    def __len__(self) -> int:
        return len(self.codes)


def survey(source: Source, split: str, book: CodeBook, *, labelled: bool = True) -> Survey:
    """Read a split once, check each example, and keep its class number and hashes.

    Raises:
        DataError: at the first example without text or label, or when there is none at all.
    """
    codes, texts, ids = array("i"), bytearray(), bytearray()
    first: dict[int, Example] = {}
    for example in source.examples(split):
        texts += text_hash(example)
        if example.example_id is not None:
            ids += _hash(example, example.example_id, "the id")
        code = book.code(example) if labelled else 0
        codes.append(code)
        if code not in first:
            # Not the text: only its place is needed.
            first[code] = Example("", example.label, None, example.row, example.file, example.line)
    if not codes:
        raise DataError.of(
            f"the {split} split is empty" if split != "all" else "no texts",
            place=source.description,
            expected="at least one text",
        )
    return Survey(
        split=split,
        codes=np.frombuffer(codes, dtype=np.int32),
        texts=np.frombuffer(texts, dtype=np.uint64).reshape(-1, 2),
        ids=np.frombuffer(ids, dtype=np.uint64).reshape(-1, 2) if ids else None,
        first=first,
    )


def text_hash(example: Example) -> bytes:
    """Give the 128-bit hash of an example's text, runs of white space made one space.

    Raises:
        DataError: when there is no text but white space, it is not valid Unicode, or it is no
            single text by any measure.
    """
    if len(example.text) > LONGEST_TEXT:
        raise example_error(
            example,
            "text too long",
            found=f"{len(example.text):,} characters, beginning {shown(example.text[:40])}",
            expected=f"at most {LONGEST_TEXT:,} characters in one text",
            remedy="split it into several texts or cut it; is it a whole file in one cell?",
        )
    words = example.text.split()
    if not words:
        raise example_error(
            example,
            "empty text",
            found=shown(example.text),
            expected="a text with at least one visible character",
            remedy="remove the row or give it a text",
        )
    return _hash(example, " ".join(words), "the text")


def _hash(example: Example, text: str, what: str) -> bytes:
    try:
        return blake2b(text.encode("utf-8"), digest_size=16).digest()
    except UnicodeEncodeError as error:
        raise example_error(
            example,
            f"{what} is not valid Unicode",
            found=f"half of a surrogate pair, {shown(text[error.start])}",
            remedy="remove the character: it stands for nothing",
        ) from None
