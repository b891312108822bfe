"""Scoring: actors that hold all class models take one shard at a time and commit it themselves."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.queue import Queue

from cluster.channel import drain, failure_of, open_channel, send
from cluster.resources import Plan
from gencls_core.class_models import ClassModel
from gencls_core.config import ScoringConfig, SequenceConfig
from gencls_core.datasets.dataset import Dataset, SplitName
from gencls_core.events import Event, Note, ScoringProgress, ShardCommitted
from gencls_core.precision import Precision
from gencls_core.scores import ScoreStore, ShardKey, ShardRecord

__all__ = ["ScoringJob", "ShardWork", "score_shards"]

ATTEMPTS_PER_SHARD = 3
PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class ScoringJob:
    """What every actor needs: the models, and how texts are scored."""

    models: tuple[ClassModel, ...]
    base: Path
    sequence: SequenceConfig
    scoring: ScoringConfig
    precision: Precision
    device: str


@dataclass(frozen=True)
class ShardWork:
    """Examples [start, stop) of one split, under the classes that are not committed yet."""

    dataset: Path
    split: SplitName
    store: Path
    start: int
    stop: int
    keys: tuple[ShardKey, ...]
    digests: tuple[str, ...]


def score_shards(job: ScoringJob, work: list[ShardWork], plan: Plan) -> Iterator[Event]:
    """Score all shards; yields progress as it comes.

    An actor that dies is replaced and its shard given out again: a shard is written at least once,
    and takes effect exactly once, since the rename replaces what stood there.

    Raises:
        GenclsError: when a shard fails ATTEMPTS_PER_SHARD times, or scoring itself refuses.
    """
    channel = open_channel()
    # A new actor in the place of a dead one, rather than Ray's restart: calls that reach an actor
    # while it restarts fail at once, and would use up the shard's attempts.
    actor_class = ray.remote(_ScoringActor).options(
        num_cpus=plan.cpus_per_actor, num_gpus=plan.gpus_per_actor, max_restarts=0
    )

    def start() -> Any:
        return actor_class.remote(plan.cpus_per_actor, plan.gpus_per_actor)

    job_reference = ray.put(job)
    idle = deque(start() for _ in range(min(plan.actors, len(work))))
    waiting = deque(work)
    attempts: dict[ShardWork, int] = {}
    running: dict[Any, tuple[Any, ShardWork]] = {}
    try:
        while waiting or running:
            while waiting and idle:
                shard, actor = waiting.popleft(), idle.popleft()
                running[actor.score.remote(job_reference, channel, shard)] = (actor, shard)
            done, _ = ray.wait(list(running), num_returns=1, timeout=0.3)
            yield from drain(channel)
            for reference in done:
                actor, shard = running.pop(reference)
                try:
                    records: list[ShardRecord] = ray.get(reference)
                except RayActorError as error:
                    attempts[shard] = attempts.get(shard, 0) + 1
                    what = f"scoring of {shard.split} shard {shard.keys[0].index}"
                    if attempts[shard] >= ATTEMPTS_PER_SHARD:
                        raise failure_of(error, what) from error
                    yield Note(f"{what}: its actor died; trying again")
                    waiting.append(shard)
                    idle.append(start())
                except Exception as error:
                    raise failure_of(error, f"scoring of shard {shard.keys[0].index}") from error
                else:
                    idle.append(actor)
                    for record in records:
                        yield _committed(shard, record)
        yield from drain(channel)
    finally:
        for actor in (*idle, *(actor for actor, _ in running.values())):
            ray.kill(actor)
        channel.shutdown()


def _committed(shard: ShardWork, record: ShardRecord) -> ShardCommitted:
    return ShardCommitted(
        split=shard.split,
        class_name=record.class_name,
        shard=record.index,
        shards=record.count,
        rows=record.rows,
        tokens=record.tokens,
        seconds=record.seconds,
    )


class _ScoringActor:
    """Runs in a Ray worker; loads models at its first shard, so that errors reach the driver."""

    def __init__(self, threads: int, gpu_share: float) -> None:
        self._threads = threads
        self._gpu_share = gpu_share
        self._models: Any = None

    def _load(self, job: ScoringJob) -> Any:
        import torch

        from gencls_core.precision import scoring_dtype
        from gencls_core.scoring import ClassModelSet

        torch.set_num_threads(self._threads)
        if job.device == "cuda" and self._gpu_share < 1:
            torch.cuda.set_per_process_memory_fraction(self._gpu_share)
        return ClassModelSet(
            job.models,
            job.base,
            dtype=scoring_dtype(job.precision),
            device=job.device,
        )

    def score(self, job: ScoringJob, channel: Queue, work: ShardWork) -> list[ShardRecord]:
        """Score one shard's examples under each class, committing class by class."""
        from gencls_core.measure import peak_memory_bytes

        if self._models is None:
            self._models = self._load(job)
        examples = Dataset.open(work.dataset).read(work.split, work.start, work.stop)
        encoded = self._models.encode(examples)
        store = ScoreStore(work.store)
        records = []
        for key, digest in zip(work.keys, work.digests, strict=True):
            began = time.perf_counter()
            meter = _Throttle(channel, work.split)
            table = self._models.score(
                examples,
                key.class_name,
                job.sequence,
                job.scoring,
                encoded=encoded,
                on_batch=meter,
            )
            meter.flush()
            records.append(
                store.commit(
                    key,
                    table,
                    start=work.start,
                    digest=digest,
                    seconds=round(time.perf_counter() - began, 3),
                    peak_memory_bytes=peak_memory_bytes(),
                )
            )
        return records


class _Throttle:
    """Sends the tokens scored since the last message, at most twice a second."""

    def __init__(self, channel: Queue, split: str) -> None:
        self._channel = channel
        self._split = split
        self._sent_at = time.perf_counter()
        self._done = 0
        self._sent = 0

    def __call__(self, tokens: int) -> None:
        self._done = tokens
        if time.perf_counter() - self._sent_at >= PROGRESS_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send what has not been sent."""
        send(self._channel, ScoringProgress(self._split, self._done - self._sent))
        self._sent_at, self._sent = time.perf_counter(), self._done
