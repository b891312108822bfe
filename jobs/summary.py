"""The tables that a run and a comparison end with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gencls_core.remote_path import Location

if TYPE_CHECKING:
    from gencls_core.report.class_change import ClassChange

__all__ = ["print_class_change", "print_comparison", "print_summary"]


def print_summary(report_path: Location, console: Console | None = None) -> None:
    """Print the accuracy table of `report.json`, and where the report is."""
    from gencls_core.storage import read_json
    from gencls_core.systems.names import system_title

    console = console or Console(highlight=False)
    report: dict[str, Any] = read_json(report_path / "report.json")
    table = Table(title=None, header_style="bold")
    table.add_column("system")
    for name in ("accuracy", "95 % interval", "macro F1"):
        table.add_column(name, justify="right")
    main = (
        "class language models"
        if report["system"] == "class-lm"
        else system_title(report["system"])
    )
    rows = [(main, report, "uncalibrated")]
    ensemble: dict[str, Any] = (report["calibration"] or {}).get("ensemble") or {}
    taken = ensemble.get("taken", False)
    if report["accuracy"]["calibrated"] is not None:
        with_it = f", with {system_title(ensemble['system'])}" if taken else ""
        rows.append((f"  calibrated on held-out texts{with_it}", report, "calibrated"))
    for name, values, form in rows:
        interval = values["accuracy_ci95"][form]
        table.add_row(
            name,
            _percent(values["accuracy"][form]),
            _interval(interval),
            f"{values['macro_f1'][form]:.3f}",
            style="bold" if form == report["answer"] else None,
        )
    for name, baseline in report["baselines"].items():
        table.add_row(
            system_title(name),
            _percent(baseline["accuracy"]),
            _interval(baseline["accuracy_ci95"]),
            f"{baseline['macro_f1']:.3f}",
        )
    console.print(table)
    if (selection := report.get("selection")) is not None:
        console.print(f"Recipe {selection['chosen']}: {selection['reason']}.", markup=False)
    if ensemble:
        what = "stands beside its likelihoods" if taken else "was tried beside them and left out"
        name = system_title(ensemble["system"])
        sentence = f"{name} {what}: {ensemble['reason']}."
        console.print(sentence[0].upper() + sentence[1:], markup=False)
    if (made := report.get("decisions")) is not None:
        from gencls_core.report.schema import DecisionReport
        from gencls_core.report.words import decisions

        console.print(decisions(DecisionReport.model_validate(made)), markup=False)
    if (refused := report.get("rejection")) is not None:
        from gencls_core.report.schema_rejection import RejectionReport
        from gencls_core.report.words import rejection

        console.print(rejection(RejectionReport.model_validate(refused)), markup=False)
    console.print(f"{report['num_examples']:,} test texts. Report: ", end="")
    console.print(str(report_path / "report.html"), soft_wrap=True, markup=False)


def print_class_change(change: ClassChange, seconds: float, console: Console | None = None) -> None:
    """Print what a new class did to the test texts, and what it cost.

    Args:
        change: figures before and after.
        seconds: that the command took.
        console: where to; None: standard output.
    """
    from gencls_core.durations import duration

    console = console or Console(highlight=False)
    table = Table(header_style="bold")
    table.add_column(f"with {escape(change.name)}", overflow="fold")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    before, after = (
        f"{count:,} of {change.texts:,}, {_percent(count / max(change.texts, 1))}"
        for count in (change.correct_before, change.correct_after)
    )
    table.add_row("old test texts that are right", before, after)
    table.add_row(f"old test texts that go to {escape(change.name)}", "–", f"{change.moved:,}")
    for name, count in change.moved_from.items():
        table.add_row(f"  of {escape(name)}", "–", f"{count:,}")
    recall = "no test text"
    if change.new_texts:
        share = _percent(change.new_correct / change.new_texts)
        recall = f"{change.new_correct:,} of {change.new_texts:,}, {share}"
    table.add_row(f"recall of {escape(change.name)}", "–", recall)
    console.print(table)
    console.print(
        f"Cost: {duration(change.seconds)} of training and scoring for {change.name}, of "
        f"{duration(change.seconds_of_all)} that all classes took; "
        f"{duration(seconds)} from start to end.",
        markup=False,
    )


def print_comparison(folder: Location, console: Console | None = None) -> None:
    """Print systems and answers of a comparison's `report.json`, and where the report is."""
    from gencls_core.storage import read_json
    from gencls_core.systems.registry import UNTRAINED

    console = console or Console(highlight=False)
    report: dict[str, Any] = read_json(folder / "report.json")
    table = Table(title=None, header_style="bold")
    table.add_column("system", overflow="fold")
    for name in ("texts", "runs", "accuracy", "95 % interval", "NLL"):
        table.add_column(name, justify="right")
    for system in sorted(report["systems"], key=lambda s: (-s["train_texts"], -_accuracy(s))):
        interval = system["accuracy"]
        table.add_row(
            escape(system["name"]),
            "–" if system["system"] in UNTRAINED else f"{system['train_texts']:,.0f}",
            str(len(system["runs"])),
            _percent(_accuracy(system)),
            f"{100 * interval['low']:.1f}–{100 * interval['high']:.1f} %",
            f"{system['nll']['value']:.3f}",
        )
    console.print(table)
    for answer in report["questions"]:
        if answer["verdict"] != "not asked":
            console.print(f"{answer['question']} {answer['words']}", markup=False)
    texts = sum(report["test"]["texts"].values())
    console.print(f"{texts:,} test texts; train texts are counted per class. Report: ", end="")
    console.print(str(folder / "report.html"), soft_wrap=True, markup=False)


def _accuracy(system: dict[str, Any]) -> float:
    return float(system["accuracy"]["value"])


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _interval(bounds: list[float]) -> str:
    return f"{100 * bounds[0]:.1f} – {100 * bounds[1]:.1f} %"
