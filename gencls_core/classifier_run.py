"""A finished run, used from Python: texts in, classes and probabilities out.

    run = ClassifierRun.open("runs/agnews")
    run.classify(["…"])

Nothing is written and no Ray is started; the answers are those of `gencls classify`.

Shapes: N texts, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from gencls_core.cost_matrix import costs_of_run
from gencls_core.datasets.dataset import SplitName
from gencls_core.errors import StoreError, UsageError
from gencls_core.evidence import Evidence
from gencls_core.explanations import explain_example, explain_text
from gencls_core.given_texts import checked_texts
from gencls_core.remote_path import Location, RemotePath, as_location, uri_of
from gencls_core.report.fitting import Companion
from gencls_core.report.inference import (
    Inference,
    Rule,
    origin_of,
    prior_counts,
    require_same_classes,
    rule_of,
)
from gencls_core.report.schema import Report
from gencls_core.run import RunDirectory
from gencls_core.score_matrix import FloatArray
from gencls_core.second_system import SecondSystem
from gencls_core.storage import filesystem_of, read_json
from gencls_core.trained_run import LocalModels

__all__ = ["Classification", "ClassifierRun"]


@dataclass(frozen=True)
class Classification:
    """What a run says of one text."""

    predicted: str
    """The likeliest class."""
    probabilities: dict[str, float]
    """P(class | text) by the run's rule; they sum to 1."""
    log_likelihoods: dict[str, float]
    """log P(text | class) in nats, exact, before prior and calibration."""
    num_tokens: int
    """Tokens that were scored."""
    truncated: bool
    """Whether the text was cut before it was scored (`--max-length`)."""
    second_system: str | None = None
    """What stood beside the likelihoods in an ensemble; None where they decided alone."""
    decided: str | None = None
    """The class with the lowest expected cost; None of a run without costs (`--costs`)."""
    expected_cost: float | None = None
    """What that decision costs in the mean, by the probabilities; None likewise."""


