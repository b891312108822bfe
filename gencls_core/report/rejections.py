"""Which test texts of a run are not answered (`--reject`), and what that comes to.

Confidences, of which a text is refused for want:

    posterior    log-odds of the answer that the run stands by; on held-out texts, of an answer
                 whose calibration did not see the text
    background   how much likelier the text is under the classes than under the untrained base
    both         the lower one of its ranks among the held-out texts by these two, so that each
                 of them refuses about as many; of equal ones, that with the higher other rank

The threshold is chosen on the held-out texts that the calibration is fitted on. No label of a test
text is looked at.

Shapes: N test texts, M labelled held-out texts, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np
import pyarrow as pa

from gencls_core.calibration import Calibration, Pool, fit_calibration, why_not_calibrated
from gencls_core.ensemble import fit_pool
from gencls_core.errors import StoreError, UsageError
from gencls_core.metrics import wilson_interval
from gencls_core.posterior import cross_fitted, posterior_of
from gencls_core.rejection import (
    Threshold,
    log_odds,
    selective,
    threshold_for_coverage,
    threshold_for_error_rate,
)
from gencls_core.remote_path import Location
from gencls_core.report.background import background_of, likelihood_ratio, stores_of_held_out
from gencls_core.report.fitting import CalibrationFit
from gencls_core.report.inference import Inference, origin_of
from gencls_core.report.schema_rejection import RejectionReport, RiskPointReport, SelectiveReport
from gencls_core.run import RunDirectory
from gencls_core.score_matrix import BoolArray, FloatArray, LikelihoodMatrix

__all__ = ["METHODS", "Method", "Rejecter", "Wanted", "selective_report"]

Method = Literal["posterior", "background", "both"]
METHODS: tuple[Method, ...] = ("posterior", "background", "both")
DEFAULT_COVERAGE = 0.9
MIN_TEXTS = 20
"""Labelled test texts from which on a curve is drawn: of fewer, each is a step of its own."""


@dataclass(frozen=True)
class Wanted:
    """What texts are to be refused by, and how many."""

    method: Method
    coverage: float | None
    error_rate: float | None
    """Exactly one of the two is a number."""

    @classmethod
    def of(
        cls, method: str | None, coverage: float | None, error_rate: float | None
    ) -> Self | None:
        """Read the options; None where nothing is to be refused. Without a number, 90 % coverage.

        Raises:
            UsageError: for numbers without a method, both of them, or one out of its bounds.
        """
        if method is None:
            if coverage is None and error_rate is None:
                return None
            flag = "--coverage" if coverage is not None else "--error-rate"
            raise UsageError.of(
                f"{flag} says how many texts to refuse, not by what",
                found="no --reject",
                expected="--reject " + " or ".join(METHODS),
            )
        if coverage is not None and error_rate is not None:
            raise UsageError.of(
                "one threshold cannot be chosen for two things",
                found=f"--coverage {coverage:g} and --error-rate {error_rate:g}",
                expected="one of the two",
            )
        if coverage is not None and not 0 < coverage <= 1:
            raise _out_of_bounds("--coverage", coverage, "above 0, up to 1: 0.9 answers 90 %")
        if error_rate is not None and not 0 < error_rate < 1:
            raise _out_of_bounds("--error-rate", error_rate, "between 0 and 1: 0.05 for 5 %")
        if coverage is None and error_rate is None:
            coverage = DEFAULT_COVERAGE
        found = next((name for name in METHODS if name == method), None)
        if found is None:
            raise UsageError.of(
                "no such way to refuse texts",
                found=f"--reject {method}",
                expected=" or ".join(METHODS),
            )
        return cls(found, coverage, error_rate)


def _out_of_bounds(flag: str, value: float, expected: str) -> UsageError:
    return UsageError.of("a share out of its bounds", found=f"{flag} {value:g}", expected=expected)


@dataclass(frozen=True)
class _Signal:
    """One confidence, and what it is of held-out texts."""

    name: str
    held_out_M: FloatArray
    background: pa.Table | None = None
    """What the base model says of the test texts; None of the posterior."""
    place: Location | None = None

    def of(self, inference: Inference) -> FloatArray:
        """Give it of test texts, [N] nats."""
        if self.background is None or self.place is None:
            return log_odds(inference.answer)
        return likelihood_ratio(inference.matrix, inference.prior, self.background, self.place)

    def rank(self, values_N: FloatArray, itself: int) -> FloatArray:
        """Count the texts that are no surer, [N]: of the held-out ones, and of `itself` more."""
        ordered_M = np.sort(self.held_out_M)
        held_out_N = np.searchsorted(ordered_M, values_N, side="right")
        found_N: FloatArray = (held_out_N + itself).astype(np.float64)
        return found_N


@dataclass(frozen=True)
class Rejecter:
    """A confidence and its threshold."""

    wanted: Wanted
    threshold: Threshold
    signals: tuple[_Signal, ...] = field(compare=False)
    """One, or two of which the lower rank counts."""

    @classmethod
    def of(
        cls,
        run: RunDirectory,
        inference: Inference,
        wanted: Wanted,
        models_of: RunDirectory | None = None,
    ) -> Self:
        """Choose the threshold on the held-out texts of a run.

        Args:
            run: the run or evaluation.
            inference: of any of its test texts; their scores are not looked at.
            wanted: what is asked for.
            models_of: see `gencls_core.report.inference.infer`.

        Raises:
            StoreError: when there are no held-out texts with labels of two classes, or the base
                model has not scored texts.
            UsageError: when no threshold has so low an error rate, not even on held-out texts, or
                the scores cannot be compared with the base model's.
        """
        if inference.fit is None:
            raise StoreError.of(
                "no held-out texts to choose a threshold on",
                place=run.validation_scores.path,
                found=" ".join(inference.notes),
                expected="labelled texts of at least two classes that no model learned from",
                remedy="run or evaluate with a --validation-fraction above 0",
            )
        log_posterior_MC, texts = held_out_posterior(inference.fit, inference)
        correct_M = log_posterior_MC.argmax(axis=1) == texts.label_codes
        signals = []
        if wanted.method != "background":
            signals.append(_Signal("posterior", log_odds(log_posterior_MC)))
        if wanted.method != "posterior":
            if inference.by_loss:
                raise UsageError.of(
                    "labels decided by mean losses cannot be compared with the base model's scores",
                    place=run.path,
                    found="--likelihood loss",
                    expected="exact likelihoods",
                    remedy="--reject posterior",
                )
            origin = models_of or origin_of(run, run.manifest())
            known = background_of(stores_of_held_out(run, origin))
            place = origin.validation_scores.path
            ratio_M = likelihood_ratio(texts, inference.prior, known, place)
            tested = background_of([run.scores])
            signals.append(_Signal("background", ratio_M, tested, run.scores.path))
        # A held-out text is counted among those that are no surer than it.
        held_out = [signal.held_out_M for signal in signals]
        confidence_M = _joined(_levels(signals, held_out, itself=0), len(correct_M))
        return cls(wanted, _threshold(run, wanted, confidence_M, correct_M), tuple(signals))

    def confidence(self, inference: Inference) -> FloatArray:
        """Give how sure each test text's answer is, [N]."""
        return _joined(self._levels_of(inference), self.threshold.held_out)

    def _levels_of(self, inference: Inference) -> list[FloatArray]:
        return _levels(self.signals, [signal.of(inference) for signal in self.signals], itself=1)

    def reasons(self, inference: Inference) -> pa.Array:
        """Give why each test text is not answered, [N] strings; null where it is.

        A reason is the name of a confidence; two are joined by a comma.
        """
        levels = self._levels_of(inference)
        refused_N = ~(_joined(levels, self.threshold.held_out) > self.threshold.value)
        found_N = np.full(len(refused_N), "", dtype=object)
        for signal, level_N in zip(self.signals, levels, strict=True):
            low_N = refused_N & ~(level_N > self.threshold.value)
            found_N[low_N & (found_N != "")] += ", "
            found_N[low_N] += signal.name
        return pa.array(found_N, pa.string(), mask=~refused_N)

    def answers(self, inference: Inference) -> BoolArray:
        """Say which test texts are answered, [N]."""
        found_N: BoolArray = self.confidence(inference) > self.threshold.value
        return found_N

    def report(self, inference: Inference) -> RejectionReport:
        """Measure what it does to a run's test texts, of which at least one has a label."""
        answered_N, wrong_N = self.answers(inference), ~_correct(inference)
        labelled_N = inference.matrix.label_codes >= 0
        count, answered = len(answered_N), int(answered_N.sum())
        judged, mistakes = (
            int((answered_N & labelled_N).sum()),
            int((answered_N & labelled_N & wrong_N).sum()),
        )
        chosen = self.threshold
        return RejectionReport(
            method=self.wanted.method,
            wanted_coverage=self.wanted.coverage,
            wanted_error_rate=self.wanted.error_rate,
            threshold=None if math.isinf(chosen.value) else chosen.value,
            held_out=chosen.held_out,
            held_out_answered=chosen.answered,
            held_out_mistakes=chosen.mistakes,
            expected_coverage_ci95=chosen.coverage_ci95,
            promised=chosen.promised,
            risk_bound=chosen.bound,
            held_out_needed=chosen.needed,
            answered=answered,
            coverage=answered / count,
            coverage_ci95=wilson_interval(answered, count),
            risk=mistakes / judged if judged else None,
            risk_ci95=wilson_interval(mistakes, judged) if judged else None,
            risk_of_all=float(wrong_N[labelled_N].mean()),
        )


