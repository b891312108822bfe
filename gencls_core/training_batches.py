"""Which texts make a batch, in an order that depends on seed and epoch alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import DataLoader, Dataset

from gencls_core.config import TrainingConfig

__all__ = ["Batches", "Loader", "TextNumbers"]


class TextNumbers(Dataset[int]):
    """Numbers of texts: the trainer itself holds the tokens."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> int:
        return number


class Batches:
    """Numbers of texts, batch by batch, in an order that depends on seed and epoch alone."""

    def __init__(self, lengths: list[int], config: TrainingConfig) -> None:
        self._lengths = lengths
        self._config = config
        self.epoch = 0
        self._by_tokens = None if config.batch_tokens is None else self._group()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; Trainer calls it through the sampler that skips what a
        resumed epoch has done."""
        self.epoch = epoch

    def _generator(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self._config.seed, epoch])

    def _group(self) -> list[list[int]]:
        """Group texts by the token budget once, so that every epoch has as many steps."""
        budget = self._config.batch_tokens or 0
        groups: list[list[int]] = []
        tokens = budget
        for number in self._generator(0).permutation(len(self._lengths)).tolist():
            if tokens + self._lengths[number] > budget:
                groups.append([])
                tokens = 0
            groups[-1].append(number)
            tokens += self._lengths[number]
        return groups

    def __len__(self) -> int:
        if self._by_tokens is not None:
            return len(self._by_tokens)
        return math.ceil(len(self._lengths) / self._config.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = self._generator(self.epoch + 1)
        if self._by_tokens is not None:
            for group in generator.permutation(len(self._by_tokens)).tolist():
                yield self._by_tokens[group]
            return
        order = generator.permutation(len(self._lengths)).tolist()
        size = self._config.batch_size
        for start in range(0, len(order), size):
            yield order[start : start + size]


class Loader(DataLoader[int]):
    """A loader that Trainer tells the epoch, so that a resumed epoch has the same order."""

    def set_epoch(self, epoch: int) -> None:
        set_epoch = getattr(self.batch_sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
