"""`results.json`, where a bar's figures stay until it is measured again, and their table."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bars import BARS, Bar, BarResult, bar_of
from gencls_core.storage import write_json

__all__ = [
    "DOCUMENT",
    "RESULTS",
    "Machine",
    "put_between",
    "read_results",
    "render",
    "update_results",
    "write_table",
]

RESULTS = Path(__file__).parent / "results.json"
DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"

_BEGIN = "<!-- bars: written by `python -m benchmarks` -->"
_END = "<!-- end of bars -->"
_PACKAGES = ("torch", "transformers", "lm-eval", "ray")


@dataclass(frozen=True)
class Machine:
    """What a figure was measured on."""

    cpu: str
    cores: int
    memory_gb: int
    versions: dict[str, str]

    @classmethod
    def here(cls) -> Machine:
        """Describe this machine."""
        return cls(
            cpu=_cpu(),
            cores=os.cpu_count() or 1,
            memory_gb=round(psutil.virtual_memory().total / 2**30),
            versions={name: found for name in _PACKAGES if (found := _version(name))},
        )


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = [line.partition(":") for line in info.read_text("utf-8").split("\n\n")[0].splitlines()]
    fields = {name.strip(): value.strip() for name, _, value in lines}
    wanted = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in fields.get("flags", "")]
    family = f"family {fields.get('cpu family', '?')}, model {fields.get('model', '?')}"
    return ", ".join([fields.get("model name", platform.machine()), family, *wanted])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def update_results(
    path: Path, result: BarResult, command: str, machine: Machine, *, keep: bool = False
) -> None:
    """Put one bar's figures into the file; those of other bars stay as they are.

    Args:
        path: the JSON file.
        result: what was measured.
        command: that measured it.
        machine: on which it ran.
        keep: whether the bar's other cases stay.

    Raises:
        KeyError: when there is no such bar.
    """
    bar = bar_of(result.key)
    found = read_results(path)
    source = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": command,
        "machine": asdict(machine),
    }
    names = {case.case for case in result.cases}
    before = found[bar.key]["cases"] if keep and bar.key in found else []
    cases = [
        *(case for case in before if case["case"] not in names),
        *({**case.to_json(), **source} for case in result.cases),
    ]
    worst = bar.furthest(cases, key=lambda case: case["median"])
    found[bar.key] = {
        **{name: value for name, value in worst.items() if name not in source},
        "unit": bar.unit,
        "demand": bar.demand,
        "better": bar.better,
        "met": bar.met(worst["median"]),
        "cases": cases,
    }
    order = {bar.key: number for number, bar in enumerate(BARS)}
    ordered = dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))
    write_json(path, ordered)


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Read the file; empty where there is none."""
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def render(results: dict[str, dict[str, Any]]) -> str:
    """Give the table of all bars, every case in it, with machines, versions and commands."""
    lines = [
        "| what | wanted | worst case: median (min–max) | pairs | reached |",
        "| --- | --- | --- | --- | --- |",
        *(_row(bar, results.get(bar.key)) for bar in BARS),
    ]
    letters = _letters(results)
    cases = [
        line
        for bar in BARS
        if bar.key in results
        for line in _cases(bar, results[bar.key], letters)
    ]
    if cases:
        lines += ["", "| bar | case | on | median (min–max) | details |", "|" + " --- |" * 5]
        lines += cases
    return "\n".join([*lines, "", *_measured_on(results, letters)])


def _letters(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Give each kind of CPU a letter, that with the most figures the first."""
    cpus = Counter(case["machine"]["cpu"] for found in results.values() for case in found["cases"])
    return {cpu: chr(ord("A") + number) for number, (cpu, _) in enumerate(cpus.most_common())}


def _row(bar: Bar, found: dict[str, Any] | None) -> str:
    sign = "≥" if bar.better == "higher" else "≤"
    wanted = "shown" if bar.demand is None else f"{sign} {_number(bar.demand, bar.unit)}"
    if found is None:
        return f"| {bar.what} | {wanted} | not measured | | |"
    met = bar.met(found["median"])
    reached = {True: "yes", False: "**no**", None: ""}[met]
    return f"| {bar.what} | {wanted} | {_figure(found, bar)} | {found['pairs']} | {reached} |"


def _cases(bar: Bar, found: dict[str, Any], letters: dict[str, str]) -> list[str]:
    return [
        f"| `{bar.key}` | {case['case']} | {letters[case['machine']['cpu']]} | "
        f"{_figure(case, bar)} | {_details(case['details'])} |"
        for case in found["cases"]
    ]


def _figure(found: dict[str, Any], bar: Bar) -> str:
    spread = f"({_number(found['min'])}–{_number(found['max'])})"
    return f"{_number(found['median'], bar.unit)} {spread}"


def _details(details: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_number(v)}" for name, v in details.items())


def _number(value: float, unit: str = "") -> str:
    digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}".strip()


def _measured_on(results: dict[str, dict[str, Any]], letters: dict[str, str]) -> list[str]:
    """Give one line for each machine, set of versions, day and command."""
    lines = []
    for case in (case for found in results.values() for case in found["cases"]):
        machine = case["machine"]
        packages = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
        lines.append(
            f"- {letters[machine['cpu']]}, {case['date']}, `{case['command']}`: "
            f"{machine['cpu']}; {machine['cores']} cores, "
            f"{machine['memory_gb']} GB, no GPU; {packages}"
        )
    return sorted(set(lines))


def write_table(document: Path, results: dict[str, dict[str, Any]]) -> bool:
    """Rewrite the table between the two marks of a document; say whether it has them."""
    return put_between(document, _BEGIN, _END, render(results))


def put_between(document: Path, begin: str, end: str, table: str) -> bool:
    """Rewrite what stands between two marks of a document; say whether it has them."""
    if not document.exists():
        return False
    text = document.read_text(encoding="utf-8")
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        return False
    document.write_text(f"{before}{begin}\n\n{table}\n\n{end}{after}", encoding="utf-8")
    return True
