"""Which example ends the workers that score it: bisecting a shard with workers to lose."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import ray

from cluster.channel import CRASHES
from gencls_core.events import Event, Note
from gencls_core.shard_work import ShardWork

__all__ = ["isolate"]


def isolate(
    job: Any,
    work: ShardWork,
    start: Callable[[], Any],
    dismiss: Callable[[Any], None],
) -> Generator[Event, None, int | None]:
    """Give the number of the one example that ends its worker; None where no single one does.

    Halves the range that still kills: at most ⌈log2(rows)⌉ + 2 workers are lost and nothing is
    committed.

    Args:
        job: reference to the scoring job.
        work: the shard.
        start: starts an actor for the shard's classes (with `.handle`).
        dismiss: ends an actor that lives.
    """
    actor: Any = None

    def survives(first: int, last: int) -> bool:
        nonlocal actor
        if actor is None:
            actor = start()
        try:
            ray.get(actor.handle.probe.remote(job, work, first, last))
        except CRASHES:
            actor = None
            return False
        return True

    try:
        if not survives(work.start, work.start):
            yield Note(f"{work.name}: a worker dies before it has read a text")
            return None
        low, high = work.start, work.stop
        while high - low > 1:
            middle = (low + high) // 2
            if not survives(low, middle):
                high = middle
            elif not survives(middle, high):
                low = middle
            else:
                yield Note(f"{work.name}: no single example ends a worker")
                return None
            yield Note(f"{work.name}: among rows {low:,} to {high - 1:,}")
        if survives(low, high):
            return None
        if not (survives(work.start, low) and survives(high, work.stop)):
            yield Note(f"{work.name}: other examples of it end a worker, too")
        return low
    finally:
        if actor is not None:
            dismiss(actor)