class ClassifierRun:
    """A run directory whose models are loaded once, when a text is first to be scored, and stay.

    Memory: of `independent` models all K are held at the same time (with LoRA one base and K
    adapters); of `conditional` and `joint` there is one. An ensemble's second system comes on top:
    a bag of words learns anew from the run's train texts, which takes seconds; a fine-tune is one
    model more. Models go onto a GPU where there is one.
    """

    def __init__(self, run: RunDirectory) -> None:
        """Take a run directory; see `open`."""
        self._run = run
        self._manifest = run.manifest()
        self._origin = origin_of(run, self._manifest)
        self._beside: SecondSystem | None = None

    @classmethod
    def open(cls, place: str | Path | RemotePath) -> Self:
        """Open a run; quick, since models are loaded when they are needed.

        Args:
            place: the `--output-dir` of `gencls run` or `gencls train`, or an evaluation of such a
                run: a folder or a URI (`s3://…`, `gs://…`).

        Raises:
            StoreError: when there is no run, or it has no language model; when an evaluation's
                run has other classes by now.
            UsageError: when a URI cannot be a run directory.
        """
        path: Location = as_location(place).expanduser().absolute()
        if not path.exists():
            raise StoreError.of(
                "no such run directory",
                place=path,
                expected="the --output-dir of a `gencls run` or `gencls train`",
                remedy="check the path: it is relative to the working folder",
            )
        found = cls(RunDirectory(path))
        if "model" not in found._origin.manifest():
            raise StoreError.of(
                "a run without a language model",
                place=path,
                found=", ".join(found._manifest.get("systems", [])) or "no system",
                expected="a trained recipe",
                remedy="train one with `gencls run`",
            )
        require_same_classes(found._run, found._origin)
        return found

    def __repr__(self) -> str:
        return f"ClassifierRun.open({uri_of(self._run.path)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process loads the models itself.
        return type(self).open, (uri_of(self._run.path),)

    @property
    def path(self) -> Location:
        """The run directory."""
        return self._run.path

    @property
    def classes(self) -> tuple[str, ...]:
        """The K classes; the order of every column."""
        return tuple(self._manifest["classes"])

    @functools.cached_property
    def _models(self) -> LocalModels:
        return LocalModels.open(self._origin, scored=self._run)

    @functools.cached_property
    def _train_counts(self) -> dict[str, int]:
        return prior_counts(self._run, self._origin)

    @functools.cached_property
    def _rule(self) -> Rule:
        """How any text is decided; the prior comes in later, for it may be another each time."""
        return rule_of(self._run, prior="uniform", companion_of=self._open_beside)

    def _open_beside(self, name: str) -> Companion:
        self._beside = SecondSystem.open(self._origin, name, scored=self._run)
        return self._beside.companion([])

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of how texts are decided: why there is no calibration, or no second
        system where one was asked for."""
        return self._rule.notes

    def classify(self, texts: Iterable[str], *, prior: str | None = None) -> list[Classification]:
        """Label texts as `gencls classify` does: the run's prior, calibration, ensemble and costs.

        Args:
            texts: any number of them, best all in one call: texts of like length go through the
                models together.
            prior: `train`, `uniform`, `World=0.4,Sports=0.6`, or `unlabelled`, which estimates it
                from these texts; default: the run's own setting.

        Returns:
            One for each text, in their order.

        Raises:
            UsageError: when a text is none (it is named by its index), or the prior cannot be
                obeyed.
            StoreError: when a model or a score that the calibration rests on is missing.
            ModelError: when a model cannot be loaded.
        """
        given = checked_texts(texts)
        if not given:
            return []
        found = self._decide(given, prior)
        matrix, names = found.matrix, self.classes
        probabilities_NK = _probabilities(found.answer)
        best_N = found.answer.argmax(axis=1)
        decisions = self._decisions(found)
        return [
            Classification(
                predicted=names[best_N[row]],
                probabilities=dict(zip(names, probabilities_NK[row].tolist(), strict=True)),
                log_likelihoods=dict(zip(names, matrix.scores[row].tolist(), strict=True)),
                num_tokens=int(matrix.num_tokens[row]),
                truncated=bool(matrix.truncated[row]),
                second_system=None if self._rule.companion is None else self._second.name,
                decided=decided,
                expected_cost=expected_cost,
            )
            for row, (decided, expected_cost) in enumerate(decisions)
        ]

    def predict_proba(self, texts: Iterable[str], *, prior: str | None = None) -> FloatArray:
        """Give P(class | text), [N, K]; arguments and errors are those of `classify`."""
        return _probabilities(self.predict_log_proba(texts, prior=prior))

    def predict_log_proba(
        self, texts: Iterable[str], *, prior: str | None = None, calibrated: bool = False
    ) -> FloatArray:
        """Give log P(class | text) in nats, [N, K]; arguments and errors are those of `classify`.

        Args:
            texts: any number of them.
            prior: as for `classify`.
            calibrated: take the calibrated posterior where there is one, also of a run that stands
                by the plain one.
        """
        given = checked_texts(texts)
        if not given:
            return np.zeros((0, len(self.classes)))
        found = self._decide(given, prior)
        if calibrated and found.calibrated is not None:
            return found.calibrated
        return found.answer

    def log_likelihoods(self, texts: Iterable[str]) -> FloatArray:
        """Give log P(text | class) in nats, float64 [N, K]: exact, before prior and calibration.

        Raises:
            UsageError: when a text is none; it is named by its index.
            StoreError: when a model is missing.
            ModelError: when a model cannot be loaded.
        """
        given = checked_texts(texts)
        if not given:
            return np.zeros((0, len(self.classes)))
        return self._models.matrix(given).scores

    @property
    def _second(self) -> SecondSystem:
        assert self._beside is not None, "the rule has a companion, so it was opened"
        return self._beside

    def _decide(self, texts: list[str], prior: str | None) -> Inference:
        rule = self._rule
        matrix = self._models.matrix(texts)
        if rule.companion is not None:
            rule = replace(rule, companion=self._second.companion(texts))
        wanted = prior if prior is not None else self._manifest["config"]["posterior"]["prior"]
        return rule.under(wanted, self._train_counts, lambda: matrix).applied(matrix)

    def _decisions(self, found: Inference) -> list[tuple[str, float] | tuple[None, None]]:
        """Give for each text what is decided by the run's costs, and what that costs."""
        costs = costs_of_run(self._manifest)
        if costs is None:
            return [(None, None)] * len(found.answer)
        decided_N, expected_N = costs.decide(found.answer)
        names = [self.classes[code] for code in decided_N.tolist()]
        return list(zip(names, expected_N.tolist(), strict=True))

    def scores(self, split: SplitName = "test", *, system: str | None = None) -> pa.Table:
        """Give the committed score rows of a split, one per text and class (docs/scores.md).

        `pl.from_arrow(run.scores())` is a Polars frame, `run.scores().to_pandas()` one of pandas.

        Args:
            split: `test` or `validation`; train texts are not scored.
            system: whose rows; default: those of all systems.

        Raises:
            UsageError: for another split.
            StoreError: when a shard cannot be read.
        """
        if split not in ("test", "validation"):
            raise UsageError.of(
                "no scores of this split",
                found=repr(split),
                expected="'test' or 'validation'",
                remedy="texts that were learned from are not scored; `classify` scores any text",
            )
        store = self._run.scores_of(split)
        return store.read(store.records(system))

    def predictions(self) -> pa.Table:
        """Give what was predicted for the run's test texts, a row each (docs/scores.md).

        Raises:
            StoreError: when the run has no report yet.
        """
        path = self._run.predictions_path
        if not path.exists():
            raise StoreError.of(
                "the run has no predictions yet",
                place=path,
                remedy=f"gencls report {uri_of(self._run.path)}",
            )
        filesystem, name = filesystem_of(path)
        return pq.read_table(name, filesystem=filesystem)

    def report(self) -> Report | None:
        """Give the run's report (docs/report-schema.md); None where there is none yet.

        Raises:
            StoreError: when it is of another version of gencls.
        """
        path = self._run.report_path / "report.json"
        try:
            return Report.model_validate(read_json(path))
        except FileNotFoundError:
            return None
        except (ValidationError, ValueError) as error:
            raise StoreError.of(
                "a report that this version cannot read",
                place=path,
                found=str(error).splitlines()[0],
                remedy=f"gencls report {uri_of(self._run.path)}",
            ) from None

    def explain(
        self,
        *,
        text: str | None = None,
        example: str | None = None,
        class_name: str | None = None,
        against: str | None = None,
        prior: str | None = None,
    ) -> Evidence:
        """Say which words of a text decided (docs/evidence.md).

        Args:
            text: any text; a second system of an ensemble is not asked.
            example: or the `example_id` of one of the run's test texts.
            class_name: whose evidence is wanted; default: the answer.
            against: the class that it is compared with; default: the second likeliest, or the
                label where the answer is wrong.
            prior: as for a report; default: the run's own.

        Raises:
            UsageError: when not exactly one text is named, or there is no such text or class.
            StoreError: when a model is missing.
        """
        if (text is None) == (example is None):
            raise UsageError.of(
                "which text is to be explained?",
                found="neither text nor example" if text is None else "both text and example",
                expected="explain(text='…') or explain(example='test-3')",
            )
        if text is not None:
            [given] = checked_texts([text])
            return explain_text(
                self._run,
                given,
                class_name=class_name,
                against=against,
                prior=prior,
                models=self._models,
            )
        # Stored token scores need no model.
        loaded: LocalModels | None = self.__dict__.get("_models")
        return explain_example(
            self._run,
            str(example),
            class_name=class_name,
            against=against,
            prior=prior,
            models=loaded,
        )


def _probabilities(log_posterior_NK: FloatArray) -> FloatArray:
    found_NK: FloatArray = np.minimum(np.exp(log_posterior_NK), 1.0)  # rounding goes beyond
    return found_NK
