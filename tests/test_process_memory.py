"""A process that scores batches of ever new shapes keeps its size."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch

import gencls_core.training
from benchmarks.memory_bars import word_model
from cluster.training import _train_bounded
from gencls_core.datasets.dataset import Dataset
from gencls_core.errors import TrainingError
from gencls_core.process_memory import products_of_a_layer
from gencls_core.products import has_onednn

GROWTH = """
import sys

from gencls_core.config import ModelConfig
from gencls_core.loaded_models import ready_to_score
from gencls_core.measure import peak_memory_bytes
from gencls_core.model_source import resolve_model
from gencls_core.models import load_causal_lm
from gencls_core.scoring import score_texts
from gencls_core.tokenization import SequencePolicy, TokenizedText

lm = load_causal_lm(resolve_model(ModelConfig(model=sys.argv[1])))
ready_to_score(lm.model, "cpu")
policy = SequencePolicy(bos_id=0, eos_id=0, score_eos=True, window=256)

def score(lengths):
    for length in lengths:
        texts = [TokenizedText.of(list(range(1, length)), policy) for _ in range(3)]
        score_texts(lm, texts, window=256, tokens_per_batch=1024)

score([254, *range(5, 30)])
before = peak_memory_bytes()
score(range(30, 250))
print((peak_memory_bytes() - before) / 1e6)
"""
HANDED_BACK = """
import psutil
import torch

from gencls_core.process_memory import MOST_PRODUCTS, hand_back_memory, settle_memory


class Ring:
    def __init__(self):
        # As large as layers are; the last one keeps the heap from shrinking by itself.
        self.blocks = [torch.ones(4 * 2**20 // 4) for _ in range(100)]
        self.me = self


settle_memory(MOST_PRODUCTS)
Ring()
kept = torch.ones(4)
before = psutil.Process().memory_info().rss
hand_back_memory()
print((before - psutil.Process().memory_info().rss) / 1e6)
"""
CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def growth_in_mb(model, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in CACHES}
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(model)],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.skipif(not has_onednn(torch.float32), reason="no oneDNN here, so no cache of it")
def test_memory_does_not_grow_with_the_shapes_of_batches(tmp_path):
    model = word_model(tmp_path / "model", 300, width=32, layers=1, heads=2)
    unbounded = growth_in_mb(model, **dict.fromkeys(CACHES, "1024"))
    bounded = growth_in_mb(model)
    assert unbounded > 100  # or this would show nothing
    assert bounded < 0.4 * unbounded


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's heap")
def test_a_worker_that_waits_has_handed_its_memory_back():
    done = subprocess.run(
        [sys.executable, "-c", HANDED_BACK], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 350


def test_a_training_that_failed_holds_nothing(monkeypatch, tmp_path):
    """Its error is on its way to the driver while the worker waits for the next class."""
    held = []

    def fails(task, on_event):
        trainer = torch.nn.Linear(4, 4)
        trainer.me = [trainer]
        held.append(weakref.ref(trainer))
        raise TrainingError("the loss is no number")

    monkeypatch.setattr(gencls_core.training, "train_class", fails)
    monkeypatch.setattr(Dataset, "open", lambda path: path)
    task = SimpleNamespace(device="cpu", compiled=False, with_texts=lambda dataset: task)
    with pytest.raises(TrainingError) as error:
        _train_bounded(task, tmp_path, queue=None, plan=None)
    assert held[0]() is None
    assert "no number" in str(error.value)


@pytest.mark.parametrize(("context", "products"), [(1024, 28), (2**17, 128), (None, 128)])
def test_every_context_has_a_bound(context, products):
    assert products_of_a_layer(context) == products
