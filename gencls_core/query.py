"""SQL over a run: scores, likelihoods, predictions, mistakes and texts as DuckDB views.

    scores              one row per (example, class): SCORE_SCHEMA, class, system
    validation_scores   the same for the validation split, where it was scored
    likelihoods         one row per example, one column per class: log P(text | class) in nats
                        under the class models
    examples            example_id, text, label, split of the run's dataset
    predictions         report/predictions.parquet
    errors              predictions whose `answer` is not the `label`, with the text

The views are Arrow datasets over exactly the committed shards, in a folder or in an object store,
so the database itself opens no file: it runs with external access off and its configuration
locked. A query can read these views and nothing else; it cannot write, attach, install or load
anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from gencls_core.config_training import RECIPES
from gencls_core.datasets.dataset import EXAMPLE_SCHEMA
from gencls_core.errors import GenclsError, ResourceError, StoreError, UsageError
from gencls_core.query_likelihoods import LikelihoodStream
from gencls_core.remote_path import Location, RemotePath, store_failure
from gencls_core.run import CLASS_LM, RunDirectory
from gencls_core.scores import SCORE_SCHEMA, ScoreStore, ShardRecord
from gencls_core.storage import filesystem_of

__all__ = ["open_query", "run_query"]

_ALLOWED = {"SELECT", "EXPLAIN", "MULTI"}
"""DESCRIBE, SHOW, SUMMARIZE, VALUES and FROM come as SELECT, PIVOT as MULTI."""
_BATCH_ROWS = 1 << 14
_SETTINGS = """
    SET temp_directory = '';
    SET autoinstall_known_extensions = false;
    SET autoload_known_extensions = false;
    SET enable_external_access = false;
    SET python_enable_replacements = false;
    SET enable_progress_bar = false;
"""


def open_query(run: RunDirectory) -> duckdb.DuckDBPyConnection:
    """Open an in-memory DuckDB with the views of `run`; close it when done.

    Views over what the run does not have yet are left out (`scores` is then empty).

    Raises:
        StoreError: when the folder is not a run directory.
    """
    if not run.scores.path.exists() and not run.dataset_path.exists():
        run.manifest()
    connection = duckdb.connect(":memory:")
    connection.execute(_SETTINGS)
    records = run.scores.records()
    connection.register("scores", _score_dataset(run.scores, records))
    validation = run.validation_scores.records()
    if validation:
        connection.register("validation_scores", _score_dataset(run.validation_scores, validation))
    classes = _add_examples(connection, run)
    _add_likelihoods(
        connection,
        run.scores,
        records,
        classes,
        _system_of(run, {record.system for record in records}),
    )
    _add_predictions(connection, run, with_texts=bool(classes))
    connection.execute("SET lock_configuration = true")
    return connection


def run_query(run: RunDirectory, sql: str) -> pa.Table:
    """Run one reading statement over the views of `run`.

    Args:
        run: the run directory.
        sql: one SELECT (or FROM, WITH, VALUES, PIVOT, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN).

    Raises:
        UsageError: when the statement is wrong, or is not one reading statement.
        StoreError: when it asks for predictions of a run that has no report, or a file is torn.
        ResourceError: when the result does not fit into memory.
    """
    with open_query(run) as connection:
        try:
            _refuse_all_but_reading(connection, sql)
            return connection.sql(sql).to_arrow_table()
        except duckdb.OutOfMemoryException as error:
            raise ResourceError.of(
                "the query needs more memory than there is",
                found=_first_line(error),
                remedy="select fewer columns, or aggregate before sorting",
            ) from None
        except (pa.ArrowException, OSError) as error:
            raise _torn(run, error) from None
        except duckdb.Error as error:
            raise _explained(run, connection, sql, error) from None


def _refuse_all_but_reading(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    statements = connection.extract_statements(sql)
    if len(statements) == 1 and statements[0].type.name in _ALLOWED:
        return
    kinds = ", ".join(statement.type.name for statement in statements)
    raise UsageError.of(
        "a query is one statement that reads",
        found=kinds or "no statement",
        expected="SELECT, FROM, WITH, VALUES, PIVOT, DESCRIBE, SHOW, SUMMARIZE or EXPLAIN",
        remedy="write results with --format and --output, not with COPY",
    )


def _score_dataset(store: ScoreStore, records: Sequence[ShardRecord]) -> ds.Dataset | pa.Table:
    """Give the shards as one lazy dataset; `class` and `system` come from the records."""
    schema = SCORE_SCHEMA.remove_metadata()
    for name in ("class", "system"):
        schema = schema.append(pa.field(name, pa.string()))
    return _files(
        [store.shard_path(record.key) for record in records],
        schema,
        [
            (ds.field("class") == record.class_name) & (ds.field("system") == record.system)
            for record in records
        ],
    )


class _Files(ds.FileSystemDataset):  # type: ignore[misc]
    """Parquet files of which DuckDB reads the columns and rows that a query needs.

    Arrow reads 16 batches ahead: with its own batches that would be two million rows.
    """

    def scanner(self, **options: Any) -> ds.Scanner:
        return super().scanner(batch_size=_BATCH_ROWS, **options)


def _files(
    paths: Sequence[Location], schema: pa.Schema, partitions: list[ds.Expression]
) -> ds.Dataset | pa.Table:
    if not paths:
        return schema.empty_table()
    format = ds.ParquetFileFormat()
    filesystem = filesystem_of(paths[0])[0]
    fragments = [
        format.make_fragment(filesystem_of(path)[1], filesystem, partition)
        for path, partition in zip(paths, partitions, strict=True)
    ]
    return _Files(fragments, schema, format, filesystem)


def _add_examples(connection: duckdb.DuckDBPyConnection, run: RunDirectory) -> tuple[str, ...]:
    """Add `examples` where the run has its dataset; give the dataset's classes."""
    if not run.dataset_path.exists():
        return ()
    dataset = run.dataset()
    names = [name for name in ("train", "validation", "test") if name in dataset.splits]
    files = [(name, path) for name in names for path in dataset.split_paths(name)]
    schema = EXAMPLE_SCHEMA.append(pa.field("split", pa.string()))
    partitions = [ds.field("split") == name for name, _ in files]
    paths = [path for _, path in files]
    connection.register("examples", _files(paths, schema, partitions))
    return dataset.classes


