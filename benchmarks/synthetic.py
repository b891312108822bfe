"""A made-up run of any size: short texts, and a stub in the place of the class models.

The stub's score of a text depends on the text's number and the class alone, so any cut into shards,
any number of actors and any order give the same rows, and the whole run can be checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import ndtri

from gencls_core.class_models import ClassModel, EpochRecord, TrainingRecord
from gencls_core.config import DataConfig, RunConfig, ScoringConfig, SequenceConfig
from gencls_core.datasets.dataset import Dataset
from gencls_core.datasets.ingest import ingest
from gencls_core.digests import scoring_digests, shard_ranges
from gencls_core.model_source import ResolvedModel
from gencls_core.run import RunDirectory, environment
from gencls_core.scores import SCORE_SCHEMA, ScoreStore, ShardKey
from gencls_core.scoring_job import ScoringJob
from gencls_core.storage import write_json
from gencls_core.systems.class_lm import ClassLm

__all__ = [
    "CLASSES",
    "StubModels",
    "class_models",
    "commit_scores",
    "make_dataset",
    "run_config",
    "stub_job",
    "write_manifest",
    "write_source",
]

CLASSES = ("lamps", "noise", "roads", "waste")
SYSTEM = "class-lm"
TRAIN_ROWS_PER_CLASS = 100

_SENTENCES = (
    "the lamp by the bakery hums all night and nobody from the office came to look at it "
    "our road has a hole as deep as two boots and the bins were not emptied again this week"
)
_WORDS = np.array(_SENTENCES.split())
_CHUNK_ROWS = 50_000


def write_source(folder: Path, *, test_rows: int, validation_rows: int) -> None:
    """Write train, validation and test as JSONL, as a user would bring them."""
    folder.mkdir(parents=True)
    train_rows = TRAIN_ROWS_PER_CLASS * len(CLASSES)
    rows_of = {"train": train_rows, "validation": validation_rows, "test": test_rows}
    for seed, (split, rows) in enumerate(rows_of.items()):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as stream:
            for line in _lines(split, rows, seed):
                stream.write(line)


def _lines(split: str, rows: int, seed: int) -> Iterator[str]:
    """Give texts of 6 to 14 words; a number makes each of them the only one of its kind."""
    random = np.random.default_rng(seed)
    for start in range(0, rows, _CHUNK_ROWS):
        count = min(_CHUNK_ROWS, rows - start)
        words = random.choice(_WORDS, (count, 14)).tolist()
        lengths = random.integers(6, 15, count).tolist()
        labels = random.integers(0, len(CLASSES), count).tolist()
        for row in range(count):
            text = " ".join([*words[row][: lengths[row]], f"({split} {start + row})"])
            yield json.dumps({"text": text, "label": CLASSES[labels[row]]}) + "\n"


def make_dataset(source: Path, run: RunDirectory) -> Dataset:
    """Prepare the source with the ingest that every run uses."""
    return ingest(DataConfig(data_dir=source), Path(str(run.dataset_path)))


class StubModels:
    """Has the interface of `gencls_core.scoring.ClassModelSet`, and no weights.

    Scores are those of class models that tell the classes apart, but not always: about −3 nats a
    token, 9 more under the true class, and noise of 5 nats.
    """

    def encode(self, examples: pa.Table) -> npt.NDArray[np.int64]:
        """Count the words of each text, which are its tokens; one more for the end of the text."""
        spaces = pc.count_substring(examples.column("text"), " ")
        return np.asarray(spaces.to_numpy(), dtype=np.int64) + 2

    def score(
        self,
        examples: pa.Table,
        class_name: str,
        sequence: SequenceConfig,
        scoring: ScoringConfig,
        *,
        encoded: npt.NDArray[np.int64] | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> pa.Table:
        """Give the rows of `examples` under one class."""
        tokens = self.encode(examples) if encoded is None else encoded
        numbers = pc.replace_substring_regex(examples.column("example_id"), r"^\D*", "")
        rows = numbers.cast(pa.int64()).to_numpy()
        own = pc.equal(examples.column("label"), class_name).fill_null(False).to_numpy()
        number = CLASSES.index(class_name)
        scores = -3.0 * tokens + 9.0 * own + 5.0 * _noise(rows, number) + 0.5 * number
        if on_batch is not None:
            on_batch(int(tokens.sum()))
        values: dict[str, object] = {
            "example_id": examples.column("example_id"),
            "label": examples.column("label"),
            "score": scores,
            "quantity": pa.repeat("log_likelihood", len(rows)),
            "num_tokens": tokens.astype(np.int32),
            "truncated": np.zeros(len(rows), dtype=bool),
            "num_windows": np.ones(len(rows), dtype=np.int32),
        }
        if scoring.likelihood == "loss":
            values["loss_score"] = scores + 1e-4
        columns = [
            pa.nulls(len(rows), field.type)
            if (value := values.get(field.name)) is None
            else pa.chunked_array(value)
            if isinstance(value, pa.ChunkedArray)
            else pa.array(value)
            for field in SCORE_SCHEMA
        ]
        return pa.table(columns, schema=SCORE_SCHEMA)


def _noise(rows: npt.NDArray[np.int64], class_number: int) -> npt.NDArray[np.float64]:
    """Give a standard normal number for each row: splitmix64 of row and class, then Φ⁻¹."""
    state = rows.astype(np.uint64) * np.uint64(len(CLASSES)) + np.uint64(class_number)
    state = (state + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    state ^= state >> np.uint64(31)
    uniform = ((state >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    return np.asarray(ndtri(uniform), dtype=np.float64)


def run_config(run: RunDirectory, *, shard_size: int | None = None) -> RunConfig:
    """Give settings for `run`; no baseline, since it would score every text once more."""
    return RunConfig(
        output_dir=Path(str(run.path)),
        baseline=False,
        scoring=ScoringConfig(shard_size=shard_size),
    )


def class_models(run: RunDirectory) -> tuple[ClassModel, ...]:
    """Write and give commit records of class models that have no weights."""
    epoch = EpochRecord(epoch=1.0, step=13, train_loss=4.0, validation_nll=3.9, learning_rate=0.0)
    models = []
    for number, name in enumerate(CLASSES):
        model = ClassModel(
            path=Path(str(run.model_path(name))),
            class_name=name,
            class_id=number,
            digest=f"{number:064x}",
            base="stub",
            base_digest="0" * 64,
            tokenizer_digest="0" * 64,
            kind="full",
            # As many files as a GPT-2 has: the digest of every shard covers them.
            files={f"file-{k}.json": f"{k + 16 * number:064x}" for k in range(7)},
            sizes={},
            training=TrainingRecord(
                texts=TRAIN_ROWS_PER_CLASS,
                tokens=1200,
                steps=13,
                epochs=1.0,
                best_epoch=1.0,
                train_loss=4.0,
                validation_nll=3.9,
                validation_perplexity=float(np.exp(3.9)),
                seconds=1.0,
                tokens_per_second=1200.0,
                peak_memory_bytes=0,
                peak_gpu_memory_bytes=0,
                device="cpu",
                precision="fp32",
                threads=1,
                history=(epoch,),
            ),
        )
        write_json(model.path / "committed.json", model.to_json())
        models.append(model)
    return tuple(models)


def stub_job(
    models: tuple[ClassModel, ...], config: RunConfig, load: Callable[..., Any] | None = None
) -> ScoringJob:
    """Give a job for stub models."""
    return ScoringJob(
        system=ClassLm(),
        classes=CLASSES,
        models=models,
        base=ResolvedModel("stub", Path("stub"), "0" * 64, 0, {}),
        sequence=config.sequence,
        scoring=config.scoring,
        precision="fp32",
        device="cpu",
        load=load,
    )


def commit_scores(
    run: RunDirectory, config: RunConfig, dataset: Dataset, models: tuple[ClassModel, ...]
) -> int:
    """Score validation and test with the stub, shard by shard as actors do; give the shards."""
    stub, committed = StubModels(), 0
    for split in ("validation", "test"):
        store: ScoreStore = run.scores_of(split)
        ranges = shard_ranges(dataset.split(split).rows, config.scoring.shard_size)
        job = stub_job(models, config)
        digests = {name: scoring_digests(job, name, dataset, split, ranges) for name in CLASSES}
        for index, (start, stop) in enumerate(ranges):
            examples = dataset.read(split, start, stop)
            encoded = stub.encode(examples)
            for name, of_ranges in digests.items():
                table = stub.score(examples, name, config.sequence, config.scoring, encoded=encoded)
                key = ShardKey(SYSTEM, name, index, len(ranges))
                store.commit(key, table, start=start, digest=of_ranges[index], seconds=0.1)
                committed += 1
    return committed


def write_manifest(run: RunDirectory, config: RunConfig) -> None:
    """Write `run.json` as a finished run has it."""
    run.write_manifest(
        {
            "config": config.model_dump(mode="json"),
            "classes": list(CLASSES),
            "model": {"name": "stub", "kind": "stub", "parameters": 0, "architecture": "none"},
            "environment": environment(),
            "seconds": None,
            "notes": [],
        }
    )
