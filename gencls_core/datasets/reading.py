"""Reading text files: encodings, and errors that name the line."""

from __future__ import annotations

import codecs
import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from gencls_core.errors import DataError
from gencls_core.storage import file_sha256

__all__ = ["ColumnError", "closest", "column_error", "file_digest", "open_text", "reading", "shown"]


def shown(value: object, width: int = 60) -> str:
    """Give `value` as it appears in a message: quoted and at most `width` characters long."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def closest(word: str, words: Iterable[str]) -> str | None:
    """Give "did you mean `x`?" for the nearest of `words`, or None."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"did you mean `{near[0]}`?" if near else None


def open_text(path: Path, encoding: str) -> TextIO:
    """Open a text file with its newlines as they are and without its byte order mark.

    Raises:
        DataError: when Python does not know the encoding.
    """
    try:
        name = codecs.lookup(encoding).name
        return path.open(encoding="utf-8-sig" if name == "utf-8" else name, newline="")
    except LookupError:
        raise DataError.of(
            "unknown encoding",
            place=path,
            found=shown(encoding),
            remedy="`--encoding` takes a name that Python knows, for example utf-8 or latin-1",
        ) from None


@contextlib.contextmanager
def reading(path: Path, encoding: str) -> Iterator[None]:
    """Turn the system's errors while reading `path` into a DataError with the place."""
    try:
        yield
    except UnicodeError as error:
        raise _encoding_error(path, encoding, error) from None
    except OSError as error:
        raise DataError.of(
            "cannot be read", place=path, found=error.strerror or str(error)
        ) from None


def _encoding_error(path: Path, encoding: str, error: UnicodeError) -> DataError:
    """Find the first undecodable byte again: the decoder only knows its place in a buffer."""
    line, found = None, str(error)
    # UTF-16 and UTF-32 have zero bytes around the newline byte, so their lines cannot be counted.
    if not codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
        offset = 0
        with path.open("rb") as stream:
            for number, content in enumerate(stream, start=1):
                try:
                    content.decode(encoding)
                except UnicodeDecodeError as bad:
                    byte = content[bad.start]
                    line, found = number, f"byte 0x{byte:02x} at byte {offset + bad.start}"
                    break
                offset += len(content)
    return DataError.of(
        f"the text is not {encoding}",
        place=path,
        line=line,
        found=found,
        expected=f"{encoding} text",
        remedy="name the file's encoding, for example `--encoding latin-1`",
    )


class ColumnError(DataError):
    """A column that a file does not have."""


def column_error(
    path: Path, line: int | None, column: str, option: str, columns: Iterable[str]
) -> ColumnError:
    """Build the error about a column that the file does not have."""
    names = [str(name) for name in columns]
    return ColumnError.of(
        f"no column `{column}`",
        place=path,
        line=line,
        found="the columns " + ", ".join(f"`{name}`" for name in names),
        expected=f"a column `{column}`",
        remedy=" ".join(
            part for part in (closest(column, names), f"name the column with `{option}`") if part
        ),
    )


def file_digest(path: Path) -> str:
    """Give the SHA-256 (64 hex digits) of a source file's bytes.

    Raises:
        DataError: when the file cannot be read.
    """
    with reading(path, "utf-8"):
        return file_sha256(path)