def _system_of(run: RunDirectory, there: set[str]) -> str:
    """Give the system whose likelihoods stand side by side; scores alone can be queried, too."""
    try:
        return run.system
    except StoreError:
        recipes = there.intersection(RECIPES.values()) - {CLASS_LM}
        return recipes.pop() if len(recipes) == 1 and CLASS_LM not in there else CLASS_LM


def _add_likelihoods(
    connection: duckdb.DuckDBPyConnection,
    store: ScoreStore,
    records: Sequence[ShardRecord],
    classes: Sequence[str],
    system: str,
) -> None:
    """Add `likelihoods` of the run's system, its class columns in the dataset's order.

    SQL names do not tell `Ja` from `ja`: a class that would repeat a name gets `_2`, `_3`, ….
    """
    records = [record for record in records if record.system == system]
    scored = {record.class_name for record in records}
    if not scored:
        return
    ordered = [name for name in classes if name in scored]
    ordered += sorted(scored.difference(ordered))
    taken = {"example_id", "label", "num_tokens"}
    columns: dict[str, str] = {}
    for name in ordered:
        column, number = name, 1
        while column.lower() in taken:
            number += 1
            column = f"{name}_{number}"
        taken.add(column.lower())
        columns[name] = column
    connection.register("likelihoods", LikelihoodStream(store, records, columns))


def _add_predictions(
    connection: duckdb.DuckDBPyConnection, run: RunDirectory, *, with_texts: bool
) -> None:
    path = run.predictions_path
    if not path.exists():
        return
    try:
        filesystem, name = filesystem_of(path)
        schema = pq.read_schema(name, filesystem=filesystem)
    except (OSError, pa.ArrowException) as error:
        raise _torn(run, error) from None
    connection.register("predictions", _files([path], schema, [ds.scalar(True)]))
    # Files of earlier revisions have no column for it; they stood by the likeliest class.
    answer = "answer" if "answer" in schema.names else "predicted"
    text, join = "", ""
    if with_texts:
        text = ", texts.text"
        join = (
            "LEFT JOIN (SELECT example_id, text FROM examples WHERE split = 'test') AS texts "
            "ON texts.example_id = predictions.example_id "
        )
    connection.execute(
        f"CREATE TEMP VIEW errors AS SELECT predictions.*{text} FROM predictions {join}"
        f"WHERE predictions.{answer} <> predictions.label"
    )


def _explained(
    run: RunDirectory, connection: duckdb.DuckDBPyConnection, sql: str, error: duckdb.Error
) -> GenclsError:
    """Turn DuckDB's error into ours, with the views and columns where a name was not found."""
    if isinstance(error, duckdb.CatalogException):
        wanted = {name.lower() for name in connection.get_table_names(sql)}
        if wanted & {"predictions", "errors"} and not run.predictions_path.exists():
            return StoreError.of(
                "the run has no predictions yet",
                place=run.predictions_path,
                remedy=f"gencls report {run.path}",
            )
    if isinstance(error, duckdb.PermissionException):
        return UsageError.of(
            "a query reads the views of the run and no files",
            found=_first_line(error),
            remedy=f"the views: {_views(connection)}",
        )
    if isinstance(error, duckdb.CatalogException | duckdb.BinderException):
        return UsageError.of(
            f"the query names what is not there\n{error}",
            remedy=f"the views and their columns: {_views(connection)}",
        )
    if _key(run.path) in str(error):  # Arrow names the file that it could not read
        return _torn(run, error)
    return UsageError.of(f"the query failed\n{error}")


def _views(connection: duckdb.DuckDBPyConnection) -> str:
    """Name the views and their columns as a query has to write them."""
    reserved = {
        word
        for (word,) in connection.execute(
            "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category = 'reserved'"
        ).fetchall()
    }

    def shown(name: str) -> str:
        plain = name.isascii() and name.isidentifier() and name.lower() not in reserved
        return name if plain else _identifier(name)

    rows = connection.execute(
        "SELECT table_name, list(column_name ORDER BY column_index) FROM duckdb_columns() "
        "WHERE NOT internal GROUP BY table_name ORDER BY table_name"
    ).fetchall()
    return "; ".join(f"{view} ({', '.join(map(shown, columns))})" for view, columns in rows)


def _key(path: Location) -> str:
    """Give the part of a place that Arrow's messages name: of an object, it is without bucket."""
    return path.key.partition("/")[2] if isinstance(path, RemotePath) else str(path.absolute())


def _torn(run: RunDirectory, error: Exception) -> StoreError:
    return store_failure(run.path, error) or StoreError.of(
        "cannot read a file of the run",
        place=run.path,
        found=_first_line(error),
        remedy="delete the file and run the same command again: it is computed anew",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _identifier(name: str) -> str:
    """Quote a name for SQL."""
    return '"' + name.replace('"', '""') + '"'
