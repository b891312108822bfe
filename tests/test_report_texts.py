"""Single texts on the page: which are shown, in what order, with which words coloured."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser_fixtures import Browser, browser  # noqa: F401
from cluster_fixtures import gencls, succeed
from page_fixtures import parsed
from report_fixtures import CLASSES, make_run
from run_fixtures import make_config, write_jsonl

from cluster.pipeline import run_all
from gencls_core.report.build import build_report
from gencls_core.report.inference import Inference, infer
from gencls_core.report.rejections import Wanted
from gencls_core.report.texts import (
    EXPLAINED_TEXTS,
    SHOWN_MISTAKES,
    SHOWN_TEXTS,
    as_json,
    shown_texts,
)
from gencls_core.run import RunDirectory

HOSTILE = "</script><script>document.title='owned'</script> <!-- <img src=x onerror=alert(1)>"
MIXED = "Ein naïver Text, 天気がいい, والطقس جميل: it's well-known."


def packed_in(html: str) -> dict:
    [found] = [
        part.split(">", 1)[1].split("</script>")[0]
        for part in html.split("<script")
        if 'id="texts-data"' in part.split(">", 1)[0]
    ]
    return json.loads(found)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, Inference]:
    run = make_run(tmp_path_factory.mktemp("texts") / "run", unlabelled=7)
    return run, infer(run)


def test_mistakes_come_first_and_then_the_unsure(made: tuple[RunDirectory, Inference]) -> None:
    run, inference = made
    found = shown_texts(run, inference, run.dataset())
    answers, labels = inference.answer.argmax(axis=1), inference.matrix.label_codes
    wrong = {row for row in range(240) if labels[row] >= 0 and answers[row] != labels[row]}
    assert len(found.shown) == found.in_all == 240
    assert found.wrong_in_all == len(wrong) > SHOWN_MISTAKES
    assert {text.row for text in found.shown[: len(wrong)]} == wrong
    ahead = [text.ahead for text in found.shown[: len(wrong)]]
    assert ahead == sorted(ahead, reverse=True)
    margins = [text.margin for text in found.shown[len(wrong) :]]
    assert margins == sorted(margins)
    assert found.mistakes == found.shown[:SHOWN_MISTAKES]
    ordered = np.sort(inference.answer, axis=1)
    for text in found.shown[::17]:
        posterior = inference.answer[text.row]
        assert text.answer == inference.matrix.classes[posterior.argmax()]
        assert text.probability == pytest.approx(np.exp(posterior.max()))
        assert text.margin == pytest.approx(ordered[text.row, -1] - ordered[text.row, -2])
        if text.is_wrong:
            expected = posterior.max() - posterior[labels[text.row]]
            assert text.ahead == pytest.approx(expected)
        assert text.likeliest[0][0] == text.answer
        assert sum(p for _, p in text.likeliest) == pytest.approx(1)
    assert "--per-token" in found.note


def test_the_true_class_is_among_the_probabilities(
    made: tuple[RunDirectory, Inference], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, inference = made
    monkeypatch.setattr("gencls_core.report.texts._LIKELIEST", 1)
    for text in shown_texts(run, inference, run.dataset()).shown:
        names = [name for name, _ in text.likeliest]
        assert names == [text.answer, *([text.label] if text.is_wrong else [])]


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A report that leaves texts without an answer, whether they have labels or not."""
    run = make_run(tmp_path_factory.mktemp("refusing") / "run", unlabelled=40)
    build_report(run, reject=Wanted.of("posterior", 0.6, None))
    return run


def test_what_is_not_answered_is_no_mistake(refusing: RunDirectory) -> None:
    html = (refusing.report_path / "report.html").read_text(encoding="utf-8")
    data, answers = packed_in(html), ["", *CLASSES]
    rows = {row["example_id"]: row for row in pq.read_table(refusing.predictions_path).to_pylist()}
    assert len(data["id"]) == len(rows)
    for place, example_id in enumerate(data["id"]):
        row = rows[example_id]
        assert answers[data["answer"][place] + 1] == (row["answer"] or "")
        assert data["reasons"].get(str(place)) == row["reason"]
    refused = [row for row in rows.values() if row["reason"]]
    assert {row["label"] is None for row in refused} == {True, False}
    wrong = [
        row for row in rows.values() if row["answer"] and row["label"] not in (None, row["answer"])
    ]
    page = " ".join(html.split())
    assert f"of {len(wrong)} texts labelled wrongly, of those that are answered" in page
    assert f"{len(refused)} are not answered" in page
    assert "by the uncalibrated answer (where a text has none, by its likeliest class)" in page


