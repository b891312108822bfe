"""A process begins: what it imports and loads stays, and need not be searched for garbage."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["collector_paused"]


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Import or load without Python's garbage collector.

    Modules, and the vocabulary of a tokenizer, make a million objects, and the collector walks over
    them again and again while they are made: 0.8 of the 3.1 seconds that torch and transformers
    take to import. What is there at the end is left out of later walks too.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.enable()
