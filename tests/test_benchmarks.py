"""The benchmark harness at a small size: its arithmetic, its files, a real pair of processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import benchmarks.texts
from benchmarks.bars import BARS, GROUPS, Bar, BarResult, Options
from benchmarks.cases import Case, Measurement, write_texts
from benchmarks.models import tokenizer_digest_of
from benchmarks.pairs import PeerError, Ratio, run_peer, run_rounds
from benchmarks.scoring_bars import assert_equal_scores
from benchmarks.table import RESULTS, Machine, read_results, render, update_results, write_table
from benchmarks.texts import MissingDataError, sample
from tests.model_fixtures import CORPUS, make_model_folder

ROOT = Path(__file__).parent.parent
MACHINE = Machine("a processor", 2, 24, {"torch": "2"})

# As the table of docs/performance.md and the files of results that people keep name them.
KEYS = {
    "scoring_bf16_vs_lmeval",
    "scoring_bf16_vs_roof",
    "scoring_fp32_vs_lmeval",
    "scoring_fp32_vs_roof",
    "scoring_setup_vs_lmeval",
    "scoring_k4_vs_4x1",
    "scoring_bf16_vs_naive",
    "scoring_bf16_vs_labels_loss",
    "training_bf16_vs_trainer_original",
    "training_bf16_vs_trainer_best",
    "training_bf16_vs_roof",
    "training_memory_vs_trainer",
    "scoring_memory_above_weights_mb",
    "scoring_memory_100k_vs_1k",
    "ray_vs_one_process_seconds",
    "growth_texts",
    "growth_classes",
    "report_query_10m_rows_seconds",
    "report_query_10m_rows_memory_mb",
    "gencls_help_seconds",
    "bf16_argmax_agreement_agnews",
    "bf16_argmax_agreement_imdb",
}


def measured(seconds: float, tokens: int = 100, **values: float) -> Measurement:
    return Measurement(1.0, seconds, tokens, 2_000_000, 1_000_000, values)


def test_a_ratio_is_taken_within_each_pair():
    pairs = [(measured(1), measured(2)), (measured(2), measured(8)), (measured(4), measured(4))]
    ratio = Ratio.of("c", pairs, lambda a, b: a.tokens_per_second / b.tokens_per_second)
    assert (ratio.median, ratio.min, ratio.max, ratio.pairs) == (2, 1, 4, 3)
    assert Ratio.of_values("c", [1.0, 4.0]).median == 2.5


@pytest.mark.parametrize(
    ("better", "worst", "met"), [("higher", 1.0, False), ("lower", 3.0, False)]
)
def test_the_worst_case_counts(better, worst, met):
    bar = Bar("k", "scoring", "what", "×", better, demand=2.0)
    cases = tuple(Ratio.of_values(str(v), [v]) for v in (3.0, 1.0, 2.0))
    assert bar.worst(cases).median == worst
    assert bar.met(worst) is met
    assert bar.met(2.0) is True
    assert replace(bar, demand=None).met(worst) is None


def test_every_key_is_one_bar_of_a_known_group():
    keys = [bar.key for bar in BARS]
    assert len(set(keys)) == len(keys)
    assert set(keys) >= KEYS
    assert {bar.group for bar in BARS} == set(GROUPS)
    assert read_results(RESULTS).keys() <= set(keys)
    for module in {Path(*name.split(".")) for name in GROUPS.values()}:
        source = (ROOT / module).with_suffix(".py").read_text(encoding="utf-8")
        assert set(re.findall(r'BarResult\(\s*"(\w+)"', source)) <= set(keys), module


def result(key: str, *medians: float) -> BarResult:
    return BarResult(key, tuple(Ratio.of_values(f"case {m}", [m]) for m in medians))


def test_results_keep_what_was_not_measured_again(tmp_path):
    path = tmp_path / "results.json"
    update_results(path, result("gencls_help_seconds", 0.2), "first", MACHINE)
    update_results(path, result("scoring_bf16_vs_lmeval", 2.0, 1.4), "second", MACHINE)
    kept = read_results(path)["gencls_help_seconds"]
    update_results(path, result("scoring_bf16_vs_lmeval", 1.9, 1.6), "third", MACHINE)
    found = read_results(path)
    assert found["gencls_help_seconds"] == kept
    again = found["scoring_bf16_vs_lmeval"]
    assert (again["median"], again["case"], again["pairs"]) == (1.6, "case 1.6", 1)
    assert [case["median"] for case in again["cases"]] == [1.9, 1.6]
    assert ({case["command"] for case in again["cases"]}, again["met"]) == ({"third"}, True)
    with pytest.raises(KeyError):
        update_results(path, result("no_such_bar", 1.0), "fourth", MACHINE)
    assert read_results(path) == found


def test_other_cases_stay_where_one_was_chosen(tmp_path):
    path = tmp_path / "results.json"
    key = "training_bf16_vs_trainer_best"
    update_results(path, result(key, 1.1, 1.3), "all", MACHINE)
    update_results(path, result(key, 1.3, 1.5), "one", MACHINE, keep=True)
    found = read_results(path)[key]
    assert [(case["case"], case["command"]) for case in found["cases"]] == [
        ("case 1.1", "all"), ("case 1.3", "one"), ("case 1.5", "one"),
    ]  # fmt: skip
    assert (found["case"], found["met"]) == ("case 1.1", False)
    assert "`all`" in render(read_results(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quick"], "--results"),
        (["scoring", "--case", "imdb"], "--case"),
        (["training", "--case", "no such", "--data", "/nowhere"], "no such"),
        (["no-such-group"], "no group"),
    ],
)
def test_what_cannot_be_published_is_not_measured(arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr


def test_the_table_stands_between_its_marks(tmp_path):
    path, document = tmp_path / "results.json", tmp_path / "performance.md"
    update_results(path, result("scoring_bf16_vs_lmeval", 1.4), "python -m benchmarks", MACHINE)
    update_results(path, result("gencls_help_seconds", 0.2), "python -m benchmarks", MACHINE)
    results = read_results(path)
    assert not write_table(document, results)
    document.write_text("# Speed\n\nno marks\n")
    assert not write_table(document, results)
    before, after = "# Speed\n\nwords\n", "\nmore words\n"
    marks = "<!-- bars: written by `python -m benchmarks` -->", "<!-- end of bars -->"
    document.write_text(f"{before}{marks[0]}\nold\n{marks[1]}{after}")
    for _ in range(2):
        assert write_table(document, results)
    text = document.read_text()
    assert text == f"{before}{marks[0]}\n\n{render(results)}\n\n{marks[1]}{after}"
    lines = {
        bar.key: line for bar in BARS for line in text.splitlines() if f"| {bar.what} |" in line
    }
    assert lines.keys() == {bar.key for bar in BARS}
    assert "1.40 × (1.40–1.40)" in lines["scoring_bf16_vs_lmeval"]
    assert lines["scoring_bf16_vs_lmeval"].endswith("**no** |")
    assert lines["gencls_help_seconds"].endswith("yes |")
    assert "not measured" in lines["growth_texts"]
    assert text.count("a processor; 2 cores, 24 GB, no GPU; torch 2") == 1


def test_a_sample_keeps_lengths_neighbours_and_long_texts(tmp_path):
    folder = make_model_folder(tmp_path / "model", context=64)
    texts = [" ".join(["road"] * n) for n in range(1, 41)] + ["road " * 200, "road " * 201]
    chosen = sample(texts, folder, 400)
    assert set(chosen) < set(texts)
    assert sum(len(text.split()) > 64 for text in chosen) == 1
    short = sorted(len(text.split()) for text in chosen if len(text.split()) <= 64)
    # Blocks of 8 neighbours, from below and above the middle.
    assert short == [*range(9, 17), *range(25, 33)]
    assert sample(texts, folder, 10**9) == sorted(texts, key=len)


def test_missing_data_says_how_to_prepare_it(tmp_path, monkeypatch):
    monkeypatch.delenv("GENCLS_BENCH_DATA", raising=False)
    for data in (None, tmp_path):
        with pytest.raises(MissingDataError, match="gencls prepare ag_news --layout"):
            benchmarks.texts.test_texts(Options(1, True, "m", data, 1), "agnews")
    (tmp_path / "imdb-classifier").mkdir()
    (tmp_path / "imdb-classifier" / "test.json").write_text(json.dumps({"texts": ["a", "b"]}))
    monkeypatch.setenv("GENCLS_BENCH_DATA", str(tmp_path))
    assert benchmarks.texts.test_texts(Options(1, True, "m", None, 1), "imdb") == ["a", "b"]


def test_a_failing_peer_says_why():
    case = Case("a case", "", "fp32", "", 1)
    with pytest.raises(PeerError, match=r"a case:[\s\S]*has no attribute 'nothing'"):
        run_peer("benchmarks.cases:nothing", [case])


def test_a_pair_in_fresh_processes_scores_the_same(tmp_path):
    folder = make_model_folder(tmp_path / "model", context=64)
    texts = [*CORPUS, " ".join(CORPUS)]
    case = Case(
        name="tiny",
        model=str(folder),
        precision="fp32",
        texts_file=write_texts(tmp_path / "texts.json", texts),
        threads=1,
        options={"tokenizer_digest": tokenizer_digest_of(folder)},
    )
    peers = "benchmarks.scoring_peers:ours", "benchmarks.scoring_peers:naive"
    [[(ours, naive)]] = run_rounds(peers, [case], 1)
    assert_equal_scores(case.name, ours, naive, 1e-3)
    assert ours.values["text 5"] == 0  # the empty text
    assert all(ours.values[f"text {n}"] < -10 for n in (0, 1, 2, 3, 4, 6))
    assert ours.tokens == naive.tokens > 150
    for found in (ours, naive):
        assert 0 < found.seconds < found.setup_seconds
        assert 10**8 < found.memory_before_bytes <= found.peak_memory_bytes

    wrong = replace(naive, values={**naive.values, "text 6": naive.values["text 6"] + 0.01})
    with pytest.raises(PeerError, match="text 6 has"):
        assert_equal_scores(case.name, ours, wrong, 1e-3)
    nothing = replace(naive, values={"text 0": naive.values["text 0"]})
    with pytest.raises(PeerError, match="only 1 of 7 texts"):
        assert_equal_scores(case.name, ours, nothing, 1e-3)
