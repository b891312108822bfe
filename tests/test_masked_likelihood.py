"""Masked models: pseudo-likelihoods against a naive loop, the bound against all sets of masks."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from masked_fixtures import ARCHITECTURES, POSITIONS, cut, make_model, make_tokenizer
from model_fixtures import CORPUS
from transformers import BertForMaskedLM, PreTrainedTokenizerFast, RobertaForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput

from gencls_core import likelihood, masked_models
from gencls_core.errors import ModelError
from gencls_core.masked_draws import draw_masks, standard_error
from gencls_core.masked_likelihood import MaskedText, score_masked, score_pseudo
from gencls_core.masked_models import MaskedLM, wrap_masked_lm
from gencls_core.masked_training import mask_for_training, masked_loss

LONG = " ".join(CORPUS[:3] * 2)


def make_lm(architecture: str, seed: int = 0) -> MaskedLM:
    tokenizer = make_tokenizer(architecture)
    return wrap_masked_lm(make_model(architecture, tokenizer, seed), tokenizer, place=architecture)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def lm(request) -> MaskedLM:
    return make_lm(request.param)


@pytest.fixture(scope="module")
def bert() -> MaskedLM:
    return make_lm("bert")


def of_length(lm: MaskedLM, tokens: int) -> MaskedText:
    """Give the first tokens of a text."""
    return MaskedText.of(lm.encode([LONG])[0][:tokens], window=lm.window)


_DOUBLE: dict[int, tuple[MaskedLM, torch.nn.Module]] = {}
"""Models in float64; each is held with its original, so that no id is used again."""


def naive_log_probs(lm: MaskedLM, window: np.ndarray, masked: tuple[int, ...]) -> list[float]:
    """One row, no padding, all logits, everything in float64."""
    if id(lm) not in _DOUBLE:
        _DOUBLE[id(lm)] = (lm, copy.deepcopy(lm.model).double())
    model = _DOUBLE[id(lm)][1]
    ids = [lm.tokenizer.cls_token_id, *window.tolist(), lm.tokenizer.sep_token_id]
    for position in masked:
        ids[1 + position] = lm.tokenizer.mask_token_id
    with torch.no_grad():
        log_probs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], dim=-1)
    return [log_probs[1 + i, window[i]].item() for i in masked]


def all_sets(lm: MaskedLM, text: MaskedText) -> dict[tuple[int, ...], float]:
    """Give Σ_{i∈M} log P(x_i | x_¬M) for every set M of a short text's tokens."""
    count = len(text)
    return {
        chosen: math.fsum(naive_log_probs(lm, text.ids, chosen))
        for k in range(1, count + 1)
        for chosen in itertools.combinations(range(count), k)
    }


def bound_of(table: dict[tuple[int, ...], float], count: int) -> float:
    """Give the expectation over k uniform on 1 … n and M uniform over the sets of size k."""
    return math.fsum(
        total * count / len(chosen) / (count * math.comb(count, len(chosen)))
        for chosen, total in table.items()
    )


def chosen_of(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.flatnonzero(mask))


# --- pseudo-log-likelihood


def test_pseudo_matches_naive_float64_token_by_token(lm):
    lengths = (0, 1, 9, lm.window, lm.window + 1, 2 * lm.window + 5)
    texts = [of_length(lm, length) for length in lengths]
    assert [len(text.windows) for text in texts] == [0, 1, 1, 1, 2, 3]
    naive = [
        [
            naive_log_probs(lm, text.ids[start:stop], (i,))[0]
            for start, stop in text.windows
            for i in range(stop - start)
        ]
        for text in texts
    ]
    for tokens_per_batch in (1, 4096):
        ours = score_pseudo(lm, texts, tokens_per_batch=tokens_per_batch)
        for number, expected in enumerate(naive):
            assert len(expected) == len(texts[number])
            np.testing.assert_allclose(ours.token_scores[number], expected, atol=2e-5, rtol=0)
            np.testing.assert_allclose(
                ours.log_likelihoods[number], math.fsum(expected), atol=2e-4, rtol=0
            )
        assert ours.standard_errors is None