def _levels(
    signals: Sequence[_Signal], values: Sequence[FloatArray], *, itself: int
) -> list[FloatArray]:
    """Give one confidence as it is; several as ranks, so that they can be compared."""
    if len(signals) == 1:
        return [values[0]]
    return [s.rank(values_N, itself) for s, values_N in zip(signals, values, strict=True)]


def _joined(levels: Sequence[FloatArray], held_out: int) -> FloatArray:
    """Give one confidence as it is; of ranks up to `held_out` + 1 the lowest, then the highest."""
    if len(levels) == 1:
        return levels[0]
    lowest_N, highest_N = np.minimum.reduce(levels), np.maximum.reduce(levels)
    joined_N: FloatArray = lowest_N + highest_N / (held_out + 2)
    return joined_N


def _threshold(
    run: RunDirectory, wanted: Wanted, confidence_M: FloatArray, correct_M: BoolArray
) -> Threshold:
    if wanted.error_rate is None:
        assert wanted.coverage is not None
        return threshold_for_coverage(confidence_M, correct_M, wanted.coverage)
    found = threshold_for_error_rate(confidence_M, correct_M, wanted.error_rate)
    if found is None:
        raise UsageError.of(
            "no threshold has so low an error rate",
            place=run.path,
            found=f"--error-rate {wanted.error_rate:g}, while of the {len(correct_M):,} "
            "held-out texts the surest is answered wrongly",
            remedy="give --coverage, or train better models: this confidence says little",
        )
    return found


