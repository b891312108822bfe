"""What a process used: peak memory, in bytes."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

__all__ = ["peak_memory_bytes", "reset_peak_memory"]


def reset_peak_memory() -> None:
    """Start a new peak. Linux only; elsewhere the peak stays that of the whole process.

    A Ray worker runs several tasks one after the other; each should report its own peak.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_bytes() -> int:
    """Give the largest resident memory since the last reset, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