@pytest.mark.parametrize("tokens", [0, 1, 7, 8, 9, 16, 17, 100])
def test_windows_hold_each_token_once_and_are_alike(tokens):
    text = MaskedText.of(range(tokens), window=8)
    held = [i for start, stop in text.windows for i in range(start, stop)]
    sizes = {stop - start for start, stop in text.windows}
    assert held == list(range(tokens))
    assert len(text.windows) == math.ceil(tokens / 8)
    assert max(sizes, default=0) <= 8
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert not text.truncated


def test_only_max_length_truncates():
    short = MaskedText.of([5, 6, 7], window=8, max_length=3)
    long = MaskedText.of([5, 6, 7, 8], window=8, max_length=3)
    assert (len(short), short.truncated) == (3, False)
    assert (len(long), long.truncated) == (3, True)


def test_positions_that_a_model_has(lm):
    # RoBERTa counts from its padding id + 1, here 2.
    roberta = isinstance(lm.model, RobertaForMaskedLM)
    assert lm.context == (POSITIONS - 2 if roberta else POSITIONS)
    assert lm.window == lm.context - 2
    mask = np.ones(lm.window + 1, dtype=np.bool_)
    with pytest.raises(ValueError, match="do not fit"):
        lm.batch([(np.zeros(lm.window + 1, dtype=np.int32), mask)])


def test_special_tokens_written_in_a_text_are_text(lm):
    tokenizer = lm.tokenizer
    special = [tokenizer.mask_token, tokenizer.pad_token, tokenizer.sep_token]
    ids = lm.encode([f"so {name} it is" for name in special])
    held = {i for row in ids for i in row}
    assert not held & {tokenizer.convert_tokens_to_ids(name) for name in special}


# --- the bound


def test_value_of_a_draw_and_the_bound_of_all_orders(lm):
    count = 5
    text = of_length(lm, count)
    table = all_sets(lm, text)
    exact = bound_of(table, count)

    # The bound is the mean over all orders of the tokens, each given those before it.
    known = {
        hidden: dict(zip(hidden, naive_log_probs(lm, text.ids, hidden), strict=True))
        for hidden in table
    }
    over_orders = []
    for order in itertools.permutations(range(count)):
        total = 0.0
        for step, position in enumerate(order):
            hidden = tuple(sorted(order[step:]))
            total += known[hidden][position]
        over_orders.append(total)
    assert exact == pytest.approx(math.fsum(over_orders) / len(over_orders), abs=1e-9)

    scores = score_masked(lm, [text], ["a"], samples=1000, seed=3, tokens_per_batch=4096)
    masks = draw_masks(count, 1000, seed=3, key=("score", "a", count, 0))
    drawn = [count / mask.sum() * table[chosen_of(mask)] for mask in masks]
    np.testing.assert_allclose(scores.values_NS[0], drawn, atol=1e-4)
    assert scores.standard_errors is not None
    assert abs(scores.log_likelihoods[0] - exact) < 4 * scores.standard_errors[0]
    assert scores.standard_errors[0] < 0.1 * abs(exact)
    assert scores.token_scores[0].sum() == pytest.approx(scores.log_likelihoods[0], rel=1e-5)


@pytest.mark.parametrize("draws", [1, 2, 3, 8])
def test_estimate_and_squared_standard_error_are_unbiased(bert, draws):
    count, repetitions = 6, 2000
    text = of_length(bert, count)
    table = all_sets(bert, text)
    exact = bound_of(table, count)
    values_XS = np.array(
        [
            [
                count / mask.sum() * table[chosen_of(mask)]
                for mask in draw_masks(count, draws, seed=seed, key=("x",))
            ]
            for seed in range(repetitions)
        ]
    )
    means_X = values_XS.mean(axis=1)
    variance = means_X.var(ddof=1)
    assert abs(means_X.mean() - exact) < 4 * math.sqrt(variance / repetitions)
    if draws >= 2:
        # Of 2,000 repetitions, a variance has a relative error of about 3.2 %, more with tails.
        assert (standard_error(values_XS) ** 2).mean() == pytest.approx(variance, rel=0.12)
    probability = {c: 1 / (count * math.comb(count, len(c))) for c in table}
    independent = (
        sum(p * (count / len(c) * table[c] - exact) ** 2 for c, p in probability.items()) / draws
    )
    assert variance < 1.1 * independent, "strata may not add variance"


