"""Four class models in one process beside four times one: what more classes cost a text."""

from __future__ import annotations

import time

from benchmarks.cases import Case, Measurement, Stopwatch, read_texts, torch_dtype

__all__ = ["four_models"]

CLASSES = ("first", "second", "third", "fourth")


def four_models(case: Case) -> Measurement:
    """Score under four models, then four times under one; texts are tokenised once a pass.

    `seconds` are those of the four models, the value `four_times_one` those of one.
    """
    from benchmarks.models import class_model_set, examples_of, score_under

    digest = case.options["tokenizer_digest"]
    models = class_model_set(case.model, torch_dtype(case), digest, CLASSES)
    examples, watch = examples_of(read_texts(case)), Stopwatch()
    watch.ready()
    score_under(models, examples, CLASSES)
    watch.first_batch()
    with watch:
        tokens = score_under(models, examples, CLASSES)
    began = time.perf_counter()
    for _ in CLASSES:
        score_under(models, examples, CLASSES[:1])
    return watch.measurement(tokens, {"four_times_one": time.perf_counter() - began})
