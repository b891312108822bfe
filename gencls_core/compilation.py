"""torch.compile of a model's layers, for GPUs: what lies between products becomes few kernels.

Each layer is compiled by itself, with lengths left open: one compilation serves all layers, all
lengths and all class models of a process. On a CPU nothing is compiled; there the layers of
`gencls_core.fused_layers` gain as much without a compiler (docs/performance.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["compile_layers", "why_not_compiled"]


def why_not_compiled(device: str) -> str | None:
    """Say why this machine cannot compile for a device, found by compiling a line; None if it can.

    Without a C compiler or Triton torch finds out at the first call, amid the work.
    """
    ones = torch.ones(8, device=device)
    try:
        with torch._dynamo.config.patch(suppress_errors=False):
            found = torch.compile(_trial)(ones)
    except Exception as error:  # a compiler can fail in any way, and no way may end the run
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None if torch.equal(found, ones + 1) else "a compiled function gave another result"


def _trial(x: Tensor) -> Tensor:
    return x + 1


def compile_layers(model: nn.Module, *, backend: str = "inductor") -> int:
    """Compile the layers of a model where they are; give their number.

    A layer that cannot be compiled runs as it is, in this process from then on. Weights keep their
    names. Several adapters on one model are left alone: switching between them would compile anew.
    """
    if len(getattr(model, "peft_config", ())) > 1:
        return 0
    dynamo: Any = torch._dynamo.config
    dynamo.suppress_errors = True
    layers = [
        layer
        for stack in model.modules()
        if isinstance(stack, nn.ModuleList) and len({type(layer) for layer in stack}) == 1
        for layer in stack
    ]
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)
    return len(layers)
