"""A whole run of 4 classes on a local Ray, against the same work in one process without it.

Both read the same run file, end in the same report and have all cores: on Ray as two trainings of
one core at once, in one process as one training of two. Wall time of processes, imports included.
Where the CPU has no products in bf16, with a quarter of the texts.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bars import BarResult, Options
from benchmarks.models import model_folder
from benchmarks.pairs import PeerError, Ratio
from benchmarks.texts import data_folder

__all__ = ["measure"]

TRAIN_TEXTS_PER_CLASS = 100
TEST_TEXTS = 200

RUN_FILE = """
output_dir = "{output}"

[data]
data_dir = "{data}"
max_samples = {train}
max_test_samples = {test}

[model]
model = "{model}"

[recipe]
recipe = "independent"

[training]
epochs = 1

[compute]
precision = "{precision}"
"""


def measure(options: Options) -> Iterator[BarResult]:
    """Run both in turn; the figure is seconds on Ray beyond 1.05 × those of the one process."""
    rounds = 1 if options.quick else options.pairs
    beyond, on_ray, alone = [], [], []
    for _ in range(rounds):
        on_ray.append(_seconds(options, ["jobs", "run"]))
        alone.append(_seconds(options, ["benchmarks.one_process"]))
        beyond.append(on_ray[-1] - 1.05 * alone[-1])
    train, test = _sizes(options)
    texts = f"4 classes × {train} texts, {test} test texts"
    name = f"AG News, {texts}, {options.precisions[0]}"
    details = {
        "ray_seconds": statistics.median(on_ray),
        "one_process_seconds": statistics.median(alone),
    }
    yield BarResult("ray_vs_one_process_seconds", (Ratio.of_values(name, beyond, details),))


def _sizes(options: Options) -> tuple[int, int]:
    """Give the train texts of each class, and the test texts."""
    part = 4 if options.quick or not options.has_bf16 else 1
    return TRAIN_TEXTS_PER_CLASS // part, TEST_TEXTS // part


def _seconds(options: Options, module: list[str]) -> float:
    """Give the wall time of one run in a new folder.

    Raises:
        PeerError: when it fails.
    """
    train, test = _sizes(options)
    with tempfile.TemporaryDirectory(prefix="gencls-bench-") as folder:
        run_file = Path(folder, "run.toml")
        run_file.write_text(
            RUN_FILE.format(
                output=Path(folder, "run"),
                data=data_folder(options, "agnews"),
                model=model_folder(options.model, options.model),
                precision=options.precisions[0],
                train=train,
                test=test,
            ),
            encoding="utf-8",
        )
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", *module, str(run_file)],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            raise PeerError(f"{' '.join(module)}:\n{(done.stdout + done.stderr)[-4000:]}")
        return seconds
