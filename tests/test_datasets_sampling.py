"""The choices among rows, against their plain definitions."""

from __future__ import annotations

import numpy as np
import pytest

from gencls_core.datasets.labels import label_name, sorted_classes
from gencls_core.datasets.sampling import (
    choose,
    group_numbers,
    part_for_test,
    part_for_validation,
    proportional,
)


@pytest.mark.parametrize("seed", range(30))
def test_proportional_shares(seed):
    generator = np.random.default_rng(seed)
    counts = [int(n) for n in generator.integers(0, 200, size=generator.integers(2, 9))]
    present = sum(count > 0 for count in counts)
    for total in (present, present + 3, 50, 1000):
        if total < present:
            continue
        shares = proportional(counts, total)
        assert sum(shares) == min(total, sum(counts))
        for count, share in zip(counts, shares, strict=True):
            assert min(1, count) <= share <= count


def test_proportional_is_proportional():
    assert proportional([50, 30, 20], 10) == [5, 3, 2]
    assert proportional([1, 1, 998], 5) == [1, 1, 3]
    assert proportional([5, 5], 3) == [2, 1]


def test_choose_draws_each_class_on_its_own():
    codes = np.array([0, 1] * 50, dtype=np.int32)
    mask = np.ones(100, dtype=np.bool_)
    chosen = choose(codes, mask, [10, 5], 0, 0)
    assert np.bincount(codes[chosen]).tolist() == [10, 5]
    assert np.array_equal(chosen, choose(codes, mask, [10, 5], 0, 0))
    assert not np.array_equal(chosen, choose(codes, mask, [10, 5], 1, 0))
    assert not np.array_equal(chosen, choose(codes, mask, [10, 5], 0, 1))
    other = choose(codes, mask, [10, 40], 0, 0)
    assert np.array_equal(chosen & (codes == 0), other & (codes == 0))
    few = mask & (np.arange(100) < 20)
    assert not (choose(codes, few, [10, 5], 0, 0) & ~few).any()


def test_parts():
    assert [part_for_validation(n, 0.1) for n in (0, 2, 3, 10, 95)] == [0, 0, 1, 1, 10]
    assert [part_for_test(n, 0.9) for n in (1, 2, 3)] == [0, 1, 2]
    assert part_for_validation(100, 0) == 0


def test_group_numbers_join_equal_rows_only():
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 4, size=(200, 2)).astype(np.uint64)
    groups = group_numbers(hashes)
    same = (hashes[:, None] == hashes[None]).all(axis=2)
    assert np.array_equal(groups[:, None] == groups[None], same)
    assert set(groups.tolist()) == set(range(groups.max() + 1))


def test_label_names():
    classes = ("neg", "pos")
    cells = [1, "1", 1.0, " pos ", "2", -1, None, "", float("nan"), True]
    expected = ["pos", "pos", "pos", "pos", "2", "-1", None, None, None, "true"]
    assert [label_name(cell, classes) for cell in cells] == expected
    assert label_name(1, ("1", "2")) == "1"
    assert label_name(0, ("1", "2")) == "0"
    assert label_name(3, None) == "3"
    assert sorted_classes(["10", "9", "-1"]) == ("-1", "9", "10")
    assert sorted_classes(["b", "10", "9"]) == ("10", "9", "b")
