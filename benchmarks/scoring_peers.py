"""What scores texts under one model: gencls, and what a user would pick in its place.

    ours          `ClassModelSet.score`, which is what a scoring actor calls
    lm_eval       lm-evaluation-harness, `HFLM.loglikelihood`
    naive         the plain formula: a text at a time, the whole log-softmax
    labels_loss   transformers' `model(input_ids, labels=input_ids)`, as the original did
    roof          the weights' matrix products alone: no peer, but what the hardware gives

Tokenising is part of the time. The values of a measurement are the texts' log-likelihoods in nats,
named `text 0`, `text 1`, …; no end-of-text token is scored, since the peers score none. A peer
imports what it needs in its own function: imports are part of its set-up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.cases import (
    Case,
    Measurement,
    Stopwatch,
    median_seconds,
    read_texts,
    torch_dtype,
)

__all__ = ["labels_loss", "lm_eval", "naive", "ours", "roof"]

FIRST_BATCH = 16
"""Texts of the first batch, which ends the set-up: of middling length, the same for every peer."""

ROOF_ROWS = (1024, 2048, 4096)
ROOF_REPEATS = 3


def first_batch(texts: list[str]) -> list[str]:
    """Give the texts that a peer scores before its steady state."""
    middle = len(texts) // 2
    return texts[max(0, middle - FIRST_BATCH // 2) :][:FIRST_BATCH]


def named(log_likelihoods: list[float]) -> dict[str, float]:
    """Name log-likelihoods after the texts' numbers."""
    return {f"text {number}": float(value) for number, value in enumerate(log_likelihoods)}


def _timed(case: Case, score: Callable[[list[str]], tuple[int, dict[str, float]]]) -> Measurement:
    """Measure a loaded peer: its first batch ends the set-up, then it scores all texts.

    `score` gives the number of tokens and the named log-likelihoods.
    """
    texts, watch = read_texts(case), Stopwatch()
    watch.ready()
    score(first_batch(texts))
    watch.first_batch()
    with watch:
        tokens, values = score(texts)
    return watch.measurement(tokens, values)


def ours(case: Case) -> Measurement:
    """Score with gencls at its defaults, as a scoring actor does."""
    from gencls_core.startup import collector_paused

    with collector_paused(stays=True):
        from benchmarks.models import class_model_set, examples_of
        from gencls_core.config import ScoringConfig, SequenceConfig

        digest = case.options["tokenizer_digest"]
        models = class_model_set(case.model, torch_dtype(case), digest, ("one",))
    sequence, scoring = SequenceConfig(score_eos=False), ScoringConfig()

    def score(texts: list[str]) -> tuple[int, dict[str, float]]:
        table = models.score(examples_of(texts), "one", sequence, scoring)
        tokens = sum(table.column("num_tokens").to_pylist())
        return tokens, named(table.column("score").to_pylist())

    return _timed(case, score)


@functools.cache
def _harness_model(folder: str, dtype: str) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=folder, device="cpu", dtype=dtype, batch_size=1, add_bos_token=False)


def _harness_scores(
    peer: Any, texts: list[str], lengths: list[int], batch_size: int
) -> dict[str, float]:
    """Score texts that fit with `loglikelihood`; it refuses longer ones, which go through windows.

    Its windows share less context than ours, so the scores of longer texts cannot be compared and
    are not among the values.
    """
    from lm_eval.api.instance import Instance

    peer.batch_size_per_gpu = batch_size
    short = [i for i, length in enumerate(lengths) if length <= peer.max_length]
    long = [i for i, length in enumerate(lengths) if length > peer.max_length]
    requests = [Instance("loglikelihood", {}, ("", texts[i]), i) for i in short]
    scores = [score for score, _ in peer.loglikelihood(requests, disable_tqdm=True)]
    if long:
        rolling = [Instance("loglikelihood_rolling", {}, (texts[i],), i) for i in long]
        peer.loglikelihood_rolling(rolling, disable_tqdm=True)
    return {f"text {i}": float(score) for i, score in zip(short, scores, strict=True)}


def _lengths(peer: Any, texts: list[str]) -> list[int]:
    return [len(peer.tok_encode(text)) for text in texts]


def lm_eval(case: Case) -> Measurement:
    """Score with lm-eval; `case.options["batch_size"]` texts at once."""
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[case.precision]
    batch_size = int(case.options["batch_size"])
    peer, texts, watch = _harness_model(case.model, dtype), read_texts(case), Stopwatch()
    watch.ready()
    first = first_batch(texts)
    _harness_scores(peer, first, _lengths(peer, first), batch_size)
    watch.first_batch()
    lengths = _lengths(peer, texts)
    with watch:
        values = _harness_scores(peer, texts, lengths, batch_size)
    return watch.measurement(sum(lengths), {**values, "batch_size": batch_size})


