"""Peak memory of scoring: above the weights, and from 1,000 to 100,000 texts.

Above the weights: the largest resident memory while scoring less that with the model loaded, for 8
texts of 1,024 tokens under a GPT-2 of random weights with vocabularies of three sizes, and for one
text of thousands of tokens.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.bars import BarResult, Options
from benchmarks.cases import Case, Measurement, write_texts
from benchmarks.models import model_folder, tokenizer_digest_of
from benchmarks.pairs import Ratio, run_peer

__all__ = ["measure", "word_model"]

_PEERS = "benchmarks.memory_peers"
_WORDS = 4_000
_TEXTS, _TOKENS = 8, 1024
_VOCABULARIES = (5_000, 50_257, 150_000)
_LONG_WORDS = 6_000
_ROWS = (1_000, 100_000)
_QUICK_ROWS = (100, 1_000)


def measure(options: Options) -> Iterator[BarResult]:
    """Measure the bars of memory."""
    with tempfile.TemporaryDirectory(prefix="gencls-bench-") as folder:
        yield _flat(options, Path(folder))
        yield from _above_weights(options, Path(folder))


def word_model(
    folder: Path, vocabulary: int, *, width: int = 768, layers: int = 12, heads: int = 12
) -> Path:
    """Save a GPT-2 of random weights whose tokens are words, `w0`, `w1`, …; others are one.

    The vocabulary may be larger than the number of words: the rest stands in no text.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    end = "<|endoftext|>"
    words = {end: 0} | {f"w{n}": n + 1 for n in range(min(_WORDS, vocabulary - 1))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=end))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=heads, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end, unk_token=end
    )
    fast.save_pretrained(folder)
    return folder


def _above_weights(options: Options, folder: Path) -> Iterator[BarResult]:
    """Measure one model after the other; the bar is given again with each model more."""
    ratios: list[Ratio] = []
    random = np.random.default_rng(0)
    words = random.integers(0, _WORDS, (_TEXTS, _TOKENS - 1))
    file = write_texts(folder / "random.json", [" ".join(f"w{n}" for n in row) for row in words])
    for vocabulary in _VOCABULARIES[: 1 if options.quick else None]:
        model = word_model(folder / f"vocabulary-{vocabulary}", vocabulary)
        name = f"{_TEXTS} texts of {_TOKENS:,} tokens, vocabulary {vocabulary:,}"
        case = _case(options, name, model, file)
        naive = run_peer(f"{_PEERS}:naive_batch", [case])[0]
        ratios.append(_megabytes(case, options.pairs, {"naive_mb": _above(naive)}))
        ratios += [_megabytes(each, options.pairs) for each in _in_bf16(case, options)]
        yield BarResult("scoring_memory_above_weights_mb", tuple(ratios), whole=False)
    model = model_folder(options.model, options.model)
    file = write_texts(folder / "long.json", [" ".join(["river"] * _LONG_WORDS)])
    case = _case(options, f"{model.name}, one text of {_LONG_WORDS:,} words", model, file)
    ratios += [_megabytes(each, options.pairs) for each in (case, *_in_bf16(case, options))]
    yield BarResult("scoring_memory_above_weights_mb", tuple(ratios))


def _flat(options: Options, folder: Path) -> BarResult:
    """Compare the peaks of whole processes that score few and many texts, shard by shard.

    A shard's texts are held at once, so its size counts: by default more texts make larger shards,
    up to 4,096 texts each.
    """
    from benchmarks.synthetic import make_dataset, write_source
    from gencls_core.run import RunDirectory

    model = word_model(folder / "tiny", 1_000, width=32, layers=2, heads=2)
    few, many = _QUICK_ROWS if options.quick else _ROWS
    cases = []
    for rows in (few, many):
        run = RunDirectory(folder / f"run-{rows}")
        write_source(folder / f"source-{rows}", test_rows=rows, validation_rows=100)
        make_dataset(folder / f"source-{rows}", run)
        case = _case(options, f"{rows:,} texts", model, "")
        cases.append(replace(case, options={**case.options, "run": str(run.path)}))
    of_one_size = [replace(c, options={**c.options, "shard_size": str(few)}) for c in cases]
    ratios = (
        _growth("shards of the default size", cases, options.pairs),
        _growth(f"shards of {few:,} texts", of_one_size, options.pairs),
    )
    return BarResult("scoring_memory_100k_vs_1k", ratios)


def _growth(name: str, few_and_many: list[Case], rounds: int) -> Ratio:
    pairs = [
        [run_peer(f"{_PEERS}:score_shards", [c])[0] for c in few_and_many] for _ in range(rounds)
    ]
    return Ratio.of_values(
        f"a tiny model, {name}",
        [b.peak_memory_bytes / a.peak_memory_bytes for a, b in pairs],
        {
            "few_mb": statistics.median(a.peak_memory_bytes / 1e6 for a, _ in pairs),
            "many_mb": statistics.median(b.peak_memory_bytes / 1e6 for _, b in pairs),
        },
    )


def _case(options: Options, name: str, model: Path, texts_file: str) -> Case:
    return Case(
        name=f"{name}, fp32",
        model=str(model),
        precision="fp32",
        texts_file=texts_file,
        threads=options.threads,
        options={"tokenizer_digest": tokenizer_digest_of(model)},
    )


def _in_bf16(case: Case, options: Options) -> list[Case]:
    """Give the same case in bf16; none where this machine does not multiply it."""
    if not options.has_bf16:
        return []
    return [replace(case, name=case.name.replace("fp32", "bf16"), precision="bf16")]


def _megabytes(case: Case, rounds: int, details: dict[str, float] | None = None) -> Ratio:
    measured = [run_peer(f"{_PEERS}:score_all", [case])[0] for _ in range(rounds)]
    return Ratio.of_values(case.name, map(_above, measured), details)


def _above(measured: Measurement) -> float:
    """Give the peak above the loaded model in MB (10^6 bytes)."""
    return (measured.peak_memory_bytes - measured.memory_before_bytes) / 1e6
