"""Queries over a synthetic run with class names that break careless readers."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from gencls_core.datasets.dataset import Dataset, SplitInfo
from gencls_core.datasets.writing import SplitWriter
from gencls_core.errors import StoreError, UsageError
from gencls_core.query import open_query, run_query
from gencls_core.query_output import OUTPUT_FORMATS, write_result
from gencls_core.run import RunDirectory
from gencls_core.scores import SCORE_SCHEMA, ScoreStore, ShardKey, read_scores
from gencls_core.storage import write_json

CLASSES = ("01", "Sci/Tech", "a b", 'quo"te', "ü", "it's", "order", "label")
EXAMPLES = 10
SHARDS = 2


def shard_table(start: int, stop: int, offset: float) -> pa.Table:
    count = stop - start
    return pa.table(
        {
            "example_id": [f"test-{n}" for n in range(start, stop)],
            "label": [CLASSES[n % len(CLASSES)] if n else None for n in range(start, stop)],
            "score": [-100.0 - n - offset for n in range(start, stop)],
            "standard_error": [None] * count,
            "quantity": ["log_likelihood"] * count,
            "num_tokens": [n + 1 for n in range(start, stop)],
            "truncated": [False] * count,
            "num_windows": [1] * count,
            "loss_score": [None] * count,
            "token_ids": [[1, 2]] * count,
            "token_scores": [[-0.5, -1.5]] * count,
        },
        schema=SCORE_SCHEMA,
    )


def fill(store: ScoreStore, system: str = "class-lm") -> None:
    step = EXAMPLES // SHARDS
    for offset, name in enumerate(CLASSES):
        for index in range(SHARDS):
            table = shard_table(index * step, (index + 1) * step, float(offset))
            store.commit(
                ShardKey(system, name, index, SHARDS), table, start=index * step, digest="d"
            )


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "a run's folder")
    run.write_manifest({"status": "finished"})
    infos: dict[str, SplitInfo] = {}
    run.dataset_path.mkdir()
    for split in ("train", "test"):
        with SplitWriter(run.dataset_path / f"{split}.parquet", CLASSES) as writer:
            for n in range(EXAMPLES):
                label = CLASSES[n % len(CLASSES)] if n or split == "train" else None
                writer.add(f"{split}-{n}", f"{split} text {n}\nsecond line", label)
        infos[split] = writer.info()
    source = {"description": "made", "digest": "0"}
    dataset = Dataset(run.dataset_path, "made", CLASSES, infos, source, {})
    write_json(run.dataset_path / "dataset.json", dataset.to_json())
    fill(run.scores)
    return run


def write_predictions(run: RunDirectory) -> None:
    labels = [CLASSES[n % len(CLASSES)] if n else None for n in range(EXAMPLES)]
    table = pa.table(
        {
            "example_id": [f"test-{n}" for n in range(EXAMPLES)],
            "label": labels,
            "predicted": ["01"] * EXAMPLES,
            "probability": [0.5] * EXAMPLES,
        }
    )
    run.report_path.mkdir()
    pq.write_table(table, run.predictions_path)


def test_scores_have_string_partitions_and_every_row(run: RunDirectory) -> None:
    table = run_query(run, "SELECT * FROM scores")
    assert table.num_rows == EXAMPLES * len(CLASSES)
    assert table.schema.field("class").type == table.schema.field("system").type == pa.string()
    assert set(table.column("class").to_pylist()) == set(CLASSES)
    one = run_query(run, "SELECT score FROM scores WHERE class = '01' AND example_id = 'test-3'")
    assert one.column("score").to_pylist() == [-103.0]
    lists = run_query(run, "SELECT list_sum(token_scores) AS s FROM scores LIMIT 1")
    assert lists.column("s").to_pylist() == [-2.0]


def test_only_committed_shards_are_seen(run: RunDirectory) -> None:
    key = ShardKey("class-lm", "01", 0, SHARDS)
    run.scores.record_path(key).unlink()
    rows = run_query(run, "SELECT count(*) AS n FROM scores WHERE class = '01'")
    assert rows.column("n").to_pylist() == [EXAMPLES // SHARDS]


def test_likelihoods_have_a_column_per_class(run: RunDirectory) -> None:
    fill(run.scores, "other-system")
    table = run_query(run, "FROM likelihoods ORDER BY num_tokens")
    assert table.column_names == ["example_id", "label", "num_tokens", *CLASSES[:-1], "label_2"]
    assert table.num_rows == EXAMPLES
    assert table.column('quo"te').to_pylist() == [-103.0 - n for n in range(EXAMPLES)]
    assert table.column("label_2")[0].as_py() == -107.0
    assert table.column("label")[0].as_py() is None


def side_by_side(run: RunDirectory) -> list[dict[str, object]]:
    """Bring the rows of `scores` together, example by example."""
    rows: dict[int, dict[str, object]] = {}
    for row in run_query(run, "FROM scores").to_pylist():
        empty = dict.fromkeys((*CLASSES[:-1], "label_2"))
        known = {name: row[name] for name in ("example_id", "label", "num_tokens")}
        column = "label_2" if row["class"] == "label" else row["class"]
        rows.setdefault(row["num_tokens"], {**known, **empty})[column] = row["score"]
    return [rows[number] for number in sorted(rows)]


@pytest.mark.parametrize("change", ["none", "a shard is missing", "a class is cut elsewhere"])
def test_likelihoods_are_the_rows_side_by_side(run: RunDirectory, change: str) -> None:
    if change == "a shard is missing":
        run.scores.record_path(ShardKey("class-lm", "a b", 1, SHARDS)).unlink()
    if change == "a class is cut elsewhere":
        run.scores.drop("class-lm", "a b")
        for index, (start, stop) in enumerate(((0, 3), (3, 4), (4, EXAMPLES))):
            key = ShardKey("class-lm", "a b", index, 3)
            run.scores.commit(key, shard_table(start, stop, 0.5), start=start, digest="d")
    found = run_query(run, "FROM likelihoods").to_pylist()
    # In the order of the scored split.
    assert found == side_by_side(run)
    missing = [row["example_id"] for row in found if row["a b"] is None]
    assert len(missing) == (EXAMPLES // SHARDS if change == "a shard is missing" else 0)


def test_likelihoods_can_be_gone_through_twice_and_left_early(run: RunDirectory) -> None:
    sql = "SELECT count(*) AS n FROM likelihoods AS a JOIN likelihoods AS b USING (example_id)"
    assert run_query(run, sql).column("n").to_pylist() == [EXAMPLES]
    assert run_query(run, "FROM likelihoods LIMIT 2").num_rows == 2
    path = run.scores.shard_path(ShardKey("class-lm", "01", 1, SHARDS))
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(StoreError, match="cannot read"):
        run_query(run, "SELECT sum(ü) FROM likelihoods")


def test_examples_and_errors(run: RunDirectory) -> None:
    counts = run_query(run, "SELECT split, count(*) AS n FROM examples GROUP BY split ORDER BY ALL")
    assert counts.to_pylist() == [{"split": "test", "n": 10}, {"split": "train", "n": 10}]
    write_predictions(run)
    assert run_query(run, "FROM predictions").num_rows == EXAMPLES
    errors = run_query(run, "FROM errors ORDER BY example_id")
    assert errors.column_names == ["example_id", "label", "predicted", "probability", "text"]
    # test-0 has no label; test-8 is a "01" again.
    assert set(errors.column("example_id").to_pylist()) == {
        f"test-{n}" for n in (1, 2, 3, 4, 5, 6, 7, 9)
    }
    assert errors.column("text")[0].as_py() == "test text 1\nsecond line"


def test_errors_go_by_what_the_run_stands_by(run: RunDirectory) -> None:
    write_predictions(run)
    table = pq.read_table(run.predictions_path)
    answers = [CLASSES[n % len(CLASSES)] if n != 3 else "01" for n in range(EXAMPLES)]
    pq.write_table(table.append_column("answer", [answers]), run.predictions_path)
    errors = run_query(run, "FROM errors").column("example_id").to_pylist()
    assert errors == ["test-3"]


@pytest.mark.parametrize("view", ["predictions", "errors", "Errors"])
def test_predictions_need_a_report(run: RunDirectory, view: str) -> None:
    with pytest.raises(StoreError, match=r"(?s)no predictions.*gencls report"):
        run_query(run, f"SELECT * FROM {view}")


def test_validation_scores(run: RunDirectory) -> None:
    with pytest.raises(UsageError, match="validation_scores does not exist"):
        run_query(run, "FROM validation_scores")
    fill(run.validation_scores)
    assert run_query(run, "FROM validation_scores").num_rows == EXAMPLES * len(CLASSES)


def test_a_run_without_scores(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(StoreError, match="not a run directory"):
        run_query(run, "FROM scores")
    run.write_manifest({})
    assert run_query(run, "FROM scores").num_rows == 0
    with pytest.raises(UsageError, match=r"likelihoods does not exist(?s:.*)scores \(example_id,"):
        run_query(run, "FROM likelihoods")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 AS x",
        "WITH t AS (SELECT 1 AS x) SELECT * FROM t",
        "VALUES (1)",
        "DESCRIBE scores",
        "SHOW TABLES",
        "SUMMARIZE examples",
        "EXPLAIN SELECT * FROM scores",
        "PIVOT scores ON class USING first(score) GROUP BY example_id",
        "SELECT 'a;b' AS x; -- done",
    ],
)
def test_reading_statements(run: RunDirectory, sql: str) -> None:
    assert run_query(run, sql).num_rows > 0


FORBIDDEN = [
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM '/etc/passwd.csv'",
    "SELECT * FROM read_csv('{run}/run.json')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM read_parquet('http://127.0.0.1:9/x.parquet')",
    "COPY (SELECT 1) TO '{run}/out.csv'",
    "COPY (SELECT 1) TO '.tmp/out.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{run}/out.csv'",
    "EXPORT DATABASE '{run}/out'",
    "ATTACH '{run}/out.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{run}/x.duckdb_extension'",
    "SET threads = 1",
    "SET enable_external_access = true",
    "RESET lock_configuration",
    "PRAGMA enable_profiling",
    "CREATE TABLE t AS SELECT 1",
    "DROP VIEW scores",
    "INSERT INTO scores SELECT * FROM scores",
    "SELECT 1; COPY (SELECT 1) TO '{run}/out.csv'",
    "SELECT 1; SELECT 2",
    "",
    "-- nothing",
    "SELECT * FROM secret_local",
]


@pytest.mark.parametrize("sql", FORBIDDEN)
@pytest.mark.fault
def test_a_query_reads_views_and_nothing_else(run: RunDirectory, sql: str) -> None:
    secret_local = pa.table({"x": [1]})  # noqa: F841  a Python variable is no table either
    before = sorted(run.path.rglob("*"))
    statement = sql.replace("{run}", str(run.path).replace("'", "''"))
    with pytest.raises(UsageError):
        run_query(run, statement)
    # The connection by itself holds too, for whoever uses it without `run_query`.
    with open_query(run) as connection, contextlib.suppress(duckdb.Error):
        connection.execute(statement)
    assert sorted(run.path.rglob("*")) == before
    assert not Path(".tmp/out.csv").exists()


def test_errors_say_what_there_is(run: RunDirectory) -> None:
    with pytest.raises(UsageError, match=r'(?s)"scor" not found.*remedy: .*scores \(example_id'):
        run_query(run, "SELECT scor FROM scores")
    with pytest.raises(
        UsageError, match=r'(?s)nope does not exist.*likelihoods.*"Sci/Tech".*"order"'
    ):
        run_query(run, "SELECT * FROM nope")
    with pytest.raises(UsageError, match=r"(?s)syntax error.*LINE 1"):
        run_query(run, "SELEC 1")
    with pytest.raises(UsageError, match="Could not convert"):
        run_query(run, "SELECT CAST('x' AS INTEGER)")


def test_a_torn_shard_is_named(run: RunDirectory) -> None:
    path = run.scores.shard_path(ShardKey("class-lm", "01", 0, SHARDS))
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(StoreError, match=r"shard-00000-of-00002"):
        run_query(run, "SELECT sum(score) FROM scores")


def test_thousands_of_shards(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    store, count = run.scores, 1000
    key = ShardKey("class-lm", "ü", 0, count)
    first = store.commit(key, shard_table(0, 1, 0.0), start=0, digest="d")
    for index in range(1, count):
        copy = replace(first, index=index, start=index, stop=index + 1)
        store.shard_path(copy.key).hardlink_to(store.shard_path(key))
        store.record_path(copy.key).write_text(json.dumps(copy.__dict__))
    started = time.perf_counter()
    rows = run_query(run, "SELECT count(*) AS n, sum(score) AS s FROM scores WHERE class = 'ü'")
    assert rows.to_pylist() == [{"n": count, "s": -100.0 * count}]
    assert time.perf_counter() - started < 20


def test_documented_one_liners_agree(run: RunDirectory) -> None:
    """The lines in the docstring of gencls_core.scores, in DuckDB, Polars and pandas."""
    import polars as pl

    store = str(run.scores.path)
    columns = ["system", "class", "example_id", "score"]
    with duckdb.connect() as connection:
        quoted = store.replace("'", "''")
        with_duckdb = connection.sql(
            f"select * from read_parquet('{quoted}/*/*/*.parquet', "
            "hive_partitioning=true, hive_types_autocast=false)"
        ).to_arrow_table()
    with_polars = pl.scan_parquet(
        f"{store}/**/*.parquet",
        hive_partitioning=True,
        hive_schema={"system": pl.String, "class": pl.String},
    ).collect()
    with_pandas = read_scores(Path(store)).to_pandas()
    rows = sorted(run_query(run, f"SELECT {', '.join(columns)} FROM scores").to_pylist(), key=str)
    assert sorted(with_duckdb.select(columns).to_pylist(), key=str) == rows
    assert sorted(with_polars.select(columns).to_dicts(), key=str) == rows
    assert sorted(with_pandas[columns].to_dict("records"), key=str) == rows


RESULT = pa.table(
    {
        "text": ["first\nline " + "x" * 100, "", None],
        "score": [-1208.123456, float("nan"), None],
        "n": [1, 2, 3],
        "[b]": [[1.5], [], None],
    }
)


@pytest.mark.parametrize("form", OUTPUT_FORMATS)
def test_results_in_every_form(tmp_path: Path, form: str) -> None:
    path = tmp_path / "new" / f"result.{form}"
    write_result(RESULT, form, path)  # type: ignore[arg-type]
    if form == "parquet":
        assert pq.read_table(path).num_rows == 3
    elif form == "csv":
        back = pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                strings_can_be_null=True, quoted_strings_can_be_null=False
            ),
        )
        assert back.column("text").to_pylist() == RESULT.column("text").to_pylist()
        assert back.column("[b]").to_pylist() == ["[1.5]", "[]", None]
        assert '"",nan,2,"[]"' in path.read_text(encoding="utf-8")
    elif form == "json":
        rows = json.loads(path.read_text(encoding="utf-8"))
        assert [row["score"] for row in rows] == [-1208.123456, None, None]
        assert rows[0]["[b]"] == [1.5]
    else:
        text = path.read_text(encoding="utf-8")
        assert "[b]" in text
        assert "-1208.12" in text
        assert "first line xxx" in text
        assert max(len(line) for line in text.splitlines()) < 100
        assert text.endswith("3 rows\n")


def test_a_query_plan_is_shown_whole(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    write_result(run_query(run, "EXPLAIN SELECT count(*) FROM scores"), "table")
    assert capsys.readouterr().out.count("\n") > 5


def test_table_says_what_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    write_result(pa.table({"n": range(1200)}), "table", max_rows=5)
    text = capsys.readouterr().out
    assert "1,200 rows; the first 5 are shown" in text
    assert len(text.splitlines()) < 12
    write_result(pa.table({"n": pa.array([], pa.int64())}), "json")
    assert json.loads(capsys.readouterr().out) == []
    write_result(pa.table({"n": pa.array([], pa.int64())}), "table")
    assert "0 rows" in capsys.readouterr().out


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the result"):
        write_result(RESULT, "csv", tmp_path / "file" / "x.csv")
