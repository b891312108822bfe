"""Figures with 95 % intervals: accuracy, macro-F1, NLL and ECE over texts and over seeds.

An interval holds the sources of variance that were resampled, and names them:

    texts   another test set of this size from the same source would hold other texts
    seeds   training again with another seed would give another system

With one run per system only the texts can speak: the resampled values are the figure of N texts
drawn from N. With S runs a figure is the mean over them, and from its resampled values

    figure of N texts drawn from N  +  mean of S − 1 runs drawn from S  −  mean of all S

the deviations from their mean are multiplied by √(ν / χ²_ν), drawn anew for each. S − 1 runs make
the variance unbiased, where S draws would give (S − 1) / S of it (Rao & Wu 1988,
"Resampling inference with complex survey data"). The factor turns a normal distribution into
Student's t with ν degrees of freedom, since three runs hardly tell how much runs differ; ν is
Satterthwaite's (1946), that is S − 1 where runs decide and N − 1 where texts do.

The two are drawn apart and added. Drawing rows and columns of one table of runs × texts (the
pigeonhole bootstrap, Owen 2007) counts three times what only a
text and a run together decide, and this counts it twice. No resampling has it right (McCullagh
2000, "Resampling and exchangeable arrays"); both err towards intervals that are too wide.

Shapes: S runs (seeds), N labelled texts, R resamples, K distinct values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from gencls_core.metrics import wilson_interval
from gencls_core.outcomes import BoolArray, Outcomes, Sums, ece_if_calibrated, sums_of_texts
from gencls_core.score_matrix import FloatArray, IntArray

__all__ = [
    "Estimate",
    "Source",
    "SystemEstimates",
    "estimate_system",
    "quantiles95",
    "resampled_means",
    "sources_of",
    "with_seeds",
]

Source = Literal["texts", "seeds"]

SYSTEM_RESAMPLES = 2_000
_BLOCK_CELLS = 1_000_000
"""Weights [N, R] in memory at a time; 8 MB as float64, with intermediates some 30 MB."""


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval, and what the interval rests on."""

    value: float
    low: float
    high: float
    method: Literal["wilson", "percentile", "basic"]
    """How the interval was made; the last two are bootstrap intervals."""
    num_texts: int
    num_seeds: int
    sources: tuple[Source, ...]
    """What was allowed to vary. Without `seeds` the interval is about these trained models."""


@dataclass(frozen=True)
class SystemEstimates:
    """The figures of one system: means over its runs."""

    accuracy: Estimate
    macro_f1: Estimate
    nll: Estimate
    """Mean −log P(true class | text), in nats per text."""
    ece: Estimate
    """Expected calibration error, 0 to 1."""


def estimate_system(
    outcomes: Outcomes, *, resamples: int = SYSTEM_RESAMPLES, seed: int = 0
) -> SystemEstimates:
    """Give accuracy, macro-F1, NLL and ECE with their 95 % intervals.

    The same seed draws the same texts for every system with as many of them. Which interval:

    - accuracy: Wilson's for one run, as in the run's own report. For several, percentiles, with two
      right and two wrong texts added to those that are drawn from (after Agresti & Coull 1998),
      without which a system that errs nowhere would get an interval of width 0.
    - macro-F1, NLL: percentiles. A class that a resample leaves without text and prediction is left
      out of its mean. Where all is right or all is wrong there is nothing to resample, and macro-F1
      gets the interval of accuracy (times the share of classes that occur).
    - ECE: it adds up absolute gaps, so noise only raises it, and resampling raises it again. The
      basic (reversed) interval takes that much off instead; it is widened to hold the figure, and
      down to 0 where posteriors that are perfectly calibrated could well give this figure.

    One text alone does not vary: its NLL gets an interval of width 0.

    Raises:
        ValueError: when `resamples` is below 1.
    """
    if resamples < 1:
        raise ValueError("an interval needs at least one resample")
    num_seeds, num_texts = outcomes.predicted_SN.shape
    sums_KN = sums_of_texts(outcomes)
    whole = Sums.of(sums_KN @ np.ones((num_texts, 1)), outcomes)
    absent_S = (whole.texts_SCR == 0).sum(axis=1)[:, 0]
    text_generator, seed_generator = (np.random.default_rng([seed, part]) for part in (0, 1))
    drawn_3R = np.concatenate(
        [
            Sums.of(sums_KN @ weights_NR, outcomes).figures(absent_S).mean(axis=1)
            for weights_NR in _text_weights(num_texts, resamples, text_generator)
        ],
        axis=1,
    )

    def estimate(figure: int, method: Literal["percentile", "basic"], most: float) -> Estimate:
        runs_S = whole.figures(absent_S)[figure, :, 0]
        value = float(runs_S.mean())
        low, high = quantiles95(with_seeds(drawn_3R[figure], [runs_S], num_texts, seed_generator))
        if method == "basic":
            low, high = min(value, 2 * value - high), max(value, 2 * value - low)
        bounds = max(low, 0.0), min(high, most)
        return Estimate(value, *bounds, method, num_texts, num_seeds, sources_of(num_seeds))

    accuracy = _accuracy(outcomes.correct_SN, resamples, seed)
    macro_f1 = estimate(0, "percentile", 1.0)
    if accuracy.value in (0.0, 1.0):
        share = macro_f1.value or 1.0
        low, high = accuracy.low * share, accuracy.high * share
        macro_f1 = replace(accuracy, value=macro_f1.value, low=low, high=high)
    nll, ece = estimate(1, "percentile", np.inf), estimate(2, "basic", 1.0)
    if ece.value <= quantiles95(ece_if_calibrated(outcomes, resamples, seed_generator))[1]:
        ece = replace(ece, low=0.0)
    return SystemEstimates(accuracy, macro_f1, nll, ece)


