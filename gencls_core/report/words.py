"""Numbers and names as a reader wants them: rounded to what they are worth, with their unit."""

from __future__ import annotations

from gencls_core.report.schema import Report
from gencls_core.selection_report import SelectionReport
from gencls_core.systems.names import system_title

__all__ = [
    "above",
    "accuracy_sentence",
    "choice",
    "count",
    "duration",
    "headline",
    "memory",
    "nats",
    "number",
    "percent",
    "perplexity",
]

NBSP = "\N{NO-BREAK SPACE}"


def percent(share: float | None) -> str:
    """Give a share as a percentage with one decimal: test sets carry no more."""
    return "–" if share is None else f"{100 * share:.1f}{NBSP}%"


def count(value: int | None) -> str:
    """Give a count with thousands separated."""
    return "–" if value is None else f"{value:,}"


def nats(value: float | None) -> str:
    """Give a log-probability with about three significant digits."""
    if value is None:
        return "–"
    size = abs(value)
    if size and size < 0.001:
        return f"{value:.1g}"
    decimals = 3 if size < 1 else 2 if size < 10 else 1 if size < 1000 else 0
    return f"{value:,.{decimals}f}".replace("-", "−")


def number(value: float | None) -> str:
    """Give a score between 0 and 1 with three decimals."""
    return "–" if value is None else f"{value:.3f}"


def perplexity(value: float | None) -> str:
    """Give a perplexity with three significant digits."""
    if value is None:
        return "–"
    if value >= 1e6:
        return f"{value:.1e}"
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def duration(seconds: float | None) -> str:
    """Give a time in the two largest units that matter."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{1000 * seconds:.0f}{NBSP}ms"
    if seconds < 60:
        return f"{seconds:.1f}{NBSP}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{NBSP}min {whole % 60}{NBSP}s"
    return f"{whole // 3600}{NBSP}h {whole % 3600 // 60}{NBSP}min"


def memory(size: int | None) -> str:
    """Give bytes in MB or GB (powers of ten); nothing measured is a dash."""
    if not size:
        return "–"
    return f"{size / 1e9:.1f}{NBSP}GB" if size >= 1e9 else f"{size / 1e6:.0f}{NBSP}MB"


def accuracy_sentence(accuracy: float, interval: tuple[float, float]) -> str:
    """Give an accuracy with its interval: `81.3 % (95 % interval 78.8–83.6 %)`."""
    low, high = interval
    return f"{percent(accuracy)} (95{NBSP}% interval {100 * low:.1f}–{100 * high:.1f}{NBSP}%)"


def above(difference: float | None, error: float | None) -> str:
    """Give a difference in nats with its standard error."""
    if difference is None or error is None:
        return "–"
    return "the lowest" if difference == 0 == error else f"{difference:.3f} ± {error:.3f}"


def choice(selection: SelectionReport) -> str:
    """Say which recipe was taken, and why."""
    sentence = f"{selection.chosen} was taken: {selection.reason}."
    if all(trial.nll is None for trial in selection.trials):
        return sentence
    return (
        f"{sentence} Recipes are judged by the mean −log P of the labels of "
        f"{count(selection.held_out_texts)} held-out texts, calibrated without the text itself. "
        "The test texts had no part in it."
    )


def headline(report: Report) -> list[str]:
    """Say in sentences what came out; the first is the result."""
    labelled = report.num_examples - report.num_unlabelled
    name = system_title(report.system)
    subject = f"The {name} label" if report.system == "class-lm" else f"{_capitalised(name)} labels"
    texts = f"the {count(labelled)} test texts" if labelled > 1 else "the one test text"
    low, high = report.accuracy_ci95.uncalibrated
    sentences = [
        f"{subject} {percent(report.accuracy.uncalibrated)} of {texts} correctly "
        f"(95{NBSP}% interval {100 * low:.1f}–{100 * high:.1f}{NBSP}%)."
    ]
    if report.accuracy.calibrated is not None and report.accuracy_ci95.calibrated is not None:
        figures = accuracy_sentence(report.accuracy.calibrated, report.accuracy_ci95.calibrated)
        sentences.append(f"Calibrated on held-out texts: {figures}.")
    for system, baseline in report.baselines.items():
        label = _capitalised(system_title(system))
        figures = accuracy_sentence(baseline.accuracy, baseline.accuracy_ci95)
        sentences.append(f"{label}: {figures}.")
    return sentences


def _capitalised(words: str) -> str:
    """Begin a sentence with some words; `str.capitalize` would lower the rest."""
    return f"{words[0].upper()}{words[1:]}"
