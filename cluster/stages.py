"""The stages of a run, each a stream of events: base, train, score, baseline, report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cluster.connection import Workplace
from cluster.preparation import Preparation
from cluster.shared_path import nodes_without
from cluster.work import SYSTEM, ScoringJob, shard_work
from gencls_core.class_models import ClassModel
from gencls_core.config import RunConfig
from gencls_core.datasets import Dataset
from gencls_core.datasets.dataset import SplitName
from gencls_core.events import ClassReused, Event, Note, StageFinished, StageStarted
from gencls_core.model_source import ResolvedModel
from gencls_core.ownership import Lease
from gencls_core.remote_path import Location, uri_of
from gencls_core.run import RunDirectory
from gencls_core.storage import children, remove_tree

__all__ = [
    "baseline_stage",
    "build_base_stage",
    "report_stage",
    "score_stage",
    "train_stage",
]


def build_base_stage(preparation: Preparation, place: Workplace) -> Iterator[Event]:
    """Make a base model from scratch where the run wants one that does not exist yet."""
    if not preparation.must_build_base:
        return
    import ray

    from cluster.channel import failure_of

    began = time.perf_counter()
    yield StageStarted("base", f"making {preparation.base.name}: tokenizer and start weights")
    place.need()
    build = ray.remote(_build_scratch).options(num_cpus=1)
    try:
        ray.get(
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


def _build_scratch(name: str, dataset: Location, seed: int, destination: Location) -> None:
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


def shared_base(
    preparation: Preparation, place: Workplace, models: tuple[ClassModel, ...] = ()
) -> ResolvedModel:
    """Give the base model where every worker can read it: copied into the run where it must be.

    Class models with weights of their own need none.
    """
    base, run = preparation.base, preparation.run
    path = run.base_path / base.digest[:16]
    staged = ResolvedModel.of_staged(base.name, path)
    if staged is not None:
        return replace(staged, digest=base.digest)
    if all(model.kind == "full" for model in models) and models:
        return base
    if isinstance(run.path, Path):
        place.need()
        if not isinstance(base.path, Path) or not nodes_without(base.path, place.budget.nodes):
            return base
    return base.stage(path)


def train_stage(preparation: Preparation, place: Workplace, lease: Lease) -> Iterator[Event]:
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
    place.need()
    from cluster.training import train_classes

    base = shared_base(preparation, place)
    yield from train_classes(
        [replace(task, base=base) for task in tasks],
        preparation.dataset.path,
        plan,
        lease,
        memory_share(
            preparation, plan.concurrent_trainings, plan.cpus_per_training, plan.memory_per_training
        ),
    )
    for leftover in children(preparation.run.models_path):
        if leftover.name.startswith("."):
            remove_tree(leftover)
    yield StageFinished(
        "train", f"{_count(len(tasks), 'class model')} trained", time.perf_counter() - began
    )


def memory_share(preparation: Preparation, at_once: int, cpus: int, reserved: int) -> int:
    """Give the bytes of main memory after which a worker is ended: its share of its node.

    Args:
        preparation: knows the nodes.
        at_once: workers of its kind in all.
        cpus: CPUs of each.
        reserved: bytes that each has reserved in Ray's books; 0 where it has not.
    """
    shares = [
        node.memory_bytes // max(1, min(at_once, node.cpus // max(cpus, 1)))
        for node in preparation.budget.nodes
        if node.cpus >= cpus and node.memory_bytes >= reserved
    ]
    return max(min(shares, default=0), reserved)


def score_stage(
    preparation: Preparation,
    place: Workplace,
    lease: Lease,
    models: tuple[ClassModel, ...],
    dataset: Dataset,
    split: SplitName,
) -> Iterator[Event]:
    """Score the shards of one split that are not committed, and drop those of other settings."""
    began = time.perf_counter()
    run = preparation.run
    shards = shard_work(
        config=preparation.config,
        precision=preparation.precision,
        models=models,
        dataset=dataset,
        split=split,
        run=run,
    )
    work, committed = shards.work, len(shards.committed)
    for key in shards.torn:
        yield Note(
            f"{split} shard {key.index} of class {key.class_name!r} is not as it was committed; "
            "scoring it again"
        )
    if run.scores_of(split).retire(SYSTEM, shards.committed) or work:
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
    place.need()
    from cluster.scoring import score_shards

    job = ScoringJob(
        models=models,
        base=shared_base(preparation, place, models),
        sequence=preparation.config.sequence,
        scoring=preparation.config.scoring,
        precision=preparation.precision,
        device=preparation.plan.device,
    )
    plan = preparation.plan
    limit = memory_share(preparation, plan.actors, plan.cpus_per_actor, plan.memory_per_actor)
    yield from score_shards(job, work, plan, lease, limit)
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
    yield StageFinished("report", uri_of(run.report_path), time.perf_counter() - began)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