def test_strata_take_each_number_of_masked_tokens_equally_often():
    count = 7
    sizes = draw_masks(count, 2 * count, seed=0, key=("x",)).sum(axis=1)
    assert sorted(sizes.tolist()) == sorted([*range(1, count + 1)] * 2)


def test_an_odd_draw_joins_the_last_stratum():
    # Five draws: two in the lower two fifths, three in the upper three.
    sizes = np.array([draw_masks(5, 5, seed=s, key=()).sum(axis=1) for s in range(200)])
    assert set(sizes[:, :2].ravel().tolist()) == {1, 2}
    assert set(sizes[:, 2:].ravel().tolist()) == {3, 4, 5}


@pytest.mark.parametrize(("length", "draws"), [(1, 1), (1, 5), (2, 3), (300, 1), (300, 9)])
def test_every_draw_masks_something(length, draws):
    masks = draw_masks(length, draws, seed=0, key=("x",))
    assert masks.shape == (draws, length)
    assert masks.any(axis=1).all()


def test_masks_depend_on_what_they_are_said_to():
    def masks(seed=0, key=("a",), length=20):
        return draw_masks(length, 4, seed=seed, key=key).tolist()

    assert masks() == masks()
    assert masks() != masks(seed=1)
    assert masks() != masks(key=("b",))
    assert masks()[0] != masks(length=21)[0][:20]
    # Fixed for ever: rows that were scored with these masks are not scored again.
    drawn = draw_masks(8, 2, seed=1, key=("score", "id", 8, 0)).astype(int)
    assert ["".join(map(str, row)) for row in drawn.tolist()] == PINNED


PINNED = ["00011000", "11111111"]


@pytest.mark.parametrize(("length", "draws"), [(0, 1), (3, 0)])
def test_nothing_to_draw_is_refused(length, draws):
    with pytest.raises(ValueError, match="cannot draw"):
        draw_masks(length, draws, seed=0, key=())


def test_a_standard_error_needs_two_draws(bert):
    with pytest.raises(ValueError, match="two draws"):
        standard_error(np.zeros((3, 1)))
    once = score_masked(bert, cut(bert, CORPUS), CORPUS, samples=1, seed=0, tokens_per_batch=512)
    assert once.standard_errors is None
    assert np.isfinite(once.log_likelihoods).all()


# --- pairing


def questions(lm: MaskedLM, **arguments) -> set[tuple[int, ...]]:
    """Give every row of tokens that the model read, without its padding."""
    seen: set[tuple[int, ...]] = set()
    original = lm._hidden

    def spy(batch):
        for ids, attention in zip(batch.input_ids_BT, batch.attention_mask_BT, strict=True):
            seen.add(tuple(ids[attention.bool()].tolist()))
        return original(batch)

    object.__setattr__(lm, "_hidden", spy)
    try:
        score_masked(lm, **arguments)
    finally:
        object.__delattr__(lm, "_hidden")
    return seen


def test_class_models_are_asked_the_same_questions():
    one, other = make_lm("bert", seed=1), make_lm("bert", seed=2)
    texts = cut(one, [*CORPUS, LONG])
    ids = [f"id-{i}" for i in range(len(texts))]
    common = {"samples": 4, "seed": 0}
    asked = questions(one, texts=texts, example_ids=ids, tokens_per_batch=64, **common)
    again = questions(
        other, texts=texts[::-1], example_ids=ids[::-1], tokens_per_batch=4096, **common
    )
    assert len(asked) > 4 * (len(texts) - 1)
    assert asked == again


