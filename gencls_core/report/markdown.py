"""report.md: the figures of a report as Markdown tables, for a terminal or a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gencls_core.report import words
from gencls_core.report.schema import Report, ScoringTask, TrainingTask

__all__ = ["escaped", "render_markdown", "table"]

_ESCAPED = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#"})


def render_markdown(report: Report) -> str:
    """Give the report as GitHub-flavoured Markdown; it holds no text of the data set."""
    parts = [
        f"# {escaped(report.dataset.name)}: generative text classification",
        " ".join(words.headline(report)),
        f"Written {report.generated} from the scores {report.score_digest[:12]}.",
        "## Figures",
        _figures(report),
        "## Classes",
        f"Precision and recall are those of the {report.answer} answer.",
        _classes(report),
        "## Confusion matrix",
        f"Texts; rows are the true classes, columns the predicted ones, {words.by_answer(report)}.",
        _confusion(report),
        "## Cost",
        _costs(report),
        *(
            []
            if report.selective is None
            else ["## Confidence", words.confidence(report.selective)]
        ),
        *_selection(report),
        "## Data and settings",
        _settings(report),
    ]
    notes = [*report.notes, *report.dataset.warnings]
    if notes:
        parts += ["## Notes", "\n".join(f"- {escaped(note)}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _figures(report: Report) -> str:
    intervals = report.accuracy_ci95
    rows = [
        [
            "accuracy",
            words.accuracy_sentence(report.accuracy.uncalibrated, intervals.uncalibrated),
            "–"
            if report.accuracy.calibrated is None or intervals.calibrated is None
            else words.accuracy_sentence(report.accuracy.calibrated, intervals.calibrated),
        ]
    ]
    for name, both, shown in (
        ("macro F1", report.macro_f1, words.number),
        ("weighted F1", report.weighted_f1, words.number),
        ("NLL (nats per text)", report.nll, words.nats),
        ("Brier score", report.brier, words.number),
        ("expected calibration error (ECE)", report.ece, words.number),
        ("ECE by chance, were each probability right", report.ece_by_chance, words.number),
    ):
        rows.append([name, shown(both.uncalibrated), shown(both.calibrated)])
    return table(["figure", "uncalibrated", "calibrated"], rows)


def _classes(report: Report) -> str:
    rows = []
    calibrated = report.per_class.calibrated
    for name, of in report.per_class.of(report.answer).items():
        perplexity = report.perplexity[name]
        rows.append(
            [
                escaped(name),
                words.count(of.support),
                words.number(of.precision),
                words.number(of.recall),
                words.number(report.per_class.uncalibrated[name].f1),
                words.number(calibrated[name].f1 if calibrated else None),
                words.perplexity(perplexity.own if perplexity else None),
                words.perplexity(perplexity.others if perplexity else None),
            ]
        )
    head = ["class", "texts", "precision", "recall", "F1 uncalibrated", "F1 calibrated"]
    return table([*head, "perplexity", "as the others"], rows)


def _confusion(report: Report) -> str:
    rows = [
        [f"**{escaped(name)}**", *map(words.count, cells)]
        for name, cells in zip(report.classes, report.confusion.of(report.answer), strict=True)
    ]
    return table(["", *map(escaped, report.classes)], rows)


def _costs(report: Report) -> str:
    costs: list[tuple[str, TrainingTask | None, ScoringTask | None]] = []
    if report.training is not None:
        costs.append(("*all classes*", report.training, None))
    costs += [(escaped(name), task.training, task.scoring) for name, task in report.tasks.items()]
    rows = [
        [
            name,
            words.duration(training.seconds if training else None),
            words.count(round(training.tokens_per_second) if training else None),
            words.memory(training.peak_memory_bytes if training else None),
            words.memory(training.peak_gpu_memory_bytes if training else None),
            words.duration(scoring.seconds if scoring else None),
            words.memory(scoring.peak_memory_bytes if scoring else None),
        ]
        for name, training, scoring in costs
    ]
    head = ["class", "training", "tokens/s", "memory", "GPU memory", "scoring", "scoring memory"]
    return table(head, rows)


def _confidence(report: Report) -> list[str]:
    found = report.selective
    return [] if found is None else ["## Confidence", words.confidence(found)]


def _selection(report: Report) -> list[str]:
    chosen = report.selection
    if chosen is None:
        return []
    rows = [
        [
            f"**{escaped(trial.name)}**" if trial.name == chosen.chosen else escaped(trial.name),
            f"{trial.learning_rate:g}",
            words.nats(trial.nll),
            words.above(trial.above_best, trial.standard_error),
            words.percent(trial.accuracy),
            words.duration(trial.train_seconds),
            escaped(trial.note or ""),
        ]
        for trial in chosen.trials
    ]
    head = [
        "recipe",
        "learning rate",
        "held-out NLL",
        "above the lowest",
        "calibrated accuracy",
        "training",
    ]
    return ["## Choice of the recipe", words.choice(chosen), table([*head, ""], rows)]


def _settings(report: Report) -> str:
    prior = ", ".join(
        f"{escaped(name)} {probability}" for name, probability in words.prior(report.prior).items()
    )
    calibration = "none"
    if report.calibration is not None:
        calibration = (
            f"scale {report.calibration.scale:.4g}, fitted on "
            f"{words.count(report.calibration.num_texts)} held-out texts"
        )
    rows = [
        ["model", escaped(str(report.model.get("name", "–")))],
        ["prior", f"{escaped(report.prior.name)} ({prior})"],
        ["calibration", calibration],
        *([["ensemble", escaped(ensemble)]] if (ensemble := words.ensemble(report)) else []),
        ["truncated texts", words.count(report.truncated)],
        ["texts in several windows", words.count(report.windowed)],
        ["dataset fingerprint", f"`{report.dataset.fingerprint}`"],
        ["wall time", words.duration(report.timing.wall_seconds)],
    ]
    return table(["setting", "value"], rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay cells, which are Markdown already, out as a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def escaped(value: str) -> str:
    """Make a name safe inside a table cell."""
    return " ".join(value.translate(_ESCAPED).split())
