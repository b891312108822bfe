"""Twice the texts and twice the classes: twice the time, and the same memory for texts.

Each figure is of one process that scores as an actor does (tokens to rows of scores), small and
large work in turn, so that a drift of the machine's speed meets both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bars import BarResult, Options
from benchmarks.cases import Case, Measurement, Stopwatch, read_texts, torch_dtype, write_texts
from benchmarks.models import (
    class_model_set,
    examples_of,
    model_folder,
    score_under,
    tokenizer_digest_of,
)
from benchmarks.pairs import Ratio, run_peer
from benchmarks.texts import sample, test_texts

__all__ = ["measure", "score_rows"]

TOKENS = 6_000


def score_rows(case: Case) -> Measurement:
    """Score a case's texts under `classes` models of the case's folder."""
    watch = Stopwatch()
    names = tuple(f"class {number}" for number in range(2))
    digest = case.options["tokenizer_digest"]
    models = class_model_set(case.model, torch_dtype(case), digest, names)
    watch.ready()
    examples = examples_of(read_texts(case))
    score_under(models, examples.slice(0, 8), names[:1])
    watch.first_batch()
    with watch:
        tokens = score_under(models, examples, names[: int(case.options["classes"])])
    return watch.measurement(tokens)


def measure(options: Options) -> Iterator[BarResult]:
    """Score n texts under 1 class, 2n under 1, n under 2, again and again in one process."""
    folder, precision = model_folder(options.model, options.model), options.precisions[0]
    tokens = TOKENS // (4 if options.quick else 1)
    digest = tokenizer_digest_of(folder)
    with tempfile.TemporaryDirectory(prefix="gencls-bench-") as where:
        chosen = sample(test_texts(options, "agnews"), folder, tokens)
        texts = {
            "n": write_texts(Path(where, "n.json"), chosen),
            "2n": write_texts(Path(where, "2n.json"), chosen * 2),
        }

        def case(size: str, classes: int) -> Case:
            asked = {"classes": str(classes), "tokenizer_digest": digest}
            return Case(size, str(folder), precision, texts[size], options.threads, asked)

        cases = [case("n", 1), case("2n", 1), case("n", 1), case("n", 2)] * options.pairs
        found = run_peer("benchmarks.growth_bars:score_rows", cases)
    by_texts = [b.seconds / a.seconds for a, b in zip(found[::4], found[1::4], strict=True)]
    by_classes = [b.seconds / a.seconds for a, b in zip(found[2::4], found[3::4], strict=True)]
    name = f"AG News, {len(chosen)} texts, {precision}"
    peak = {"peak_mb_more": (found[1].peak_memory_bytes - found[0].peak_memory_bytes) / 1e6}
    yield BarResult("growth_texts", (Ratio.of_values(name, by_texts, peak),))
    yield BarResult("growth_classes", (Ratio.of_values(name, by_classes),))