def test_they_can_be_listed_by_keyboard(
    browser: Browser,  # noqa: F811
    refusing: RunDirectory,
) -> None:
    page = refusing.report_path / "report.html"
    data = packed_in(page.read_text(encoding="utf-8"))
    pairs = list(zip(data["label"], data["answer"], strict=True))
    kinds = (
        sum(answer >= 0 and label not in (-1, answer) for label, answer in pairs),
        sum(answer >= 0 and label == answer for label, answer in pairs),
        sum(answer < 0 for _, answer in pairs),
    )
    with browser.tab(page, 1000) as tab:
        tab.ask("document.querySelector('[data-is=search]').focus()")
        tab.press("Tab")
        for texts in kinds:  # wrong answers, right answers, not answered
            tab.press("ArrowDown")
            status = tab.ask("document.querySelector('[data-is=status]').textContent")
            assert status.endswith(f" of {texts} texts")
        line = "#texts-area tbody tr"
        assert tab.ask(f"document.querySelectorAll('{line}.wrong').length") == 0
        shown = tab.ask(
            f"[...document.querySelectorAll('{line}')].map(r => r.cells[2].textContent)"
        )
        assert set(shown) == {"–"}
        tab.tab_to(".texts .open")
        tab.press("Enter")
        said = tab.ask("document.querySelector('.opened p:not(.text)').textContent")
        assert said == "Not answered; reason: posterior"
        assert tab.complaints == []


def test_a_text_that_is_gone_is_said_to_be(made: tuple[RunDirectory, Inference]) -> None:
    run, inference = made
    ids = inference.matrix.example_ids.to_pylist()
    ids[3] = "another"
    matrix = replace(inference.matrix, example_ids=pa.chunked_array([ids]))
    found = shown_texts(run, replace(inference, matrix=matrix), run.dataset())
    gone = [text for text in found.shown if text.text is None]
    assert [text.row for text in gone] == [3]
    assert json.loads(as_json(found, matrix.classes))["text"].count(None) == 1


