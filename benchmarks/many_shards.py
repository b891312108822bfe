"""A score store of very many small shards, and the steps in which a resume finds them again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.synthetic import CLASSES, SYSTEM, StubModels, class_models, run_config, stub_job
from gencls_core.class_models import ClassModel
from gencls_core.config import RunConfig
from gencls_core.datasets.dataset import EXAMPLE_SCHEMA, Dataset, SplitInfo
from gencls_core.digests import scoring_digests, shard_ranges
from gencls_core.run import RunDirectory
from gencls_core.scores import SCORE_FORMAT, ShardKey, ShardRecord
from gencls_core.shard_work import shard_work

__all__ = ["EXAMPLES_PER_SHARD", "make_shards", "run_step"]

EXAMPLES_PER_SHARD = 40


def make_shards(folder: Path, shards: int) -> dict[str, Any]:
    """Write `shards` shards with their records as `ScoreStore.commit` would, but without syncing.

    A test split of shards / 4 ranges of 40 texts is made up; no text of it is on disk. Every range
    of a class gets the bytes of its first: a resume compares bytes and never looks at the rows.
    """
    run, dataset, config = _parts(folder, shards)
    size = 0
    ids = pa.array([f"test-{row}" for row in range(EXAMPLES_PER_SHARD)])
    labels = pa.array([CLASSES[row % len(CLASSES)] for row in range(EXAMPLES_PER_SHARD)])
    texts = pa.repeat("the lamp by the bakery hums all night", EXAMPLES_PER_SHARD)
    examples = pa.table([ids, texts, labels], schema=EXAMPLE_SCHEMA)
    ranges = shard_ranges(dataset.split("test").rows, EXAMPLES_PER_SHARD)
    for model in class_models(run):
        digests = _digests(config, dataset, model)
        sink = pa.BufferOutputStream()
        rows = StubModels().score(examples, model.class_name, config.sequence, config.scoring)
        pq.write_table(rows, sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        sha256 = hashlib.sha256(content).hexdigest()
        Path(str(run.scores.directory(SYSTEM, model.class_name))).mkdir(parents=True)
        for index, (start, stop) in enumerate(ranges):
            key = ShardKey(SYSTEM, model.class_name, index, len(ranges))
            Path(str(run.scores.shard_path(key))).write_bytes(content)
            record = ShardRecord(
                format=SCORE_FORMAT,
                system=SYSTEM,
                class_name=model.class_name,
                index=index,
                count=len(ranges),
                start=start,
                stop=stop,
                rows=stop - start,
                digest=digests[index],
                sha256=sha256,
                bytes=len(content),
                seconds=0.1,
                tokens=9 * (stop - start),
                peak_memory_bytes=0,
            )
            text = json.dumps(asdict(record), indent=2) + "\n"
            Path(str(run.scores.record_path(key))).write_text(text, encoding="utf-8")
            size += record.bytes + len(text)
    return {"bytes": size}


def run_step(folder: Path, step: str, shards: int) -> dict[str, Any]:
    """Time one step; refuses a figure that does not rest on all shards."""
    run, dataset, config = _parts(folder, shards)
    models = class_models(run)
    folders = [Path(str(run.scores.directory(SYSTEM, name))) for name in CLASSES]
    began = time.perf_counter()
    match step:
        case "listing":
            found = sum(name.endswith(".parquet") for f in folders for name in _names(f))
        case "stat":
            found = sum(e.stat().st_size > 0 for f in folders for e in os.scandir(f)) // 2
        case "parse":
            found = sum(_parsed(f) for f in folders)
        case "records":
            found = len(run.scores.records(SYSTEM))
        case "digests":
            found = len({d for model in models for d in _digests(config, dataset, model)})
        case "torn":
            records = run.scores.records(SYSTEM)
            began = time.perf_counter()
            found = len(records) - len(run.scores.torn(records))
        case "shard_work" | "nothing_yet" | "retire":
            if step == "nothing_yet":
                run = RunDirectory(folder / "empty")
            plan = shard_work(stub_job(models, config), dataset, "test", run)
            found = len(plan.committed) + sum(len(work.keys) for work in plan.work)
            if (step == "nothing_yet") != bool(plan.work):
                raise RuntimeError(f"{step} plans {len(plan.work):,} ranges to score")
            if step == "retire":
                began = time.perf_counter()
                found -= run.scores.retire(SYSTEM, plan.committed)
        case _:
            raise ValueError(step)
    seconds = time.perf_counter() - began
    if found != shards:
        raise RuntimeError(f"{step} found {found:,} of {shards:,} shards")
    return {"seconds": seconds}


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _parsed(folder: Path) -> int:
    """Read and parse every record of a folder, and nothing else."""
    names = [name for name in _names(folder) if name.endswith(".json")]
    return sum(json.loads((folder / name).read_bytes())["rows"] > 0 for name in names)


def _parts(folder: Path, shards: int) -> tuple[RunDirectory, Dataset, RunConfig]:
    run = RunDirectory(folder / "run")
    rows = shards // len(CLASSES) * EXAMPLES_PER_SHARD
    dataset = Dataset(
        path=folder / "dataset",
        name="made up",
        classes=CLASSES,
        splits={"test": SplitInfo(rows, "f" * 64, {}, {}, 100)},
        source={},
        prior_counts={},
    )
    return run, dataset, run_config(run, shard_size=EXAMPLES_PER_SHARD)


def _digests(config: RunConfig, dataset: Dataset, model: ClassModel) -> list[str]:
    ranges = shard_ranges(dataset.split("test").rows, EXAMPLES_PER_SHARD)
    return scoring_digests(stub_job((model,), config), model.class_name, dataset, "test", ranges)
