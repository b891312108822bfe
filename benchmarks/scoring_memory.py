"""Peak memory of scoring 8 texts of 1,024 tokens: ours beside the naive formula.

    python -m benchmarks.scoring_memory

A GPT-2 of random parameters, float32, CPU, with vocabularies of three sizes. Each measurement runs
in a process of its own; the figure is the peak resident memory above that of the loaded model.
"""

from __future__ import annotations

import subprocess
import sys

VOCABULARIES = (5_000, 50_257, 150_000)

PROGRAM = """
import sys
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from gencls_core.measure import peak_memory_bytes, reset_peak_memory
from gencls_core.models import CausalLM
from gencls_core.scoring import score_texts
from gencls_core.tokenization import TokenizedText

variant, vocabulary, texts, tokens = sys.argv[1], int(sys.argv[2]), 8, 1024
torch.manual_seed(0)
torch.set_num_threads(2)
model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary)).eval()
ids = torch.randint(vocabulary, (texts, tokens + 1))
with torch.inference_mode():
    model(ids[:1, :8])
    reset_peak_memory()
    before = peak_memory_bytes()
    if variant == "naive":
        logits = model(ids[:, :-1]).logits
        log_probs = torch.log_softmax(logits, dim=-1)
        total = log_probs.gather(2, ids[:, 1:, None]).double().sum().item()
    else:
        lm = CausalLM(model, None, 0, 0, 1024, vocabulary)
        rows = [TokenizedText(r[:-1], r[1:], False) for r in ids.numpy().astype(np.int32)]
        total = score_texts(lm, rows, window=1024, tokens_per_batch=4096).log_likelihoods.sum()
print(peak_memory_bytes() - before, float(total))
"""


def measure(variant: str, vocabulary: int) -> tuple[int, float]:
    """Give the peak in bytes above the loaded model, and the summed log-likelihood in nats."""
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM, variant, str(vocabulary)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return int(output[0]), float(output[1])


def main() -> None:
    """Print the figures."""
    print("vocabulary   variant   peak above the model   log-likelihood")
    for vocabulary in VOCABULARIES:
        for variant in ("naive", "gencls"):
            peak, total = measure(variant, vocabulary)
            print(f"{vocabulary:10,}   {variant:7}   {peak / 1e6:17,.0f} MB   {total:,.2f} nats")


if __name__ == "__main__":
    main()
