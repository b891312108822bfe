"""Every query and snippet of docs/scores.md runs, and its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from report_fixtures import make_run

from gencls_core.query import run_query
from gencls_core.report.build import build_report
from gencls_core.run import RunDirectory
from gencls_core.scores import SCORE_SCHEMA, ScoreStore, ShardRecord
from gencls_core.systems.registry import system_names

DOCUMENT = (Path(__file__).parents[1] / "docs" / "scores.md").read_text(encoding="utf-8")
CLASSES = ("noise", "parks", "roads", "waste", "water")
VIEWS = ("scores", "validation_scores", "likelihoods", "predictions", "errors", "examples")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL)


def table_after(heading: str) -> list[list[str]]:
    """Give the cells of the first table under a heading, without its two header lines."""
    section = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [re.split(r"(?<!\\)\|", line.strip("|")) for line in lines]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = make_run(tmp_path_factory.mktemp("docs") / "runs" / "demo", classes=CLASSES)
    add_token_scores(run.scores)
    build_report(run)
    return run


def add_token_scores(store: ScoreStore) -> None:
    """Spread each score evenly over its tokens, as `--per-token` would store them."""
    for record in store.records("class-lm"):
        table = store.read([record], SCORE_SCHEMA.names).select(SCORE_SCHEMA.names)
        tokens = table.column("num_tokens").to_pylist()
        scores = table.column("score").to_pylist()
        spread = [np.full(n, score / n) for n, score in zip(tokens, scores, strict=True)]
        for name, values in (("token_ids", [[7] * n for n in tokens]), ("token_scores", spread)):
            field = SCORE_SCHEMA.field(name)
            table = table.set_column(
                table.column_names.index(name), field, pa.array(values, field.type)
            )
        store.commit(record.key, table, start=record.start, digest=record.digest)


@pytest.mark.parametrize("sql", blocks("sql"))
def test_query_runs_and_finds_something(run: RunDirectory, sql: str) -> None:
    found = run_query(run, sql)
    assert found.num_rows > 0
    for column, field in zip(found.columns, found.schema, strict=True):
        assert column.null_count < len(column), f"{field.name} is null everywhere"


def test_there_are_eight_queries_or_more() -> None:
    assert len(blocks("sql")) >= 8


def test_bayes_by_hand_is_the_posterior(run: RunDirectory) -> None:
    """The documented query adds up to 1, and to the report's own figure."""
    (sql,) = (sql for sql in blocks("sql") if "exp(score - best)" in sql)
    rows = run_query(run, sql.rsplit("order by", 1)[0]).to_pylist()
    by_hand: dict[str, list[float]] = {}
    for row in rows:
        by_hand.setdefault(row["example_id"], []).append(row["probability"])
    build_report(run, prior="uniform")
    try:
        report = run_query(run, "select example_id, probability from predictions").to_pylist()
    finally:
        build_report(run)
    assert len(report) == len(by_hand)
    for row in report:
        assert sum(by_hand[row["example_id"]]) == pytest.approx(1)
        assert max(by_hand[row["example_id"]]) == pytest.approx(row["probability"])


@pytest.mark.parametrize("code", blocks("python"))
def test_snippet_reads_every_row(
    run: RunDirectory, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("polars")
    monkeypatch.chdir(run.path.parents[1])
    names: dict[str, object] = {}
    exec(compile(code, "docs/scores.md", "exec"), names)
    found = names.get("frame", names.get("table"))
    count = run_query(run, "select count(*) as n from scores").column("n")[0].as_py()
    assert found is not None
    assert found.shape == (count, len(SCORE_SCHEMA) + 2)  # type: ignore[attr-defined]


def test_column_table_is_the_schema() -> None:
    documented = [named(row[0])[0] for row in table_after("Columns")]
    assert documented == [*SCORE_SCHEMA.names, "class", "system"]
    for row in table_after("Columns"):
        name = named(row[0])[0]
        if name in SCORE_SCHEMA.names:
            field = SCORE_SCHEMA.field(name)
            unit = (field.metadata or {}).get(b"unit", b"").decode()
            assert unit in ("", row[2].strip())
            assert field.nullable == ("may be null" in row[1])


def test_system_table_names_every_system() -> None:
    documented = [name for row in table_after("Systems") for name in named(row[0])]
    assert tuple(documented) == system_names()


def test_record_table_is_the_record() -> None:
    documented = {name for row in table_after("Commit records") for name in named(row[0])}
    assert documented == set(ShardRecord.__dataclass_fields__)


def test_view_table_names_every_view_and_column(run: RunDirectory) -> None:
    documented = {named(row[0])[0]: named(row[2]) for row in table_after("Views of `gencls query`")}
    assert set(documented) == set(VIEWS)
    for view in ("predictions", "examples"):
        found = run_query(run, f"describe {view}").column("column_name").to_pylist()
        assert documented[view] == found
    found = run_query(run, "describe likelihoods").column("column_name").to_pylist()
    assert found == [*documented["likelihoods"], *CLASSES]
    errors = run_query(run, "describe errors").column("column_name").to_pylist()
    assert errors == [*documented["predictions"], "text"]
