"""A process begins: what it imports and loads stays, and need not be searched for garbage."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["collector_paused"]


_kept = False
"""Whether this process has left what it began with out of later walks."""


@contextlib.contextmanager
def collector_paused(*, stays: bool = False) -> Iterator[None]:
    """Import or load without Python's garbage collector.

    Modules, and the vocabulary of a tokenizer, make a million objects, and the collector walks over
    them again and again while they are made: 0.8 of the 3.1 seconds that torch and transformers
    take to import.

    Args:
        stays: whether what is there at the end stays as long as the process. It is then left out
            of later walks, so garbage in it is never freed; heeded once in a process, at its start.
    """
    global _kept
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if stays and not _kept:
                gc.freeze()
                _kept = True
            gc.enable()
