"""A plausible comparison for the tests of its pages: figures from made-up predictions."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from gencls_core.comparison import schema
from gencls_core.comparison.questions import answers
from gencls_core.intervals import Estimate, estimate_system
from gencls_core.outcomes import Outcomes
from gencls_core.significance import compare_pairs

SIZES = (8, 16, 64, 300, None)
ALL_TEXTS = 1500
HOSTILE = "<b>x</b>"
LONG = "tfidf_" + "with|a*long`name&" * 3 + "end"
SYSTEMS = {
    "class-lm": ("class-lm", 0.58, 0.047),
    "discriminative": ("discriminative", 0.33, 0.074),
    HOSTILE: ("masked-lm", 0.5, 0.043),
    LONG: ("tfidf", 0.47, 0.05),
    "zero-shot": ("zero-shot", 0.67, 0.0),
    "majority": ("majority", 0.27, 0.0),
}
"""Name in the comparison → system, accuracy at 8 texts, gain per doubling."""
_QUANTITIES = {"class-lm": "log_likelihood", "masked-lm": "pseudo_log_likelihood"}
CLASSES = ("World", "Sports", "a&b <i>")


def make_comparison(
    sizes: tuple[int | None, ...] = SIZES,
    systems: tuple[str, ...] = tuple(SYSTEMS),
    *,
    seeds: int = 3,
    texts: int = 400,
) -> schema.Comparison:
    """Give the comparison of some systems at some numbers of train texts, a run per seed."""
    random = np.random.default_rng(5)
    truth_N = np.arange(texts) % len(CLASSES)
    reports, correct = [], {}
    for name in systems:
        system, start, gain = SYSTEMS[name]
        untrained, repeated = system == "zero-shot", system not in ("zero-shot", "majority")
        hard_N = random.uniform(size=texts)
        for sample in sizes[-1:] if untrained else sizes:
            doublings = np.log2((sample or ALL_TEXTS) / 8)
            draws = random if repeated else np.random.default_rng(6)  # the same at every number
            runs = [
                _log_posterior(draws, truth_N, hard_N, min(0.96, start + gain * doublings))
                for _ in range(seeds if repeated else 1)
            ]
            outcomes = Outcomes.of(runs, truth_N)
            if sample == sizes[-1]:
                correct[name] = outcomes.correct_SN
            reports.append(_report(name, sample, outcomes))
    pairs = [
        schema.PairReport(
            a=pair.a,
            b=pair.b,
            sample=sizes[-1],
            difference=pair.difference.difference,
            low=pair.difference.low,
            high=pair.difference.high,
            sources=pair.difference.sources,
            only_a=pair.mcnemar.only_a,
            only_b=pair.mcnemar.only_b,
            mcnemar_p=pair.mcnemar.p,
            mcnemar_method=pair.mcnemar.method,
            bootstrap_p=pair.difference.p,
            holm_p=pair.holm_p,
            holm_of=pair.holm_of,
        )
        for pair in compare_pairs(correct, resamples=2_000)
    ]
    return schema.Comparison(
        generated="2026-01-02T03:04:05+00:00",
        test=schema.TextsReport(
            name="news <demo>",
            fingerprint="0123456789abcdef" * 4,
            texts={name: int((truth_N == code).sum()) for code, name in enumerate(CLASSES)},
            warnings=["3 test texts stand in train too <script>alert(1)</script>."],
        ),
        systems=reports,
        pairs=pairs,
        learning_curve=[
            schema.CurvePoint(system=r.name, train_texts=r.train_texts, accuracy=r.accuracy)
            for r in reports
            if len(sizes) > 1
        ],
        questions=answers(pairs, []),
        notes=["A note about " + "a_word_that_no_browser_breaks_by_itself_" * 4],
    )


def _log_posterior(
    random: np.random.Generator, truth_N: np.ndarray, hard_N: np.ndarray, accuracy: float
) -> np.ndarray:
    """Give [N, C] log-probabilities that are right on about so many texts, mostly the same ones."""
    noise_N = random.normal(scale=0.05, size=len(truth_N))
    right_N = hard_N + noise_N < accuracy
    odds_NC = random.normal(scale=0.5, size=(len(truth_N), len(CLASSES)))
    chosen_N = np.where(right_N, truth_N, (truth_N + 1) % len(CLASSES))
    odds_NC[np.arange(len(truth_N)), chosen_N] += 3
    return odds_NC - np.log(np.exp(odds_NC).sum(axis=1, keepdims=True))


def _report(name: str, sample: int | None, outcomes: Outcomes) -> schema.SystemReport:
    system = SYSTEMS[name][0]
    runs = len(outcomes.predicted_SN)
    estimates = estimate_system(outcomes, resamples=200)

    def estimate(found: Estimate) -> schema.EstimateReport:
        values, fields = asdict(found), schema.EstimateReport.model_fields
        return schema.EstimateReport(**{key: values[key] for key in fields})

    return schema.SystemReport(
        name=name,
        system=system,
        quantity=_QUANTITIES.get(system, "log_posterior"),
        runs=[f"/data/runs/agnews/{sample or 'all'}-texts/seed-{seed}" for seed in range(runs)],
        seeds=[(seed, seed) for seed in range(runs)],
        sample=sample,
        train_texts=sample or ALL_TEXTS,
        accuracy=estimate(estimates.accuracy),
        macro_f1=estimate(estimates.macro_f1),
        nll=estimate(estimates.nll),
        ece=estimate(estimates.ece),
        uncalibrated_accuracy=estimates.accuracy.value - 0.01 if system == "class-lm" else None,
        train_seconds=61.5 * (sample or ALL_TEXTS) if system == "class-lm" else None,
        seconds_per_1000_texts={"class-lm": 184.2, "majority": 0.004}.get(system, 3.4),
    )
