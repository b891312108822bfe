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
    from benchmarks.models import class_model_set, examples_of
    from gencls_core.config import ScoringConfig, SequenceConfig

    digest = case.options["tokenizer_digest"]
    models = class_model_set(case.model, torch_dtype(case), digest, CLASSES)
    examples, sequence, scoring = examples_of(read_texts(case)), SequenceConfig(), ScoringConfig()

    def score(*classes: str) -> int:
        encoded, tokens = models.encode(examples), 0
        for name in classes:
            table = models.score(examples, name, sequence, scoring, encoded=encoded)
            tokens += sum(table.column("num_tokens").to_pylist())
        return tokens

    watch = Stopwatch()
    watch.ready()
    score(*CLASSES)
    watch.first_batch()
    with watch:
        tokens = score(*CLASSES)
    began = time.perf_counter()
    for _ in CLASSES:
        score(CLASSES[0])
    return watch.measurement(tokens, {"four_times_one": time.perf_counter() - began})
