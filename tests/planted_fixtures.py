"""Planted problems as source files, and every system's way from them to committed score rows.

What `cluster` does on Ray is done here in one process: the same tasks, jobs and commits.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from dataset_files import Rows, write_csv, write_jsonl
from numpy.typing import NDArray

from gencls_core import scratch
from gencls_core.config import DataConfig, RunConfig, SystemsConfig, TrainingConfig
from gencls_core.datasets.ingest import ingest
from gencls_core.model_source import ResolvedModel
from gencls_core.report.inference import Inference, infer
from gencls_core.report.predictions import prediction_tables
from gencls_core.run import RunDirectory
from gencls_core.scores import Quantity, ShardKey
from gencls_core.scoring_job import ModelSystem, ScoringJob
from gencls_core.systems.commit import score_rows
from gencls_core.systems.registry import MODEL_SYSTEMS, light_system
from gencls_core.training import train_class
from gencls_core.training_task import TrainingTask

CLASSES = ("Sci/Tech", "01")
"""Of every problem."""

FILLERS = ["the", "a", "of", "in", "it", "that", "was", "one"]
TOPICS = {
    "Sci/Tech": ["chip", "laser", "robot", "code", "data", "orbit", "lens", "wire", "cell", "bit"],
    "01": ["goal", "team", "coach", "race", "match", "ball", "cup", "club", "kick", "net"],
}
SMALL_CLASS, SMALL_SHARE = "01", 0.1

# So small that a training takes seconds; with as many tokens as make every word one.
_SIZE: dict[str, Any] = {"layers": 2, "heads": 4, "width": 32, "context": 48, "vocabulary": 512}
_BASES = {
    "causal": scratch.ScratchPreset(**_SIZE),
    "masked": scratch.ScratchPreset(**_SIZE, kind="masked"),
}


def order_rows(count: int, seed: int) -> Rows:
    """Make texts in twos, one of each class, with the same words and the same word pairs.

    Three slots hold `yes` or `no`, both of them somewhere: in the first class every `yes` stands
    before every `no`, in the other behind. All slots are `so … so`, whatever stands around them.
    """
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        between = [draw.choices(FILLERS, k=draw.randint(1, 2)) for _ in range(4)]
        markers = ["yes", *draw.choice([["yes"], ["no"]]), "no"]
        for label, slots in zip(CLASSES, (markers, markers[::-1]), strict=True):
            words = between[0] + [
                word
                for slot, others in zip(slots, between[1:], strict=True)
                for word in ("so", slot, "so", *others)
            ]
            rows.append((" ".join(words), label))
    return rows


def topic_rows(count: int, seed: int) -> Rows:
    """Make texts of each class in which two of twelve words are from the class's own ten."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        for label in CLASSES:
            words = draw.choices(TOPICS[label], k=2) + draw.choices(FILLERS, k=10)
            draw.shuffle(words)
            rows.append((" ".join(words), label))
    return rows


def imbalance_rows(count: int, seed: int) -> Rows:
    """Make texts that say nothing of their class; one in ten is of the small one."""
    draw = random.Random(seed)
    labels = [SMALL_CLASS if number % 10 == 0 else CLASSES[0] for number in range(count)]
    return [(" ".join(draw.choices(FILLERS, k=draw.randint(8, 12))), name) for name in labels]


def write_order(folder: Path) -> DataConfig:
    for number, (split, count) in enumerate({"train": 100, "validation": 20, "test": 60}.items()):
        write_jsonl(folder / f"{split}.jsonl", order_rows(count, number))
    return DataConfig(data_dir=folder, classes=CLASSES)


def write_topic(folder: Path) -> DataConfig:
    for number, (split, count) in enumerate({"train": 120, "test": 100}.items()):
        write_csv(folder / f"{split}.csv", topic_rows(count, number))
    return DataConfig(data_dir=folder, classes=CLASSES, validation_fraction=0.2)


def write_imbalance(folder: Path) -> DataConfig:
    path = write_jsonl(folder / "all.jsonl", imbalance_rows(500, 0))
    return DataConfig(data=str(path), classes=CLASSES, test_fraction=0.4, validation_fraction=0.2)


@dataclass(frozen=True)
class Problem:
    """Source files, and how long models train on them."""

    write: Callable[[Path], DataConfig]
    epochs: int


PROBLEMS = {
    "order": Problem(write_order, epochs=20),
    "topic": Problem(write_topic, epochs=12),
    "imbalance": Problem(write_imbalance, epochs=8),
}


