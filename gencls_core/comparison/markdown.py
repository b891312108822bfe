"""report.md of a comparison: its figures as Markdown tables, for a terminal or a pull request."""

from __future__ import annotations

from gencls_core.comparison import words
from gencls_core.comparison.schema import Comparison, EstimateReport, SystemReport
from gencls_core.report.markdown import escaped, table
from gencls_core.report.words import NBSP, count, duration, percent
from gencls_core.report.words import nats as nats_of
from gencls_core.report.words import number as number_of
from gencls_core.significance import format_p

__all__ = ["render_markdown"]


def render_markdown(comparison: Comparison, *, curve: str | None = None) -> str:
    """Give the comparison as GitHub-flavoured Markdown.

    Args:
        comparison: what is told.
        curve: name of the file beside it that holds the drawn learning curve.
    """
    parts = [
        f"# {escaped(comparison.test.name)}: systems compared",
        " ".join(escaped(sentence) for sentence in words.headline(comparison)),
        "## Questions",
        "\n".join(
            f"- {escaped(answer.question)} **{escaped(verdict)}**{_rest(rest)}"
            for answer in comparison.questions
            for verdict, rest in [words.answer_parts(answer)]
        ),
        "## Systems",
        f"Figures with 95{NBSP}% intervals, on "
        f"{count(sum(comparison.test.texts.values()))} labelled test texts.",
        _systems(comparison),
    ]
    if curve is not None:
        parts += ["## Learning curve", f"![Accuracy against train texts per class]({curve})"]
    if comparison.pairs:
        parts += ["## Pairs", "The more accurate one first.", _pairs(comparison)]
    notes = [*comparison.notes, *comparison.test.warnings]
    if notes:
        parts += ["## Notes", "\n".join(f"- {escaped(note)}" for note in notes)]
    parts += [
        "## Data and runs",
        f"Test texts: {_classes(comparison)}; fingerprint `{comparison.test.fingerprint}`.",
        _runs(comparison),
        f"Written {comparison.generated}.",
    ]
    return "\n\n".join(parts) + "\n"


def _rest(rest: str) -> str:
    return (" " if rest.startswith(" ") else "") + escaped(rest)


def _classes(comparison: Comparison) -> str:
    return ", ".join(f"{escaped(n)} {count(c)}" for n, c in comparison.test.texts.items())


def _systems(comparison: Comparison) -> str:
    head = ["system", "train texts per class", "accuracy (%)", "macro F1", "NLL (nats)", "ECE"]
    head += ["uncalibrated", "training", "scoring 1,000 texts", "runs", "intervals over"]
    rows = [
        _system(system, group.trained)
        for group in words.groups(comparison)
        for system in group.systems
    ]
    return table(head, rows)


def _system(system: SystemReport, trained: bool) -> list[str]:
    def number(estimate: EstimateReport) -> str:
        return f"{number_of(estimate.value)} ({words.number_interval(estimate)})"

    return [
        escaped(system.name),
        words.number_of_texts(system.train_texts) if trained else "–",
        f"{100 * system.accuracy.value:.1f} ({words.share_interval(system.accuracy)})",
        number(system.macro_f1),
        f"{nats_of(system.nll.value)} ({words.nats_interval(system.nll)})",
        number(system.ece),
        percent(system.uncalibrated_accuracy),
        duration(system.train_seconds),
        duration(system.seconds_per_1000_texts),
        count(len(system.runs)),
        words.sources(system.accuracy.sources),
    ]


def _pairs(comparison: Comparison) -> str:
    head = ["system", "against", "difference (points)", "verdict", "Holm", "bootstrap"]
    rows = [
        [
            escaped(pair.a),
            escaped(pair.b),
            f"{words.points(pair.difference)} "
            f"({words.points(pair.low)} to {words.points(pair.high)})",
            "**better**" if words.significant(pair) else "not shown",
            escaped(format_p(pair.holm_p)),
            escaped(format_p(pair.bootstrap_p)),
            f"{escaped(format_p(pair.mcnemar_p))} ({pair.mcnemar_method})",
            f"{count(pair.only_a)} : {count(pair.only_b)}",
        ]
        for pair in words.leader_first(comparison)
    ]
    return table([*head, "McNemar", "right alone"], rows)


def _runs(comparison: Comparison) -> str:
    rows = [
        [
            escaped(run.uri),
            str(run.seeds[0]),
            str(run.seeds[1]),
            run.train_texts,
            escaped(", ".join(run.systems)),
        ]
        for run in words.runs_of(comparison)
    ]
    return table(["run", "data seed", "training seed", "train texts per class", "systems"], rows)