def _accuracy(correct_SN: BoolArray, resamples: int, seed: int) -> Estimate:
    num_seeds, num_texts = correct_SN.shape
    value = float(correct_SN.mean())
    sources = sources_of(num_seeds)
    if num_seeds == 1:
        bounds = wilson_interval(int(correct_SN.sum()), num_texts)
        return Estimate(value, *bounds, "wilson", num_texts, num_seeds, sources)
    generator = np.random.default_rng([seed, 2])
    texts_K = np.bincount(correct_SN.sum(axis=0), minlength=num_seeds + 1)
    texts_K[[0, -1]] += 2
    texts_R = resampled_means(np.arange(num_seeds + 1), texts_K, resamples, generator) / num_seeds
    runs_S = correct_SN.mean(axis=1)
    low, high = quantiles95(with_seeds(texts_R, [runs_S], num_texts, generator))
    bounds = max(low, 0.0), min(high, 1.0)
    return Estimate(value, *bounds, "percentile", num_texts, num_seeds, sources)


def sources_of(*num_seeds: int) -> tuple[Source, ...]:
    """Name what varies, given the runs of each system concerned."""
    return ("texts", "seeds") if max(num_seeds) > 1 else ("texts",)


def resampled_means(
    values_K: IntArray | FloatArray,
    texts_K: IntArray,
    resamples: int,
    generator: np.random.Generator,
) -> FloatArray:
    """Draw texts with replacement and give each resample's mean value: [R].

    Texts of one value are alike: how often each of the K values is drawn is all there is to draw.

    Args:
        values_K: distinct values; whole numbers where equal means are to be equal floats.
        texts_K: how many texts have each.
        resamples: R.
        generator: where the draws come from.
    """
    total = int(texts_K.sum())
    drawn_RK = generator.multinomial(total, texts_K / total, size=resamples)
    means_R: FloatArray = (drawn_RK @ values_K) / total
    return means_R


def with_seeds(
    texts_R: FloatArray,
    run_figures: Sequence[FloatArray],
    num_texts: int,
    generator: np.random.Generator,
) -> FloatArray:
    """Add the variance of seeds to resampled figures, as the top of this file says: [R].

    Args:
        texts_R: the figure over resampled texts, with all runs.
        run_figures: the figure of each run, [S], of each system whose runs are drawn apart. A
            system of one run adds nothing.
        num_texts: N.
        generator: where the draws come from.
    """
    several = [figures_S for figures_S in run_figures if len(figures_S) > 1]
    centre, resamples = texts_R.mean(), len(texts_R)
    parts = [(float(texts_R.var()), num_texts - 1)]
    off_R = texts_R - centre
    for figures_S in several:
        free = len(figures_S) - 1
        parts.append((float(figures_S.var(ddof=1)) / len(figures_S), free))
        runs_RS = generator.integers(0, free + 1, size=(resamples, free))
        off_R += figures_S[runs_RS].mean(axis=1) - figures_S.mean()
    uncertain = sum(variance**2 / max(1, free) for variance, free in parts)
    if not several or not uncertain:
        return texts_R
    freedom = sum(variance for variance, _ in parts) ** 2 / uncertain
    draws_R: FloatArray = centre + off_R * np.sqrt(
        freedom / generator.chisquare(freedom, size=resamples)
    )
    return draws_R


def quantiles95(draws_R: FloatArray) -> tuple[float, float]:
    """Give the bounds between which the middle 95 % of the draws lie."""
    low, high = np.quantile(draws_R, (0.025, 0.975))
    return float(low), float(high)


def _text_weights(
    num_texts: int, resamples: int, generator: np.random.Generator
) -> Iterator[FloatArray]:
    """Yield how often each resample holds each text, [N, R] for some resamples at a time."""
    rows = max(1, _BLOCK_CELLS // num_texts)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn_RN = generator.integers(0, num_texts, size=(count, num_texts))
        drawn_RN += np.arange(count)[:, None] * num_texts
        weights = np.bincount(drawn_RN.ravel(), minlength=count * num_texts)
        yield np.ascontiguousarray(weights.reshape(count, num_texts).T, dtype=np.float64)
