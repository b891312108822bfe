"""The choice of a recipe: candidates are trained and judged by held-out texts, one is taken.

    <run>/candidates/<name>/candidate.json        what it cost; written last
    <run>/candidates/<name>/validation-scores/    what it was judged by
    <run>/candidates/<name>/{models,systems}/     until the choice is made

The model that is taken becomes the run's own, and run.json says what was chosen and why: from then
on the run is one of that recipe. What a candidate cost is read from what it committed, so a choice
that was interrupted goes on to the same end.

Where few texts are held out, candidates are cross-validated (`cross_validation.py`).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from cluster.choice import Choice, parts_are_scored, why_not_chosen_by
from cluster.choice_report import Tried, failed_under, key_of, untried
from cluster.connection import Workplace
from cluster.cross_validation import parts_of
from cluster.preparation import Preparation, prepare_run
from cluster.resources import Budget
from cluster.stages import base_stage
from cluster.trial import drop_models
from cluster.trial_costs import Costs
from gencls_core.config import RunConfig
from gencls_core.datasets import Dataset
from gencls_core.events import Event, Note
from gencls_core.ownership import Lease
from gencls_core.remote_path import Location
from gencls_core.run import RunDirectory
from gencls_core.run_manifest import previous_manifest
from gencls_core.selection import RECORD, Candidate, candidates_of, is_part_name
from gencls_core.selection_report import SelectionReport
from gencls_core.storage import children, read_json, remove_tree

__all__ = ["choose_recipe", "first_candidate", "prepare_open"]


def first_candidate(config: RunConfig) -> RunConfig:
    """Give the settings to begin with: those of the first candidate where a recipe is chosen."""
    if config.recipe.recipe != "auto":
        return config
    return candidates_of(config)[0].applied(config)


def prepare_open(
    config: RunConfig, dataset: Dataset, run: RunDirectory, *, budget: Budget | None, scores: bool
) -> Preparation:
    """Prepare a run that chooses its recipe: with the one that it has chosen, else the first.

    Args:
        config: what is asked for.
        dataset: the prepared texts.
        run: where the results go.
        budget: the nodes to plan for; None measures this machine.
        scores: whether texts are scored, too.
    """

    def prepared(candidate: Candidate) -> Preparation:
        settings = candidate.applied(config)
        found = prepare_run(settings, dataset, run, budget=budget, scores=scores)
        return replace(found, asked=config)

    made = previous_manifest(run).get("selection")
    candidates = candidates_of(config)
    if made is not None:
        report = SelectionReport.model_validate(made)
        for candidate in candidates:
            if candidate.name == report.chosen:
                found = prepared(candidate)
                # What was chosen with scores will do for training alone, but not the other way.
                ways = (True,) if scores else (True, False)
                known = report.key in {key_of(config, found, scores=way) for way in ways}
                made_up = replace(found, selection=report)
                lasts = report.failed_under in (None, failed_under(config))
                if known and (not scores or (lasts and parts_are_scored(made_up))):
                    return made_up
    return prepared(candidates[0])


def choose_recipe(
    first: Preparation, place: Workplace, lease: Lease, *, scores: bool
) -> Generator[Event, None, Preparation]:
    """Try candidates while the budget lasts, take one, and make its models the run's own.

    Args:
        first: the run with its first candidate, and what was asked for.
        place: where work is done.
        lease: the ownership of the run.
        scores: whether texts are scored, too.
    """
    config = first.asked
    assert config is not None, "the recipe is open"
    parts = parts_of(config, first.dataset) if scores else 0
    reason = why_not_chosen_by(first.dataset)
    if reason is not None and not parts:
        candidates = candidates_of(config)
        yield Note(f"nothing is chosen, recipe {candidates[0].name} is taken: {reason}")
        tried = Tried(first, scores, Costs(config, first.dataset, candidates, 0, 0))
        return replace(first, selection=untried(tried, reason))
    first = yield from base_stage(first, place)
    choice = Choice(first, config, parts, place, lease, scores=scores)
    report = yield from choice.made()
    _clear(first.run, lease)
    taken = next(c for c in candidates_of(config) if c.name == report.chosen)
    settings = taken.applied(config)
    chosen = prepare_run(settings, first.dataset, first.run, budget=first.budget, scores=scores)
    return replace(chosen, asked=config, selection=report)


def _clear(run: RunDirectory, lease: Lease) -> None:
    """Remove models of all candidates, and all of those that were not tried to their end."""
    for folder in children(run.path / "candidates"):
        lease.check()
        if (folder / RECORD).exists():
            drop_models(folder)
            if _is_of_a_failure(folder):
                remove_tree(folder / "validation-scores")
        elif not is_part_name(folder.name):
            remove_tree(folder)


def _is_of_a_failure(folder: Location) -> bool:
    try:
        return "failed" in read_json(folder / RECORD)
    except ValueError:  # torn
        return True
