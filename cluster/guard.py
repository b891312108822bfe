"""A bound on a worker's main memory, so that one that outgrows it ends before the machine does.

Ray's own monitor acts when the whole machine is nearly full, and then ends whichever task it
likes; inside many containers it cannot see the limit at all. This one knows the worker's share.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import psutil
import ray
from ray.util.queue import Queue

from gencls_core.errors import ResourceError
from gencls_core.events import MemoryExceeded

__all__ = ["EXCEEDED_EXIT", "bound_memory", "exceeded_error"]

LOOK_SECONDS = 0.2
EXCEEDED_EXIT = 77


@contextlib.contextmanager
def bound_memory(limit_bytes: int, channel: Queue, attempt: str) -> Iterator[None]:
    """End this process when its resident memory passes the limit within a block, after saying so.

    Ray gives the process of one task to the next: a bound must end with what it was meant for.

    Args:
        limit_bytes: resident memory of the process, in bytes.
        channel: where the message goes; the driver then knows why the worker died.
        attempt: what the worker is at.
    """

    stop = threading.Event()

    def watch() -> None:
        process = psutil.Process()
        while not stop.wait(LOOK_SECONDS):
            resident = process.memory_info().rss
            if resident > limit_bytes:
                message = MemoryExceeded(attempt, resident, limit_bytes)
                with contextlib.suppress(Exception):
                    ray.get(channel.actor.put_nowait.remote(message), timeout=5)
                os._exit(EXCEEDED_EXIT)

    thread = threading.Thread(target=watch, daemon=True, name="gencls-memory")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def exceeded_error(what: str, event: MemoryExceeded) -> ResourceError:
    """Say what outgrew which bound, and what to do."""
    return ResourceError.of(
        f"{what}: the worker outgrew its share of main memory and was ended",
        found=f"{event.resident_bytes / 1e9:.1f} GB",
        expected=f"at most {event.limit_bytes / 1e9:.1f} GB",
        remedy="fewer at once (--concurrent-trainings 1, --actors 1), a smaller --batch-size or "
        "--tokens-per-batch, --max-length, --lora-rank 8; or a larger --memory-gb where there is "
        "more",
    )
