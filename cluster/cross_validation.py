"""Parts of the train texts by which recipes are judged where few texts are held out.

    <run>/candidates/part-<k>/dataset/                  part k held out, the others to learn from
    <run>/candidates/part-<k>/validation-scores/        what light systems say of part k
    <run>/candidates/<name>-part-<k>/                   a training on the others, judged by part k

Every train text is scored by a model that did not learn from it; the model that is taken learns
from all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.preparation import Preparation
from cluster.stages import score_here
from gencls_core.config import MIN_HELD_OUT, RunConfig
from gencls_core.datasets import Dataset
from gencls_core.datasets.parts import find_part, write_part
from gencls_core.events import Event
from gencls_core.ownership import Lease
from gencls_core.run import RunDirectory
from gencls_core.selection import part_name
from gencls_core.systems import System
from gencls_core.systems.registry import light_system

if TYPE_CHECKING:
    from gencls_core.systems.commit import Target

__all__ = ["MOST_TEXTS", "Part", "find_parts", "judging_texts", "make_parts", "parts_of"]

MOST_TEXTS = 1000
"""With more train texts a tenth of them, held out, would have been enough."""


@dataclass(frozen=True)
class Part:
    """One part of the train texts, held out."""

    number: int
    dataset: Dataset
    run: RunDirectory
    """Where scores of light systems go."""

    def score_light(self, name: str, config: RunConfig, lease: Lease) -> Iterator[Event]:
        """Let a light system learn from the other parts, and score this one."""
        system, target = self._light(name, config)
        yield from score_here(system, self.dataset, [target], lease)

    def is_scored_by(self, name: str, config: RunConfig) -> bool:
        """Say whether a light system's scores are committed, and as they were."""
        from gencls_core.systems.commit import missing_targets

        system, target = self._light(name, config)
        return not missing_targets(system, self.dataset, [target])

    def _light(self, name: str, config: RunConfig) -> tuple[System, Target]:
        from gencls_core.systems.commit import Target

        system = light_system(name, config.data.seed_of_sample, config.systems)
        return system, Target(self.dataset, "validation", self.run.validation_scores)


def parts_of(config: RunConfig, dataset: Dataset) -> int:
    """Give how many parts the train texts are cut into; 0 where nothing is cross-validated."""
    train = dataset.splits.get("train")
    if train is None or dataset.held_out >= MIN_HELD_OUT or train.rows > MOST_TEXTS:
        return 0
    # Each part has a text of each class, and leaves one to learn from.
    parts = min(config.recipe.folds, *train.class_counts.values())
    return parts if parts >= 2 else 0


def judging_texts(dataset: Dataset, parts: int) -> int:
    """Give how many texts recipes are judged by: train texts in parts, else those held out."""
    return dataset.split("train").rows if parts else dataset.held_out


def make_parts(first: Preparation, judged: int, cut_into: int, lease: Lease) -> list[Part]:
    """Write the parts that are judged of a run's train texts, where they are not there yet."""
    found = []
    for number in range(judged):
        lease.check()
        run, seed = _place_of(first, number)
        dataset = write_part(first.dataset, number, cut_into, seed, run.dataset_path)
        found.append(Part(number, dataset, run))
    return found


def find_parts(first: Preparation, judged: int, cut_into: int) -> list[Part] | None:
    """Give the parts that `make_parts` has written; None where they are not all there."""
    found = []
    for number in range(judged):
        run, seed = _place_of(first, number)
        dataset = find_part(first.dataset, number, cut_into, seed, run.dataset_path)
        if dataset is None:
            return None
        found.append(Part(number, dataset, run))
    return found


def _place_of(first: Preparation, number: int) -> tuple[RunDirectory, int]:
    """Give the folder of a part, and the seed that it is drawn with."""
    run = RunDirectory(first.run.candidate_path(part_name(number)))
    return run, first.config.data.seed_of_sample
