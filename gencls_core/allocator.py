"""Memory that a process keeps from step to step instead of giving it back to the system.

glibc unmaps what is freed at the top of its heap, and the next step has the system clear the same
pages again: a tenth of a training step's time. It also gives each thread a heap of its own, so the
backward pass, which has its own thread, would find nothing of what the forward pass freed.
"""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["keep_freed_memory"]

# malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_NEVER = -1


def keep_freed_memory() -> None:
    """Tell the C library to reuse freed memory; does nothing where it is not glibc.

    It holds for the rest of the process, which never has more than its own peak.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
