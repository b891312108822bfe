"""The pages of a comparison: complete, safe against names, and read in a real browser."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import xml.etree.ElementTree as ElementTree
from html import escape
from pathlib import Path
from typing import Any

import pytest
from browser_fixtures import Browser, browser  # noqa: F401
from comparison_fixtures import HOSTILE, LONG, SIZES, SYSTEMS, make_comparison
from page_fixtures import parsed
from s3_fixtures import S3Server, s3  # noqa: F401

from gencls_core.comparison import plots, words
from gencls_core.comparison.html import render_html
from gencls_core.comparison.markdown import render_markdown
from gencls_core.comparison.publish import publish_comparison
from gencls_core.comparison.schema import Answer, Comparison, EstimateReport
from gencls_core.report.svg import SERIES, wrapped
from gencls_core.report.templates import template


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return make_comparison()


@pytest.fixture(scope="module")
def folder(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison") / "report"
    publish_comparison(comparison, folder)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def renamed(comparison: Comparison, names: dict[str, str]) -> Comparison:
    text = comparison.model_dump_json()
    for old, new in names.items():
        text = text.replace(json.dumps(old), json.dumps(new))
    return Comparison.model_validate_json(text)


def with_pair(comparison: Comparison, a: str, b: str, **values: Any) -> Comparison:
    pairs = [
        pair.model_copy(update=values) if {pair.a, pair.b} == {a, b} else pair
        for pair in comparison.pairs
    ]
    assert pairs != comparison.pairs
    return comparison.model_copy(update={"pairs": pairs})


def test_every_file_is_there_and_the_same_twice(
    comparison: Comparison, folder: Path, tmp_path: Path
) -> None:
    names = ["learning-curve.svg", "report.html", "report.json", "report.md"]
    assert sorted(path.name for path in folder.iterdir()) == names
    text = (folder / "report.json").read_text(encoding="utf-8")
    assert Comparison.model_validate_json(text) == comparison
    publish_comparison(comparison, tmp_path)
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_an_earlier_curve_does_not_stay(comparison: Comparison, tmp_path: Path) -> None:
    publish_comparison(comparison, tmp_path)
    one = make_comparison((300,), ("class-lm", "zero-shot"), seeds=1)
    publish_comparison(one, tmp_path)
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["report.html", "report.json", "report.md"]
    assert "learning-curve.svg" not in (tmp_path / "report.md").read_text(encoding="utf-8")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'href="#curve"' not in html
    assert html.count("<svg") == 1
    assert "McNemar p-values" in html


def test_published_in_an_object_store(comparison: Comparison, s3: S3Server) -> None:  # noqa: F811
    place = s3.path("compared")
    publish_comparison(comparison, place)
    assert (place / "report.html").read_text() == render_html(comparison)
    one = make_comparison((300,), ("class-lm",), seeds=1)
    publish_comparison(one, place)
    assert not (place / "learning-curve.svg").exists()


def test_page_tells_everything_in_order(comparison: Comparison, page: str) -> None:
    sections = re.findall(r'<section id="(\w+)"', page)
    expected = ["questions", "accuracy", "curve", "systems", "pairs", "notes", "data"]
    assert sections == expected
    assert page.index('class="result"') < page.index('id="questions"')
    shown = "".join(parsed(page).shown)
    for answer in comparison.questions:
        assert answer.question in shown
        assert answer.words.split(": ")[-1] in shown
    for system in comparison.systems:
        for estimate in (system.accuracy, system.macro_f1, system.nll, system.ece):
            assert words.nats_interval(estimate) in shown or (
                words.number_interval(estimate) in shown or words.share_interval(estimate) in shown
            )
        assert all(run in shown for run in system.runs)
    for note in (*comparison.notes, *comparison.test.warnings, comparison.test.fingerprint):
        assert note in shown
    assert page.count("<small>against ") == len(comparison.pairs) == 15
    assert not re.search(r"p = 0\.0+(?!\d)", shown)


def test_page_escapes_names(page: str) -> None:
    found = parsed(page)
    assert not {"script", "img", "b>x", "demo", "iframe", "link", "i"} & set(found.tags)
    shown = "".join(found.shown)
    for text in (HOSTILE, LONG, "news <demo>", "a&b <i>", "<script>alert(1)</script>"):
        assert text in shown
    assert HOSTILE not in page


def test_page_loads_nothing(page: str) -> None:
    found = parsed(page)
    assert found.loads
    assert all(target.startswith("#") for target in found.loads)
    assert {target[1:] for target in found.loads} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert all(inner.startswith("#") for inner in re.findall(r"url\(([^)]*)", page))
    assert not re.search(r"https?:|@import|xmlns", page)
    assert not re.search(r"#0a0b[01][0-9a-f]", page), "a stand-in colour was left"


def test_page_is_accessible(page: str) -> None:
    assert '<html lang="en">' in page
    assert page.count("<h1") == 1
    assert page.count("<table") == page.count("<caption") == page.count('class="scroll"')
    assert "<th>" not in page
    assert page.count("<svg") == page.count('role="img" aria-label="') == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_lines_stand_out(scheme: str) -> None:
    css = "".join(
        template("gencls_core.comparison", name).render().split("@media")[scheme == "dark"]
        for name in ("palette.css.j2", "series.css.j2")
    )
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css))

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert sum(name.startswith("series") for name in colours) == len(SERIES)
    for name, colour in colours.items():
        if name.startswith("series"):
            dim, bright = sorted((luminance(colour), luminance(colours["page"])))
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, f"{name} in the {scheme} page"


def test_lines_are_told_apart_without_colour() -> None:
    styles = {(plots._DASHES[n % len(plots._DASHES)], plots._MARKERS[n % 8]) for n in range(40)}
    assert len(styles) == 40
    assert len(plots._MARKERS) == len(SERIES) == 8


def test_curve_is_a_file_of_its_own(folder: Path) -> None:
    text = (folder / "learning-curve.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    shown = "".join(root.itertext())
    assert "log scale" in shown
    assert HOSTILE in shown
    spoken = root.attrib["aria-label"]
    # A line where the number of train texts matters, a constant where it does not.
    assert re.search(r"class-lm [\d.]+\s%\sat 8, [\d.]+\s% at 1,500", spoken)
    assert re.search(r"zero-shot [\d.]+\s% without training", spoken)
    assert set(re.findall(r"var\((--[\w-]+)\)", text)) <= set(re.findall(r"(--[\w-]+):", text))


def test_markdown_keeps_its_tables(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 3
    for block in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "![Accuracy against train texts per class](learning-curve.svg)" in text
    assert "\\<b\\>x\\</b\\>" in text
    assert HOSTILE not in text
    assert "p = 0.0000" not in text


def test_headline_says_what_is_shown_and_what_is_not(comparison: Comparison) -> None:
    first, second = words.headline(comparison)
    assert re.match(r"class-lm labels [\d.]+\s% of the 400 test texts correctly", first)
    assert first.endswith("more than any other system.")
    assert second.startswith("It is significantly better than ")
    assert "zero-shot and majority" in second

    # The corrected test alone does not do, nor does the interval alone.
    for values in ({"holm_p": 0.05}, {"low": -0.01, "high": 0.2}):
        doubtful = with_pair(comparison, "class-lm", "discriminative", **values)
        sentences = words.headline(doubtful)
        assert "discriminative" not in sentences[1]
        assert sentences[2].startswith("Not shown to be better than discriminative:")
        assert render_markdown(doubtful).count("| not shown |") > 0


def test_headline_of_equals_and_of_one(comparison: Comparison) -> None:
    best = next(s for s in comparison.systems if (s.name, s.sample) == ("class-lm", None))
    systems = [
        s.model_copy(update={"accuracy": best.accuracy})
        if (s.name, s.sample) == ("discriminative", None)
        else s
        for s in comparison.systems
    ]
    first, second, *_ = words.headline(comparison.model_copy(update={"systems": systems}))
    assert "more than any other" not in first
    assert second == "So does discriminative."
    one = make_comparison((300,), ("class-lm",), seeds=1)
    assert len(words.headline(one)) == 1
    assert "#pairs" not in render_html(one)


def test_pairs_are_turned_whole(comparison: Comparison) -> None:
    rank = [system.name for system in words.compared_systems(comparison)]
    before = {frozenset((p.a, p.b)): p for p in comparison.pairs}
    turned = 0
    for pair in words.leader_first(comparison):
        assert rank.index(pair.a) < rank.index(pair.b)
        assert pair.low <= pair.difference <= pair.high
        assert pair.difference >= 0
        old = before[frozenset((pair.a, pair.b))]
        assert words.significant(pair) == words.significant(old)
        if old.a != pair.a:
            turned += 1
            assert (pair.difference, pair.low, pair.high) == (-old.difference, -old.high, -old.low)
            assert (pair.only_a, pair.only_b) == (old.only_b, old.only_a)
    assert turned


def test_systems_at_the_largest_number_of_texts(comparison: Comparison) -> None:
    ranked = words.compared_systems(comparison)
    assert {system.name for system in ranked} == set(SYSTEMS)
    assert {s.name for s in ranked} == {name for p in comparison.pairs for name in (p.a, p.b)}
    assert all(system.sample is None for system in ranked)
    groups = words.groups(comparison)
    assert [group.short for group in groups if group.trained] == [
        "all (1,500)", "300", "64", "16", "8"
    ]  # fmt: skip
    assert groups[1].title == "Without training"
    assert sum(len(group.systems) for group in groups) == len(comparison.systems)
    assert len(words.runs_of(comparison)) == 3 * len(SIZES)


def test_words() -> None:
    assert words.points(0.0213) == "+2.1"
    assert words.points(-0.0213) == "−2.1"
    assert words.points(-0.0001) == "0.0"
    assert words.number_of_texts(8) == "8"
    assert words.number_of_texts(7.5) == "7.5"
    assert words.number_of_texts(1499.7) == "1,500"
    assert words.sources(("texts",)) == "texts only"
    assert words.sources(("texts", "seeds")) == "texts and seeds"
    answer = Answer(question="?", verdict="not shown", words="Not shown: it may be chance.")
    assert words.answer_parts(answer) == ("Not shown", ": it may be chance.")
    pattern = Answer(question="?", verdict="no", words="Is it? Yes here; no on mr.")
    assert words.answer_parts(pattern) == ("No.", " Is it? Yes here; no on mr.")


def test_names_break_into_lines() -> None:
    assert wrapped("class-lm", 10) == "class-lm"
    assert wrapped("one two three", 7) == "one two\nthree"
    assert wrapped("a " + "b" * 12, 5) == "a\nbbbbb\nbbbbb\nbb"
    assert wrapped("漢字漢字", 4) == "漢字\n漢字"
    assert all(len(line) <= 40 for line in wrapped(LONG, 40).splitlines())


def test_odd_names_are_drawn(comparison: Comparison) -> None:
    names = {"class-lm": "_hidden", "zero-shot": "$x_{$", "majority": "漢" * 60, HOSTILE: "a\x07b"}
    odd = renamed(comparison, names)
    drawn = plots.learning_curve_plot(odd)
    assert drawn is not None
    for name in ("_hidden", "$x_{$"):
        # In the legend, and in the words for who cannot see it.
        assert drawn.count(name) == 2
    assert "漢" * 20 in drawn
    assert "_hidden" in render_html(odd)


def test_estimates_outside_their_interval_are_drawn(comparison: Comparison) -> None:
    odd = EstimateReport(value=1.0, low=0.99, high=0.995, method="percentile", sources=("texts",))
    points = [p.model_copy(update={"accuracy": odd}) for p in comparison.learning_curve]
    assert plots.learning_curve_plot(comparison.model_copy(update={"learning_curve": points}))


PROBE = """<script>
console.error("planted");
const box = e => e.getBoundingClientRect();
const focused = [...document.querySelectorAll("a[href], [tabindex]")].map(e => {
  e.focus(); return document.activeElement === e && e.tabIndex === 0;
});
const found = {
  width: innerWidth, page: document.documentElement.scrollWidth, body: document.body.scrollWidth,
  regions: [...document.querySelectorAll(".scroll")].map(e => ({
    inside: e.scrollWidth, shown: e.clientWidth, right: box(e).right, role: e.role,
    label: e.ariaLabel, table: box(e.querySelector("table")).height,
  })),
  plots: [...document.querySelectorAll("svg")].map(e => ({
    left: box(e).left, right: box(e).right, height: box(e).height, scale: e.getScreenCTM().a,
    texts: [...e.querySelectorAll("text")].map(t => ({
      text: t.textContent, left: box(t).left, right: box(t).right, top: box(t).top,
      bottom: box(t).bottom,
    })),
  })),
  cut: [...document.querySelectorAll("h1, h2, h3, p, li, dd, figcaption")].filter(
    e => e.scrollWidth > e.clientWidth).map(e => e.textContent),
  focused, scheme: getComputedStyle(document.body).backgroundColor,
};
const out = document.createElement("pre");
out.id = "probe"; out.textContent = JSON.stringify(found);
top.document.body.append(out);
</script>"""


def console(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_it_without_complaint(
    browser: Browser,  # noqa: F811
    folder: Path,
    width: int,
) -> None:
    shot = browser.folder / f"{width}.png"
    page = folder / "report.html"
    done = browser.run(page, width, f"--screenshot={shot}")
    assert console(done) == []
    if width == 1400:
        dumped = browser.run(page, width, "--dump-dom").stdout
        assert (dumped.count("</table>"), dumped.count("</svg>")) == (3, 2)
    content = shot.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (width, 3000)
    assert len(content) > 100_000, "a picture with hardly anything on it"


@pytest.mark.parametrize(("width", "dark"), [(400, False), (1400, True)])
def test_it_fits_and_the_keyboard_reaches_it(
    browser: Browser,  # noqa: F811
    page: str,
    width: int,
    dark: bool,
) -> None:
    copy = browser.folder / f"probe-{width}.html"
    # The policy lets no script run, so neither ours.
    allowed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert allowed != page
    probed = allowed.replace("</body>", f"{PROBE}</body>")
    # No window is narrower than 500 pixels, but a frame is.
    frame = (
        f'<body><iframe style="border:0;width:{width}px;height:3000px" srcdoc="{escape(probed)}">'
    )
    copy.write_text(frame if width < 500 else probed, encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    done = browser.run(copy, width, scheme, "--dump-dom")
    assert any("planted" in line for line in console(done)), "console errors would go unseen"
    answer = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert answer is not None
    found = json.loads("".join(parsed(answer[0]).shown))
    assert found["width"] == found["page"] == found["body"] == width
    assert found["scheme"] == ("rgb(20, 23, 26)" if dark else "rgb(252, 252, 250)")
    assert found["cut"] == []

    # Wide tables scroll in a region of their own, which the keyboard reaches and a voice names.
    assert len(found["regions"]) == 3
    for region in found["regions"]:
        assert region["role"] == "region"
        assert region["label"]
        assert region["right"] <= width
        assert region["table"] > 100
        assert (region["inside"] > region["shown"]) == (width == 400)
    assert len(found["focused"]) >= 7 + 3
    assert all(found["focused"])

    for plot in found["plots"]:
        assert plot["left"] >= 0
        assert plot["right"] <= width
        assert plot["height"] > 200
        # Figures are drawn with text of 10 CSS pixels and more.
        assert plot["scale"] * 10 >= 10
        for text in plot["texts"]:
            assert text["left"] >= 0, text["text"]
            assert text["right"] <= width, text["text"]
        assert not overlapping(plot["texts"])


def overlapping(texts: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Give the texts of a figure that lie over each other by more than their margins."""
    room = 2
    return [
        (a["text"], b["text"])
        for number, a in enumerate(texts)
        for b in texts[:number]
        if min(a["right"], b["right"]) - max(a["left"], b["left"]) > room
        and min(a["bottom"], b["bottom"]) - max(a["top"], b["top"]) > 3 * room
    ]
