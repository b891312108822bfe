"""Decisions by costs: against the naive sum, and what a file of costs may not say."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from cluster_fixtures import gencls, succeed
from model_fixtures import make_model_folder
from report_fixtures import make_run
from run_fixtures import make_data

from gencls_core import ClassifierRun
from gencls_core.cost_file import read_cost_pairs
from gencls_core.cost_matrix import CostMatrix
from gencls_core.errors import UsageError
from gencls_core.report.inference import infer

CLASSES = ("World", "Sports, and more", "c")


def read_costs(path, classes):
    return CostMatrix.from_pairs(read_cost_pairs(path, classes), classes)


def written(path, *lines, head="label,decided,cost"):
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return path


def test_pairs_that_are_left_out_cost_one_and_right_ones_nothing(tmp_path):
    lines = ['World,"Sports, and more",7.5', "c,c,0.25"]
    found = read_costs(written(tmp_path / "costs.csv", *lines), CLASSES)
    assert found.costs_CC.tolist() == [[0, 7.5, 1], [1, 0, 1], [1, 1, 0.25]]
    # Columns in another order, a byte order mark, blanks after commas: as spreadsheets write them.
    lines = ["\ufeffcost, decided, label", "2, c, World"]
    (tmp_path / "other.csv").write_text("\n".join(lines), encoding="utf-8")
    assert read_costs(tmp_path / "other.csv", CLASSES).costs_CC[0].tolist() == [0, 1, 2]


def test_the_lowest_expected_cost_is_decided(tmp_path):
    rng = np.random.default_rng(0)
    lines = [
        f'"{label}","{decided}",{rng.uniform(0, 9):.3f}' for label in CLASSES for decided in CLASSES
    ]
    costs = read_costs(written(tmp_path / "costs.csv", *lines), CLASSES)
    posterior_NC = rng.dirichlet([0.5] * 3, size=200)
    decided_N, expected_N = costs.decide(np.log(posterior_NC))
    for posterior, decided, expected in zip(posterior_NC, decided_N, expected_N, strict=True):
        naive = [
            sum(posterior[true] * costs.costs_CC[true, one] for true in range(3))
            for one in range(3)
        ]
        assert decided == int(np.argmin(naive))
        assert expected == pytest.approx(min(naive))
    plain = read_costs(written(tmp_path / "plain.csv"), CLASSES)
    decided_N, expected_N = plain.decide(np.log(posterior_NC))
    assert (decided_N == posterior_NC.argmax(axis=1)).all()
    np.testing.assert_allclose(expected_N, 1 - posterior_NC.max(axis=1))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["World,Sport,2"], ["line 2", "'Sport'", "Sports, and more"]),
        (["World,c,-1"], ["line 2", "'-1'", "from 0 on"]),
        (["World,c,nan"], ["line 2", "'nan'"]),
        (["World,c"], ["line 2", "''"]),
        (["World,c,1", "World,c,2"], ["line 3", "a second time", "line 2"]),
        (
            [f'"{one}","{other}",0' for one in CLASSES for other in CLASSES if one != other],
            ["no cost above 0"],
        ),
    ],
)
def test_what_a_file_of_costs_may_not_say(tmp_path, lines, words):
    path = written(tmp_path / "costs.csv", *lines)
    with pytest.raises(UsageError) as error:
        read_costs(path, CLASSES)
    for word in [*words, str(path), "Sports,World,5"]:
        assert word in str(error.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(UsageError, match="columns cost as well"):
        read_costs(written(tmp_path / "costs.csv", head="label,decided"), CLASSES)
    with pytest.raises(UsageError, match="No such file"):
        read_costs(tmp_path / "absent.csv", CLASSES)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00label")
    with pytest.raises(UsageError, match="CSV file in UTF-8"):
        read_costs(tmp_path / "binary.csv", CLASSES)


def test_a_report_with_costs(tmp_path):
    run = make_run(tmp_path / "run")
    first, second, *_ = run.manifest()["classes"]
    path = written(tmp_path / "costs.csv", f'"{first}","{second}",20')
    said = " ".join(succeed("report", str(run.path), "--costs", str(path)).split())
    report = json.loads((run.report_path / "report.json").read_text())
    made, found = report["decisions"], infer(run)
    costs = read_costs(path, found.matrix.classes)
    decided_N, expected_N = costs.decide(found.answer)
    known_N = found.matrix.label_codes >= 0
    codes_N = found.matrix.label_codes[known_N]
    assert made["mean_cost"] == pytest.approx(costs.of(codes_N, decided_N[known_N]).mean())
    likeliest_N = found.answer.argmax(axis=1)[known_N]
    assert made["mean_cost_of_likeliest"] == pytest.approx(costs.of(codes_N, likeliest_N).mean())
    assert made["mean_cost"] < made["mean_cost_of_likeliest"]
    low, high = made["saved_ci95"]
    assert 0 <= low < made["mean_cost_of_likeliest"] - made["mean_cost"] < high
    assert made["expected_cost"] == pytest.approx(expected_N[known_N].mean())
    assert np.sum(made["confusion"]) == known_N.sum()
    assert np.trace(made["confusion"]) / known_N.sum() == pytest.approx(made["accuracy"])
    assert "Decided by what mistakes cost" in said
    for page in ("report.md", "report.html"):
        assert "Decided by what mistakes cost" in (run.report_path / page).read_text()
    rows = pq.read_table(run.predictions_path)
    assert rows["decided"].to_pylist() == [found.matrix.classes[code] for code in decided_N]
    np.testing.assert_allclose(rows["expected_cost"].to_numpy(), expected_N)
    # Without costs nothing is decided by them.
    succeed("report", str(run.path))
    assert json.loads((run.report_path / "report.json").read_text())["decisions"] is None
    assert pq.read_table(run.predictions_path)["decided"].null_count == len(rows)


def test_wrong_costs_leave_the_report_as_it_was(tmp_path):
    run = make_run(tmp_path / "run")
    succeed("report", str(run.path))
    before = (run.report_path / "report.json").read_bytes()
    path = written(tmp_path / "costs.csv", "nobody,else,1")
    code, said = gencls("report", str(run.path), "--costs", str(path))
    assert code == 2
    assert "nobody" in said
    assert (run.report_path / "report.json").read_bytes() == before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("costs")
    make_data(folder / "data")
    make_model_folder(folder / "base", "gpt2", context=64)
    written(folder / "costs.csv", "01,a b,9")
    (folder / "run.toml").write_text(
        """
