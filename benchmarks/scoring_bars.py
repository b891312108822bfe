"""Scoring: speed beside every peer and the matrix roof, set-up time, and four models beside one.

Two models × AG News and IMDB × two precisions. In each round every peer runs once, in a process of
its own that loads once and scores the texts of both data sets.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.bars import BarResult, Options
from benchmarks.cases import Case, Measurement, write_texts
from benchmarks.models import GPT2_RANDOM, model_folder, tokenizer_digest_of
from benchmarks.pairs import Pair, PeerError, Ratio, run_peer, run_rounds
from benchmarks.texts import DATASETS, sample, test_texts

__all__ = ["assert_equal_scores", "measure"]

_PEERS = "benchmarks.scoring_peers"
_TOKENS = {"bf16": 8_000, "fp32": 5_000}
_QUICK_TOKENS = 1_500
_K4_TOKENS = 4_000
_BATCH_SIZES = (1, 2, 4, 8, 16, 32)
"""What lm-eval is tried with."""
_TOLERANCE_NATS = 0.01

Rounds = Sequence[Sequence[Measurement]]
"""Per round, one measurement of each peer."""


def measure(options: Options) -> Iterator[BarResult]:
    """Measure the bars of scoring; a bar is given again as soon as it has one more case."""
    setup: list[Ratio] = []
    with tempfile.TemporaryDirectory(prefix="gencls-bench-") as folder:
        for precision in options.precisions:
            measured: dict[str, list[Ratio]] = {}
            for model in (options.model, GPT2_RANDOM):
                trials = _try_batches(options, model, precision, Path(folder))
                for key, ratio in _compare(trials, precision, options.pairs):
                    measured.setdefault(key, []).append(ratio)
                setup += measured.pop("scoring_setup_vs_lmeval")
                last = model == GPT2_RANDOM
                for key, ratios in measured.items():
                    yield BarResult(key, tuple(ratios), last)
                all_of_setup = last and precision == options.precisions[-1]
                yield BarResult("scoring_setup_vs_lmeval", tuple(setup), all_of_setup)
        yield BarResult("scoring_k4_vs_4x1", _four_models(options, Path(folder)))


@dataclass(frozen=True)
class _Trial:
    """A case, with lm-eval's best batch size, and its speed at each size that was tried."""

    case: Case
    speeds: dict[str, float]


def _case(
    options: Options,
    model: str,
    precision: str,
    dataset: str,
    folder: Path,
    *,
    tokens: int,
    batch_size: int,
) -> Case:
    """Give a case whose texts are neighbours in length, `batch_size` at a time."""
    place = model_folder(model, options.model)
    name = place.name
    return Case(
        name=f"{name}, {dataset}, {precision}",
        model=str(place),
        precision=precision,
        texts_file=write_texts(
            folder / f"{name}-{dataset}-{tokens}-{batch_size}.json",
            sample(test_texts(options, dataset), place, tokens, batch_size),
        ),
        threads=options.threads,
        options={"tokenizer_digest": tokenizer_digest_of(place), "batch_size": str(batch_size)},
    )


def _try_batches(options: Options, model: str, precision: str, folder: Path) -> list[_Trial]:
    """Find lm-eval's best batch size for each data set, on texts as it would batch them."""
    sizes = _BATCH_SIZES[-2:] if options.quick else _BATCH_SIZES
    tokens = _QUICK_TOKENS if options.quick else _TOKENS[precision]
    trials = []
    for dataset in DATASETS:
        cases = [
            _case(options, model, precision, dataset, folder, tokens=tokens, batch_size=size)
            for size in sizes
        ]
        speeds = [m.tokens_per_second for m in run_peer(f"{_PEERS}:lm_eval", cases)]
        best = cases[speeds.index(max(speeds))]
        names = [f"its_tokens_per_second_by_{size}" for size in sizes]
        trials.append(_Trial(best, dict(zip(names, speeds, strict=True))))
    return trials


