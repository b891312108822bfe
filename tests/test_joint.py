"""One model of all classes: exact scores after prefixes, and the gradients of joint tuning."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import task_fixtures
import torch
from model_fixtures import ARCHITECTURES, CORPUS, make_model_folder
from scipy.special import log_softmax
from task_fixtures import examples_of, labelled_task

from gencls_core.class_models import ClassModel
from gencls_core.config import RecipeConfig, TrainingConfig
from gencls_core.errors import ModelError, StoreError, TrainingError
from gencls_core.model_source import ResolvedModel
from gencls_core.models import load_causal_lm
from gencls_core.objectives import joint, load_objective
from gencls_core.objectives.joint import JointObjective
from gencls_core.scoring_job import ScoringJob
from gencls_core.systems.conditional_lm import ConditionalLm, JointLm
from gencls_core.training import train_class
from gencls_core.training_task import TrainingTask

CLASSES = ("World", "a b", "Sci/Tech")
PREFIXES = ("Topic: World\n", "about a b and more: ", "?\n")
"""Of different lengths."""
CONTEXT = 64
LONG = " ".join(CORPUS[:3] * 2)
TEXTS = [CORPUS[0], CORPUS[1], LONG, CORPUS[3], "?", CORPUS[2]]
LABELS = (0, 1, 2, 1, 0, 0)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def base(request, tmp_path_factory) -> ResolvedModel:
    folder = make_model_folder(tmp_path_factory.mktemp("lm"), request.param, context=CONTEXT)
    # Without dropout: gradients are to be the same in two passes.
    config = json.loads((folder / "config.json").read_text())
    config |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return ResolvedModel.of_folder(request.param, folder)


def task_of(base: ResolvedModel, destination: Path, **changes: object) -> TrainingTask:
    labelled = list(zip(TEXTS, LABELS, strict=True))
    task = labelled_task(
        base,
        destination,
        labelled,
        labelled[:3],
        training=TrainingConfig(epochs=1, batch_size=3, learning_rate=1e-3),
        tokens_per_pass=128,
        system="joint-lm",
        objective="joint",
        classes=CLASSES,
        prefixes=PREFIXES,
        recipe=RecipeConfig(tuned_tokens=24),
    )
    return replace(task, **changes)


def job_of(trained: ClassModel, base: ResolvedModel, system: ConditionalLm) -> ScoringJob:
    return task_fixtures.job_of(trained, base, system, CLASSES)


def scores_of(job: ScoringJob, texts: list[str]) -> np.ndarray:
    """Score as an actor does, from the committed folder: [N, C]."""
    models = job.system.load(job, frozenset(job.classes))
    examples = examples_of(texts)
    encoded = models.encode(examples)
    tables = [
        models.score(examples, name, job.sequence, job.scoring, encoded=encoded)
        for name in job.classes
    ]
    return np.stack([table["score"].to_numpy() for table in tables], axis=1)


def naive_log_likelihood(model, ids: list[int], prefix: list[int], eos: bool) -> torch.Tensor:
    """log P(ids | BOS, prefix), from whole logits in float64, one text at a time."""
    sequence = [0, *prefix, *ids, *([0] if eos else [])]
    logits = model(torch.tensor([sequence[:-1]])).logits[0].double()
    targets = torch.tensor(sequence[1:])
    log_probs = torch.log_softmax(logits, dim=1).gather(1, targets[:, None]).squeeze(1)
    return log_probs[len(prefix) :].sum()


def naive_loss(lm, kept: int, lm_weight: float) -> torch.Tensor:
    """The joint loss of all TEXTS in one graph, summed."""
    encoded = lm.encode(TEXTS)
    prefixes = lm.encode(list(PREFIXES))
    lengths = [kept if len(ids) > kept else len(ids) + 1 for ids in encoded]
    mean = sum(lengths) / len(lengths)
    prior = torch.tensor([LABELS.count(c) / len(LABELS) for c in range(len(CLASSES))]).double()
    total = torch.zeros((), dtype=torch.float64)
    for ids, label in zip(encoded, LABELS, strict=True):
        cut, eos = ids[:kept], len(ids) <= kept
        scores = torch.stack(
            [naive_log_likelihood(lm.model, cut, prefix, eos) for prefix in prefixes]
        )
        posterior = torch.log_softmax(scores / mean**0.5 + prior.log(), dim=0)
        total = total - posterior[label] - lm_weight / mean * scores[label]
    return total


@pytest.mark.parametrize("tokens", [32, 1000])
def test_passes_have_the_loss_and_the_gradients_of_the_whole(base, tokens, tmp_path, monkeypatch):
    """However small the passes are, and though no two classes of a text are in one graph."""
    monkeypatch.setattr(joint, "NEGLIGIBLE", 0.0)
    objective = load_objective(task_of(base, tmp_path / "model"))
    assert isinstance(objective, JointObjective)
    numbers = list(range(len(TEXTS)))
    assert objective.units(numbers) == len(TEXTS)
    parts = list(objective.passes(numbers, tokens, epoch=0))
    assert (len(parts) > 6) if tokens == 32 else (len(parts) < 3)
    total = 0.0
    for part in parts:
        loss = objective.loss(part)
        loss.backward()
        total += float(loss.detach())
    lm = load_causal_lm(base)
    reference = naive_loss(lm, kept=24, lm_weight=0.2)
    reference.backward()
    assert total == pytest.approx(float(reference.detach()), rel=1e-4)
    ours = dict(objective.model.named_parameters())
    for name, theirs in lm.model.named_parameters():
        assert theirs.grad is not None
        torch.testing.assert_close(ours[name].grad, theirs.grad, atol=2e-4, rtol=2e-3)


def test_what_is_negligible_costs_nothing(base, tmp_path, monkeypatch):
    """Where every class but the own one is left out, what is trained is the language model."""
    objective = load_objective(task_of(base, tmp_path / "model"))
    numbers = list(range(len(TEXTS)))
    everything = sum(len(part.windows) for part in objective.passes(numbers, 1000, 0))
    assert everything == len(TEXTS) * len(CLASSES)
    monkeypatch.setattr(joint, "NEGLIGIBLE", 2.0)
    assert sum(len(part.windows) for part in objective.passes(numbers, 1000, 0)) == len(TEXTS)


def test_the_held_out_loss_is_that_of_the_formula(base, tmp_path):
    task = task_of(base, tmp_path / "model", validation_texts=TEXTS, validation_labels=LABELS)
    found = load_objective(task).held_out_nll(64)
    with torch.no_grad():
        expected = naive_loss(load_causal_lm(base), kept=24, lm_weight=0.2) / len(TEXTS)
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_of_many_classes_the_own_one_and_a_few_others_are_compared(base, tmp_path):
    names = tuple(f"class {number}" for number in range(40))
    texts = [CORPUS[0]] * 40
    task = task_of(
        base,
        tmp_path / "model",
        texts=texts,
        labels=tuple(range(40)),
        classes=names,
        prefixes=tuple(f"{name}\n" for name in names),
        recipe=RecipeConfig(compared_classes=5),
    )
    objective = load_objective(task)
    drawn = [objective._classes(objective._texts, range(40), epoch) for epoch in (0, 0, 1)]
    assert drawn[0].shape == (40, 5)
    assert drawn[0][:, 0].tolist() == list(range(40))
    assert all(len(set(row)) == 5 for row in drawn[0].tolist())
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    # Each other class is drawn about as often as any.
    counts = np.bincount(
        np.concatenate(
            [objective._classes(objective._texts, range(40), e)[:, 1:].ravel() for e in range(50)]
        )
    )
    assert counts.min() > 0.7 * counts.mean()


def test_of_the_compared_classes_a_few_are_drawn_and_stand_for_all(base, tmp_path, monkeypatch):
    """The loss is that of all, and each weight is that of all in the mean of many draws."""
    monkeypatch.setattr(joint, "NEGLIGIBLE", 0.0)
    numbers = list(range(len(TEXTS)))

    def passed(learned: int, epoch: int):
        recipe = RecipeConfig(tuned_tokens=24, learned_classes=learned)
        objective = load_objective(task_of(base, tmp_path / "model", recipe=recipe))
        return objective, list(objective.passes(numbers, 1000, epoch))

    everything, [whole] = passed(3, 0)
    drawing, [part] = passed(2, 0)
    assert len(whole.windows) == 3 * len(TEXTS)
    assert len(part.windows) == 2 * len(TEXTS)
    assert drawing.loss(part).item() == pytest.approx(everything.loss(whole).item(), rel=1e-5)
    weights_MK = np.array([[0.7, -0.4, -0.0, -0.2, -0.1], [0.3, -0.0, -0.3, -0.0, -0.0]])
    draws = [drawing._what_counts(weights_MK, [4, 7], epoch) for epoch in range(4000)]
    assert all(((draw[:, 1:] != 0).sum(axis=1) <= 1).all() for draw in draws)
    np.testing.assert_allclose(np.mean(draws, axis=0), weights_MK, atol=0.02)
    np.testing.assert_array_equal(draws[5], drawing._what_counts(weights_MK, [4, 7], 5))


@pytest.mark.parametrize("system", [ConditionalLm(), JointLm()])
@pytest.mark.parametrize("lora_rank", [None, 2])
def test_a_trained_model_scores_exactly_after_its_prefixes(base, system, lora_rank, tmp_path):
    """Likelihoods of whole texts, by the files that were committed."""
    task = task_of(
        base,
        tmp_path / "model",
        system=system.name,
        objective=system.objective,
        lora_rank=lora_rank,
    )
    trained = train_class(task)
    assert json.loads((tmp_path / "model" / "prefixes.json").read_text()) == dict(
        zip(CLASSES, PREFIXES, strict=True)
    )
    assert "prefixes.json" in trained.files
    assert (trained.training.validation_perplexity is None) == (system.objective == "joint")
    job = job_of(trained, base, system)
    found = scores_of(job, [CORPUS[0], "?"])
    models = system.load(job, frozenset(CLASSES))
    lm = models._lm
    for text, row in zip([CORPUS[0], "?"], found, strict=True):
        [ids] = lm.encode([text])
        for prefix, score in zip(lm.encode(list(PREFIXES)), row, strict=True):
            with torch.no_grad():
                expected = naive_log_likelihood(lm.model, ids, prefix, eos=True)
            assert score == pytest.approx(float(expected), abs=2e-3)
    assert np.ptp(found, axis=1).min() > 1e-3


def test_training_and_scoring_read_the_same_windows(base, tmp_path):
    """A text beyond the context: the held-out figure is that of the score rows."""
    task = task_of(
        base,
        tmp_path / "model",
        system="conditional-lm",
        objective="conditional",
        texts=[CORPUS[0], CORPUS[1], CORPUS[2]],
        labels=(0, 1, 2),
        validation_texts=[LONG] * 3,
        validation_labels=(0, 1, 2),
    )
    trained = train_class(task)
    scores = scores_of(job_of(trained, base, ConditionalLm()), [LONG])
    tokens = len(load_causal_lm(base).encode([LONG])[0]) + 1
    assert tokens > CONTEXT
    assert trained.training.validation_nll == pytest.approx(-scores.mean() / tokens, rel=1e-5)


def rare_token_texts(count: int, seed: int) -> tuple[list[str], tuple[int, ...]]:
    """Texts of much noise, whose habits differ from text to text, and one word of their class."""
    draw = random.Random(seed)
    texts, labels = [], []
    for number in range(count):
        words = draw.choices(draw.sample("abcdefghijklmno", 4), k=24)
        words[draw.randrange(24)] = "XY"[number % 2]
        texts.append(" " + " ".join(words))
        labels.append(number % 2)
    return texts, tuple(labels)


def test_joint_tuning_finds_what_a_language_model_does_not(tmp_path):
    """One word in 24 tells the classes apart; the rest is noise that fills the likelihood."""
    folder = make_model_folder(tmp_path / "base", "gpt2", context=CONTEXT)
    base = ResolvedModel.of_folder("gpt2", folder)
    (texts, labels), (test, expected) = rare_token_texts(160, 1), rare_token_texts(200, 2)
    accuracy = {}
    for system in (ConditionalLm(), JointLm()):
        task = task_of(
            base,
            tmp_path / system.name,
            system=system.name,
            objective=system.objective,
            texts=texts,
            labels=labels,
            validation_texts=[],
            validation_labels=(),
            classes=("first", "second"),
            prefixes=("A:", "B:"),
            training=TrainingConfig(epochs=16, batch_size=16, learning_rate=6e-3),
            tokens_per_pass=2048,
            recipe=RecipeConfig(),
        )
        trained = train_class(task)
        job = replace(job_of(trained, base, system), classes=("first", "second"))
        scores = scores_of(job, test)
        accuracy[system.name] = float((scores.argmax(axis=1) == np.array(expected)).mean())
        assert np.isfinite(log_softmax(scores, axis=1)).all()
    assert accuracy["joint-lm"] >= 0.9
    assert accuracy["conditional-lm"] <= 0.75


def test_a_class_without_texts_is_refused(base, tmp_path):
    with pytest.raises(TrainingError, match="no text of Sci/Tech"):
        load_objective(task_of(base, tmp_path / "m", texts=TEXTS[:2], labels=(0, 1)))


def test_prefixes_that_cannot_be_used_are_refused(base, tmp_path):
    with pytest.raises(ModelError, match="always tie"):
        load_objective(task_of(base, tmp_path / "m", prefixes=("a", "b", "a")))
    long = tuple(f"{CORPUS[0] * 6}{name}" for name in CLASSES)
    with pytest.raises(ModelError, match="leave no room"):
        load_objective(task_of(base, tmp_path / "m", prefixes=long))


def test_a_model_without_its_prefixes_is_refused(base, tmp_path):
    trained = train_class(task_of(base, tmp_path / "model"))
    (tmp_path / "model" / "prefixes.json").write_text('{"World": "x"}')
    with pytest.raises(StoreError, match="prefixes"):
        JointLm().load(job_of(trained, base, JointLm()), frozenset(CLASSES))