def test_batches_and_order_change_no_estimate(lm):
    texts = cut(lm, [*CORPUS, LONG])
    ids = [f"id-{i}" for i in range(len(texts))]
    common = {"samples": 5, "seed": 0}
    together = score_masked(lm, texts, ids, tokens_per_batch=10_000, **common)
    backwards = score_masked(lm, texts[::-1], ids[::-1], tokens_per_batch=40, **common)
    alone = [
        score_masked(lm, [text], [name], tokens_per_batch=100, **common).values_NS[0]
        for text, name in zip(texts, ids, strict=True)
    ]
    np.testing.assert_allclose(backwards.values_NS[::-1], together.values_NS, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(alone, together.values_NS, rtol=1e-5, atol=1e-5)


def test_paired_masks_make_differences_precise(bert):
    """Two class models of one base that differ a little, as fine-tuned ones do."""
    model = copy.deepcopy(bert.model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.003 * torch.randn(weight.shape, generator=generator)
    other = wrap_masked_lm(model, bert.tokenizer, place="other")
    texts = cut(bert, CORPUS[:3])
    ids = ["a", "b", "c"]
    common = {"samples": 32, "tokens_per_batch": 4096}
    first = score_masked(bert, texts, ids, seed=0, **common).values_NS
    paired = score_masked(other, texts, ids, seed=0, **common).values_NS
    unpaired = score_masked(other, texts, ids, seed=1, **common).values_NS
    error = standard_error(first - paired)
    assert (error < 0.5 * standard_error(first - unpaired)).all()
    # The smaller error is an honest one: the difference of the exact bounds lies within it.
    short = of_length(bert, 5)
    exact = bound_of(all_sets(bert, short), 5) - bound_of(all_sets(other, short), 5)
    values = [
        score_masked(m, [short], ["s"], seed=0, samples=200, tokens_per_batch=4096).values_NS
        for m in (bert, other)
    ]
    difference = values[0] - values[1]
    assert abs(difference.mean() - exact) < 4 * standard_error(difference)[0]


# --- edges


def test_one_token_is_exact_either_way(lm):
    text = of_length(lm, 1)
    pseudo = score_pseudo(lm, [text], tokens_per_batch=100)
    masked = score_masked(lm, [text], ["a"], samples=3, seed=0, tokens_per_batch=100)
    assert masked.standard_errors is not None
    np.testing.assert_allclose(masked.values_NS[0], pseudo.log_likelihoods[0], atol=1e-6)
    np.testing.assert_allclose(masked.standard_errors, 0.0, atol=1e-6)


@pytest.mark.parametrize("texts", [[""], ["", "so it is", ""], []])
def test_a_text_without_tokens_scores_nothing(lm, texts):
    tokenised = cut(lm, texts)
    ids = [str(i) for i in range(len(texts))]
    pseudo = score_pseudo(lm, tokenised, tokens_per_batch=100)
    masked = score_masked(lm, tokenised, ids, samples=2, seed=0, tokens_per_batch=100)
    assert masked.standard_errors is not None
    for number, text in enumerate(texts):
        empty = not text
        assert (len(tokenised[number]) == 0) == empty
        assert (pseudo.log_likelihoods[number] == 0.0) == empty
        assert (masked.log_likelihoods[number] == 0.0) == empty
    assert len(masked.log_likelihoods) == len(masked.standard_errors) == len(texts)
    assert np.isfinite(masked.standard_errors).all()


def test_text_that_tokenises_to_nothing(bert):
    assert len(cut(bert, ["\u0007 \u200b\t"])[0]) == 0


def test_a_model_that_gives_nan_is_refused(bert):
    model = copy.deepcopy(bert.model)
    broken = wrap_masked_lm(model, bert.tokenizer, place="broken")
    with torch.no_grad():
        model.cls.predictions.transform.dense.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not a finite number"):
        score_pseudo(broken, cut(bert, CORPUS[:1]), tokens_per_batch=512)


def test_logits_only_where_something_is_masked(monkeypatch):
    lm = make_lm("roberta")
    monkeypatch.setattr(likelihood, "LOGITS_PER_CHUNK", 3 * lm.vocabulary)
    rows: list[int] = []
    lm.model.lm_head.register_forward_hook(lambda _, __, out: rows.append(out.shape[1]))
    text = of_length(lm, 10)
    scores = score_pseudo(lm, [text], tokens_per_batch=4096)
    assert sum(rows) == len(text)
    assert max(rows) == 3
    assert len(scores.token_scores[0]) == len(text)


class NeighbourlyBert(BertForMaskedLM):
    """A masked LM whose head looks at the whole row: it cannot run on chosen positions."""

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None):
        states = self.bert(input_ids, attention_mask=attention_mask)[0]
        shares = torch.ones_like(states[..., :1])
        if attention_mask is not None:
            shares = attention_mask[..., None].to(states.dtype)
        mean = (states * shares).sum(dim=1, keepdim=True) / shares.sum(dim=1, keepdim=True)
        return MaskedLMOutput(logits=self.cls(states + mean))


def test_a_head_that_needs_its_neighbours_gets_them(bert, monkeypatch):
    torch.manual_seed(0)
    model = NeighbourlyBert(bert.model.config).eval()
    lm = wrap_masked_lm(model, bert.tokenizer, place="neighbourly")
    assert bert.head_apart
    assert not lm.head_apart
    monkeypatch.setattr(masked_models, "LOGITS_PER_CHUNK", 40 * lm.vocabulary)
    text = of_length(lm, 9)
    ours = score_pseudo(lm, [text], tokens_per_batch=4096).token_scores[0]
    naive = [naive_log_probs(lm, text.ids, (i,))[0] for i in range(9)]
    np.testing.assert_allclose(ours, naive, atol=2e-5)


def test_models_that_cannot_be_scored_are_refused(bert):
    tokenizer = bert.tokenizer
    causal = make_model("bert", tokenizer, is_decoder=True)
    with pytest.raises(ModelError, match="does not read what follows"):
        wrap_masked_lm(causal, tokenizer, place="causal")
    small = make_model("bert", tokenizer)
    small.resize_token_embeddings(50)
    with pytest.raises(ModelError, match="does not fit the model's vocabulary"):
        wrap_masked_lm(small, tokenizer, place="small")
    maskless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ModelError, match="no mask token"):
        wrap_masked_lm(bert.model, maskless, place="maskless")


