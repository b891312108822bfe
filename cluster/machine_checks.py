"""What of this machine gencls plans with, and whether a container allows less than it shows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cluster.capacity import GB, local_budget
from cluster.memory import PROCESS_BYTES
from gencls_core.checks import Finding
from gencls_core.config import ComputeConfig
from gencls_core.errors import counted

__all__ = ["cgroup_limits", "check_machine"]


def check_machine() -> Iterator[Finding]:
    """Say what CPUs and memory a run plans with, and what its container grants of them."""
    budget, (cpus, memory_bytes) = local_budget(ComputeConfig(device="cpu")), cgroup_limits()
    yield _cpus(budget.cpus, cpus)
    yield _memory(budget.memory_bytes, memory_bytes)


def _cpus(planned: int, allowed: float | None) -> Finding:
    found = f"{_cpu_model()}; {counted(planned, 'core')} to plan with"
    if (present := os.cpu_count() or planned) > planned:
        found += f" of {present}, as this process may use"
    if allowed is None or allowed >= planned:
        return Finding("cpu", "ok", found)
    return Finding(
        "cpu",
        "warning",
        f"{found}; its container is granted the time of {allowed:g}",
        f"give runs --num-cpus {max(1, int(allowed))}",
    )


def _memory(planned: int, allowed: int | None) -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    found = (
        f"{memory.available / GB:.1f} of {memory.total / GB:.1f} GB free; "
        f"{planned / GB:.1f} GB to plan with, beside Ray"
    )
    if allowed is not None and allowed < min(memory.available, memory.total):
        return Finding(
            "memory",
            "warning",
            f"{found}; its container may have no more than {allowed / GB:.1f} GB",
            f"give runs --memory-gb {allowed / GB:.1f}",
        )
    if planned < 2 * PROCESS_BYTES:
        return Finding(
            "memory",
            "warning",
            f"{found}, too little for a worker with a model",
            "free some memory, or join a cluster: --address HEAD:6379",
        )
    return Finding("memory", "ok", found)


def _cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    import platform

    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        text = ""
    names = [line.partition(":")[2] for line in text.splitlines() if line.startswith("model name")]
    return names[0].strip() if names else platform.processor() or platform.machine()


def cgroup_limits(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> tuple[float | None, int | None]:
    """Give how many CPUs' time and how many bytes the cgroups of this process are granted.

    The least of a group and all above it counts; None where none of them has a limit, as outside
    containers. Neither affinity nor the memory of the machine shows these limits.

    Args:
        root: where cgroups are mounted, of version 1 or 2.
        own: the groups of the process.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None, None
    cpus: list[float] = []
    sizes: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        kind = {"memory", "cpu"} & set(controllers.split(","))
        if controllers and not kind:
            continue
        mount = root / kind.pop() if controllers else root
        group = mount / path.lstrip("/")
        for folder in (group, *(above for above in group.parents if above.is_relative_to(mount))):
            quota = _words(folder / "cpu.max") or [
                *_words(folder / "cpu.cfs_quota_us"),
                *_words(folder / "cpu.cfs_period_us"),
            ]
            if len(quota) == 2 and quota[0].isdigit():
                cpus.append(int(quota[0]) / int(quota[1]))
            size = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
            if size and size[0].isdigit():
                sizes.append(int(size[0]))
    return min(cpus, default=None), min(sizes, default=None)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except OSError:
        return []
