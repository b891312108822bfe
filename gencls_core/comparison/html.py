"""report.html of a comparison: one page that needs no network, no script and no other file."""

from __future__ import annotations

import re

from gencls_core.comparison import plots, words
from gencls_core.comparison.schema import ALPHA, Comparison
from gencls_core.report.templates import template
from gencls_core.significance import format_p

__all__ = ["render_curve", "render_html"]

_PACKAGE = "gencls_core.comparison"
_TESTS = {"mcnemar": "McNemar", "bootstrap": "bootstrap"}
_NO_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def render_html(comparison: Comparison) -> str:
    """Give the page; names, settings and notes are escaped."""
    groups = words.groups(comparison)
    ranked = words.compared_systems(comparison)
    sources: dict[str, list[str]] = {}
    for system in ranked:
        sources.setdefault(words.sources(system.accuracy.sources), []).append(system.name)
    return template(_PACKAGE, "comparison.html.j2").render(
        test=comparison.test,
        num_texts=sum(comparison.test.texts.values()),
        generated=comparison.generated,
        headline=words.headline(comparison),
        answers=[
            (answer.question, *words.answer_parts(answer), answer.verdict == "not asked")
            for answer in comparison.questions
        ],
        ranked=ranked,
        groups=groups,
        trained_on=[group.short for group in reversed(groups) if group.trained],
        sources=[
            ("Round" if "seeds" in rests else "Square", rests, names)
            for rests, names in sources.items()
        ],
        accuracy_svg=plots.accuracy_plot(comparison),
        curve_svg=plots.learning_curve_plot(comparison),
        pairs=words.leader_first(comparison),
        corrected=" and ".join(sorted({_TESTS[pair.holm_of] for pair in comparison.pairs})),
        alpha=ALPHA,
        notes=[*comparison.notes, *(f"Data: {warning}" for warning in comparison.test.warnings)],
        runs=words.runs_of(comparison),
        about=words.about,
        format_p=format_p,
        number_interval=words.number_interval,
        points=words.points,
        share_interval=words.share_interval,
        significant=words.significant,
        sources_of=words.sources,
        nats_interval=words.nats_interval,
    )


def render_curve(comparison: Comparison) -> str | None:
    """Give the learning curve as an SVG file in light and dark; None where there is no curve."""
    drawn = plots.learning_curve_plot(comparison)
    if drawn is None:
        return None
    opening, rest = _NO_XML.sub("", drawn).removeprefix("<svg ").split(">", 1)
    return template(_PACKAGE, "curve.svg.j2").render(opening=opening, rest=rest) + "\n"
