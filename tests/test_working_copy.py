"""A 16-bit copy computes, and the float32 original gets its gradients."""

from __future__ import annotations

import pytest
import torch
from model_fixtures import CORPUS, make_model_folder

from gencls_core.model_source import ResolvedModel
from gencls_core.models import attach_lora, load_causal_lm
from gencls_core.training_loss import negative_log_likelihood
from gencls_core.working_copy import WorkingCopy


def loss_of(lm, model):
    from dataclasses import replace

    lm = replace(lm, model=model)
    ids = torch.tensor(lm.encode([CORPUS[0]]))
    hidden = lm.hidden(ids[:, :-1])[0]
    return negative_log_likelihood(hidden, lm.head, ids[0, 1:], lm.vocabulary)


def gradients_of(lm):
    """Take the gradients of what is trained, and leave none."""
    found = {n: p.grad for n, p in lm.model.named_parameters() if p.requires_grad}
    lm.model.zero_grad(set_to_none=True)
    return found


def worst(found, expected):
    """Give the largest error of a gradient, as a part of it."""
    return max((found[n] - g).norm().item() / g.norm().item() for n, g in expected.items())


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_gradients_arrive_in_float32(rank, architecture, tmp_path):
    lm = load_causal_lm(ResolvedModel.of_folder("m", make_model_folder(tmp_path, architecture)))
    lm.model.eval()
    if rank is not None:
        torch.manual_seed(0)
        lm = attach_lora(lm, rank, None)
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    copied = WorkingCopy(lm.model, torch.bfloat16)
    # Two passes add up.
    for _ in range(2):
        loss_of(lm, copied.model).backward()
    ours = gradients_of(lm)
    assert all(p.grad is None for p in copied.model.parameters())
    loss_of(lm, lm.model).backward()
    expected = gradients_of(lm)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_of(lm, lm.model).backward()
    by_autocast = gradients_of(lm)
    assert ours.keys() == expected.keys()
    assert {g.dtype for g in ours.values()} == {torch.float32}
    # Autocast rounds the operands of products; what lies between them is rounded here, too.
    assert worst(ours, {n: 2 * g for n, g in expected.items()}) < 2 * worst(by_autocast, expected)
    assert all(p.grad is None for p in lm.model.parameters() if not p.requires_grad)


def test_only_weights_are_rounded(tmp_path):
    """Rotary frequencies in 16 bits would put each token at another place."""
    lm = load_causal_lm(ResolvedModel.of_folder("m", make_model_folder(tmp_path, "llama")))
    copied = WorkingCopy(lm.model, torch.bfloat16)
    buffers = dict(copied.model.named_buffers())
    assert buffers.keys() == dict(lm.model.named_buffers()).keys() != set()
    for name, theirs in lm.model.named_buffers():
        torch.testing.assert_close(buffers[name], theirs, atol=0, rtol=0)
    assert {p.dtype for p in copied.model.parameters()} == {torch.bfloat16}
    embedding = copied.model.get_input_embeddings().weight
    tied = lm.model.get_input_embeddings().weight is lm.model.get_output_embeddings().weight
    assert (embedding is copied.model.get_output_embeddings().weight) == tied


def test_a_frequent_words_gradients_all_count(tmp_path):
    """In 16 bits a sum of equal numbers stands still after some hundred of them."""
    lm = load_causal_lm(ResolvedModel.of_folder("m", make_model_folder(tmp_path, "gpt2")))
    embedding = WorkingCopy(lm.model, torch.bfloat16).model.get_input_embeddings()
    before = lm.model.get_input_embeddings().weight
    ids = torch.tensor([[5] * 2047 + [7]])
    (0.01 * embedding(ids)).sum().backward()
    expected = 0.01 * torch.bincount(ids[0], minlength=len(before)).float()[:, None]
    torch.testing.assert_close(before.grad, expected.expand_as(before), rtol=5e-3, atol=0)


def test_a_refreshed_copy_has_the_originals_weights(tmp_path):
    lm = load_causal_lm(ResolvedModel.of_folder("m", make_model_folder(tmp_path, "llama")))
    copied = WorkingCopy(lm.model, torch.bfloat16)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter += 0.1
    before = loss_of(lm, copied.model).item()
    copied.refresh()
    assert loss_of(lm, copied.model).item() != before
    for theirs, ours in zip(lm.model.parameters(), copied.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.bfloat16(), atol=0, rtol=0)
