"""What is measured of memory, each in a process of its own.

score_all      a few long texts, as an actor scores them
naive_batch    the same texts by the plain formula: one batch, all logits at once
score_shards   a whole split of short texts, shard by shard, as an actor commits them
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.cases import Case, Measurement, Stopwatch, read_texts, torch_dtype

__all__ = ["naive_batch", "score_all", "score_shards"]


def score_all(case: Case) -> Measurement:
    """Score texts; no batch goes before, so that the first one's memory counts."""
    from benchmarks.models import class_model_set, examples_of
    from gencls_core.config import ScoringConfig, SequenceConfig

    digest = case.options["tokenizer_digest"]
    models = class_model_set(case.model, torch_dtype(case), digest, ("one",))
    examples, watch = examples_of(read_texts(case)), Stopwatch()
    watch.ready()
    with watch:
        table = models.score(examples, "one", SequenceConfig(), ScoringConfig())
    tokens, scores = (table.column(name).to_pylist() for name in ("num_tokens", "score"))
    return watch.measurement(sum(tokens), {"log_likelihood": sum(scores)})


def naive_batch(case: Case) -> Measurement:
    """Score texts of one length by the plain formula, all in one batch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(case.model, dtype=torch_dtype(case)).eval()
    encoded = AutoTokenizer.from_pretrained(case.model)(read_texts(case))["input_ids"]
    ids_BT = torch.tensor([[0, *ids, 0] for ids in encoded])
    watch = Stopwatch()
    with torch.inference_mode():
        model(ids_BT[:1, :8])
        watch.ready()
        with watch:
            logits_BTV = model(ids_BT[:, :-1], use_cache=False).logits
            log_probs_BTV = torch.log_softmax(logits_BTV, dim=-1)
            total = log_probs_BTV.gather(2, ids_BT[:, 1:, None]).double().sum().item()
    return watch.measurement(ids_BT[:, 1:].numel(), {"log_likelihood": total})


def score_shards(case: Case) -> Measurement:
    """Score the test split of `case.options["run"]` and commit it; the peak is the process's own.

    The run directory holds a prepared dataset. What happens to a shard is what a scoring actor
    does: its range is read, tokenised, scored under each class (here two) and committed. Shards
    have `case.options["shard_size"]` texts, or the default.
    """
    from benchmarks.models import class_model_set
    from gencls_core.config import ScoringConfig, SequenceConfig
    from gencls_core.digests import shard_ranges
    from gencls_core.run import RunDirectory
    from gencls_core.scores import ShardKey

    digest, run = case.options["tokenizer_digest"], RunDirectory(Path(case.options["run"]))
    dataset, store = run.dataset(), run.scores_of("test")
    classes = tuple(dataset.classes[:2])
    models = class_model_set(case.model, torch_dtype(case), digest, classes)
    size = case.options.get("shard_size")
    ranges = shard_ranges(dataset.split("test").rows, int(size) if size else None)
    watch, tokens, sequence, scoring = Stopwatch(), 0, SequenceConfig(), ScoringConfig()
    watch.ready()
    with watch:
        for index, (start, stop) in enumerate(ranges):
            examples = dataset.read("test", start, stop)
            encoded = models.encode(examples)
            for name in classes:
                table = models.score(examples, name, sequence, scoring, encoded=encoded)
                key = ShardKey("class-lm", name, index, len(ranges))
                store.commit(key, table, start=start, digest=f"{index:064x}")
                tokens += sum(table.column("num_tokens").to_pylist())
    return watch.measurement(tokens, {"shards": len(ranges)})
