"""What a GPU would run, as far as a machine without one can show it.

On the meta device nothing is computed, and whatever would make the processor wait for a GPU (a
number read back, a search for rows) fails: what runs there has no host sync.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from model_fixtures import CORPUS, make_model_folder
from test_resources import GPT2, WORK, WORKSTATION
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoModelForCausalLM, masking_utils

from cluster.resources import GB, Budget, make_plan
from gencls_core import training_loss
from gencls_core.compilation import compile_layers, why_not_compiled
from gencls_core.config import ComputeConfig, SequenceConfig
from gencls_core.likelihood import LinearHead, token_log_probs
from gencls_core.model_inputs import window_states
from gencls_core.model_source import ResolvedModel
from gencls_core.models import load_causal_lm
from gencls_core.scoring import _one_ahead
from gencls_core.tokenization import SequencePolicy, TokenizedText, windows_of
from gencls_core.training_loss import negative_log_likelihood


@pytest.fixture(params=["gpt2", "llama"])
def lm(request, tmp_path):
    return load_causal_lm(ResolvedModel.of_folder("m", make_model_folder(tmp_path, request.param)))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(suppress_errors=torch._dynamo.config.suppress_errors):
        yield
    torch._dynamo.reset()


def passes_of(lm):
    policy = SequencePolicy.resolve(
        SequenceConfig(), bos_id=lm.bos_id, eos_id=lm.eos_id, context=lm.context
    )
    texts = [TokenizedText.of(ids, policy) for ids in lm.encode(list(CORPUS[:3]))]
    return texts, windows_of(texts, policy.window)


@pytest.fixture
def unpacked(monkeypatch):
    """transformers asks once a pass whether sequences are packed (docs/performance.md)."""
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda _positions: None)


@pytest.mark.usefixtures("unpacked")
def test_a_pass_of_training_and_one_of_scoring_ask_the_device_for_nothing(lm):
    texts, windows = passes_of(lm)
    there = replace(lm, model=lm.model.to("meta").train())
    hidden_ND, targets_N = window_states(there, texts, windows)
    loss = negative_log_likelihood(hidden_ND, there.head, targets_N, lm.vocabulary)
    (loss / 7).backward()
    assert all(p.grad is not None and p.grad.is_meta for p in there.model.parameters())
    with torch.inference_mode():
        hidden_ND, targets_N = window_states(there, texts, windows)
        found = token_log_probs(hidden_ND, there.head, targets_N, lm.vocabulary)
    assert found.is_meta
    assert len(found) == sum(map(len, texts))
    with pytest.raises(RuntimeError, match="meta"):
        found.sum().item()


def test_the_whole_vocabulary_at_once_gives_the_same_gradients(monkeypatch):
    """A GPU takes one part where a CPU takes blocks, and marks targets without a search."""
    generator = torch.Generator().manual_seed(3)
    values = [torch.randn(*shape, generator=generator) for shape in ((23, 16), (31, 16))]
    targets = torch.randint(31, (23,), generator=generator)

    def gradients():
        hidden, weight = (value.clone().requires_grad_() for value in values)
        loss = negative_log_likelihood(hidden, LinearHead(weight), targets, 31)
        loss.backward()
        return loss, hidden.grad, weight.grad

    monkeypatch.setattr(training_loss, "BLOCK_COLUMNS", 7)
    by_blocks = gradients()
    monkeypatch.setattr(training_loss, "BLOCK_COLUMNS", 31)
    rows = torch.arange(23)
    monkeypatch.setattr(training_loss, "targets_in", lambda targets_R, _part: (rows, targets_R))
    for ours, theirs in zip(gradients(), by_blocks, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_ligers_loss_is_called_as_it_wants_to_be(autocast, biased):
    """Its arguments in its order, in autocast's precision; its own kernels need a GPU."""
    seen = []

    class Loss(torch.nn.Module):
        def forward(self, lin_weight, _input, target, bias=None):
            seen.append((lin_weight.dtype, _input.dtype))
            logits = torch.nn.functional.linear(_input, lin_weight, bias)
            return torch.nn.functional.cross_entropy(logits.float(), target, reduction="sum")

    generator = torch.Generator().manual_seed(4)
    shapes = ((23, 16), (31, 16), (31,))
    values = [torch.randn(*s, generator=generator).requires_grad_() for s in shapes]
    head = LinearHead(values[1], values[2] if biased else None)
    targets = torch.randint(31, (23,), generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = training_loss._by_liger(Loss(), values[0], head, targets)
        expected = negative_log_likelihood(values[0], head, targets, 31)
    assert seen == [(torch.bfloat16 if autocast else torch.float32,) * 2]
    torch.testing.assert_close(loss, expected, rtol=1e-2 if autocast else 1e-5, atol=0)
    loss.backward()
    assert values[0].grad.dtype == torch.float32
    assert (values[2].grad is not None) == biased


def test_a_gpus_own_sums_are_asked_for_in_float32():
    liger = pytest.importorskip("liger_kernel.transformers")
    assert training_loss._liger_loss().accum_dtype == torch.float32
    assert isinstance(training_loss._liger_loss(), liger.LigerFusedLinearCrossEntropyLoss)


def test_scores_are_read_one_batch_later():
    events = []

    class Scores:
        def __init__(self, number):
            self.number = number
            events.append(f"begin {number}")

        def wait(self):
            events.append(f"end {self.number}")
            return np.array([self.number])

    found = list(_one_ahead(([f"batch {n}"], Scores(n)) for n in range(3)))
    assert [(names, values.tolist()) for names, values in found] == [
        (["batch 0"], [0]), (["batch 1"], [1]), (["batch 2"], [2]),
    ]  # fmt: skip
    assert events == ["begin 0", "begin 1", "end 0", "begin 2", "end 1", "end 2"]


@pytest.mark.filterwarnings("ignore")  # the compiler warns about what it looks at
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_compiled_layers_compute_what_they_did(architecture, tmp_path):
    """With transformers' own layers: those of a CPU are not compiled."""
    model = AutoModelForCausalLM.from_pretrained(make_model_folder(tmp_path, architecture))
    inputs = [torch.randint(200, shape) for shape in ((2, 9), (3, 21))]
    names = list(model.state_dict())
    expected = [model(ids).logits for ids in inputs]
    assert compile_layers(model, backend="aot_eager") > 1
    found = [model(ids).logits for ids in inputs]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    found[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert list(model.state_dict()) == names


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("unpacked")
@pytest.mark.parametrize("grad", [True, False])
def test_one_compilation_serves_all_layers_and_lengths(lm, grad):
    """On the meta device, where layers take the way that they take on a GPU."""
    there = replace(lm, model=lm.model.to("meta"))
    counter = CompileCounterWithBackend("eager")
    assert compile_layers(there.model, backend=counter) == lm.model.config.num_hidden_layers > 1
    with torch.set_grad_enabled(grad):
        for shape in ((2, 9), (3, 21), (5, 30)):
            assert there.hidden(torch.zeros(shape, dtype=torch.long, device="meta")).is_meta
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_several_adapters_are_not_compiled(lm):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(lm.model, LoraConfig(r=2, target_modules="all-linear"))
    assert compile_layers(model, backend="eager") > 0
    model.add_adapter("second", LoraConfig(r=2, target_modules="all-linear"))
    assert compile_layers(model, backend="eager") == 0


def test_a_machine_without_a_compiler_says_why(monkeypatch, tmp_path):
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(config.cpp, "cxx", (None, "no-such-compiler"))
    monkeypatch.setattr(config, "fx_graph_cache", False)
    reason = why_not_compiled("cpu")
    assert reason
    assert "\n" not in reason


def test_the_plan_compiles_where_texts_pay_for_it():
    def compiles(texts, budget=WORKSTATION, **compute):
        work = replace(WORK, texts_to_train=texts, texts_to_score=texts)
        plan = make_plan(budget, GPT2, work, ComputeConfig(**compute))
        return plan.compiles_training, plan.compiles_scoring

    assert compiles(10_000) == (False, False)
    # Two trainings share the texts; one actor scores them all.
    assert compiles(60_000) == (False, True)
    assert compiles(100_000) == (True, True)
    assert compiles(1_000_000, compile="off") == (False, False)
    assert compiles(10, compile="on") == (True, True)
    on_cpu = Budget.of(cpus=8, memory_bytes=32 * GB)
    assert compiles(1_000_000, on_cpu, compile="on") == (False, False)
    adapters = replace(WORK, lora_rank=8, texts_to_score=10**6)
    assert not make_plan(WORKSTATION, GPT2, adapters, ComputeConfig()).compiles_scoring
