"""Stopping on request: what is in hand is committed, nothing else is begun.

The first SIGTERM or Ctrl-C asks; where work is under way that can be brought to an end, it is, for
at most `$GENCLS_STOP_SECONDS`. A second one, or one that comes elsewhere, ends the process as
Ctrl-C does: what is half-done is discarded whole.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

__all__ = ["STOP", "stop_on_signals"]

STOP_SECONDS = 45.0
"""Time for the shard in hand; a Ray job is killed 60 s after it was asked to stop."""


class _Stop:
    """Whether a stop was asked for; one per process."""

    def __init__(self) -> None:
        self.requested = False
        self._asked_at = 0.0
        self._shields = 0

    @property
    def overdue(self) -> bool:
        """Whether the time for what is in hand is over."""
        seconds = float(os.environ.get("GENCLS_STOP_SECONDS") or STOP_SECONDS)
        return self.requested and time.monotonic() - self._asked_at > seconds

    @contextlib.contextmanager
    def shielded(self) -> Iterator[None]:
        """Mark a block that looks at `requested` itself, and need not be interrupted."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1

    def ask(self) -> None:
        """Ask for a stop.

        Raises:
            KeyboardInterrupt: when nothing would heed it, or it was asked before.
        """
        if self.requested or not self._shields:
            self.requested = True
            raise KeyboardInterrupt
        self.requested, self._asked_at = True, time.monotonic()
        print(
            "stopping: the shards in hand are being committed; once more to stop at once",
            file=sys.stderr,
            flush=True,
        )


STOP = _Stop()


def stop_on_signals() -> None:
    """Let SIGTERM and SIGINT ask for a stop, from now on."""
    STOP.requested = False

    def on_signal(signum: int, frame: FrameType | None) -> None:
        STOP.ask()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
