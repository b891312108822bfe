"""What a new class did to the figures of a run, and what it cost.

The figures of before are kept in `run.json` (`added`) when the class comes, since the scores that
they rest on go: bags of words learn anew. They are under the prior that the run has afterwards, and
by its own settings, whatever its report was last built with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from gencls_core.class_models import ClassModel
from gencls_core.datasets.dataset import SplitName
from gencls_core.metrics import evaluate
from gencls_core.posterior import UNLABELLED, resolve_prior
from gencls_core.report.inference import Rule, rule_of
from gencls_core.run import RunDirectory, system_of
from gencls_core.score_matrix import read_likelihoods
from gencls_core.storage import read_json

__all__ = ["ClassChange", "class_change", "figures_before"]


@dataclass(frozen=True)
class ClassChange:
    """Test texts before and after a class came; labels are those that the run stands by."""

    name: str
    texts: int
    """Labelled test texts of the old classes."""
    correct_before: int
    correct_after: int
    moved_from: dict[str, int]
    """Old class → how many of its texts now go to the new one; classes that lost none are left
    out."""
    new_texts: int
    """Test texts of the new class."""
    new_correct: int
    seconds: float
    """Training its model, scoring all texts under it and its texts under the others."""
    seconds_of_all: float
    """Training and scoring for all classes, this one included."""

    @property
    def moved(self) -> int:
        """Texts of old classes that now go to the new one."""
        return sum(self.moved_from.values())


def figures_before(run: RunDirectory, name: str, prior: str) -> dict[str, Any]:
    """Give what is kept of a run when a class comes: its classes, and the confusion of its answers.

    Args:
        run: as it is yet.
        name: the class.
        prior: that of the run with the class. Its part for the class is left out, so that the old
            classes stand to each other as they will.

    Raises:
        StoreError: when the scores are not whole.
    """
    rule = _rule_before(run, name, prior)
    found = rule.applied(read_likelihoods(run.scores, rule.system, rule.classes, rule.records))
    metrics = evaluate(found.answer, found.matrix.label_codes, rule.classes)
    return {"classes": rule.classes, "prior": prior, "confusion": metrics.confusion}


def _rule_before(run: RunDirectory, name: str, prior: str) -> Rule:
    if prior == UNLABELLED:
        return rule_of(run, prior=prior)
    rule = rule_of(run, prior="uniform")
    whole = resolve_prior(prior, (*rule.classes, name), run.dataset().prior_counts)
    share = sum(whole[known] for known in rule.classes)
    return replace(rule, prior={known: whole[known] / share for known in rule.classes})


def class_change(run: RunDirectory, name: str) -> ClassChange | None:
    """Compare the report of a run with what it answered before its last class came.

    Returns:
        None where the class did not come last, nothing was kept of before, or the report is under
        another prior.
    """
    manifest = run.manifest()
    before = manifest.get("added", {}).get(name)
    if before is None or manifest["classes"] != [*before["classes"], name]:
        return None
    report = read_json(run.report_path / "report.json")
    if report["prior"]["name"] != before.get("prior"):
        return None
    after = report["confusion"][report["answer"]]
    old = range(len(before["classes"]))
    moved = {known: after[c][-1] for c, known in enumerate(before["classes"]) if after[c][-1]}
    seconds, seconds_of_all = _seconds(run, name)
    return ClassChange(
        name=name,
        texts=sum(sum(row) for row in before["confusion"]),
        correct_before=sum(before["confusion"][c][c] for c in old),
        correct_after=sum(after[c][c] for c in old),
        moved_from=moved,
        new_texts=sum(after[-1]),
        new_correct=after[-1][-1],
        seconds=seconds,
        seconds_of_all=seconds_of_all,
    )


def _seconds(run: RunDirectory, name: str) -> tuple[float, float]:
    """Give the seconds of what the last class made necessary, and of everything."""
    manifest, dataset = run.manifest(), run.dataset()
    system = system_of(manifest)
    own = everything = 0.0
    for known in manifest["classes"]:
        model = ClassModel.find(run.model_path(known, system))
        if model is not None:
            everything += model.training.seconds
            own += model.training.seconds if known == name else 0.0
    splits: tuple[SplitName, ...] = ("validation", "test")
    for split in splits:
        if split not in dataset.splits:
            continue
        info = dataset.split(split)
        first = info.rows - info.class_counts.get(name, 0)
        for record in run.scores_of(split).records(system):
            everything += record.seconds
            if record.class_name == name or record.start >= first:
                own += record.seconds
    return own, everything
