"""Score rows of masked models: of one per class, and of the untrained one with prompts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from masked_fixtures import CLASSES, LONG, backwards, cut, make_masked_folder, planted, task_of
from model_fixtures import CORPUS
from scipy.special import logsumexp

from gencls_core import masked_likelihood, masked_scoring
from gencls_core.class_models import ClassModel
from gencls_core.config import ScoringConfig, SequenceConfig, SystemsConfig, TrainingConfig
from gencls_core.datasets.dataset import EXAMPLE_SCHEMA
from gencls_core.errors import ModelError
from gencls_core.masked_draws import draw_masks
from gencls_core.masked_likelihood import MaskedScores, MaskedText
from gencls_core.masked_loading import load_masked_lm
from gencls_core.masked_models import MaskedLM
from gencls_core.model_source import ResolvedModel
from gencls_core.scores import SCORE_SCHEMA
from gencls_core.scoring_job import ScoringJob
from gencls_core.systems.masked_lm import MaskedLm, UntrainedMaskedLm
from gencls_core.training import train_class

TEXTS = [CORPUS[0], "", LONG, "so it is", "rose"]
BOTH = pytest.mark.parametrize("likelihood", ["pseudo", "sampled"])


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> ResolvedModel:
    return make_masked_folder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> tuple[ClassModel, ...]:
    folder = tmp_path_factory.mktemp("models")
    return tuple(train_class(task_of(base, folder, i)) for i in range(2))


def job_of(base: ResolvedModel, models=(), *, seed=0, **changes) -> ScoringJob:
    """Give a job of class models, or of the untrained base where there are none."""
    settings = {"mask_samples": 6, "prompts": ("{class}:", "by the {class}, ")}
    names = set(SystemsConfig.model_fields)
    settings |= {name: changes.pop(name) for name in names & set(changes)}
    job = ScoringJob(
        system=MaskedLm() if models else UntrainedMaskedLm(),
        classes=CLASSES,
        models=tuple(models),
        base=base,
        sequence=SequenceConfig(),
        scoring=ScoringConfig(tokens_per_batch=200),
        precision="fp32",
        device="cpu",
        systems=SystemsConfig(**settings),
        seed=seed,
    )
    return dataclasses.replace(job, **changes)


def examples_of(texts: list[str]) -> pa.Table:
    ids, labels = [f"t-{i}" for i in range(len(texts))], pa.nulls(len(texts), pa.string())
    return pa.table({"example_id": ids, "text": texts, "label": labels}, schema=EXAMPLE_SCHEMA)


def score(job: ScoringJob, texts: list[str], classes=CLASSES, loaded=CLASSES) -> list[pa.Table]:
    """Give a table of rows per class."""
    examples = examples_of(texts)
    models = job.system.load(job, frozenset(loaded))
    encoded = models.encode(examples)
    return [
        models.score(examples, name, job.sequence, job.scoring, encoded=encoded) for name in classes
    ]


def scores_of(tables: list[pa.Table]) -> np.ndarray:
    return np.array([table["score"].to_numpy() for table in tables])


# --- models of classes


def test_adapters_share_one_base(base, tmp_path):
    short = TrainingConfig(epochs=2, learning_rate=1e-2)
    models = [
        train_class(task_of(base, tmp_path, i, lora_rank=4, training=short)) for i in range(2)
    ]
    assert {model.kind for model in models} == {"lora"}
    assert not (models[0].path / "model.safetensors").exists()
    texts = planted(6, seed=3)
    job = job_of(base, models)
    together = scores_of(score(job, texts))
    for number, name in enumerate(CLASSES):
        alone = scores_of(score(job, texts, (name,), (name,)))[0]
        np.testing.assert_allclose(together[number], alone, atol=1e-4)
    assert abs(together[0] - together[1]).mean() > 0.1
    untouched = load_masked_lm(base)
    plain = masked_likelihood.score_pseudo(untouched, cut(untouched, texts), tokens_per_batch=512)
    assert together[0].sum() > plain.log_likelihoods.sum()


@BOTH
def test_word_order_decides(base, trained, likelihood):
    """Every text of one class is one of the other backwards: their bags of words are the same."""
    texts = planted(25, seed=4)
    scores = scores_of(score(job_of(base, trained, masked_likelihood=likelihood), texts))
    reversed_scores = scores_of(
        score(job_of(base, trained, masked_likelihood=likelihood), backwards(texts))
    )
    right = np.concatenate([scores[0] > scores[1], reversed_scores[1] > reversed_scores[0]])
    assert right.mean() >= 0.9


@BOTH
@pytest.mark.parametrize("prompted", [False, True])
def test_rows(base, trained, likelihood, prompted):
    sequence = SequenceConfig(max_length=50, window=20)
    job = job_of(
        base,
        () if prompted else trained,
        prompts=("{class}:",),
        masked_likelihood=likelihood,
        sequence=sequence,
        scoring=ScoringConfig(per_token=True),
    )
    lengths = [len(ids) for ids in load_masked_lm(base).encode(TEXTS)]
    assert lengths[1] == 0
    # 20 less [CLS] and [SEP], and in one case "river" and ":".
    window = 16 if prompted else 18
    for table in score(job, TEXTS):
        assert table.schema.equals(SCORE_SCHEMA, check_metadata=True)
        table.validate(full=True)
        rows = table.to_pylist()
        assert [row["num_tokens"] for row in rows] == [min(50, n) for n in lengths]
        assert [row["truncated"] for row in rows] == [n > 50 for n in lengths]
        assert [row["num_windows"] for row in rows] == [-(-min(50, n) // window) for n in lengths]
        assert {row["quantity"] for row in rows} == {job.system.quantity}
        assert rows[1]["score"] == 0.0
        for row in rows:
            assert len(row["token_ids"]) == len(row["token_scores"]) == row["num_tokens"]
            assert np.sum(row["token_scores"]) == pytest.approx(row["score"], rel=1e-5)
            assert row["loss_score"] is None
            if likelihood == "pseudo":
                assert row["standard_error"] is None
            else:
                # One mask only for no token or one: exact but for the last bit.
                assert (row["standard_error"] > 1e-3) == (row["num_tokens"] > 1)
    short = dataclasses.replace(job, scoring=ScoringConfig())
    assert {row["token_scores"] for row in score(short, TEXTS)[0].to_pylist()} == {None}


def test_one_draw_has_no_standard_error(base, trained):
    for models in (trained, ()):
        job = job_of(base, models, masked_likelihood="sampled", mask_samples=1)
        assert score(job, TEXTS)[0]["standard_error"].null_count == len(TEXTS)


@pytest.mark.parametrize("prompted", [False, True])
def test_sampled_scores_lie_within_their_errors(base, trained, prompted):
    def rows(samples: int, seed: int) -> list[pa.Table]:
        models = () if prompted else trained
        job = job_of(base, models, masked_likelihood="sampled", mask_samples=samples, seed=seed)
        return score(job, [CORPUS[0], *planted(4, seed=5)])

    for few, many in zip(rows(16, 0), rows(400, 1), strict=True):
        error = np.hypot(few["standard_error"].to_numpy(), many["standard_error"].to_numpy())
        assert (abs(few["score"].to_numpy() - many["score"].to_numpy()) < 4 * error).all()
        assert (many["standard_error"].to_numpy() < 0.5 * few["standard_error"].to_numpy()).all()


@pytest.mark.parametrize("prompted", [False, True])
def test_every_class_and_prompt_is_asked_with_the_same_masks(base, trained, prompted, monkeypatch):
    drawn: list[tuple] = []

    def spy(length, draws, *, seed, key):
        masks = draw_masks(length, draws, seed=seed, key=key)
        drawn.append((length, seed, key, masks.tobytes()))
        return masks

    monkeypatch.setattr(masked_likelihood, "draw_masks", spy)
    models = () if prompted else trained
    # Prompts of the other class are longer than this one's.
    words = {"road": "road by the river"}
    job = job_of(base, models, masked_likelihood="sampled", class_words=words)
    asked = []
    for name in CLASSES:
        score(job, TEXTS, (name,), (name,))
        asked.append(drawn.copy())
        drawn.clear()
    assert asked[0] == asked[1]
    once = len(asked[0]) // len(job.systems.prompts) if prompted else len(asked[0])
    assert asked[0] == asked[0][:once] * (len(asked[0]) // once)
    assert once > len(TEXTS)


def test_tokenizers_that_differ_are_refused(base, trained):
    other = dataclasses.replace(trained[1], tokenizer_digest="0" * 64)
    job = job_of(base, (trained[0], other))
    with pytest.raises(ModelError, match=r"do not share one tokenizer[^$]*--masked-model"):
        job.system.load(job, frozenset(CLASSES))
    with pytest.raises(ModelError, match="not the one it was committed with"):
        job.system.load(job, frozenset({CLASSES[1]}))


def test_what_rows_depend_on(base, trained):
    def digest(models=(), class_name="river", **changes):
        job = job_of(base, models, **changes)
        return job.system.depends_on(job, class_name)

    for models in (trained, ()):
        pseudo = digest(models)
        assert pseudo == digest(models, seed=1, mask_samples=7)
        sampled = digest(models, masked_likelihood="sampled")
        assert sampled != pseudo
        assert sampled != digest(models, masked_likelihood="sampled", seed=1)
        assert sampled != digest(models, masked_likelihood="sampled", mask_samples=7)
    assert digest(trained) == digest(trained, class_name="road", prompts=("{class}:",))
    assert digest() != digest(class_name="road")
    assert digest() != digest(prompts=("{class}:",))
    # The window is what the longest prompt of any class leaves.
    assert digest() != digest(class_words={"road": "road by the river"})


# --- untrained, with prompts


def naive_values(lm: MaskedLM, prompt: list[int], ids: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Give the log-probability of each masked token in float64, one row at a time: [rows, n]."""
    model = lm.model.double()
    values = np.zeros(masks.shape)
    for row, mask in enumerate(masks):
        own = np.where(mask, lm.mask_id, ids).tolist()
        read = [lm.tokenizer.cls_token_id, *prompt, *own, lm.tokenizer.sep_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([read])).logits[0, 1 + len(prompt) : -1]
        log_probs = torch.log_softmax(logits, dim=-1).numpy()
        values[row, mask] = log_probs[np.flatnonzero(mask), ids[mask]]
    return values


