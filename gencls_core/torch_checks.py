"""Which torch is this, which GPUs does it see, and which arithmetic is fast here?"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from gencls_core.checks import Finding
from gencls_core.errors import counted
from gencls_core.precision import cpu_multiplies_bf16, resolve_precision

__all__ = ["check_torch"]

_DRIVER = Path("/proc/driver/nvidia/gpus")


def check_torch() -> Iterator[Finding]:
    """Load torch and ask it; first what needs no GPU."""
    import torch

    count = torch.cuda.device_count()
    build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
    found = f"{torch.__version__}, {build}, {counted(torch.get_num_threads(), 'thread')}"
    lost = not count and (_DRIVER.is_dir() or shutil.which("nvidia-smi") is not None)
    if lost and torch.version.cuda is None:
        yield Finding(
            "torch",
            "warning",
            f"{found}; this machine has NVIDIA's driver, which that build cannot use",
            f"{sys.executable} -m pip install --force-reinstall torch",
        )
    elif lost:
        yield Finding(
            "torch",
            "warning",
            f"{found}; it sees no GPU, though NVIDIA's driver is here",
            "nvidia-smi; echo $CUDA_VISIBLE_DEVICES; the driver may be too old for that CUDA",
        )
    else:
        yield Finding("torch", "ok", found)
    if count:
        yield from _gpus(count)
        yield Finding(
            "precision", "ok", f"{resolve_precision('auto', 'cuda')[0]}, the default on this GPU"
        )
        yield _compiler()
    else:
        yield Finding("gpu", "ok", "none; models run on the CPU, where nothing is compiled")
        yield _cpu_precision()


def _gpus(count: int) -> Iterator[Finding]:
    import torch

    for number in range(count):
        free, total = torch.cuda.mem_get_info(number)
        found = (
            f"{torch.cuda.get_device_name(number)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        )
        if free < total / 2:
            yield Finding(f"gpu {number}", "warning", f"{found}: others use it", "nvidia-smi")
        else:
            yield Finding(f"gpu {number}", "ok", found)


def _cpu_precision() -> Finding:
    if cpu_multiplies_bf16():
        return Finding(
            "precision",
            "ok",
            "--precision bf16 gains: this CPU multiplies bf16, which is nearly twice as fast as "
            "fp32, the default (docs/performance.md)",
        )
    note = resolve_precision("bf16", "cpu", bf16=False)[1]
    return Finding("precision", "ok", f"fp32, the default, is right: {note}")


def _compiler() -> Finding:
    from gencls_core.compilation import why_not_compiled

    reason = why_not_compiled("cuda")
    if reason is None:
        return Finding("torch.compile", "ok", "compiles for the GPU")
    return Finding(
        "torch.compile",
        "warning",
        f"cannot compile for the GPU, so large runs are slower: {reason}",
        "install a C compiler and triton; --compile off asks for none",
    )
