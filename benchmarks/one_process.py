"""A whole run in this one process, without Ray: what the cluster layer's cost is measured against.

    python -m benchmarks.one_process run.toml        the file that `gencls run` takes

Reading, planning, training, scoring, commits and report are those of every run; classes are trained
one after the other and shards scored one after the other, with all cores each.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

__all__ = ["run_in_one_process"]


def run_in_one_process(run_file: Path) -> None:
    """Do what `gencls run` does with this file, but for Ray, leases and progress."""
    from gencls_core.startup import collector_paused

    with collector_paused(stays=True):
        import torch

        from cluster.pipeline import prepare
        from cluster.stages import baseline_stage, report_stage
        from gencls_core.config_parsing import load_run_config, parse_run_config
        from gencls_core.datasets.dataset import Dataset
        from gencls_core.run_manifest import manifest_of
        from gencls_core.scores import ScoreStore
        from gencls_core.shard_work import shard_work
        from gencls_core.training import train_class

    config = parse_run_config(load_run_config(run_file))
    threads = os.cpu_count() or 1
    preparation = prepare(config)
    run, dataset = preparation.run, preparation.dataset
    models = tuple(
        train_class(replace(task, threads=threads).with_texts(dataset))
        for task in preparation.training_tasks()
    )
    torch.set_num_threads(threads)
    job = preparation.scoring_job(models)
    loaded = job.system.load(job, frozenset(job.classes))
    for split in preparation.splits:
        for work in shard_work(job, dataset, split, run).work:
            examples = Dataset.open(work.dataset).read(work.split, work.start, work.stop)
            encoded = loaded.encode(examples)
            for key, digest in zip(work.keys, work.digests, strict=True):
                table = loaded.score(
                    examples, key.class_name, job.sequence, job.scoring, encoded=encoded
                )
                ScoreStore(work.store).commit(
                    key, table, start=work.start, digest=digest, seconds=0.0
                )
    for _ in baseline_stage(preparation):
        pass
    run.write_manifest({**manifest_of(preparation, {}), "status": "finished", "seconds": None})
    for _ in report_stage(config, run, None):
        pass


if __name__ == "__main__":
    run_in_one_process(Path(sys.argv[1]))