@BOTH
@pytest.mark.parametrize("prompts", [("{class}:",), ("{class}:", "by the {class}, ", "a {class} ")])
def test_untrained_scores_match_a_naive_computation(base, likelihood, prompts):
    words = {"road": "small road", "river": "river"}
    job = job_of(base, prompts=prompts, masked_likelihood=likelihood, class_words=words, seed=3)
    tables = score(job, TEXTS)
    lm = load_masked_lm(base)
    own = [np.array(ids, dtype=np.int32) for ids in lm.encode(TEXTS)]
    of_class = {
        name: lm.encode([prompt.replace("{class}", words[name]) for prompt in prompts])
        for name in CLASSES
    }
    longest = max(len(prompt) for tokens in of_class.values() for prompt in tokens)
    for name, table in zip(CLASSES, tables, strict=True):
        for number, (ids, row) in enumerate(zip(own, table.to_pylist(), strict=True)):
            by_prompt = []
            for prompt in of_class[name]:
                total = 0.0
                for start, stop in MaskedText.of(ids, window=lm.window - longest).windows:
                    part = ids[start:stop]
                    if likelihood == "pseudo":
                        masks, weights = np.eye(len(part), dtype=np.bool_), len(part)
                    else:
                        key = ("score", f"t-{number}", len(ids), start)
                        masks = draw_masks(len(part), 6, seed=3, key=key)
                        weights = len(part) / masks.sum(axis=1)
                    values = naive_values(lm, prompt, part, masks).sum(axis=1)
                    total += (values * weights).mean()
                by_prompt.append(total)
            expected = logsumexp(by_prompt) - np.log(len(by_prompt))
            assert row["score"] == pytest.approx(expected, abs=2e-3, rel=1e-5)
    scores = scores_of(tables)
    filled = [number for number, ids in enumerate(own) if len(ids)]
    assert (abs(scores[0] - scores[1])[filled] > 1e-4).all()
    alone = scores_of(score(job, TEXTS, ("road",), ("road",)))
    assert (alone[0] == scores[1]).all()


