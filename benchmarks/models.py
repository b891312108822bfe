"""Model folders that peers load, and how gencls holds them: as the committed models of classes."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from gencls_core.class_models import ClassModel, TrainingRecord
from gencls_core.model_source import ResolvedModel
from gencls_core.storage import gencls_home, publish_directory

if TYPE_CHECKING:
    from gencls_core.scoring import ClassModelSet

__all__ = [
    "GPT2_RANDOM",
    "class_model_set",
    "examples_of",
    "model_folder",
    "resolved",
    "score_under",
    "tokenizer_digest_of",
]

GPT2_RANDOM = "gpt2-random"
"""GPT-2's architecture of 124 million parameters, drawn at random."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def model_folder(name: str, tokenizer_of: str) -> Path:
    """Give a model's folder; GPT2_RANDOM is made once, with the tokenizer of another model.

    Raises:
        ModelError: when there is no such model.
    """
    from gencls_core.config import ModelConfig
    from gencls_core.model_source import resolve_model

    if name == GPT2_RANDOM:
        return _gpt2_random(resolve_model(ModelConfig(model=tokenizer_of)).local())
    return resolve_model(ModelConfig(model=name)).local()


def resolved(folder: str) -> ResolvedModel:
    """Describe a folder without reading its weights: a digest is a cost of runs, not of scoring."""
    from gencls_core.storage import read_json

    path = Path(folder)
    return ResolvedModel(path.name, path, "0" * 64, 0, read_json(path / "config.json"))


@functools.cache
def class_model_set(
    folder: str, dtype: Any, tokenizer_digest: str, classes: tuple[str, ...]
) -> ClassModelSet:
    """Load a folder once for each class, each time into memory of its own, as an actor does.

    Args:
        folder: the weights of every class.
        dtype: of the weights.
        tokenizer_digest: what a commit record says of the tokenizer: `tokenizer_digest_of`.
        classes: names.
    """
    from gencls_core.scoring import ClassModelSet

    base = resolved(folder)
    models = [
        _class_model(base, name, number, tokenizer_digest) for number, name in enumerate(classes)
    ]
    return ClassModelSet(models, base, dtype=dtype)


def score_under(models: ClassModelSet, examples: pa.Table, classes: Iterable[str]) -> int:
    """Tokenise once, score under each of the classes, as an actor does; give the scored tokens."""
    from gencls_core.config import ScoringConfig, SequenceConfig

    encoded, tokens = models.encode(examples), 0
    for name in classes:
        table = models.score(examples, name, SequenceConfig(), ScoringConfig(), encoded=encoded)
        tokens += sum(table.column("num_tokens").to_pylist())
    return tokens


def _class_model(base: ResolvedModel, name: str, number: int, tokenizer_digest: str) -> ClassModel:
    """Describe a folder as a committed class model of whose training nothing is known."""
    unknown = TrainingRecord(
        texts=0, tokens=0, steps=0, epochs=0.0, best_epoch=0.0, train_loss=0.0,
        validation_nll=None, validation_perplexity=None, seconds=0.0, tokens_per_second=0.0,
        peak_memory_bytes=0, peak_gpu_memory_bytes=0, device="cpu", precision="fp32", threads=1,
        history=(),
    )  # fmt: skip
    return ClassModel(
        path=base.path,
        class_name=name,
        class_id=number,
        digest=f"{number:064x}",
        base=base.name,
        base_digest=base.digest,
        tokenizer_digest=tokenizer_digest,
        kind="full",
        files={},
        sizes={},
        training=unknown,
    )


def tokenizer_digest_of(folder: Path) -> str:
    """Give the digest of a folder's tokenizer; committing computes it, scoring only compares it."""
    from gencls_core.model_loading import load_tokenizer
    from gencls_core.models import tokenizer_digest

    return tokenizer_digest(load_tokenizer(resolved(str(folder))))


def examples_of(texts: list[str]) -> pa.Table:
    """Put texts into a table as a dataset gives them, without labels."""
    from gencls_core.datasets.dataset import EXAMPLE_SCHEMA

    ids = [f"test-{number}" for number in range(len(texts))]
    columns = {"example_id": ids, "text": texts, "label": [None] * len(texts)}
    return pa.table(columns, schema=EXAMPLE_SCHEMA)


def _gpt2_random(tokenizer: Path) -> Path:
    folder = gencls_home() / "bench" / GPT2_RANDOM
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0))
    with publish_directory(folder, "config.json") as new:
        for name in _TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, new / name)
        model.save_pretrained(new)
    return folder