output_dir = "run"
[data]
data_dir = "data"
validation_fraction = 0.2
[model]
model = "base"
[recipe]
recipe = "independent"
[training]
epochs = 1
[posterior]
costs = "costs.csv"
[compute]
num_cpus = 2
memory_gb = 8
"""
    )
    succeed("run", folder / "run.toml")
    return folder


@pytest.mark.ray
@pytest.mark.usefixtures("shared_ray")
class TestRuns:
    @staticmethod
    def decisions(path):
        return json.loads(path.read_text())["decisions"]

    def test_a_run_keeps_the_costs_of_its_file(self, folder):
        report = folder / "run" / "report" / "report.json"
        made = self.decisions(report)
        assert made["costs"][0][2] == 9  # 01, Sci/Tech, a b
        moved = (folder / "costs.csv").rename(folder / "moved.csv")
        succeed("report", folder / "run")
        moved.rename(folder / "costs.csv")
        assert self.decisions(report) == made

    def test_an_evaluation_may_have_its_own(self, folder, tmp_path):
        path = written(tmp_path / "other.csv", "a b,01,4")
        succeed("evaluate", "--model-dir", folder / "run", "--costs", path)
        report = folder / "run" / "report" / "report.json"
        assert [row[0] for row in self.decisions(report)["costs"]] == [0, 1, 4]
        succeed("report", folder / "run")
        assert [row[0] for row in self.decisions(report)["costs"]] == [0, 1, 1]

    def test_new_texts_are_decided_by_them(self, folder, tmp_path):
        texts = ["orbit laser kernel", "bond tariff ledger"]
        (tmp_path / "texts.txt").write_text("\n".join([*texts, ""]))
        command = ("classify", "--model-dir", folder / "run", tmp_path / "texts.txt", "--output")
        succeed(*command, tmp_path / "a.parquet")
        rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
        assert all(row["decided"] and row["expected_cost"] > 0 for row in rows)
        said = ClassifierRun.open(folder / "run").classify(texts)
        assert [one.decided for one in said] == [row["decided"] for row in rows]
        # Texts are batched otherwise here than in shards: float32 rounds otherwise.
        assert [one.expected_cost for one in said] == pytest.approx(
            [row["expected_cost"] for row in rows], abs=2e-3
        )
        free = [f"{label},01,0" for label in ("Sci/Tech", "a b")]
        path = written(tmp_path / "free.csv", *free)
        succeed(*command, tmp_path / "b.parquet", "--costs", path)
        rows = pq.read_table(tmp_path / "b.parquet").to_pylist()
        assert [row["decided"] for row in rows] == ["01", "01"]

    def test_costs_of_no_class_are_refused_before_anything_is_done(self, folder, tmp_path):
        path = written(tmp_path / "costs.csv", "01,Weather,9")
        for command in (
            ("run", folder / "run.toml", "--output-dir", tmp_path / "run"),
            ("evaluate", "--model-dir", folder / "run"),
            ("classify", "--model-dir", folder / "run", folder / "data" / "test.jsonl"),
        ):
            code, said = gencls(*command, "--costs", path)
            assert code == 2
            assert "'Weather'" in said
            assert "Sci/Tech" in said
        assert not (tmp_path / "run" / "models").exists()
        code, said = gencls("run", folder / "run.toml", "--costs", tmp_path / "absent.csv")
        assert code == 2
        assert "absent.csv" in said