def test_a_mixture_has_an_honest_standard_error_and_no_token_scores(base):
    examples = examples_of(["the river rose", "so it is by the road"])
    job = job_of(
        base,
        prompts=("{class}:", "a {class} "),
        masked_likelihood="sampled",
        mask_samples=8,
        scoring=ScoringConfig(per_token=True),
    )
    models = job.system.load(job, frozenset(CLASSES))
    scores, errors = [], []
    for seed in range(120):
        models._job = dataclasses.replace(job, seed=seed)
        table = models.score(examples, "river", job.sequence, job.scoring)
        scores.append(table["score"].to_numpy())
        errors.append(table["standard_error"].to_numpy())
        assert table["token_scores"].null_count == table["token_ids"].null_count == 2
    # Of 120 repetitions, a standard deviation has a relative error of about 6.5 %.
    spread = np.std(scores, axis=0, ddof=1)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(errors), axis=0)), spread, rtol=0.26)


def test_a_prompt_weighs_what_it_adds_to_the_likelihood():
    noise_S = np.random.default_rng(0).normal(size=16)
    unlikely, likely = (
        MaskedScores(values[None], [np.zeros(1, dtype=np.float32)])
        for values in (5 * noise_S - 90, 0.1 * noise_S - 3)
    )
    scores, errors = masked_scoring._mixture([unlikely, likely])
    np.testing.assert_allclose(scores, likely.log_likelihoods - np.log(2))
    np.testing.assert_allclose(errors, likely.standard_errors)
    scores, errors = masked_scoring._mixture([likely, likely])
    np.testing.assert_allclose(scores, likely.log_likelihoods)
    np.testing.assert_allclose(errors, likely.standard_errors)


def test_prompts_of_no_use_are_refused(base):
    def load_with(**settings):
        job = job_of(base, **settings)
        return job.system.load(job, frozenset(CLASSES))

    with pytest.raises(ModelError, match="leave no room"):
        score(job_of(base, prompts=("{class} of " * 20,)), TEXTS)
    job = job_of(base, prompts=("by the {class}, and a ",), sequence=SequenceConfig(window=8))
    with pytest.raises(ModelError, match=r"leave no room[^$]*fewer than the 8 tokens"):
        score(job, TEXTS)
    # To this tokenizer, upper and lower case are the same.
    with pytest.raises(ModelError, match=r"always tie[^$]*'river' and class 'road'"):
        load_with(class_words={"river": "Road"})
    with pytest.raises(ModelError, match=r"makes no tokens of a prompt[^$]*'river'"):
        load_with(prompts=("{class}",), class_words={"river": "\u0007"})
