"""Each token is predicted exactly once, and conditioned on as much as the window allows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from model_fixtures import make_model_folder

from gencls_core.errors import ModelError
from gencls_core.model_loading import load_tokenizer
from gencls_core.model_source import ResolvedModel
from gencls_core.tokenization import (
    SequencePolicy,
    TokenizedText,
    Window,
    batches_by_token_budget,
    windows_of,
)

POLICY = SequencePolicy(bos_id=0, eos_id=9, score_eos=True, window=4)


def test_sequence_has_bos_before_and_eos_after():
    text = TokenizedText.of([5, 6], POLICY)
    assert text.inputs.tolist() == [0, 5, 6]
    assert text.targets.tolist() == [5, 6, 9]
    assert not text.truncated


def test_padding_token_in_the_text_is_scored():
    # GPT-2's pad, BOS and EOS are one token; a text may contain it.
    text = TokenizedText.of([9, 9], POLICY)
    assert text.targets.tolist() == [9, 9, 9]


def test_a_cut_text_says_so_and_has_no_eos():
    policy = SequencePolicy(bos_id=0, eos_id=9, score_eos=True, window=4, max_length=2)
    text = TokenizedText.of([5, 6, 7], policy)
    assert text.truncated
    assert text.targets.tolist() == [5, 6]
    assert not TokenizedText.of([5, 6], policy).truncated


def test_windows_as_drawn_in_the_docstring():
    text = TokenizedText.of(list(range(1, 8)), POLICY)
    spans = [(w.start, w.score_from, w.stop) for w in windows_of([text], 4)]
    assert spans == [(0, 0, 4), (2, 4, 6), (4, 6, 8)]


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 6, 7, 8, 9, 31])
@pytest.mark.parametrize("size", [1, 2, 4, 7, 64])
def test_every_target_exactly_once(length, size):
    policy = SequencePolicy(bos_id=0, eos_id=9, score_eos=False, window=size)
    texts = [TokenizedText.of(list(range(length)), policy)] * 2
    windows = windows_of(texts, size)
    for number in range(2):
        scored = [i for w in windows if w.text == number for i in range(w.score_from, w.stop)]
        assert scored == list(range(length))
    for window in windows:
        assert len(window) <= size
        if window.start:
            assert len(window) == size


@pytest.mark.parametrize("length", [1, 5, 6, 7, 8, 31])
@pytest.mark.parametrize("size", [6, 9, 64])
def test_every_window_reads_the_whole_prompt(length, size):
    policy = SequencePolicy(bos_id=0, eos_id=9, score_eos=True, window=size)
    text = TokenizedText.of(list(range(10, 10 + length)), policy, prompt=[7, 8])
    windows = windows_of([text], size)
    assert [i for w in windows for i in range(w.score_from, w.stop)] == list(range(length + 1))
    whole = [0, 7, 8, *range(10, 10 + length), 9]
    for window in windows:
        read = text.read_by(window).tolist()
        assert len(read) == len(window) <= size
        assert read[:3] == [0, 7, 8]
        # The token before each scored target is the one before it in the text.
        for target in range(window.score_from, window.stop):
            before = read[window.context + target - window.start]
            assert (before, text.targets[target]) == (whole[target + 2], whole[target + 3])


def test_a_prompt_that_leaves_no_room_is_refused():
    text = TokenizedText.of([1, 2, 3, 4], POLICY, prompt=[5, 6, 7])
    assert len(windows_of([text], 8)) == 1
    with pytest.raises(ModelError, match="no room for the text"):
        windows_of([text], 4)


def cost(lengths, cost_of_batch):
    return sum(max(batch) * len(batch) + cost_of_batch for batch in lengths)


def every_partition(lengths, tokens):
    """All ways to cut lengths into runs that keep to the budget."""
    if not lengths:
        yield []
    for count in range(1, len(lengths) + 1):
        if count == 1 or lengths[0] * count <= tokens:
            for rest in every_partition(lengths[count:], tokens):
                yield [lengths[:count], *rest]


@pytest.mark.parametrize("tokens", [8, 32, 200])
@pytest.mark.parametrize("fewest", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_no_other_cuts_are_cheaper(tokens, fewest, seed):
    lengths = sorted(np.random.default_rng(seed).integers(0, 30, 11).tolist(), reverse=True)
    windows = [Window(number, 0, 0, length) for number, length in enumerate(lengths)]
    found = batches_by_token_budget(windows, tokens, fewest=fewest)
    batches = [[len(w) for w in batch] for batch in found]
    one = tokens if fewest else max(1, tokens // 16)
    assert [length for batch in batches for length in batch] == lengths
    assert cost(batches, one) == min(cost(p, one) for p in every_partition(lengths, tokens))


def test_no_windows_make_no_batches():
    assert batches_by_token_budget([], 32) == []


def test_batches_hold_every_window_within_the_budget():
    texts = [TokenizedText.of(list(range(n)), POLICY) for n in (3, 50, 1, 17, 4, 4)]
    windows = windows_of(texts, 16)
    batches = batches_by_token_budget(windows, 32)
    assert sorted((w for b in batches for w in b), key=id) == sorted(windows, key=id)
    for batch in batches:
        assert len(batch) == 1 or max(map(len, batch)) * len(batch) <= 32


def test_a_tokenizer_of_a_kind_that_is_not_known_is_named(tmp_path):
    """As one of a later version of the library: it raises a plain Exception."""
    folder = make_model_folder(tmp_path / "base", "gpt2", context=64)
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(found | {"model": {"type": "Later"}}), encoding="utf-8")
    with pytest.raises(ModelError, match="no tokenizer that can be loaded") as error:
        load_tokenizer(ResolvedModel.of_folder("base", folder))
    assert str(folder) in str(error.value)
