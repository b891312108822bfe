"""Inline SVG from matplotlib: the same bytes for the same data, and the page's own colours.

Figures are drawn in stand-in colours that are then replaced by CSS variables, so one drawing
serves the light page, the dark page and the printed one. Text stays text: it is selectable, takes
the page's font and keeps the file small.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = ["GRID", "INK", "MUTED", "RIGHT", "SERIES", "WRONG", "draw", "wrapped"]

# Stand-ins, each replaced by the CSS variable named beside it.
INK, MUTED, GRID, RIGHT, WRONG = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05"
# Colours of lines that stand side by side, on pages that define `--series-1` and so on.
SERIES = tuple(f"#0a0b{number:02x}" for number in range(6, 14))
_VARIABLES = {
    **{INK: "--ink", MUTED: "--muted", GRID: "--line", RIGHT: "--right", WRONG: "--wrong"},
    **{stand_in: f"--series-{number}" for number, stand_in in enumerate(SERIES, start=1)},
}

_STYLE = {
    "svg.fonttype": "none",
    # A class name may hold `$`, which is no mathematics.
    "text.parse_math": False,
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
}


def draw(
    name: str, label: str, size: tuple[float, float], plot: Callable[[Figure, Axes], None]
) -> str:
    """Draw one figure and give it as an `<svg>` element.

    Args:
        name: prefix of every id inside, unique on the page.
        label: what the figure shows, in words, for who cannot see it.
        size: width and height in inches; at 72 points an inch, text is 10.5 CSS pixels at scale 1.
        plot: draws on the axes.
    """
    with _settings(name):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        plot(figure, figure.add_subplot())
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(stream.getvalue(), name, label)


def wrapped(name: str, columns: int) -> str:
    """Break a name into lines, also inside words; a full-width character takes two columns."""
    lines, used = [""], 0
    for word in name.split():
        room = columns - used - bool(used)
        if _columns(word) <= room:
            lines[-1] += f" {word}" if used else word
            used += _columns(word) + bool(used)
            continue
        if used:
            lines.append("")
            used = 0
        for character in word:
            if used + _columns(character) > columns:
                lines.append("")
                used = 0
            lines[-1] += character
            used += _columns(character)
    return "\n".join(lines)


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


@contextmanager
def _settings(name: str) -> Iterator[None]:
    with mpl.rc_context({**_STYLE, "svg.hashsalt": f"gencls-{name}"}), warnings.catch_warnings():
        # The browser has glyphs that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def _inline(svg: str, name: str, label: str) -> str:
    """Turn a standalone SVG file into an element of a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    # Ids must be unique over all figures of the page.
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    # Inherited from the page; `font:` would also reset the size, which must stay.
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', svg)[:2]
    svg = re.sub(r'\s(width|height)="[\d.]+pt"', "", svg, count=2)
    attributes = f'role="img" aria-label="{escape(label)}" style="--w:{width}px;--h:{height}px"'
    return svg.replace("<svg", f"<svg {attributes}", 1).strip()
