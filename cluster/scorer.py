"""The scoring stage: splits, one after the other, under the same models."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cluster.connection import Workplace
from cluster.placement import memory_share
from cluster.preparation import Preparation
from gencls_core.class_models import ClassModel
from gencls_core.datasets import Dataset
from gencls_core.datasets.dataset import SplitName
from gencls_core.errors import counted
from gencls_core.events import Event, Note, StageFinished, StageStarted
from gencls_core.ownership import Lease
from gencls_core.run import CLASS_LM, RunDirectory
from gencls_core.scoring_job import ScoringJob
from gencls_core.shard_work import ShardPlan, shard_work

if TYPE_CHECKING:
    from cluster.crew import Crew

__all__ = ["Scorer", "score_stage"]


@dataclass(frozen=True)
class Scorer:
    """Scores splits. Actors start with the first that has work, and stay for the next."""

    stack: ExitStack
    """Ends the actors."""
    preparation: Preparation
    place: Workplace
    models: tuple[ClassModel, ...]

    @property
    def job(self) -> ScoringJob:
        """What actors are told."""
        return self.preparation.scoring_job(self.models)

    def compare(self, run: RunDirectory, dataset: Dataset, split: SplitName) -> ShardPlan:
        """Compare the shards of a split that are wanted with those that `run` has."""
        check = self.preparation.config.compute.check_scores
        return shard_work(self.job, dataset, split, run, check=check)

    def score(
        self,
        run: RunDirectory,
        lease: Lease,
        dataset: Dataset,
        split: SplitName,
        shards: ShardPlan | None = None,
    ) -> Iterator[Event]:
        """Score the shards of a split that are not committed, and drop those of other settings.

        Args:
            run: where the scores go.
            lease: its ownership.
            dataset: the texts.
            split: which of them.
            shards: what `compare` gave, where it has been asked already.
        """
        began = time.perf_counter()
        job = self.job
        shards = shards or self.compare(run, dataset, split)
        work, committed = shards.work, len(shards.committed)
        for key in shards.torn:
            yield Note(
                f"{split} shard {key.index} of class {key.class_name!r} is not as it was "
                "committed; scoring it again"
            )
        stale = run.scores_of(split).retire(job.system.name, shards.committed) or work
        if stale and self.preparation.is_main:
            run.drop_report()
        texts = dataset.split(split).rows
        rows = texts * len(job.classes)
        stage = f"score {split}"
        if not work:
            kept = f"{counted(committed, 'shard')} of {split} texts committed"
            yield StageStarted(stage, f"nothing to score: {kept}", rows, rows)
            return
        again = f" ({counted(committed, 'shard')} committed already)" if committed else ""
        todo = counted(sum(len(shard.keys) for shard in work), "shard")
        under = f"{texts:,} {split} texts under {_models(job)}"
        missing = sum((shard.stop - shard.start) * len(shard.keys) for shard in work)
        yield StageStarted(stage, f"scoring {under}: {todo}{again}", rows, rows - missing)
        crew = self._crew
        from cluster.scoring import score_shards

        yield from score_shards(crew, work, lease)
        yield StageFinished(stage, f"{todo} scored", time.perf_counter() - began)

    @functools.cached_property
    def _crew(self) -> Crew:
        preparation, plan = self.preparation, self.preparation.plan
        self.place.need()
        from cluster.crew import Crew

        job = self.job
        if any(model.kind != "full" for model in self.models) or not self.models:
            # Models with weights of their own need no base.
            job = replace(job, base=self.place.reachable(job.base, preparation.run))
        nodes = preparation.budget.nodes
        limit = memory_share(nodes, plan.actors, plan.cpus_per_actor, plan.memory_per_actor)
        return self.stack.enter_context(Crew(job, plan, limit))


def score_stage(preparation: Preparation, place: Workplace, lease: Lease) -> Iterator[Event]:
    """Score the splits of a run whose models are trained.

    Held-out texts serve calibration, which a system that learns nothing from texts goes without.
    """
    run, dataset, system = preparation.run, preparation.dataset, preparation.system
    with ExitStack() as actors:
        scorer = Scorer(actors, preparation, place, preparation.trained_models())
        for split in preparation.splits:
            yield from scorer.score(run, lease, dataset, split)
    if "validation" not in preparation.splits:
        run.validation_scores.retire(system.name, ())


def _models(job: ScoringJob) -> str:
    if job.system.name == CLASS_LM:
        return f"{len(job.classes)} class models"
    return f"{len(job.classes)} classes by {job.system.name}"