def held_out_posterior(
    fit: CalibrationFit, inference: Inference
) -> tuple[FloatArray, LikelihoodMatrix]:
    """Give log P(class | text) of each labelled held-out text, [M, C] nats, and these texts.

    Made as the answer of `inference` is, under the same prior; where that is calibrated, each text
    without having been calibrated on.
    """
    texts = fit.texts.take(np.flatnonzero(fit.texts.label_codes >= 0))
    if inference.decided_by is None:
        return posterior_of(texts, inference.prior), texts
    fitted = _fit_pool if isinstance(inference.decided_by, Pool) else fit_calibration
    return cross_fitted(texts, fit=fitted, prior=inference.prior), texts


def _fit_pool(texts: LikelihoodMatrix, prior: Mapping[str, float]) -> Calibration | Pool | None:
    return None if why_not_calibrated(texts) else fit_pool(texts, prior).pool


def selective_report(
    inference: Inference, rejecter: Rejecter | None = None
) -> SelectiveReport | None:
    """Measure a confidence on the labelled test texts; None for fewer than MIN_TEXTS.

    Args:
        inference: of all test texts.
        rejecter: whose confidence; default: that of the answer's posterior.
    """
    rows_N = np.flatnonzero(inference.matrix.label_codes >= 0)
    if len(rows_N) < MIN_TEXTS:
        return None
    confidence_N = log_odds(inference.answer)
    if rejecter is not None:
        confidence_N = rejecter.confidence(inference)
    found = selective(confidence_N[rows_N], _correct(inference)[rows_N])
    return SelectiveReport(
        curve=[RiskPointReport(coverage=p.coverage, risk=p.risk) for p in found.curve],
        aurc=found.aurc,
        aurc_best=found.aurc_best,
        auroc=found.auroc,
    )


def _correct(inference: Inference) -> BoolArray:
    """Say which answers are right, [N]."""
    found_N: BoolArray = inference.answer.argmax(axis=1) == inference.matrix.label_codes
    return found_N
