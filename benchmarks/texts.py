"""Texts of AG News and IMDB for the cases: as they are, long ones included."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypeVar

from benchmarks.bars import Options

__all__ = [
    "DATASETS",
    "DATA_VARIABLE",
    "MissingDataError",
    "data_folder",
    "sample",
    "test_texts",
    "train_texts",
]

DATA_VARIABLE = "GENCLS_BENCH_DATA"
DATASETS = ("agnews", "imdb")

T = TypeVar("T")


class MissingDataError(RuntimeError):
    """A data set is not there; the message says how to prepare it."""


def data_folder(options: Options, dataset: str) -> Path:
    """Give the folder of one of DATASETS in the original per-class layout.

    Raises:
        MissingDataError: when it is not there.
    """
    named = options.data or os.environ.get(DATA_VARIABLE)
    if named is not None and (Path(named) / f"{dataset}-classifier" / "test.json").is_file():
        return Path(named) / f"{dataset}-classifier"
    hub = {"agnews": "ag_news", "imdb": "imdb"}[dataset]
    where = "no --data FOLDER was given" if named is None else f"{named} has none"
    raise MissingDataError(
        f"the texts of {dataset} are missing: {where}\n"
        f"  expected: FOLDER/{dataset}-classifier/test.json, FOLDER given by --data or "
        f"{DATA_VARIABLE}\n"
        f"  try: gencls prepare {hub} --layout per-class-json --output FOLDER/{dataset}-classifier"
    )


def test_texts(options: Options, dataset: str) -> list[str]:
    """Give the texts of the test split."""
    return _texts(data_folder(options, dataset) / "test.json")


def train_texts(options: Options, dataset: str, class_number: int) -> list[str]:
    """Give the train texts of one class."""
    return _texts(data_folder(options, dataset) / f"train_class_{class_number}.json")


def _texts(path: Path) -> list[str]:
    texts: list[str] = json.loads(path.read_text(encoding="utf-8"))["texts"]
    return texts


def sample(texts: list[str], model: Path, tokens: int, block: int = 8) -> list[str]:
    """Give part of the texts, of about `tokens` tokens, with the lengths that the whole set has.

    Blocks of neighbours in the order of length are taken at even distances: so a batch of `block`
    texts is padded as little as it would be in the whole set sorted by length. Texts longer than
    the model's context have their share of the tokens, and at least one is taken.

    Args:
        texts: all of them.
        model: folder with `tokenizer.json` and `config.json`.
        tokens: wanted in all.
        block: texts that stay neighbours.
    """
    from tokenizers import Tokenizer
    from transformers import AutoConfig

    from gencls_core.models import context_of

    encoder = Tokenizer.from_file(str(model / "tokenizer.json"))
    lengths = [len(e.ids) for e in encoder.encode_batch(texts, add_special_tokens=False)]
    context = context_of(AutoConfig.from_pretrained(model))
    part = tokens / sum(lengths)
    order = sorted(range(len(texts)), key=lambda i: lengths[i])
    short = [i for i in order if lengths[i] <= context]
    long = order[len(short) :]
    blocks = [short[start : start + block] for start in range(0, len(short), block)]
    chosen = [i for block in _evenly(blocks, part) for i in block] + _evenly(long, part)
    return [texts[i] for i in chosen]


def _evenly(items: list[T], part: float) -> list[T]:
    """Take a part of the items, at even distances; at least one where there are any."""
    wanted = min(len(items), max(1, round(len(items) * part)))
    return [items[int((number + 0.5) * len(items) / wanted)] for number in range(wanted)]