def _compare(trials: list[_Trial], precision: str, rounds: int) -> Iterator[tuple[str, Ratio]]:
    """Run all peers in turn and give each bar's ratio for each case."""
    names = ["ours", "lm_eval", "roof"] + ["naive", "labels_loss"] * (precision == "bf16")
    cases = [trial.case for trial in trials]
    by_case = run_rounds([f"{_PEERS}:{name}" for name in names], cases, rounds)
    for trial, of_rounds in zip(trials, by_case, strict=True):
        if precision == "fp32":
            for ours, theirs, *_ in of_rounds:
                assert_equal_scores(trial.case.name, ours, theirs, _TOLERANCE_NATS)
        for number, name in enumerate(names[1:], start=1):
            bar = f"scoring_{precision}_vs_{name.replace('lm_eval', 'lmeval')}"
            ratio = _speed(trial.case.name, of_rounds, number)
            if name == "lm_eval":
                ratio = replace(ratio, details={**ratio.details, **trial.speeds})
            yield bar, ratio
    yield "scoring_setup_vs_lmeval", _setup(cases[0].name, by_case[0])


def assert_equal_scores(
    case: str, ours: Measurement, theirs: Measurement, tolerance_nats: float
) -> None:
    """Compare the log-likelihoods of the texts that both scored whole.

    Raises:
        PeerError: when one differs by more than the tolerance, or most texts cannot be compared.
    """
    mine = {name: value for name, value in ours.values.items() if name.startswith("text ")}
    shared = mine.keys() & theirs.values.keys()
    if 2 * len(shared) < len(mine):
        raise PeerError(f"{case}: only {len(shared)} of {len(mine)} texts can be compared")
    worst = max(shared, key=lambda name: abs(mine[name] - theirs.values[name]))
    difference = abs(mine[worst] - theirs.values[worst])
    if not difference <= tolerance_nats:
        raise PeerError(
            f"{case}: {worst} has {mine[worst]:.4f} nats by ours and {theirs.values[worst]:.4f} "
            f"by the peer; they may differ by {tolerance_nats}"
        )


def _speed(case: str, rounds: Rounds, peer: int) -> Ratio:
    pairs: list[Pair] = [(measured[0], measured[peer]) for measured in rounds]
    details = {
        "our_tokens_per_second": statistics.median(a.tokens_per_second for a, _ in pairs),
        "its_tokens_per_second": statistics.median(b.tokens_per_second for _, b in pairs),
    }
    if "batch_size" in pairs[0][1].values:
        details["its_batch_size"] = pairs[0][1].values["batch_size"]
    return Ratio.of(case, pairs, lambda a, b: a.tokens_per_second / b.tokens_per_second, details)


def _setup(case: str, rounds: Rounds) -> Ratio:
    pairs: list[Pair] = [(measured[0], measured[1]) for measured in rounds]
    details = {
        "our_seconds": statistics.median(a.setup_seconds for a, _ in pairs),
        "its_seconds": statistics.median(b.setup_seconds for _, b in pairs),
    }
    return Ratio.of(case, pairs, lambda a, b: b.setup_seconds / a.setup_seconds, details)


def _four_models(options: Options, folder: Path) -> tuple[Ratio, ...]:
    """Compare four class models with four times one, inside one process for each round."""
    tokens = _QUICK_TOKENS if options.quick else _K4_TOKENS
    precision = options.precisions[0]
    cases = [
        _case(options, options.model, precision, dataset, folder, tokens=tokens, batch_size=8)
        for dataset in DATASETS
    ]
    by_case = run_rounds(["benchmarks.four_models:four_models"], cases, options.pairs)
    return tuple(
        Ratio.of_values(
            case.name, [measured.seconds / measured.values["four_times_one"] for (measured,) in of]
        )
        for case, of in zip(cases, by_case, strict=True)
    )
