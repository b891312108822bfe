"""A plausible run directory for the report's tests, made without training anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gencls_core.class_models import ClassModel, EpochRecord, TrainingRecord
from gencls_core.config import RunConfig
from gencls_core.datasets.dataset import DATASET_FORMAT, EXAMPLE_SCHEMA
from gencls_core.run import RunDirectory
from gencls_core.scores import SCORE_SCHEMA, ScoreStore, ShardKey
from gencls_core.storage import digest_of, write_json

CLASSES = ("Sci/Tech", "01", "a&b <x>")
HOSTILE_TEXT = '<script>alert("x")</script> & <img src=http://evil.example/a.png> ' + "word " * 120

_WORDS = np.array(
    ["market", "report", "said", "Tuesday", "research", "growth", "prices", "players", "match"]
)


def make_run(
    path: Path,
    *,
    classes: tuple[str, ...] = CLASSES,
    test_rows: int = 240,
    validation_rows: int = 90,
    unlabelled: int = 0,
    baseline: bool = True,
    seed: int = 0,
) -> RunDirectory:
    """Write run.json, dataset, class-model records and scores of a finished run."""
    random = np.random.default_rng(seed)
    run = RunDirectory(path)
    splits = {
        "train": _split(random, classes, "train", 60, 0),
        "validation": _split(random, classes, "validation", validation_rows, 0),
        "test": _split(random, classes, "test", test_rows, unlabelled),
    }
    _write_dataset(run, classes, splits)
    write_scores(random, run.scores, classes, splits["test"], system="class-lm")
    if validation_rows:
        store = run.validation_scores
        write_scores(random, store, classes, splits["validation"], system="class-lm")
    if baseline:
        write_scores(random, run.scores, classes, splits["test"], system="tfidf")
    for number, name in enumerate(classes):
        _write_model(run, name, number)
    run.write_manifest(
        {
            "config": RunConfig(output_dir=path).model_dump(mode="json"),
            "classes": list(classes),
            "model": {
                "name": "scratch:tiny",
                "architecture": "GPT2LMHeadModel",
                "parameters": 1_234_567,
                "kind": "scratch",
            },
            "environment": {"python": "3.11", "versions": {"torch": "2.13.0"}, "git": None},
            "started": "2026-01-01T00:00:00+00:00",
            "seconds": 754.3,
            "notes": ["bf16 was asked for; the CPU ran fp32."],
        }
    )
    return run


def _split(
    random: np.random.Generator, classes: tuple[str, ...], name: str, rows: int, unlabelled: int
) -> pa.Table:
    labels: list[str | None] = [classes[i] for i in random.integers(0, len(classes), rows)]
    for row in range(unlabelled):
        labels[row] = None
    texts = [" ".join(random.choice(_WORDS, random.integers(8, 160))) for _ in range(rows)]
    if name == "test":
        texts = [f"{HOSTILE_TEXT}{row} {text}" for row, text in enumerate(texts)]
    ids = [f"{name}-{row}" for row in range(rows)]
    return pa.table({"example_id": ids, "text": texts, "label": labels}, schema=EXAMPLE_SCHEMA)


def _write_dataset(
    run: RunDirectory, classes: tuple[str, ...], splits: dict[str, pa.Table]
) -> None:
    run.dataset_path.mkdir(parents=True)
    infos = {}
    for name, table in splits.items():
        pq.write_table(table, run.dataset_path / f"{name}.parquet")
        labels = table.column("label").to_pylist()
        infos[name] = {
            "rows": table.num_rows,
            "fingerprint": digest_of(table.to_pylist()),
            "class_counts": {label: labels.count(label) for label in classes},
            "class_fingerprints": {},
            "longest_text_bytes": 1000,
        }
    write_json(
        run.dataset_path / "dataset.json",
        {
            "format": DATASET_FORMAT,
            "name": "news <demo>",
            "classes": list(classes),
            "splits": infos,
            "source": {"description": "made on the spot", "digest": "0" * 64},
            "prior_counts": infos["train"]["class_counts"],
            "warnings": ["3 train texts stand in the test split too."],
        },
    )


def write_scores(
    random: np.random.Generator,
    store: ScoreStore,
    classes: tuple[str, ...],
    split: pa.Table,
    *,
    system: str,
    shards: int = 2,
) -> None:
    """Commit scores in which the true class is usually, not always, ahead."""
    likelihood = system == "class-lm"
    rows = split.num_rows
    labels = split.column("label").to_pylist()
    tokens = random.integers(8, 200, rows)
    base = -3.2 * tokens if likelihood else np.full(rows, -1.5)
    size = -(-rows // shards)
    for number, name in enumerate(classes):
        own = np.array([label == name for label in labels])
        gain = 9.0 * own + 4.0 * number / len(classes) if likelihood else 1.2 * own
        scores = base + gain + random.normal(0, 5.0 if likelihood else 0.6, rows)
        for index in range(shards):
            part = slice(index * size, min(rows, (index + 1) * size))
            count = len(labels[part])
            store.commit(
                ShardKey(system, name, index, shards),
                score_table(
                    split.column("example_id").to_pylist()[part],
                    labels[part],
                    scores[part],
                    quantity="log_likelihood" if likelihood else "log_posterior",
                    num_tokens=tokens[part],
                    truncated=[row % 50 == 0 for row in range(count)],
                    num_windows=[2 if row % 40 == 0 else 1 for row in range(count)],
                    loss_score=scores[part] + 1e-4 if likelihood else None,
                ),
                start=part.start,
                digest="d" * 64,
                seconds=12.5,
                peak_memory_bytes=1_300_000_000,
            )


def score_table(
    ids: list[str], labels: list[str | None], scores: object, **columns: object
) -> pa.Table:
    """Give score rows; columns that are left out get plain values."""
    rows = len(ids)
    defaults: dict[str, object] = {
        "quantity": "log_likelihood",
        "num_tokens": [10] * rows,
        "truncated": [False] * rows,
        "num_windows": [1] * rows,
        "loss_score": None,
    }
    values = {**defaults, **columns, "example_id": ids, "label": labels, "score": scores}
    if isinstance(values["quantity"], str):
        values["quantity"] = [values["quantity"]] * rows
    arrays = []
    for field in SCORE_SCHEMA:
        value = values.get(field.name)
        arrays.append(pa.nulls(rows, field.type) if value is None else pa.array(value, field.type))
    return pa.table(arrays, schema=SCORE_SCHEMA)


def _write_model(run: RunDirectory, name: str, number: int) -> None:
    history = tuple(
        EpochRecord(
            epoch=float(epoch),
            step=epoch * 40,
            train_loss=4.2 - 0.5 * epoch + 0.1 * number,
            validation_nll=4.1 - 0.4 * epoch + 0.09 * epoch**2 + 0.1 * number,
            learning_rate=5e-5 / epoch,
        )
        for epoch in range(1, 5)
    )
    best = min(history, key=lambda record: record.validation_nll or 0.0)
    model = ClassModel(
        path=run.model_path(name),
        class_name=name,
        class_id=number,
        digest="a" * 64,
        base="scratch:tiny",
        base_digest="b" * 64,
        tokenizer_digest="c" * 64,
        kind="full",
        files={},
        sizes={},
        training=TrainingRecord(
            texts=320 + number,
            tokens=48_000,
            steps=160,
            epochs=4.0,
            best_epoch=best.epoch,
            train_loss=history[-1].train_loss,
            validation_nll=best.validation_nll,
            validation_perplexity=float(np.exp(best.validation_nll)),
            seconds=95.4 + number,
            tokens_per_second=503.2,
            peak_memory_bytes=2_400_000_000,
            peak_gpu_memory_bytes=0,
            device="cpu",
            precision="fp32",
            threads=2,
            history=history,
        ),
    )
    write_json(model.path / "committed.json", model.to_json())
