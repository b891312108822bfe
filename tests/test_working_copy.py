"""A 16-bit copy computes, and the float32 original gets its gradients."""

from __future__ import annotations

import pytest
import torch
from model_fixtures import CORPUS, make_model_folder

from gencls_core.likelihood import negative_log_likelihood
from gencls_core.model_source import ResolvedModel
from gencls_core.models import attach_lora, load_causal_lm
from gencls_core.working_copy import WorkingCopy


def loss_of(lm, model):
    from dataclasses import replace

    lm = replace(lm, model=model)
    ids = torch.tensor(lm.encode([CORPUS[0]]))
    hidden = lm.hidden(ids[:, :-1])[0]
    return negative_log_likelihood(hidden, lm.head, ids[0, 1:], lm.vocabulary)


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
    ours = {n: p.grad for n, p in lm.model.named_parameters() if p.requires_grad}
    assert all(p.grad is None for p in copied.model.parameters())
    lm.model.zero_grad()
    loss_of(lm, lm.model).backward()
    expected = {n: 2 * p.grad for n, p in lm.model.named_parameters() if p.requires_grad}
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        assert gradient.dtype == torch.float32, name
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error < 0.05, (name, error)
    assert all(p.grad is None for p in lm.model.parameters() if not p.requires_grad)


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
