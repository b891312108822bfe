"""Runs of seconds whose every row is known beforehand, and models that misbehave on purpose."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from ray import cloudpickle

from benchmarks.synthetic import (
    CLASSES,
    StubModels,
    class_models,
    make_dataset,
    stub_job,
    write_source,
)
from cluster.capacity import Budget
from cluster.crew import Crew
from cluster.memory import ModelSize, Workload
from cluster.resources import GB, Plan, make_plan
from cluster.scoring import score_shards
from gencls_core.config import ComputeConfig, RunConfig, ScoringConfig, SequenceConfig
from gencls_core.digests import shard_ranges
from gencls_core.events import Event
from gencls_core.ownership import own
from gencls_core.run import CLASS_LM, RunDirectory
from gencls_core.scores import ScoreStore, ShardKey, read_scores
from gencls_core.scoring_job import ScoringJob
from gencls_core.shard_work import ShardWork
from gencls_core.training_task import TrainingTask


def killed(action: Callable[[], None]) -> None:
    """Run `action` in a process of its own, which must end by SIGKILL.

    It is forked from one that has loaded what trainings need and has no threads: this one has
    those of torch and of every Ray that it started.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ray.cloudpickle", "gencls_core.training", "test_training"])
    child = context.Process(target=_act, args=(cloudpickle.dumps(action),))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def _act(pickled: bytes) -> None:
    cloudpickle.loads(pickled)()


def die(*_args: Any, **_options: Any) -> None:
    """End this process as the out-of-memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_step(task: TrainingTask, step: int) -> None:
    """Train in a process of its own, which is killed as a step begins."""
    # Workers of Ray load this file, and most need no torch.
    from gencls_core.training import train_class
    from gencls_core.training_loop import ObjectiveTrainer

    original = ObjectiveTrainer.training_step

    def train_and_die() -> None:
        def stepping(self: Any, *args: Any, **options: Any) -> Any:
            if self.state.global_step + 1 == step:
                die()
            return original(self, *args, **options)

        ObjectiveTrainer.training_step = stepping
        train_class(task)

    killed(train_and_die)
    assert not task.destination.exists()


def make_run(folder: Path, *, rows: int = 64) -> RunDirectory:
    """Prepare `rows` short test texts of four classes."""
    write_source(folder / "source", test_rows=rows, validation_rows=20)
    run = RunDirectory(folder / "run")
    make_dataset(folder / "source", run)
    return run


def shards_of(run: RunDirectory, shard_size: int) -> list[ShardWork]:
    """Give the test split's shards, none committed."""
    dataset = run.dataset()
    ranges = shard_ranges(dataset.split("test").rows, shard_size)
    return [
        ShardWork(
            dataset=dataset.path,
            split="test",
            store=run.scores.path,
            start=start,
            stop=stop,
            keys=tuple(ShardKey(CLASS_LM, name, index, len(ranges)) for name in CLASSES),
            digests=tuple(f"digest-{name}-{start}" for name in CLASSES),
        )
        for index, (start, stop) in enumerate(ranges)
    ]


def small_plan(actors: int = 2, models_per_actor: int | None = None) -> Plan:
    """Plan two actors of one CPU on this machine."""
    size = ModelSize(parameters=10**6, layers=2, width=32, vocabulary=400, context=64)
    work = Workload(
        models=len(CLASSES), trainings=0, shards=99, batch_size=8, longest_text_bytes=100,
        window=None, max_length=None, tokens_per_batch=64, precision="fp32", lora_rank=None,
        gradient_checkpointing=False,
    )  # fmt: skip
    plan = make_plan(
        Budget.of(cpus=2, memory_bytes=6 * GB), size, work, ComputeConfig(actors=actors)
    )
    values = {**plan.__dict__, "models_per_actor": models_per_actor or len(CLASSES)}
    return Plan(**values)


@dataclass(frozen=True)
class Misbehaving:
    """Loads stub models that misbehave; what happened once is remembered in a folder."""

    memory: Path
    behave: Callable[[Misbehaving, pa.Table, str], None]

    def __call__(self, job: ScoringJob, classes: frozenset[str]) -> _Models:
        with (self.memory / "loads").open("a") as stream:
            stream.write(f"{os.getpid()} {','.join(sorted(classes))}\n")
        return _Models(self)

    def first_time(self, what: str) -> bool:
        """Say whether this is asked for the first time, over all processes."""
        try:
            (self.memory / what).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def calls(self) -> list[str]:
        """Give `class first-example` of every call that scored."""
        return self._lines("calls")

    def loads(self) -> list[str]:
        """Give `process classes` of every time that models were loaded."""
        return self._lines("loads")

    def _lines(self, name: str) -> list[str]:
        path = self.memory / name
        return path.read_text().splitlines() if path.exists() else []


class _Models(StubModels):
    def __init__(self, behaviour: Misbehaving) -> None:
        self._behaviour = behaviour

    def score(
        self,
        examples: pa.Table,
        class_name: str,
        sequence: SequenceConfig,
        scoring: ScoringConfig,
        **options: Any,
    ) -> pa.Table:
        table = super().score(examples, class_name, sequence, scoring, **options)
        changed = self._behaviour.behave(self._behaviour, table, class_name)
        with (self._behaviour.memory / "calls").open("a") as stream:
            stream.write(f"{class_name} {examples.column('example_id')[0]}\n")
        return table if changed is None else changed


def well(behaviour: Misbehaving, table: pa.Table, class_name: str) -> None:
    """Behave."""


def slowly(behaviour: Misbehaving, table: pa.Table, class_name: str) -> None:
    """Take long enough to be killed meanwhile."""
    time.sleep(0.3)


def make_job(folder: Path, load: Any) -> ScoringJob:
    """Give a job whose class models are stubs."""
    models = class_models(RunDirectory(folder / "models-of"))
    return stub_job(models, RunConfig(), load)


def score(
    run: RunDirectory,
    load: Any,
    *,
    shard_size: int = 8,
    plan: Plan | None = None,
    work: list[ShardWork] | None = None,
    memory_limit: int = 4 * GB,
) -> list[Event]:
    """Score the run's test texts as the pipeline does."""
    job = make_job(Path(str(run.path)), load)
    with own(run.path, "test") as lease, Crew(job, plan or small_plan(), memory_limit) as crew:
        return list(score_shards(crew, work or shards_of(run, shard_size), lease))


def assert_whole(run: RunDirectory, *, rows: int) -> None:
    """Count: every (example, class) once, with the value of an undisturbed run."""
    table = read_scores(run.scores.path)
    pairs = set(zip(table["example_id"].to_pylist(), table["class"].to_pylist(), strict=True))
    assert table.num_rows == rows * len(CLASSES)
    assert len(pairs) == rows * len(CLASSES)
    store = ScoreStore(run.scores.path)
    assert store.orphans() == []
    assert store.torn(store.records()) == []
    texts = run.dataset().read("test")
    for name in CLASSES:
        expected = StubModels().score(texts, name, SequenceConfig(), ScoringConfig())
        found = table.filter(pa.compute.equal(table["class"], name)).sort_by("example_id")
        expected = expected.sort_by("example_id")
        assert found["score"].equals(expected["score"])
