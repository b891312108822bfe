"""The benchmarks of training and of agreement: every peer does the same work, or they say so."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from model_fixtures import CORPUS, make_model_folder

from benchmarks import agreement
from benchmarks.agreement import Agreement
from benchmarks.bars import BARS
from benchmarks.cases import SPAWNED, Case, Measurement, Stopwatch, write_texts
from benchmarks.pairs import run_peer
from benchmarks.training_bars import FIGURES, LOSS_TOLERANCE, LossError, check_loss
from benchmarks.training_peers import PADDED_STEPS, roof
from benchmarks.training_work import PADDED_LENGTH, StepClock, Work

BATCH, STEPS, HELD_OUT = 3, PADDED_STEPS, 2
TEXTS = [text * (1 + 2 * number) for number, text in enumerate([t for t in CORPUS if t] * 3)]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(
        name="tiny",
        model=str(make_model_folder(tmp_path / "model", "llama", context=PADDED_LENGTH)),
        precision="bf16",
        texts_file=write_texts(tmp_path / "texts.json", TEXTS[: BATCH * STEPS + HELD_OUT]),
        threads=1,
        options={"batch_size": str(BATCH), "held_out": str(HELD_OUT)},
    )


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SPAWNED, repr(time.monotonic()))


def measurement(loss: float, tokens: float = 100.0) -> Measurement:
    return Measurement(1.0, 1.0, 1, 1, 0, {"held_out_loss": loss, "trained_tokens": tokens})


def test_every_peer_trains_on_the_same_tokens_to_the_same_loss(case):
    names = ("ours", "trainer_padded", "trainer_bf16")
    with ThreadPoolExecutor(2) as pool:
        asked = [f"benchmarks.training_peers:{name}" for name in names]
        measured = dict(
            zip(names, pool.map(lambda peer: run_peer(peer, [case])[0], asked), strict=True)
        )
    tokens = sum(Work.of(case).lengths)
    for name, one in measured.items():
        assert one.values["trained_tokens"] == tokens, name
        assert one.values["steps"] == STEPS
        assert one.values["steady_steps"] == STEPS - 2
        assert 0 < one.tokens < tokens
        assert one.seconds > 0
        assert one.peak_memory_bytes > one.memory_before_bytes > 0
        check_loss(name, [(measured["ours"], one)])


def test_texts_are_cut_where_the_original_cut_them(case):
    work = Work.of(case)
    whole = [len(text.inputs) + 1 for text in [*work.sequences, *work.held_out]]
    assert len(work.held_out) == HELD_OUT
    assert len(work.texts) == len(work.sequences) == BATCH * STEPS
    assert PADDED_LENGTH - 1 in whole
    assert max(whole) <= PADDED_LENGTH
    assert sorted(n for batch in work.batches() for n in batch) == list(range(BATCH * STEPS))


def test_the_roof_is_measured_in_both_precisions(case, spawned):
    measured = roof(case)
    assert measured.tokens == round(sum(Work.of(case).lengths) / STEPS)
    assert measured.seconds > 0
    assert measured.values["fp32_tokens_per_second"] > 0


def test_steady_state_begins_after_the_second_step_and_the_last_that_compiled(spawned):
    clock = StepClock(Stopwatch())
    for step, compiled in enumerate([True, False, False, True, False, False], start=1):
        clock.tick(step, compiled=compiled)
    measured = clock.measurement([1, 10, 100, 1_000, 10_000, 100_000], 2.0)
    assert measured.tokens == 110_000
    assert measured.values["steady_steps"] == 2
    assert measured.values["trained_tokens"] == 111_111
    few = StepClock(Stopwatch())
    few.tick(2)
    with pytest.raises(RuntimeError, match="no steady state"):
        few.measurement([1, 1], 2.0)


@pytest.mark.parametrize("loss", [4.0 * (1 + LOSS_TOLERANCE / 100) + 0.01, 3.7, float("nan")])
def test_another_loss_is_refused(loss):
    with pytest.raises(LossError, match="held-out loss"):
        check_loss(
            "a case", [(measurement(4.0), measurement(4.0)), (measurement(loss), measurement(4.0))]
        )


def test_a_loss_within_noise_is_accepted_and_other_tokens_are_not():
    check_loss("a case", [(measurement(4.08), measurement(4.0))])
    with pytest.raises(LossError, match="101 tokens"):
        check_loss("a case", [(measurement(4.0, 101.0), measurement(4.0))])


def test_every_figure_is_a_bar():
    assert set(FIGURES) == {bar.key for bar in BARS if bar.group == "training"}


def test_agreement_compares_the_two_best_classes_of_fp32():
    fp32 = np.array([[-10.0, -12.0, -30.0], [-9.0, -5.0, -8.5], [-7.0, -7.5, -20.0]])
    bf16 = np.array([[-11.0, -12.0, -29.0], [-9.0, -5.0, -8.0], [-8.0, -7.5, -20.0]])
    found = Agreement(fp32, bf16)
    assert found.percent == pytest.approx(200 / 3)
    assert found.ratio_errors == pytest.approx([1.0, 0.5, 1.0])
    assert found.details()["texts_that_differ"] == 1
    assert found.details()["largest_ratio_among_them_nats"] == pytest.approx(0.5)


def test_class_models_are_trained_once_and_scored_in_both_precisions(case, spawned):
    agreement.train(case)
    folder = agreement.trained_folder(case)
    written = (folder / "committed.json").stat().st_mtime_ns
    agreement.train(case)
    assert (folder / "committed.json").stat().st_mtime_ns == written
    scores = {}
    for precision in ("fp32", "bf16"):
        asked = Case("tiny", str(folder), precision, case.texts_file, 1)
        scores[precision] = agreement.score(asked).values
    assert len(scores["fp32"]) == BATCH * STEPS + HELD_OUT
    assert scores["bf16"] == pytest.approx(scores["fp32"], rel=0.02)
    assert scores["bf16"] != scores["fp32"]