def _plain_model(folder: str, dtype: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    from gencls_core.models import tokenize

    return tokenize(tokenizer, texts)


def naive(case: Case) -> Measurement:
    """Score by the plain formula, a window at a time; the same windows as ours."""
    import torch

    from gencls_core.config import SequenceConfig
    from gencls_core.models import context_of, document_separator
    from gencls_core.tokenization import SequencePolicy, TokenizedText, windows_of

    model, tokenizer = _plain_model(case.model, torch_dtype(case))
    bos_id, eos_id = document_separator(tokenizer)
    policy = SequencePolicy.resolve(
        SequenceConfig(score_eos=False),
        bos_id=bos_id,
        eos_id=eos_id,
        context=context_of(model.config),
    )

    def score(texts: list[str]) -> tuple[int, dict[str, float]]:
        tokenized = [TokenizedText.of(ids, policy) for ids in _encode(tokenizer, texts)]
        sums = [0.0] * len(texts)
        with torch.inference_mode():
            for window in windows_of(tokenized, policy.window):
                text = tokenized[window.text]
                ids_T = torch.from_numpy(text.read_by(window)).long()
                targets = text.targets[window.score_from : window.stop]
                logits_TV = model(ids_T[None], use_cache=False).logits[0, -len(targets) :]
                log_probs_TV = torch.log_softmax(logits_TV.float(), dim=-1)
                scores_T = log_probs_TV.gather(1, torch.from_numpy(targets).long()[:, None])
                sums[window.text] += scores_T.sum(dtype=torch.float64).item()
        return sum(map(len, tokenized)), named(sums)

    return _timed(case, score)


def labels_loss(case: Case) -> Measurement:
    """Score as the original did: minus the loss times the number of tokens, cut at the context."""
    import torch

    from gencls_core.models import context_of

    model, tokenizer = _plain_model(case.model, torch_dtype(case))
    context = context_of(model.config)

    def score(texts: list[str]) -> tuple[int, dict[str, float]]:
        sums, tokens = [], 0
        with torch.inference_mode():
            for ids in _encode(tokenizer, texts):
                ids_BT = torch.tensor([ids[:context]])
                loss = model(input_ids=ids_BT, labels=ids_BT).loss
                sums.append(-loss.item() * ids_BT.shape[1])
                tokens += ids_BT.shape[1]
        return tokens, named(sums)

    return _timed(case, score)


def roof(case: Case) -> Measurement:
    """Measure the matrix products of all linear layers, head included, and nothing else.

    [rows, in] × [in, out] of each layer's own weight, with the number of rows among ROOF_ROWS and
    the product, torch's own or oneDNN's of a packed weight, that make that layer fastest. `seconds`
    are those of 1,000 tokens.
    """
    watch = Stopwatch()
    watch.ready()
    watch.first_batch()
    per_token = _seconds_per_token(case.model, torch_dtype(case))
    return replace(watch.measurement(1000), seconds=1000 * per_token)


@functools.cache
def _seconds_per_token(folder: str, dtype: Any) -> float:
    import torch

    from gencls_core.products import PackedLinear, has_onednn

    weights = _matrices(_plain_model(folder, dtype)[0])
    best = [float("inf")] * len(weights)
    with torch.inference_mode():
        for rows in ROOF_ROWS:
            inputs = {n: torch.randn(rows, n, dtype=dtype) for n in {w.shape[0] for w in weights}}
            outputs = {n: torch.empty(rows, n, dtype=dtype) for n in {w.shape[1] for w in weights}}
            for number, weight in enumerate(weights):
                x, y = inputs[weight.shape[0]], outputs[weight.shape[1]]
                products = [functools.partial(torch.mm, x, weight, out=y)]
                if has_onednn(dtype):
                    products.append(functools.partial(PackedLinear(weight.t(), None), x))
                for product in products:
                    seconds = median_seconds(product, ROOF_REPEATS)
                    best[number] = min(best[number], seconds / rows)
    return sum(best)


def _matrices(model: Any) -> list[Any]:
    """Give the weights of all linear layers as [in, out] matrices."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            found.append(module.weight.detach().t())
        elif isinstance(module, Conv1D):
            found.append(module.weight.detach())
    return found
