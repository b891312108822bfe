"""The actor that scores: holds a group of class models, commits what it scored itself."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from ray.util.queue import Queue

from cluster.channel import send
from cluster.guard import bound_memory
from gencls_core.datasets.dataset import Dataset
from gencls_core.errors import ResourceError
from gencls_core.events import Note, ScoringProgress
from gencls_core.ownership import Fence
from gencls_core.scores import ScoreStore, ShardRecord
from gencls_core.scoring_job import Models, ScoringJob
from gencls_core.shard_work import ShardWork
from gencls_core.startup import collector_paused

__all__ = ["ScoringActor"]

PROGRESS_SECONDS = 0.5


class ScoringActor:
    """Runs in a Ray worker; loads models at its first shard, so that errors reach the driver."""

    def __init__(
        self,
        classes: frozenset[str],
        threads: int,
        gpu_memory_fraction: float | None,
        memory_limit: int,
        channel: Queue,
        name: str,
    ) -> None:
        self._classes = classes
        self._threads = threads
        self._gpu_memory_fraction = gpu_memory_fraction
        self._channel = channel
        self._models: Models | None = None
        # As long as the actor, which is as long as its process.
        self._bound = bound_memory(memory_limit, channel, name)
        self._bound.__enter__()

    def _load(self, job: ScoringJob) -> Models:
        if job.load is not None:
            return job.load(job, self._classes)
        with collector_paused(stays=True):
            import torch

            torch.set_num_threads(self._threads)
            if job.device == "cuda" and self._gpu_memory_fraction is not None:
                torch.cuda.set_per_process_memory_fraction(self._gpu_memory_fraction)
            if job.compiled:
                from gencls_core.compilation import why_not_compiled

                if reason := why_not_compiled(job.device):
                    send(self._channel, Note(f"scoring: not compiled: {reason}"))
                    job = replace(job, compiled=False)
            return job.system.load(job, self._classes)

    def score(self, job: ScoringJob, work: ShardWork, fence: Fence) -> list[ShardRecord]:
        """Score one shard's examples under each class, committing class by class.

        Raises:
            StoreError: when a score is not a finite number, or cannot be written.
            OwnershipError: when this attempt must not commit any more.
            ResourceError: when the GPU's memory does not suffice.
        """
        from gencls_core.measure import peak_memory_bytes

        store = ScoreStore(work.store)
        records = []
        for key, digest, table, seconds in self._scored(job, work, work.start, work.stop):
            records.append(
                store.commit(
                    key,
                    table,
                    start=work.start,
                    digest=digest,
                    seconds=round(seconds, 3),
                    peak_memory_bytes=peak_memory_bytes(),
                    fence=fence,
                )
            )
        return records

    def probe(self, job: ScoringJob, work: ShardWork, start: int, stop: int) -> None:
        """Score examples [start, stop) and throw the scores away: does this worker survive?"""
        for _ in self._scored(job, work, start, stop):
            pass

    def _scored(self, job: ScoringJob, work: ShardWork, start: int, stop: int) -> Any:
        if self._models is None:
            self._models = self._load(job)
        if start == stop:
            return
        examples = Dataset.open(work.dataset).read(work.split, start, stop)
        encoded = self._models.encode(examples)
        for key, digest in zip(work.keys, work.digests, strict=True):
            began = time.perf_counter()
            meter = _Throttle(self._channel, work.split)
            try:
                table = self._models.score(
                    examples,
                    key.class_name,
                    job.sequence,
                    job.scoring,
                    encoded=encoded,
                    on_batch=meter,
                )
            except RuntimeError as error:
                raise _gpu_too_small(error, work) or error from None
            meter.flush()
            yield key, digest, table, time.perf_counter() - began


def _gpu_too_small(error: RuntimeError, work: ShardWork) -> ResourceError | None:
    # By name: a stub's actor need not load torch.
    if type(error).__name__ != "OutOfMemoryError":
        return None
    return ResourceError.of(
        f"scoring of {work.name} does not fit into its part of the GPU",
        found=str(error).splitlines()[0],
        remedy="a smaller --tokens-per-batch, --max-length, or fewer actors a GPU "
        "(--gpus-per-actor 1)",
    )


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