@pytest.mark.parametrize("length", [40, 240, 6_000])
def test_a_page_of_any_number_of_texts_stays_small(tmp_path: Path, length: int) -> None:
    rows = SHOWN_TEXTS + 500
    run = make_run(tmp_path / "run", test_rows=rows, baseline=False)
    path = run.dataset_path / "test.parquet"
    table = pq.read_table(path)
    texts = [f"{row} <b>" + "wörd " * (length // 6) for row in range(rows)]
    pq.write_table(table.set_column(1, "text", pa.array(texts)), path)
    build_report(run)
    page = run.report_path / "report.html"
    assert page.stat().st_size < 5_000_000
    html = page.read_text(encoding="utf-8")
    assert "10,000 of 10,500 test texts" in " ".join(html.split())
    found = packed_in(html)
    assert len(found["id"]) == SHOWN_TEXTS
    is_cut = [cut > 0 for cut in found["leftOut"][SHOWN_MISTAKES:]]
    assert all(is_cut) if length == 6_000 else length == 240 or not any(is_cut)
    for place in (0, 30, SHOWN_TEXTS - 1):
        whole = texts[int(found["id"][place].removeprefix("test-"))]
        assert whole.startswith(found["text"][place])
        assert len(found["text"][place]) + found["leftOut"][place] == len(whole)
        assert len(found["text"][place]) > min(length // 2, 90)


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory, shared_ray: object) -> RunDirectory:
    """A real run that kept the scores of its tokens, of texts that would do harm."""
    folder = tmp_path_factory.mktemp("evidence")
    config = make_config(
        folder, compute={"actors": 1}, scoring={"per_token": True},
        output_dir=str(folder / "run"), recipe={"recipe": "joint"},
    )  # fmt: skip
    rows = [json.loads(line) for line in (folder / "data" / "test.jsonl").open(encoding="utf-8")]
    odd = [HOSTILE, MIXED, "x" * 3000 + " end", "\u202e\u0000 \u200d\N{DUCK} "]
    for row, extra in zip(rows, odd, strict=False):
        row["text"] = f"{extra} {row['text']}"
    write_jsonl(folder / "data" / "test.jsonl", rows)
    for _ in run_all(config):
        pass
    return RunDirectory(folder / "run")


@pytest.mark.ray
def test_words_add_up_to_what_decided(explained: RunDirectory) -> None:
    inference = infer(explained)
    found = shown_texts(explained, inference, explained.dataset())
    assert found.note == ""
    assert len(found.shown) == len(inference.matrix) <= EXPLAINED_TEXTS
    texts = explained.dataset().read("test")["text"].to_pylist()
    for text in found.shown:
        assert text.evidence is not None
        assert sum(nats for _, nats in text.items) == pytest.approx(
            text.evidence.log_odds, abs=1e-6
        )
        assert "".join(word.text for word in text.coloured) == text.text
        assert texts[text.row].startswith(text.text or "?")
        expected = text.ahead if text.is_wrong else text.margin
        assert text.evidence.log_odds == pytest.approx(expected)
        assert 55 in {word.strength for word in text.coloured}
    assert found.shown == shown_texts(explained, inference, explained.dataset()).shown


@pytest.mark.ray
def test_the_page_holds_them_unharmed(explained: RunDirectory) -> None:
    html = (explained.report_path / "report.html").read_text(encoding="utf-8")
    page, data = parsed(html), packed_in(html)
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    texts = explained.dataset().read("test")["text"].to_pylist()
    for place in range(len(texts)):
        shown, lengths = data["text"][place], data["evidence"][str(place)]["lengths"]
        assert sum(lengths) == len(shown.encode("utf-16-le")) // 2
        whole = texts[int(data["id"][place].removeprefix("test-"))]
        assert whole == shown or data["leftOut"][place]
        total = sum(nats for _, nats in data["evidence"][str(place)]["items"])
        assert total == pytest.approx(data["evidence"][str(place)]["odds"], abs=0.01)


@pytest.mark.ray
def test_a_lost_tokenizer_takes_no_report_away(explained: RunDirectory, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(explained.path, copy)
    for path in copy.rglob("tokenizer.json"):
        path.unlink()
    for folder in copy.glob("base"):
        shutil.rmtree(folder)
    said = succeed("report", str(copy))
    assert "report.html" in said
    html = (copy / "report" / "report.html").read_text(encoding="utf-8")
    assert "Words are not coloured: " in html
    assert packed_in(html)["evidence"] == {}


@pytest.mark.ray
def test_nor_does_one_that_cannot_be_read(explained: RunDirectory, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(explained.path, copy)
    for path in copy.rglob("tokenizer.json"):
        # As of a later version of the library. The size stays: another would be noticed sooner.
        later = '{"version": "1.0", "model": {"type": "Later", "vocab": {}}}'
        path.write_text(later.ljust(path.stat().st_size))
    succeed("report", str(copy))
    html = (copy / "report" / "report.html").read_text(encoding="utf-8")
    assert "Words are not coloured: " in html
    assert "the tokenizer cannot be read" in html
    code, said = gencls("explain", str(copy), "--example", "test-0")
    assert code == 1
    for words in ("tokenizer.json", "found: ", "untagged enum", "expected: ", "remedy: "):
        assert words in said


@pytest.mark.ray
@pytest.mark.parametrize("width", [400, 1000, 1800])
def test_by_keyboard_alone(
    browser: Browser,  # noqa: F811
    explained: RunDirectory,
    width: int,
) -> None:
    page = explained.report_path / "report.html"
    data = packed_in(page.read_text(encoding="utf-8"))
    wrong = [i for i, label in enumerate(data["label"]) if label != data["answer"][i]]
    with browser.tab(page, width) as tab:
        lines = "#texts-area tbody tr:not(.opened)"
        assert tab.ask("document.documentElement.scrollWidth") <= width
        assert tab.ask(f"document.querySelectorAll('{lines}').length") == min(25, len(data["id"]))
        # The first text opens with Enter, shows its evidence, and keeps the focus.
        tab.tab_to(".texts .open")
        tab.press("Enter")
        first = data["evidence"]["0"]
        shown = tab.ask("document.querySelector('.opened .text').textContent")
        assert shown == data["text"][0]
        coloured = tab.ask("document.querySelectorAll('.opened .for, .opened .against').length")
        assert coloured > 0
        together = tab.ask("document.querySelector('.opened .total td').textContent")
        assert float(together.replace("−", "-")) == pytest.approx(first["odds"], abs=0.006)
        assert tab.ask("document.activeElement.getAttribute('aria-expanded')") == "true"
        assert tab.ask("document.documentElement.scrollWidth") <= width
        picture = tab.picture()
        assert struct.unpack(">I", picture[16:20]) == (width,)
        tab.press("Enter")
        assert tab.ask("document.querySelectorAll('.opened').length") == 0
        # Columns sort, the largest first, then the other way.
        tab.ask("document.querySelector('[data-is=search]').focus()")
        tab.tab_to("th[data-sort=tokens] button")
        for falls, name in ((True, "descending"), (False, "ascending")):
            tab.press(" ")
            head = "document.querySelector('th[data-sort=tokens]')"
            assert tab.ask(f"{head}.getAttribute('aria-sort')") == name
            tokens = tab.ask(
                f"[...document.querySelectorAll('{lines}')].map(r => r.lastChild.textContent)"
            )
            numbers = [int(number.replace(",", "")) for number in tokens]
            assert numbers == sorted(data["tokens"], reverse=falls)[: len(numbers)]
        # Search narrows; nothing found is said.
        tab.ask("document.querySelector('[data-is=search]').focus()")
        tab.write("NAÏVER")
        assert tab.ask("document.querySelector('[data-is=status]').textContent") == (
            "1 to 1 of 1 texts"
        )
        tab.write(" no such")
        assert "No text" in tab.ask("document.querySelector('[data-is=status]').textContent")
        tab.press("Backspace", 14)
        tab.press("Tab")
        tab.press("ArrowDown")  # wrong answers
        if wrong:
            status = tab.ask("document.querySelector('[data-is=status]').textContent")
            assert status.endswith(f"of {len(wrong)} texts")
        assert tab.ask("document.title") != "owned"
        assert tab.complaints == []
