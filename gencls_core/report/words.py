"""Numbers and names as a reader wants them: rounded to what they are worth, with their unit."""

from __future__ import annotations

from gencls_core import durations
from gencls_core.report.schema import DecisionReport, PriorReport, Report
from gencls_core.report.schema_rejection import RejectionReport, SelectiveReport
from gencls_core.selection_report import SelectionReport
from gencls_core.systems.names import system_title

__all__ = [
    "above",
    "accuracy_sentence",
    "by_answer",
    "choice",
    "confidence",
    "cost",
    "count",
    "decisions",
    "duration",
    "headline",
    "memory",
    "nats",
    "number",
    "percent",
    "perplexity",
    "prior",
    "rejection",
    "signed",
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


def signed(value: float) -> str:
    """Give what speaks for or against something, in nats, with two decimals."""
    return f"{value:+.2f}".replace("-", "−")


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
    return "–" if seconds is None else durations.duration(seconds).replace(" ", NBSP)


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


def prior(used: PriorReport) -> dict[str, str]:
    """Give the prior of each class, with its standard error where it was estimated."""
    errors = used.standard_error or {}
    return {
        name: f"{found:.3f}" + (f" ± {errors[name]:.3f}" if name in errors else "")
        for name, found in used.per_class.items()
    }


def choice(selection: SelectionReport) -> str:
    """Say which recipe was taken, and why."""
    sentence = f"{selection.chosen} was taken: {selection.reason}."
    if selection.fine_tune_note:
        sentence += f" No fine-tune stands beside it: {selection.fine_tune_note}."
    if all(trial.nll is None for trial in selection.trials):
        return sentence
    texts = f"{count(selection.held_out_texts)} held-out texts"
    if selection.parts:
        of = "" if selection.parts == selection.cut_into else f" of {selection.cut_into}"
        texts = (
            f"{count(selection.held_out_texts)} train texts, each scored by a model that did not "
            f"learn from its part ({selection.parts}{of} parts)"
        )
    return (
        f"{sentence} Recipes are judged by the mean −log P of the labels of {texts}, calibrated "
        "without the text itself. The test texts had no part in it."
    )


def calibrated_how(report: Report) -> str:
    """Say what the calibrated figures rest on, in the middle of a sentence."""
    found = None if report.calibration is None else report.calibration.ensemble
    if found is None or not found.taken:
        return "calibrated on held-out texts"
    return f"calibrated on held-out texts with {system_title(found.system)} beside them"


def ensemble(report: Report) -> str | None:
    """Say whether a second system stands beside the likelihoods, and why; None for no ensemble."""
    found = None if report.calibration is None else report.calibration.ensemble
    if found is None:
        return None
    difference = f"{found.nll_together - found.nll_alone:+.3f}".replace("-", "−")
    by = (
        f"{found.reason} (NLL {found.nll_alone:.3f} without it, {found.nll_together:.3f} with it, "
        f"a difference of {difference} ± {found.standard_error:.3f} nats on "
        f"{count(found.num_texts)} held-out texts, each calibrated without itself)"
    )
    title = system_title(found.system)
    if not found.taken:
        return f"{_capitalised(title)} was tried beside the likelihoods and left out: {by}."
    shares = ", ".join(f"{member.of} {percent(member.share)}" for member in found.members)
    return (
        f"{_capitalised(title)} stands beside the likelihoods: {by}. The answer is the mean of "
        f"three calibrated posteriors: {shares}."
    )


def headline(report: Report) -> list[str]:
    """Say in sentences what came out; the first is the result."""
    labelled = report.num_examples - report.num_unlabelled
    name = system_title(report.system)
    subject = f"The {name} label" if report.system == "class-lm" else f"{_capitalised(name)} labels"
    texts = f"the {count(labelled)} test texts" if labelled > 1 else "the one test text"
    accuracy, interval = report.accuracy, report.accuracy_ci95
    plain = accuracy.uncalibrated, interval.uncalibrated
    calibrated = None
    if accuracy.calibrated is not None and interval.calibrated is not None:
        calibrated = accuracy.calibrated, interval.calibrated
    stands_by_it = report.answer == "calibrated"
    found, (low, high) = calibrated if calibrated and stands_by_it else plain
    sentences = [
        f"{subject} {percent(found)} of {texts} correctly "
        f"(95{NBSP}% interval {100 * low:.1f}–{100 * high:.1f}{NBSP}%)"
        f"{', ' + calibrated_how(report) if stands_by_it else ''}."
    ]
    if stands_by_it:
        sentences.append(f"By the likelihoods alone: {accuracy_sentence(*plain)}.")
    elif calibrated:
        sentences.append(
            f"{_capitalised(calibrated_how(report))}: {accuracy_sentence(*calibrated)}."
        )
    for system, baseline in report.baselines.items():
        label = _capitalised(system_title(system))
        figures = accuracy_sentence(baseline.accuracy, baseline.accuracy_ci95)
        sentences.append(f"{label}: {figures}.")
    if report.decisions is not None:
        sentences.append(decisions(report.decisions))
    if report.rejection is not None:
        sentences.append(rejection(report.rejection))
    return sentences


def by_answer(report: Report) -> str:
    """Say by which answer texts are counted, in the middle of a sentence."""
    refused = "" if report.rejection is None else " (where a text has none, by its likeliest class)"
    return f"by the {report.answer} answer{refused}"


def decisions(made: DecisionReport) -> str:
    """Say what decisions by costs cost, beside the likeliest classes."""
    saved = made.mean_cost_of_likeliest - made.mean_cost
    interval = ""
    if made.saved_ci95 is not None:
        low, high = made.saved_ci95
        interval = f" (95{NBSP}% interval {cost(low)} to {cost(high)})"
    return (
        f"Decided by what mistakes cost, a text costs {cost(made.mean_cost)} in the mean; its "
        f"likeliest class would cost {cost(made.mean_cost_of_likeliest)}, {cost(saved)} more"
        f"{interval}. The posterior expected "
        f"{cost(made.expected_cost)}. {percent(made.accuracy)} are decided correctly."
    )


def rejection(made: RejectionReport) -> str:
    """Say which part of the texts is answered, how well, and what the threshold promises."""
    wrong = "."
    if made.risk is not None and made.risk_ci95 is not None:
        wrong = (
            f", {accuracy_sentence(made.risk, made.risk_ci95)} of them wrongly; of all, it would "
            f"be {percent(made.risk_of_all)}."
        )
    low, high = made.expected_coverage_ci95
    texts = f"{count(made.held_out)} held-out texts"
    if made.promised is None:
        chosen = (
            f"The threshold was chosen on {texts} for a coverage of "
            f"{percent(made.wanted_coverage)}; for texts like them it lies between "
            f"{percent(low)} and {percent(high)}, with a probability of 95{NBSP}%."
        )
    elif made.promised:
        chosen = (
            f"The threshold was chosen on {texts}, which show for texts like them that no more "
            f"than {percent(made.wanted_error_rate)} of the answers are wrong, with a probability "
            f"of 95{NBSP}%."
        )
    else:
        chosen = (
            f"An error rate of {percent(made.wanted_error_rate)} cannot be promised: of {texts}, "
            f"{count(made.held_out_answered)} are above the threshold and "
            f"{count(made.held_out_mistakes)} of them wrong, by which it may be up to "
            f"{percent(made.risk_bound)}; at least {count(made.held_out_needed)} are needed, all "
            "answered rightly. The threshold is a guess."
        )
    return f"With --reject {made.method}, {percent(made.coverage)} are answered{wrong} {chosen}"


def confidence(found: SelectiveReport) -> str:
    """Say how well confidence tells right answers from wrong ones."""
    surer = (
        "All answers are right, or all wrong."
        if found.auroc is None
        else f"A right answer is surer than a wrong one with a probability of "
        f"{percent(found.auroc)} (AUROC)."
    )
    return (
        f"{surer} The area under the risk-coverage curve is {number(found.aurc)}, and would be "
        f"{number(found.aurc_best)} if every right answer were surer than every wrong one."
    )


def cost(value: float) -> str:
    """Give a mean cost with three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}".replace("-", "−")


def _capitalised(words: str) -> str:
    """Begin a sentence with some words; `str.capitalize` would lower the rest."""
    return f"{words[0].upper()}{words[1:]}"