@dataclass(frozen=True)
class Scored:
    """What a system made of a problem's test split."""

    run: RunDirectory
    system: str
    quantity: Quantity
    """As the system declares it."""
    shards: dict[str, list[pa.Table]]
    """The rows of each class as they were handed over to be committed."""

    def infer(self, prior: str = "train") -> Inference:
        return infer(self.run, prior=prior, system=self.system)

    def right(self) -> NDArray[np.bool_]:
        """Say of each test text whether its class was predicted."""
        table = pa.concat_tables(prediction_tables(self.infer()))
        found: NDArray[np.bool_] = pc.equal(table["predicted"], table["label"]).to_numpy()
        return found


class Bench:
    """Runs of the planted problems, in which systems train and score when they are asked for."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self._folder = folder
        self._seed = seed
        self._scored: dict[tuple[str, str], Scored] = {}

    def run(self, problem: str) -> RunDirectory:
        """Give the problem's run, with its dataset ingested from files."""
        folder = self._folder / problem
        run = RunDirectory(folder)
        if not folder.exists():
            files = PROBLEMS[problem].write(self._folder / f"{problem}-files")
            dataset = ingest(files, folder / "dataset")
            config = RunConfig(output_dir=run.path).model_dump(mode="json")
            run.write_manifest({"config": config, "classes": list(dataset.classes)})
        return run

    def scored(self, problem: str, name: str) -> Scored:
        """Give a system's committed scores of a problem's test split."""
        if (problem, name) not in self._scored:
            run = self.run(problem)
            if name in MODEL_SYSTEMS:
                system = MODEL_SYSTEMS[name]
                quantity = system.quantity
                shards = self._score_with_models(run, system, PROBLEMS[problem].epochs)
            else:
                light = light_system(name, self._seed)
                tables = score_rows(light, run.dataset(), "test")
                quantity = light.quantity
                shards = {class_name: [table] for class_name, table in tables.items()}
            _commit(run, name, shards)
            self._scored[problem, name] = Scored(run, name, quantity, shards)
        return self._scored[problem, name]

    def _score_with_models(
        self, run: RunDirectory, system: ModelSystem, epochs: int
    ) -> dict[str, list[pa.Table]]:
        """Train what there is to train; score the test split in two shards."""
        dataset, base = run.dataset(), self._base(run, system.base)
        job = ScoringJob(
            system=system,
            classes=dataset.classes,
            models=tuple(
                train_class(task.with_texts(dataset))
                for task in self._tasks(run, system, base, epochs)
            ),
            base=base,
            sequence=RunConfig().sequence,
            scoring=RunConfig().scoring,
            precision="fp32",
            device="cpu",
            # A masked model reads the prompt again for every token of the text.
            systems=SystemsConfig(prompts=("{class}: ",)),
            seed=self._seed,
        )
        shards: dict[str, list[pa.Table]] = {name: [] for name in dataset.classes}
        models = [(unit, system.load(job, unit)) for unit in job.units]
        half = dataset.split("test").rows // 2
        for examples in (dataset.read("test", 0, half), dataset.read("test", half)):
            for unit, loaded in models:
                encoded = loaded.encode(examples)
                for name in unit:
                    shards[name].append(
                        loaded.score(examples, name, job.sequence, job.scoring, encoded=encoded)
                    )
        return shards

    def _tasks(
        self, run: RunDirectory, system: ModelSystem, base: ResolvedModel, epochs: int
    ) -> list[TrainingTask]:
        if system.objective is None:
            return []
        names = CLASSES if system.model_per_class else ("",)
        return [
            TrainingTask(
                class_name=name,
                class_id=number,
                digest="d" * 64,
                base=base,
                texts=[],
                validation_texts=[],
                destination=run.model_path(name, system.name),
                sequence=RunConfig().sequence,
                training=TrainingConfig(
                    epochs=epochs, batch_size=16, learning_rate=5e-3, patience=0, seed=self._seed
                ),
                lora_rank=None,
                lora_alpha=None,
                precision="fp32",
                device="cpu",
                threads=1,
                tokens_per_pass=2048,
                system=system.name,
                objective=system.objective,
                classes=CLASSES,
                prefixes=tuple(f"{name}: " for name in CLASSES),
            )
            for number, name in enumerate(names)
        ]

    def _base(self, run: RunDirectory, kind: str) -> ResolvedModel:
        """Make the base from scratch, once for all systems that start from it."""
        name, folder = f"scratch:planted-{kind}", run.base_path / kind
        if not folder.exists():
            texts = run.dataset().read("train").column("text").to_pylist()
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(scratch.PRESETS, f"planted-{kind}", _BASES[kind])
                scratch.build_scratch_model(name, texts, self._seed, folder)
        found = ResolvedModel.of_staged(name, folder)
        assert found is not None
        return found


def _commit(run: RunDirectory, system: str, shards: dict[str, list[pa.Table]]) -> None:
    for class_name, tables in shards.items():
        start = 0
        for index, table in enumerate(tables):
            key = ShardKey(system, class_name, index, len(tables))
            run.scores.commit(key, table, start=start, digest="d" * 64)
            start += table.num_rows
