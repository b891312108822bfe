"""The mean of a training's weights at the ends of the second half of its epochs.

Single epochs over few texts go up and down; the mean of the later ones lies in the middle of where
they wander (Polyak & Juditsky 1992; Izmailov et al. 2018, Averaging Weights Leads to Wider Optima,
https://arxiv.org/abs/1803.05407). It costs one more copy of what is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

__all__ = ["WeightAverage"]

_FILE = "average.safetensors"


class WeightAverage:
    """A running mean of a model's trained weights; empty until something is added."""

    def __init__(self, model: nn.Module) -> None:
        self._weights = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self._mean: dict[str, Tensor] = {}
        self.count = 0
        """Of the weights in it."""

    @torch.no_grad()
    def add(self) -> None:
        """Take in the weights as they are."""
        self.count += 1
        for name, weight in self._weights.items():
            if self.count == 1:
                self._mean[name] = weight.detach().clone()
            else:
                self._mean[name].lerp_(weight, 1.0 / self.count)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the mean meanwhile."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchange the mean and the model's weights."""
        for name, weight in self._weights.items():
            weight.data, self._mean[name] = self._mean[name], weight.data

    def save(self, folder: Path) -> None:
        """Write the mean, if there is one."""
        if self.count:
            tensors = {name: mean.contiguous() for name, mean in self._mean.items()}
            save_file(tensors, folder / _FILE, metadata={"count": str(self.count)})

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; without a file there is no mean."""
        self._mean, self.count = {}, 0
        if not (folder / _FILE).exists():
            return
        with safe_open(folder / _FILE, framework="pt") as file:
            self.count = int(file.metadata()["count"])
            for name, weight in self._weights.items():
                # A copy: what is read lies in the file, which goes.
                self._mean[name] = file.get_tensor(name).to(weight.device, copy=True)
