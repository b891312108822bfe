"""Whether a score store is whole: shards against records, records against the examples."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gencls_core.remote_path import Location
from gencls_core.score_records import SCORE_FORMAT, ShardRecord, shard_of_record
from gencls_core.scores import READERS, ScoreStore
from gencls_core.scoring_job import classes_scored
from gencls_core.storage import class_directory_name, class_name_of
from gencls_core.verify_findings import Checked, Finding, Kind

__all__ = ["check_scores"]

_NAME = re.compile(r"system=([^/]+)/class=([^/]+)/_?shard-\d{5,}-of-\d{5,}\.(parquet|json)")


def check_scores(
    store: Location,
    files: dict[str, int],
    classes: Sequence[str],
    rows: int | None,
    *,
    expected: str | None,
    abandoned: Collection[str] = (),
) -> Checked:
    """Check every shard of every system.

    Args:
        store: a folder of scores.
        files: what lies below it, named from it on, with sizes in bytes.
        classes: the classes of the run; a system must have scored each.
        rows: examples of the scored split; None where they are not known.
        expected: a system that there must be scores of.
        abandoned: systems whose scores may be incomplete: the run goes on with another recipe.

    Raises:
        StoreError: when the object store does not answer.
    """
    findings: list[Finding] = []
    records = sorted(name for name in files if _NAME.fullmatch(name) and name.endswith(".json"))
    vouched = set(records) | {shard_of_record(name) for name in records}
    for name in sorted(files.keys() - vouched):
        if _NAME.fullmatch(name) is None:
            findings.append(Finding("foreign", name, "no file of a score store"))
        else:
            problem = "a shard that no commit record vouches for"
            findings.append(Finding("orphan", name, problem, (name,)))

    def check(name: str) -> tuple[ShardRecord | None, Finding | None]:
        return _check(store, name, files)

    with ThreadPoolExecutor(READERS) as pool:
        checked = list(pool.map(check, records))
    findings += [finding for _, finding in checked if finding is not None]
    # A shard whose record cannot be read is told of above; its range is then told of, too.
    found = [record for record, _ in checked if record is not None]
    findings += _gaps(found, files, classes, rows, expected=expected, abandoned=abandoned)
    return Checked(findings, shards=len(records))


def _check(
    store: Location, name: str, files: dict[str, int]
) -> tuple[ShardRecord | None, Finding | None]:
    """Read one shard whole, and compare it with its record."""
    shard = shard_of_record(name)
    both = (name, shard)
    try:
        record = ShardRecord(**json.loads((store / name).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None, Finding("missing", name, "went while it was looked at")
    except (ValueError, TypeError):
        return None, Finding("torn", name, "a commit record that cannot be read", both)
    if record.format != SCORE_FORMAT:
        return None, Finding("foreign", name, f"a record of format {record.format!r}")
    of_place = ScoreStore(store).record_path(record.key)
    if str(of_place) != str(store / name):
        return None, Finding("foreign", name, f"the record of {record.key}")
    try:
        content = (store / shard).read_bytes()
    except FileNotFoundError:
        return record, Finding("missing", shard, "committed, and its file is gone", both)
    problem = _problem(record, content)
    return record, None if problem is None else Finding("torn", shard, problem, both)


def _problem(record: ShardRecord, content: bytes) -> str | None:
    """Say what is wrong with the bytes of a shard; None where they are as committed."""
    if len(content) != record.bytes:
        return f"{len(content):,} bytes where {record.bytes:,} were committed"
    if hashlib.sha256(content).hexdigest() != record.sha256:
        return "bytes that are not those that were committed"
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (OSError, pa.ArrowException) as error:
        return f"unreadable: {str(error).splitlines()[0]}"
    if not table.num_rows == record.rows == record.stop - record.start:
        return f"{table.num_rows:,} rows for examples {record.start:,} to {record.stop - 1:,}"
    metadata = table.schema.metadata or {}
    for field, value in (
        ("digest", record.digest),
        ("system", record.system),
        ("class", record.class_name),
    ):
        found = metadata.get(f"gencls.{field}".encode(), b"").decode()
        if found != value:
            return f"its {field} is {found!r}, and that of its record {value!r}"
    if not pc.all(pc.is_finite(table.column("score")), min_count=0).as_py():
        return "a score that is not a finite number"
    if pc.count_distinct(table.column("example_id")).as_py() != table.num_rows:
        return "an example that stands there twice"
    return None


def _gaps(
    records: list[ShardRecord],
    files: dict[str, int],
    classes: Sequence[str],
    rows: int | None,
    *,
    expected: str | None,
    abandoned: Collection[str],
) -> Iterator[Finding]:
    """Find the ranges of examples that no shard covers, and those that two cover."""
    systems = {class_name_of(m[1]) for m in map(_NAME.fullmatch, files) if m is not None}
    for system in sorted(systems | ({expected} if expected else set())):
        missing: Kind = "note" if system in abandoned else "missing"
        of_system = [record for record in records if record.system == system]
        scored = classes_scored(system, classes)
        for name in sorted({record.class_name for record in of_system}.difference(scored)):
            place = f"system={class_directory_name(system)}/class={class_directory_name(name)}"
            yield Finding("foreign", place, f"scores of {name!r}, no class of the run")
        for name in scored:
            place = f"system={class_directory_name(system)}/class={class_directory_name(name)}"
            reached = 0
            of_class = [record for record in of_system if record.class_name == name]
            for record in sorted(of_class, key=lambda record: record.start):
                if record.start > reached:
                    yield Finding(missing, place, _span(reached, record.start))
                elif record.start < reached:
                    problem = f"examples {record.start:,} to {reached - 1:,} stand there twice"
                    yield Finding("torn", place, problem)
                reached = max(reached, record.stop)
            last = rows if rows is not None else reached
            if reached < last or not of_class:
                yield Finding(missing, place, _span(reached, last))
            elif reached > last:
                problem = f"scores of {reached:,} examples where there are {last:,}"
                yield Finding("foreign", place, problem)


def _span(start: int, stop: int) -> str:
    if start >= stop:
        return "no scores"
    return f"no scores of examples {start:,} to {stop - 1:,}"
