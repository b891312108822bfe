"""JSON files of any size, event by event, each with its line.

ijson counts no lines, so the file is pushed into it piece by piece, cut at newlines: an event
belongs to the line whose piece produced it, and so does an error.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ijson

from gencls_core.datasets.reading import reading
from gencls_core.errors import DataError

__all__ = ["json_events", "json_items"]

_CHUNK_BYTES = 1 << 16


def json_events(path: Path) -> Iterator[tuple[int, tuple[str, str, Any]]]:
    """Stream (line, (prefix, event, value)) of a JSON file; see `ijson.parse`.

    Raises:
        DataError: with the line where the file stops being UTF-8 JSON.
    """
    return _pushed(path, lambda target: ijson.parse_coro(target, use_float=True))


def json_items(path: Path, prefix: str) -> Iterator[tuple[int, Any]]:
    """Stream (last line, value) of the values under `prefix`; see `ijson.items`.

    Raises:
        DataError: with the line where the file stops being UTF-8 JSON.
    """
    return _pushed(path, lambda target: ijson.items_coro(target, prefix, use_float=True))


def _pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    line = 1
    with reading(path, "utf-8"), path.open("rb") as stream:
        chunk = stream.read(_CHUNK_BYTES).removeprefix(codecs.BOM_UTF8)
        while chunk:
            for piece in _cut(chunk):
                yield line, piece
                line += piece.endswith(b"\n")
            chunk = stream.read(_CHUNK_BYTES)


def _cut(chunk: bytes) -> list[bytes]:
    """Split at newlines only: `splitlines` also splits at a carriage return."""
    *lines, rest = chunk.split(b"\n")
    return [line + b"\n" for line in lines] + ([rest] if rest else [])


def _pushed(path: Path, parser: Callable[[Any], Any]) -> Iterator[tuple[int, Any]]:
    events = ijson.sendable_list()
    machine = parser(events)
    line = 1
    try:
        for line, piece in _pieces(path):
            machine.send(piece)
            for event in events:
                yield line, event
            del events[:]
        machine.close()
        for event in events:
            yield line, event
    except ijson.JSONError as error:
        raise _broken(path, line, error) from None


def _broken(path: Path, line: int, error: Exception) -> DataError:
    # The bytes backend puts the message in bytes when the input is not UTF-8.
    message = error.args[0] if error.args else ""
    if isinstance(message, bytes):
        message = message.decode("utf-8", errors="replace")
    reason = str(message).splitlines()[0] if message else "not JSON"
    if "UTF8" in reason:
        return DataError.of(
            "the text is not utf-8",
            place=path,
            line=line,
            found=reason,
            expected="UTF-8, as JSON requires",
            remedy="save the file as UTF-8 (`--encoding` is for CSV, JSONL and .txt files)",
        )
    return DataError.of(
        "broken JSON",
        place=path,
        line=line,
        found=reason,
        expected="one whole JSON document",
        remedy="mend this line, or export the file again",
    )
