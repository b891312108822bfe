"""Scoring stays ahead of the formula with all logits at once, as a ratio on this very machine.

lm-evaluation-harness scores that way: padded batches of 16, one log-softmax over the whole
[texts × tokens × vocabulary] tensor. Both run in turn in one process, so what else the machine does
slows both. `python -m benchmarks scoring` measures real models and peers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from benchmarks.memory_bars import word_model
from benchmarks.models import class_model_set, examples_of, tokenizer_digest_of
from gencls_core.config import ScoringConfig, SequenceConfig

AT_LEAST = 1.2
ROUNDS = 5
BATCH = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return word_model(tmp_path_factory.mktemp("model"), 50_000, width=256, layers=4, heads=4)


def padded_batches(model: Any, sequences: list[list[int]]) -> list[float]:
    """Score ids [BOS, text, EOS] in padded batches, longest first."""
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    sums = [0.0] * len(sequences)
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            numbers = order[start : start + BATCH]
            rows = [torch.tensor(sequences[i]) for i in numbers]
            ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
            log_probs_BTV = torch.log_softmax(logits_BTV, dim=-1)
            scores_BT = log_probs_BTV.gather(2, ids_BT[:, 1:, None]).squeeze(2)
            for number, row, scores_T in zip(numbers, rows, scores_BT, strict=True):
                sums[number] = scores_T[: len(row) - 1].sum(dtype=torch.float64).item()
    return sums


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def test_scoring_stays_ahead_of_all_logits_at_once(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    random = np.random.default_rng(0)
    words = [random.integers(0, 4_000, length) for length in random.integers(15, 90, 48)]
    examples = examples_of([" ".join(f"w{n}" for n in text) for text in words])
    models = class_model_set(
        str(folder), torch.float32, tokenizer_digest_of(folder), classes=("one",)
    )
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sequences = [[0, *(int(n) + 1 for n in text), 0] for text in words]

    def ours() -> list[float]:
        table = models.score(examples, "one", SequenceConfig(), ScoringConfig())
        found: list[float] = table.column("score").to_pylist()
        return found

    def all_logits() -> list[float]:
        return padded_batches(plain, sequences)

    assert_allclose(ours(), all_logits(), atol=1e-2, rtol=0)
    ratios = []
    for _ in range(ROUNDS):
        mine = seconds(ours)
        ratios.append(seconds(all_logits) / mine)
    print("all logits at once / ours:", ", ".join(f"{ratio:.2f}" for ratio in ratios))
    assert statistics.median(ratios) >= AT_LEAST, ratios
