"""A comparison in sentences and cells: which system is best, and what that rests on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gencls_core.comparison.schema import (
    ALPHA,
    Answer,
    Comparison,
    EstimateReport,
    PairReport,
    SystemReport,
)
from gencls_core.comparison.sizes import at_largest
from gencls_core.report import words
from gencls_core.systems.names import about_system
from gencls_core.systems.registry import UNTRAINED

__all__ = [
    "Group",
    "Run",
    "about",
    "answer_parts",
    "compared_systems",
    "groups",
    "headline",
    "leader_first",
    "nats_interval",
    "number_interval",
    "number_of_texts",
    "points",
    "runs_of",
    "share_interval",
    "significant",
    "sources",
    "turned",
]


@dataclass(frozen=True)
class Group:
    """Systems that were trained on equally many texts, the most accurate first."""

    title: str
    short: str
    """How many train texts per class: `300`, or `all (1,500)`."""
    trained: bool
    systems: list[SystemReport]


@dataclass(frozen=True)
class Run:
    """A run directory, and what of it is compared."""

    uri: str
    seeds: tuple[int, int]
    train_texts: str
    systems: list[str]


def headline(comparison: Comparison) -> list[str]:
    """Say in sentences which system is best and what it is better than; the first is the result."""
    ranked = compared_systems(comparison)
    best, others = ranked[0], ranked[1:]
    texts = sum(comparison.test.texts.values())
    accuracy = best.accuracy
    sentences = [
        f"{best.name} labels {words.percent(accuracy.value)} of the {words.count(texts)} test "
        f"texts correctly (95{words.NBSP}% interval {share_interval(accuracy)}{words.NBSP}%)"
        f"{', more than any other system' if others and not _ties(best, others) else ''}."
    ]
    if _ties(best, others):
        sentences.append(f"So does {_listed(other.name for other in _ties(best, others))}.")
    if not others:
        return sentences
    pairs = {frozenset((pair.a, pair.b)): pair for pair in comparison.pairs}
    beaten: list[str] = []
    unclear: list[str] = []
    for other in others:
        pair = pairs[frozenset((best.name, other.name))]
        (beaten if significant(pair) else unclear).append(other.name)
    if beaten:
        tested = len(comparison.pairs)
        corrected = f", corrected for {words.count(tested)} pairs" if tested > 1 else ""
        sentences.append(
            f"It is significantly better than {_listed(beaten)} "
            f"(p{words.NBSP}<{words.NBSP}{ALPHA}{corrected})."
        )
    if unclear:
        sentences.append(
            f"Not shown to be better than {_listed(unclear)}: the difference may be chance."
        )
    return sentences


def _ties(best: SystemReport, others: Sequence[SystemReport]) -> list[SystemReport]:
    return [other for other in others if other.accuracy.value == best.accuracy.value]


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def compared_systems(comparison: Comparison) -> list[SystemReport]:
    """Give the systems that are compared pair by pair, the most accurate first."""
    chosen = {system.name: system for system in at_largest(comparison.systems)}
    return sorted(chosen.values(), key=_accuracy)


def _accuracy(system: SystemReport) -> float:
    return -system.accuracy.value


def groups(comparison: Comparison) -> list[Group]:
    """Give all systems: those with the most train texts, those without any, those with fewer."""
    found: dict[tuple[bool, int], list[SystemReport]] = {}
    for system in comparison.systems:
        untrained = system.system in UNTRAINED
        count = 0 if untrained else 10**12 if system.sample is None else system.sample
        found.setdefault((untrained, -count), []).append(system)
    ranked = sorted(found.items(), key=lambda item: item[0])
    ordered = [_group(not untrained, systems) for (untrained, _), systems in ranked]
    # What needs no train texts is compared with those that had the most.
    return sorted(ordered, key=lambda group: (group is not ordered[0], group.trained))


def _group(trained: bool, systems: list[SystemReport]) -> Group:
    texts = number_of_texts(systems[0].train_texts)
    title, short = f"{texts} train texts per class", texts
    if systems[0].sample is None:
        title, short = f"All train texts ({texts} per class)", f"all ({texts})"
    ranked = sorted(systems, key=_accuracy)
    return Group(title if trained else "Without training", short, trained, ranked)


def about(system: SystemReport) -> str:
    """Say what a system is, in a few words; an unknown one is told by what its scores are."""
    return about_system(system.system) or system.quantity.replace("_", "-")


def sources(names: Sequence[str]) -> str:
    """Say what an interval rests on: `texts and seeds`, or `texts only`."""
    return " and ".join(names) if len(names) > 1 else f"{names[0]} only"


def share_interval(estimate: EstimateReport) -> str:
    """Give the interval of a share in percent, without the sign: `78.8–83.6`."""
    return f"{100 * estimate.low:.1f}–{100 * estimate.high:.1f}"


def number_interval(estimate: EstimateReport) -> str:
    """Give the interval of a score between 0 and 1: `0.812–0.840`."""
    return f"{words.number(estimate.low)}–{words.number(estimate.high)}"


def nats_interval(estimate: EstimateReport) -> str:
    """Give the interval of a log-probability: `0.212–0.340`."""
    return f"{words.nats(estimate.low)}–{words.nats(estimate.high)}"


def points(difference: float) -> str:
    """Give a difference of two shares in percentage points, with its sign: `+2.1`."""
    shown = f"{100 * difference:+.1f}"
    return "0.0" if float(shown) == 0 else shown.replace("-", "−")


def number_of_texts(count: float) -> str:
    """Give a mean number of texts: a whole one, or one with a decimal where it is small."""
    return f"{count:.1f}" if count < 100 and count != round(count) else f"{round(count):,}"


def leader_first(comparison: Comparison) -> list[PairReport]:
    """Give the pairs with the more accurate system as `a`, the most accurate systems first."""
    rank = {system.name: place for place, system in enumerate(compared_systems(comparison))}
    pairs = [pair if rank[pair.a] < rank[pair.b] else turned(pair) for pair in comparison.pairs]
    return sorted(pairs, key=lambda pair: (rank[pair.a], rank[pair.b]))


def turned(pair: PairReport) -> PairReport:
    """Give a pair with its systems the other way round."""
    return pair.model_copy(
        update={
            "a": pair.b,
            "b": pair.a,
            "difference": -pair.difference,
            "low": -pair.high,
            "high": -pair.low,
            "only_a": pair.only_b,
            "only_b": pair.only_a,
        }
    )


def significant(pair: PairReport) -> bool:
    """Say whether the corrected test and the interval both tell the two apart."""
    return pair.holm_p < ALPHA and not pair.low <= 0 <= pair.high


def answer_parts(answer: Answer) -> tuple[str, str]:
    """Split an answer into its verdict and the rest of the sentence."""
    verdict = answer.verdict.capitalize()
    if answer.words.startswith(verdict):
        return verdict, answer.words[len(verdict) :]
    return f"{verdict}.", f" {answer.words}"


def runs_of(comparison: Comparison) -> list[Run]:
    """Give every run directory with its seeds and the systems that were taken from it."""
    found: dict[str, Run] = {}
    for system in comparison.systems:
        for uri, seeds in zip(system.runs, system.seeds, strict=True):
            texts = "all" if system.sample is None else words.count(system.sample)
            run = found.setdefault(uri, Run(uri, seeds, texts, []))
            run.systems.append(system.name)
    return list(found.values())
