"""A 16-bit copy of a model that is trained in float32: passes go through it, gradients come back.

Under autocast every pass converts all weights, and what lies between the products stays in float32.
A copy in 16 bits is made anew once a step, is half as much to read, and keeps its activations in 16
bits. Optimiser, moments, weights and summed gradients stay in float32, as in mixed precision with
autocast (Micikevicius et al. 2018, "Mixed Precision Training", section 3.1).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["WorkingCopy"]


class WorkingCopy:
    """`model` computes; each of its gradients is added to the original's and dropped."""

    def __init__(self, original: nn.Module, dtype: torch.dtype) -> None:
        self.model = copy.deepcopy(original)
        # Not `.to`: it would take buffers along, and rotary frequencies in 16 bits are others.
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(dtype)
        pairs = zip(original.parameters(), self.model.parameters(), strict=True)
        trained = [(theirs, ours) for theirs, ours in pairs if theirs.requires_grad]
        self._originals: list[Tensor] = [theirs for theirs, _ in trained]
        self._copies: list[Tensor] = [ours for _, ours in trained]
        for theirs, ours in trained:
            ours.register_post_accumulate_grad_hook(_hand_over_to(theirs))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the original's weights."""
        torch._foreach_copy_(self._copies, self._originals)


def _hand_over_to(original: nn.Parameter) -> Callable[[Tensor], None]:
    # Kept from step to step: the system clears new memory page by page, and gradients are as large
    # as the weights.
    held: list[Tensor] = []

    def hand_over(copied: Tensor) -> None:
        gradient, copied.grad = copied.grad, None
        if gradient is None:
            return
        if original.grad is not None:
            original.grad += gradient
            return
        if not held:
            held.append(torch.empty_like(original))
        original.grad = held[0].copy_(gradient)

    return hand_over
