"""Exactness: our log-likelihood is the naive float64 sum over log_softmax, text by text."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from model_fixtures import ARCHITECTURES, CORPUS, make_model_folder

from gencls_core import likelihood, training_loss
from gencls_core.config import SequenceConfig
from gencls_core.likelihood import LinearHead, token_log_probs
from gencls_core.model_source import ResolvedModel
from gencls_core.models import CausalLM, load_causal_lm
from gencls_core.scoring import score_texts
from gencls_core.tokenization import SequencePolicy, TokenizedText
from gencls_core.training_loss import negative_log_likelihood

LONG = " ".join(CORPUS[:3] * 4)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def lm(request, tmp_path_factory) -> CausalLM:
    folder = make_model_folder(tmp_path_factory.mktemp("lm"), request.param, context=64)
    return load_causal_lm(ResolvedModel.of_folder(request.param, folder))


def naive_with_prompt(lm: CausalLM, prompt: list[int], ids: list[int], window: int) -> float:
    """Each window reads BOS and prompt, then its part of the text; float64, no padding."""
    model = lm.model.double()
    head, targets = [lm.bos_id, *prompt], [*ids, lm.eos_id]
    room, total, scored = window - len(head), 0.0, 0
    # The first window's last input is the one before its last target: one more target fits.
    stop = min(room + 1, len(targets))
    while scored < len(targets):
        # A later window reads the token before its first target, too.
        start = max(0, stop - room) if scored else 0
        sequence = head + targets[max(0, start - 1) : stop - 1]
        with torch.no_grad():
            log_probs = torch.log_softmax(model(torch.tensor([sequence])).logits[0], dim=-1)
        for position in range(scored, stop):
            row = len(sequence) - (stop - position)
            total += log_probs[row, targets[position]].item()
        scored, stop = stop, min(stop + room // 2, len(targets))
    model.float()
    return total


@pytest.mark.parametrize("window", [None, 24])
def test_texts_after_a_prompt_match_naive_float64(lm, window):
    config = SequenceConfig(window=window)
    policy = SequencePolicy.resolve(config, bos_id=lm.bos_id, eos_id=lm.eos_id, context=lm.context)
    encoded = lm.encode([*CORPUS, LONG])
    prompts = lm.encode(["a", CORPUS[1][:12]])
    for prompt in prompts:
        texts = [TokenizedText.of(ids, policy, prompt) for ids in encoded]
        ours = score_texts(lm, texts, window=policy.window, tokens_per_batch=256)
        naive = [naive_with_prompt(lm, prompt, ids, policy.window) for ids in encoded]
        np.testing.assert_allclose(ours.log_likelihoods, naive, atol=1e-4, rtol=0)


def naive_log_likelihood(lm: CausalLM, ids: list[int], score_eos: bool, window: int) -> float:
    """One text, one forward per window, everything in float64, no padding, no chunks."""
    model = lm.model.double()
    sequence = [lm.bos_id, *ids, *([lm.eos_id] if score_eos else [])]
    targets = sequence[1:]
    total, scored = 0.0, 0
    stop = min(window, len(targets))
    while scored < len(targets):
        start = max(0, stop - window)
        with torch.no_grad():
            logits = model(torch.tensor([sequence[start:stop]])).logits[0]
        log_probs = torch.log_softmax(logits, dim=-1)
        for position in range(scored, stop):
            total += log_probs[position - start, targets[position]].item()
        scored, stop = stop, min(stop + max(1, window // 2), len(targets))
    model.float()
    return total


@pytest.mark.parametrize("score_eos", [True, False])
@pytest.mark.parametrize(
    ("window", "tokens_per_batch"), [(None, 1), (None, 4096), (16, 64), (9, 4096)]
)
def test_matches_naive_float64(lm, score_eos, window, tokens_per_batch):
    texts = [*CORPUS, LONG]
    config = SequenceConfig(score_eos=score_eos, window=window)
    policy = SequencePolicy.resolve(config, bos_id=lm.bos_id, eos_id=lm.eos_id, context=lm.context)
    encoded = lm.encode(texts)
    ours = score_texts(
        lm,
        [TokenizedText.of(ids, policy) for ids in encoded],
        window=policy.window,
        tokens_per_batch=tokens_per_batch,
    ).log_likelihoods
    naive = [naive_log_likelihood(lm, ids, score_eos, policy.window) for ids in encoded]
    assert len(encoded[-1]) > lm.context, "the long text must need windows"
    np.testing.assert_allclose(ours, naive, atol=1e-4, rtol=0)


def test_batch_neighbours_and_padding_change_nothing(lm):
    policy = SequencePolicy.resolve(
        SequenceConfig(), bos_id=lm.bos_id, eos_id=lm.eos_id, context=lm.context
    )
    texts = [TokenizedText.of(ids, policy) for ids in lm.encode([*CORPUS, LONG])]
    together = score_texts(lm, texts, window=policy.window, tokens_per_batch=10_000)
    for number, text in enumerate(texts):
        alone = score_texts(lm, [text], window=policy.window, tokens_per_batch=10_000)
        np.testing.assert_allclose(
            alone.token_scores[0], together.token_scores[number], atol=2e-5, rtol=0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("positions", [0, 1, 7, 300])
@pytest.mark.parametrize("vocabulary", [11, 50_257])
@pytest.mark.parametrize("in_columns", [True, False])
def test_token_log_probs_over_dtypes_and_shapes(
    dtype, positions, vocabulary, in_columns, monkeypatch
):
    generator = torch.Generator().manual_seed(positions + vocabulary)
    hidden = torch.randn(positions, 16, generator=generator).to(dtype)
    weight = torch.randn(vocabulary, 16, generator=generator).to(dtype)
    targets = torch.randint(vocabulary, (positions,), generator=generator)
    monkeypatch.setattr(likelihood, "LOGITS_PER_CHUNK", 3 * vocabulary)
    head = LinearHead(weight) if in_columns else lambda h: h @ weight.T
    ours = token_log_probs(hidden, head, targets, vocabulary)
    # The reference starts from the same rounded logits: what is tested is the softmax, whose
    # float32 error is independent of the model's precision.
    logits = torch.cat([h @ weight.T for h in hidden.split(3)]) if positions else hidden @ weight.T
    naive = torch.log_softmax(logits.double(), dim=-1).gather(1, targets[:, None]).squeeze(1)
    assert ours.dtype == torch.float32
    # A column more or less in a product may round a logit the other way.
    rounded = {torch.float32: 2e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}[dtype]
    atol = rounded if in_columns and dtype != torch.float32 else 2e-5
    torch.testing.assert_close(ours.double(), naive, atol=atol, rtol=1e-6)


@pytest.mark.parametrize("forbidden", [-1e4, -1e9, -math.inf])
@pytest.mark.parametrize("columns", [slice(0, 1), slice(7, 8), slice(7, 14), slice(28, 31)])
def test_forbidden_tokens_take_nothing_from_the_others(forbidden, columns, monkeypatch):
    """A biased head may rule out the first column of a block, all of one, or the last one."""
    for module in (likelihood, training_loss):
        monkeypatch.setattr(module, "BLOCK_COLUMNS", 7)
    generator = torch.Generator().manual_seed(5)
    hidden = 3 * torch.randn(23, 16, generator=generator)
    weight, bias = torch.randn(31, 16, generator=generator), torch.zeros(31)
    bias[columns] = forbidden
    allowed = [column for column in range(31) if not bias[column]]
    targets = torch.tensor(allowed)[torch.randint(len(allowed), (23,), generator=generator)]
    ours = token_log_probs(hidden, LinearHead(weight, bias), targets, 31)
    logits = hidden.double() @ weight.double().T + bias.double()
    naive = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(ours.double(), naive, atol=2e-5, rtol=1e-6)
    hidden.requires_grad_()
    loss = negative_log_likelihood(hidden, LinearHead(weight, bias), targets, 31)
    loss.backward()
    torch.testing.assert_close(loss.double(), -naive.sum(), atol=1e-4, rtol=1e-6)
    of_logits = logits.softmax(dim=-1)
    of_logits[torch.arange(23), targets] -= 1
    torch.testing.assert_close(
        hidden.grad.double(), of_logits @ weight.double(), atol=1e-4, rtol=1e-4
    )


def test_a_target_outside_of_the_vocabulary_has_no_score():
    hidden, weight = torch.randn(3, 16), torch.randn(31, 16)
    found = token_log_probs(hidden, LinearHead(weight), torch.tensor([30, 31, -1]), 31)
    assert found.isnan().tolist() == [False, True, True]


def test_blocks_of_the_vocabulary_add_up(monkeypatch):
    """Rows and columns that are no multiples of a block, targets at each block's edges."""
    monkeypatch.setattr(likelihood, "BLOCK_ROWS", 5)
    monkeypatch.setattr(likelihood, "BLOCK_COLUMNS", 7)
    generator = torch.Generator().manual_seed(1)
    hidden = 3 * torch.randn(23, 16, generator=generator)
    weight, bias = torch.randn(31, 16, generator=generator), torch.randn(31, generator=generator)
    targets = torch.tensor([0, 6, 7, 13, 14, 27, 28, 30, *torch.arange(15).tolist()])
    for offset in (None, bias):
        ours = token_log_probs(hidden, LinearHead(weight, offset), targets, 31)
        logits = hidden.double() @ weight.double().T + (0 if offset is None else offset.double())
        naive = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).squeeze(1)
        torch.testing.assert_close(ours.double(), naive, atol=2e-5, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept_rows", [1, 9, 1000])
@pytest.mark.parametrize("biased", [True, False])
def test_gradients_of_a_head_match_naive_float64(dtype, kept_rows, biased, monkeypatch):
    monkeypatch.setattr(training_loss, "BLOCK_COLUMNS", 7)
    monkeypatch.setattr(training_loss, "KEPT_LOGITS_BYTES", kept_rows * 31 * dtype.itemsize)
    generator = torch.Generator().manual_seed(2)
    values = [torch.randn(*shape, generator=generator) for shape in ((23, 16), (31, 16), (31,))]
    targets = torch.randint(31, (23,), generator=generator)
    ours = [v.to(dtype, copy=True).requires_grad_() for v in values]
    naive = [v.to(dtype).double().requires_grad_() for v in values]
    head = LinearHead(ours[1], ours[2] if biased else None)
    loss = negative_log_likelihood(ours[0], head, targets, 31)
    logits = naive[0] @ naive[1].T + (naive[2] if biased else 0)
    reference = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    # A factor from outside, as the loss per token has one.
    (loss / 7).backward()
    (reference / 7).backward()
    # bfloat16 has 8 bits of mantissa; a logit of 10 is rounded by up to 0.03.
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(loss.double(), reference, rtol=tolerance, atol=tolerance)
    for mine, other in list(zip(ours, naive, strict=True))[: 3 if biased else 2]:
        assert mine.grad.dtype == dtype
        error = (mine.grad.double() - other.grad).abs().max() / other.grad.abs().max()
        assert error < tolerance


def test_a_head_without_gradient_is_left_alone(lm):
    """As under LoRA: the base is frozen, its hidden states are not."""
    weight = torch.randn(31, 16)
    hidden = torch.randn(4, 16, requires_grad=True)
    negative_log_likelihood(hidden, LinearHead(weight), torch.arange(4), 31).backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_gradients_match_naive(lm):
    ids = torch.tensor([lm.encode([CORPUS[0]])[0]])
    targets = ids[0, 1:]
    weight = lm.model.get_input_embeddings().weight
    gradients = []
    for loss_of in (negative_log_likelihood, token_log_probs, None):
        lm.model.zero_grad()
        if loss_of is None:
            logits = lm.model(ids[:, :-1]).logits[0]
            loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        else:
            loss = loss_of(lm.hidden(ids[:, :-1])[0], lm.head, targets, lm.vocabulary).sum()
        (-loss if loss_of is token_log_probs else loss).backward()
        gradients.append(weight.grad.clone())
    for ours in gradients[:-1]:
        torch.testing.assert_close(ours, gradients[-1], atol=1e-4, rtol=1e-4)


def test_logits_are_never_formed_whole(monkeypatch):
    monkeypatch.setattr(likelihood, "LOGITS_PER_CHUNK", 1000)
    largest = 0
    weight = torch.randn(100, 8)

    def head(hidden):
        nonlocal largest
        largest = max(largest, len(hidden) * 100)
        return hidden @ weight.T

    token_log_probs(torch.randn(512, 8), head, torch.randint(100, (512,)), 100)
    assert largest <= 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept_rows", [9, 1000])
def test_weighted_losses_match_naive_float64(dtype, kept_rows, monkeypatch):
    """Weights may be negative, as those of texts that are to become less likely."""
    monkeypatch.setattr(training_loss, "BLOCK_COLUMNS", 7)
    monkeypatch.setattr(training_loss, "KEPT_LOGITS_BYTES", kept_rows * 31 * dtype.itemsize)
    generator = torch.Generator().manual_seed(3)
    shapes = ((23, 16), (31, 16), (31,))
    values = [torch.randn(*shape, generator=generator) for shape in shapes]
    targets = torch.randint(31, (23,), generator=generator)
    weights = torch.randn(23, generator=generator)
    naive = [v.to(dtype).double().requires_grad_() for v in values]
    losses = torch.nn.functional.cross_entropy(
        naive[0] @ naive[1].T + naive[2], targets, reduction="none"
    )
    (reference := (losses * weights.double()).sum()).backward()
    linear = [v.to(dtype, copy=True).requires_grad_() for v in values]
    whole = [v.to(dtype, copy=True).requires_grad_() for v in values]
    # bfloat16 has 8 bits of mantissa; losses of both signs add up to less than one of them.
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for mine, head in (
        (linear, LinearHead(linear[1], linear[2])),
        (whole, lambda hidden: hidden @ whole[1].T + whole[2]),
    ):
        loss = negative_log_likelihood(mine[0], head, targets, 31, weights)
        loss.backward()
        assert abs(loss.double() - reference) < tolerance * (losses * weights.abs()).sum()
        for ours, theirs in zip(mine, naive, strict=True):
            error = (ours.grad.double() - theirs.grad).abs().max() / theirs.grad.abs().max()
            assert error < tolerance