# --- training


def test_training_masks_every_number_of_tokens_equally_often():
    ids = np.arange(4)
    sizes = [int(mask_for_training(ids, seed=0, epoch=e).sum()) for e in range(4000)]
    counts = np.bincount(sizes, minlength=5)
    assert counts[0] == 0
    # A count has a standard deviation of 27.
    assert abs(counts[1:] - 1000).max() < 4 * 27.4


def test_training_masks_depend_on_seed_epoch_and_tokens_alone():
    ids = list(range(40))
    mask = mask_for_training(ids, seed=0, epoch=3)
    assert (mask == mask_for_training(np.array(ids, dtype=np.int32), seed=0, epoch=3)).all()
    for other in (
        mask_for_training(ids, seed=1, epoch=3),
        mask_for_training(ids, seed=0, epoch=4),
        mask_for_training(ids[::-1], seed=0, epoch=3),
    ):
        assert (mask != other).any()
    with pytest.raises(ValueError, match="over 0 tokens"):
        mask_for_training([], seed=0, epoch=0)


def test_expected_loss_is_minus_the_bound(lm):
    """Over all sets of masked tokens with their probabilities, in one padded batch."""
    count = 4
    text = of_length(lm, count)
    table = all_sets(lm, text)
    expected, single = 0.0, MaskedText.of(text.ids[:1], window=lm.window)
    companion = -all_sets(lm, single)[(0,)]
    with torch.no_grad():
        for chosen in table:
            mask = np.isin(np.arange(count), chosen)
            batch = lm.batch([(text.ids, mask), (single.ids, np.array([True]))])
            loss, tokens = masked_loss(lm, batch)
            assert tokens == count + 1
            probability = 1 / (count * math.comb(count, len(chosen)))
            expected += probability * (loss.item() - companion)
    assert expected == pytest.approx(-bound_of(table, count), abs=1e-4)


@pytest.mark.parametrize("apart", [True, False])
def test_gradients_match_naive(lm, apart, monkeypatch):
    monkeypatch.setattr(likelihood, "LOGITS_PER_CHUNK", 3 * lm.vocabulary)
    model = copy.deepcopy(lm.model).double()
    ours = wrap_masked_lm(model, lm.tokenizer, place="double")
    object.__setattr__(ours, "head_apart", apart)
    texts = [of_length(lm, n).ids for n in (12, 5)]
    rows = [(ids, mask_for_training(ids, seed=1, epoch=0)) for ids in texts]
    loss, tokens = masked_loss(ours, ours.batch(rows))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for ids, mask in rows:
        whole = torch.tensor([[*lm.prefix, *np.where(mask, lm.mask_id, ids), *lm.suffix]])
        log_probs = torch.log_softmax(model(input_ids=whole).logits[0, 1:-1], dim=-1)
        own = log_probs[torch.arange(len(ids)), torch.tensor(ids).long()]
        total = total - len(ids) / mask.sum() * own[torch.tensor(mask)].sum()
    total.backward()
    assert tokens == 17
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    compared = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-4, rtol=1e-4)
            compared += 1
    assert compared == len(gradients) > 10
