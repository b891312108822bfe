"""Scoring on three raylets as on three machines: what the driver takes, and whether it is whole.

A head without CPUs and three nodes of one CPU each, on this machine. The driver, its events, the
actors and their commits are those of every run; only the models are stubs.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.synthetic import CLASSES, SYSTEM, StubModels, class_models, run_config, stub_job
from cluster.capacity import GB, cluster_budget
from cluster.memory import ModelSize, Workload
from cluster.resources import Plan, make_plan
from gencls_core.config import ComputeConfig
from gencls_core.datasets.dataset import SplitName
from gencls_core.events import ShardCommitted
from gencls_core.measure import peak_memory_bytes
from gencls_core.ownership import own
from gencls_core.run import RunDirectory
from gencls_core.score_matrix import iter_likelihoods
from gencls_core.scoring_job import ScoringJob
from gencls_core.shard_work import shard_work

__all__ = ["RAYLETS", "check_rows", "score_on_raylets"]

SPLITS: tuple[SplitName, ...] = ("validation", "test")

RAYLETS = 3
ACTOR_BYTES = 2 * GB
OBJECT_STORE_BYTES = 80_000_000


@dataclass(frozen=True)
class NotedLoad:
    """Loads the stub, and leaves a file named after the node that did."""

    folder: Path

    def __call__(self, job: ScoringJob, classes: frozenset[str]) -> Any:
        import ray

        (self.folder / f"{ray.get_runtime_context().get_node_id()}-{os.getpid()}").touch()
        return StubModels()


def score_on_raylets(folder: Path) -> dict[str, Any]:
    """Score validation and test texts of the run in `folder`; its dataset must be prepared."""
    run = RunDirectory(folder / "run")
    loads = folder / "loads"
    loads.mkdir()
    with _raylets():
        import ray

        from cluster.crew import Crew
        from cluster.scoring import score_shards

        config, dataset = run_config(run), run.dataset()
        models = class_models(run)
        plan = _plan(config.scoring.batch_tokens("cpu"))
        job = stub_job(models, config, NotedLoad(loads))
        room = ray.cluster_resources()["object_store_memory"]
        before, cpu, began = peak_memory_bytes(), time.process_time(), time.perf_counter()
        events: Counter[str] = Counter()
        rows, stored, peak_actor = 0, 0.0, 0
        with own(run.path, "benchmark") as lease, Crew(job, plan, ACTOR_BYTES) as crew:
            for split in SPLITS:
                shards = shard_work(job, dataset, split, run)
                for event in score_shards(crew, shards.work, lease):
                    events[type(event).__name__] += 1
                    if isinstance(event, ShardCommitted):
                        rows += event.rows
                        if events["ShardCommitted"] % 64 == 0:
                            free = ray.available_resources().get("object_store_memory", 0)
                            stored = max(stored, room - free)
        seconds = time.perf_counter() - began
        cpu = time.process_time() - cpu
    for split in SPLITS:
        records = run.scores_of(split).records(SYSTEM)
        peak_actor = max(peak_actor, *(record.peak_memory_bytes for record in records))
    return {
        "seconds": seconds,
        "shards": events["ShardCommitted"],
        "rows": rows,
        "events": dict(events),
        "cpu_per_shard": cpu / events["ShardCommitted"],
        "peak_before": before,
        "peak_actor": peak_actor,
        "object_store": stored,
        "nodes": len({path.name.partition("-")[0] for path in loads.iterdir()}),
        "actors": plan.actors,
    }


def check_rows(folder: Path) -> dict[str, Any]:
    """Compare every committed test row with the stub's own; refuses any difference."""
    run = RunDirectory(folder / "run")
    config, dataset, stub = run_config(run), run.dataset(), StubModels()
    reached = 0
    for matrix in iter_likelihoods(run.scores, SYSTEM, CLASSES):
        examples = dataset.read("test", reached, reached + len(matrix))
        if not matrix.example_ids.equals(examples.column("example_id")):
            raise RuntimeError(f"rows from {reached:,} on are of other texts")
        for column, name in enumerate(CLASSES):
            expected = stub.score(examples, name, config.sequence, config.scoring)
            if not np.array_equal(matrix.scores[:, column], expected.column("score").to_numpy()):
                raise RuntimeError(f"scores of {name!r} from {reached:,} on are not the stub's")
        reached += len(matrix)
    if reached != dataset.split("test").rows:
        raise RuntimeError(f"{reached:,} of {dataset.split('test').rows:,} texts have scores")
    return {"rows": reached * len(CLASSES)}


@contextmanager
def _raylets() -> Iterator[None]:
    """Start the cluster and connect to it; nothing of it is left afterwards."""
    root = str(Path(__file__).parents[1])
    # Workers import this module to find the stub.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": OBJECT_STORE_BYTES}
    # Otherwise each raylet starts a worker per CPU at once, whether or not it is wanted.
    settings = {"enable_worker_prestart": False, "prestart_worker_first_driver": False}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": settings, **small}
    cluster = Cluster(head_node_args=head, initialize_head=True)
    try:
        for _ in range(RAYLETS):
            cluster.add_node(num_cpus=1, memory=2 * ACTOR_BYTES, **small)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(
                address=cluster.address,
                namespace="gencls",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def _plan(tokens_per_batch: int) -> Plan:
    """Plan an actor of one CPU on every raylet."""
    compute = ComputeConfig(device="cpu", actors=RAYLETS)
    size = ModelSize(parameters=10**6, layers=2, width=32, vocabulary=400, context=64)
    work = Workload(
        models=len(CLASSES),
        trainings=0,
        shards=RAYLETS,
        batch_size=8,
        longest_text_bytes=100,
        window=None,
        max_length=None,
        tokens_per_batch=tokens_per_batch,
        precision="fp32",
        lora_rank=None,
        gradient_checkpointing=False,
    )
    plan = make_plan(cluster_budget(compute), size, work, compute)
    if (plan.actors, plan.cpus_per_actor) != (RAYLETS, 1):
        raise RuntimeError(f"{plan.actors} actors of {plan.cpus_per_actor} CPUs were planned")
    return plan
