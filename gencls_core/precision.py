"""Which arithmetic a device really does, and what is said where it differs from what was asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

__all__ = ["Precision", "cpu_multiplies_bf16", "resolve_precision", "scoring_dtype"]

Precision = Literal["fp32", "bf16", "fp16"]


def resolve_precision(
    asked: str, device: str, *, bf16: bool | None = None
) -> tuple[Precision, str | None]:
    """Give the precision to use on `device` (`cpu` or `cuda`), and a note where it is another.

    `auto` is fp32 on a CPU (bf16 moves a text's log-likelihood by some nats), and on a GPU bf16
    where its hardware has it (compute capability 8.0 and later), else fp16. A CPU that is asked
    for bf16 computes in it, with or without products for it; the note says what the latter costs.

    Args:
        asked: `auto`, `fp32`, `bf16` or `fp16`.
        device: `cpu` or `cuda`.
        bf16: whether the device multiplies bf16; None where that is not known.
    """
    if asked == "auto":
        if device == "cpu":
            return "fp32", None
        if bf16 is not None:
            return ("bf16" if bf16 else "fp16"), None
        import torch

        capable = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
        return ("bf16" if capable or not torch.cuda.is_available() else "fp16"), None
    if asked == "fp16" and device == "cpu":
        return "fp32", "fp16 needs a GPU; this run has none and uses fp32 instead"
    if asked == "bf16" and device == "cpu" and bf16 is False:
        return "bf16", (
            "this CPU has no products in bf16: --precision bf16 saves memory here, but takes "
            "longer than --precision fp32, without AVX-512 up to ten times as long"
        )
    if asked in ("fp32", "bf16", "fp16"):
        return asked, None  # type: ignore[return-value]
    raise ValueError(f"unknown precision {asked!r}")


def cpu_multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Say whether this machine's CPU has products in bf16, which are about twice as fast.

    On one without, torch computes bf16 number by number. Linux on x86-64 and ARM;
    elsewhere it says no.
    """
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return False
    words = set(text.split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def scoring_dtype(precision: Precision) -> torch.dtype:
    """Give the dtype in which weights are held while scoring; the softmax is float32 always."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
