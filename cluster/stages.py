"""The stages of a run, each a stream of events: base, train, score, baseline, report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from cluster.connection import ray_session
from cluster.preparation import SYSTEM, Preparation, shard_work
from gencls_core.class_models import ClassModel
from gencls_core.config import RunConfig
from gencls_core.datasets import Dataset
from gencls_core.datasets.dataset import SplitName
from gencls_core.events import ClassReused, Event, StageFinished, StageStarted
from gencls_core.model_source import ResolvedModel
from gencls_core.run import RunDirectory

__all__ = [
    "LazyRay",
    "baseline_stage",
    "build_base_stage",
    "report_stage",
    "score_stage",
    "train_stage",
]


class LazyRay:
    """Starts Ray when it is first needed, and ends it with the block."""

    def __init__(self, stack: ExitStack, preparation: Preparation) -> None:
        self._stack = stack
        self._preparation = preparation
        self._started = False

    def need(self) -> None:
        """Start Ray unless it runs."""
        if not self._started:
            address = self._preparation.config.compute.address
            self._stack.enter_context(ray_session(self._preparation.budget, address))
            self._started = True


def build_base_stage(preparation: Preparation, ray: LazyRay) -> Iterator[Event]:
    """Make a base model from scratch where the run wants one that does not exist yet."""
    if not preparation.must_build_base:
        return
    import ray as ray_module

    from cluster.channel import failure_of

    began = time.perf_counter()
    yield StageStarted("base", f"making {preparation.base.name}: tokenizer and start weights")
    ray.need()
    build = ray_module.remote(_build_scratch).options(num_cpus=1)
    try:
        ray_module.get(
            build.remote(
                preparation.base.name,
                preparation.dataset.path,
                preparation.config.training.seed,
                preparation.base.path,
            )
        )
    except Exception as error:
        raise failure_of(error, "making the base model") from error
    yield StageFinished("base", f"{preparation.base.name} made", time.perf_counter() - began)


def _build_scratch(name: str, dataset: Path, seed: int, destination: Path) -> None:
    """Run in a Ray worker: the driver needs no torch for it."""
    from gencls_core.scratch import build_scratch_model

    texts = Dataset.open(dataset)
    build_scratch_model(
        name,
        (
            text
            for batch in texts.iter_batches("train", ["text"])
            for text in batch.column("text").to_pylist()
        ),
        seed,
        destination,
    )


def train_stage(preparation: Preparation, ray: LazyRay) -> Iterator[Event]:
    """Train the class models that are not committed."""
    began = time.perf_counter()
    tasks = preparation.training_tasks()
    wanted = preparation.wanted_classes()
    todo = {task.class_name for task in tasks}
    reused = [name for _, name in wanted if name not in todo]
    for name in reused:
        yield ClassReused(name, preparation.digest_of_class(name))
    if not tasks:
        yield StageStarted(
            "train",
            f"nothing to train: {_count(len(wanted), 'class model')} committed",
            len(wanted),
            len(reused),
        )
        return
    plan = preparation.plan
    for task in tasks:
        # Scores of the model that is about to be replaced, and what was made of them, must not
        # outlive it.
        preparation.run.drop_report()
        for store in (preparation.run.scores, preparation.run.validation_scores):
            store.drop(SYSTEM, task.class_name)
    yield StageStarted(
        "train",
        f"training {_count(len(tasks), 'class model')} of {len(wanted)}, "
        f"{min(plan.concurrent_trainings, len(tasks))} at once",
        len(wanted),
        len(reused),
    )
    ray.need()
    from cluster.training import train_classes

    built = ResolvedModel.of_folder(preparation.base.name, preparation.base.path)
    base = replace(built, digest=preparation.base.digest)
    yield from train_classes(
        [replace(task, base=base) for task in tasks], preparation.dataset.path, plan
    )
    for leftover in preparation.run.models_path.glob(".training-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    yield StageFinished(
        "train", f"{_count(len(tasks), 'class model')} trained", time.perf_counter() - began
    )


def score_stage(
    preparation: Preparation,
    ray: LazyRay,
    models: tuple[ClassModel, ...],
    base: Path,
    dataset: Dataset,
    split: SplitName,
) -> Iterator[Event]:
    """Score the shards of one split that are not committed, and drop those of other settings."""
    began = time.perf_counter()
    run = preparation.run
    work, wanted, committed = shard_work(
        config=preparation.config,
        precision=preparation.precision,
        models=models,
        dataset=dataset,
        split=split,
        run=run,
    )
    if run.scores_of(split).retire(SYSTEM, wanted) or work:
        run.drop_report()
    rows = dataset.split(split).rows * len(models)
    missing = sum((shard.stop - shard.start) * len(shard.keys) for shard in work)
    if not work:
        yield StageStarted(
            f"score {split}",
            f"nothing to score: {_count(committed, 'shard')} of {split} texts committed",
            rows,
            rows,
        )
        return
    again = f" ({_count(committed, 'shard')} committed already)" if committed else ""
    todo = sum(len(shard.keys) for shard in work)
    yield StageStarted(
        f"score {split}",
        f"scoring {dataset.split(split).rows:,} {split} texts under {len(models)} class models: "
        f"{_count(todo, 'shard')}{again}",
        rows,
        rows - missing,
    )
    ray.need()
    from cluster.scoring import ScoringJob, score_shards

    job = ScoringJob(
        models=models,
        base=base,
        sequence=preparation.config.sequence,
        scoring=preparation.config.scoring,
        precision=preparation.precision,
        device=preparation.plan.device,
    )
    yield from score_shards(job, work, preparation.plan)
    yield StageFinished(
        f"score {split}", f"{_count(todo, 'shard')} scored", time.perf_counter() - began
    )


def baseline_stage(preparation: Preparation) -> Iterator[Event]:
    """Score the baseline where that is not committed."""
    from gencls_core.systems.baseline import commit_tfidf

    began = time.perf_counter()
    if commit_tfidf(
        preparation.dataset, preparation.run.scores, preparation.config.data.split_seed
    ):
        yield StageFinished(
            "baseline", "TF-IDF with logistic regression scored", time.perf_counter() - began
        )


def report_stage(
    config: RunConfig, run: RunDirectory, models_of: RunDirectory | None
) -> Iterator[Event]:
    """Write the report; the event's message is its folder."""
    from gencls_core.report import build_report

    began = time.perf_counter()
    build_report(run, prior=config.posterior.prior, models_of=models_of)
    yield StageFinished("report", str(run.report_path), time.perf_counter() - began)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
