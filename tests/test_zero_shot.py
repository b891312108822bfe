"""An untrained model asked with prompts: exact scores; a problem that only prompts can solve."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from model_fixtures import ARCHITECTURES, CORPUS, make_model_folder
from run_fixtures import CLASSES, sentences
from tokenizers import normalizers

from gencls_core.config import ScoringConfig, SequenceConfig, SystemsConfig, TrainingConfig
from gencls_core.datasets.dataset import EXAMPLE_SCHEMA
from gencls_core.errors import ModelError, UsageError
from gencls_core.model_source import ResolvedModel
from gencls_core.models import CausalLM, load_causal_lm
from gencls_core.prompted import PromptedModel
from gencls_core.prompts import check_prompts, mixture, prompts_for
from gencls_core.score_matrix import read_likelihoods
from gencls_core.scores import SCORE_SCHEMA, ScoreStore, ShardKey
from gencls_core.scoring_job import ScoringJob
from gencls_core.systems.zero_shot import ZeroShot
from gencls_core.training import TrainingTask, train_class

LONG = " ".join(CORPUS[:3] * 3)
TEXTS = [*CORPUS, LONG, "?"]
ONE = ("Topic: {class}\n\n",)
SEVERAL = ("{class}:", *ONE, "Of {class}, and again {class}. ")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def base(request, tmp_path_factory) -> ResolvedModel:
    folder = make_model_folder(tmp_path_factory.mktemp("lm"), request.param, context=96)
    return ResolvedModel.of_folder(request.param, folder)


@pytest.fixture(scope="module")
def lm(base) -> CausalLM:
    return load_causal_lm(base)


def job_of(base: ResolvedModel, **settings: object) -> ScoringJob:
    job = ScoringJob(
        system=ZeroShot(),
        classes=CLASSES,
        models=(),
        base=base,
        sequence=SequenceConfig(),
        scoring=ScoringConfig(),
        precision="fp32",
        device="cpu",
    )
    return dataclasses.replace(job, **settings)


def examples_of(texts: list[str]) -> pa.Table:
    ids = [f"test-{number}" for number in range(len(texts))]
    labels = [CLASSES[number % len(CLASSES)] for number in range(len(texts))]
    return pa.table({"example_id": ids, "text": texts, "label": labels}, schema=EXAMPLE_SCHEMA)


def score(job: ScoringJob, texts: list[str], class_name: str = "a b", **more: object) -> pa.Table:
    models = job.system.load(job, frozenset(job.classes))
    return models.score(examples_of(texts), class_name, job.sequence, job.scoring, **more)


def naive_token_scores(
    lm: CausalLM, prompt: list[int], ids: list[int], score_eos: bool, window: int
) -> list[float]:
    """Each token of one text, from whole logits in float64, a forward per window, no padding."""
    head = [lm.bos_id, *prompt]
    targets = [*ids, *([lm.eos_id] if score_eos else [])]
    room, found = window - len(head), []
    # The first window's last input is the one before its last target: one more target fits.
    stop = min(room + 1, len(targets))
    while len(found) < len(targets):
        # A later window reads the token before its first target, too.
        start = max(0, stop - room) if found else 0
        sequence = head + targets[max(0, start - 1) : stop - 1]
        with torch.no_grad():
            log_probs = torch.log_softmax(lm.model.double()(torch.tensor([sequence])).logits[0], -1)
        found += [
            log_probs[len(sequence) - (stop - position), targets[position]].item()
            for position in range(len(found), stop)
        ]
        stop = min(stop + room // 2, len(targets))
    lm.model.float()
    return found


@pytest.mark.parametrize("score_eos", [True, False])
@pytest.mark.parametrize("window", [None, 48])
@pytest.mark.parametrize("prompts", [ONE, SEVERAL])
def test_scores_are_the_naive_float64_formula(base, lm, prompts, window, score_eos):
    systems = SystemsConfig(prompts=prompts)
    job = job_of(
        base,
        systems=systems,
        sequence=SequenceConfig(window=window, score_eos=score_eos),
        scoring=ScoringConfig(per_token=True),
    )
    table = score(job, TEXTS)
    encoded, own = lm.encode(TEXTS), lm.encode(list(prompts_for(systems, "a b")))
    # Every class and prompt reads a text in the windows that the longest prompt of all leaves.
    longest = max(
        len(ids) for name in CLASSES for ids in lm.encode(list(prompts_for(systems, name)))
    )
    windows = [(window or lm.context) - longest + len(prompt) for prompt in own]
    for row, ids in zip(table.to_pylist(), encoded, strict=True):
        by_prompt = np.array(
            [
                naive_token_scores(lm, prompt, ids, score_eos, of_prompt)
                for prompt, of_prompt in zip(own, windows, strict=True)
            ]
        )
        sums = by_prompt.sum(axis=1)
        naive = sums.max() + np.log(np.mean(np.exp(sums - sums.max())))
        assert row["score"] == pytest.approx(naive, abs=1e-4)
        assert row["score"] == pytest.approx(np.sum(row["token_scores"], dtype=np.float64))
        if len(own) == 1:
            np.testing.assert_allclose(row["token_scores"], by_prompt[0], atol=2e-5, rtol=0)


def test_only_the_texts_own_tokens_are_scored(base, lm):
    """The same tokens under every class and prompt: none of a prompt, none across the seam."""
    job = job_of(
        base, systems=SystemsConfig(prompts=SEVERAL), scoring=ScoringConfig(per_token=True)
    )
    expected = [[*ids, lm.eos_id] for ids in lm.encode(TEXTS)]
    scores = []
    for name in CLASSES:
        table = score(job, TEXTS, name)
        assert table.column("token_ids").to_pylist() == expected
        assert table.column("num_tokens").to_pylist() == [len(ids) for ids in expected]
        scores.append(table.column("score").to_numpy())
    assert np.abs(scores[0] - scores[1]).min() > 1e-3, "the prompts must make a difference"


def test_a_cut_text_has_no_end(base, lm):
    job = job_of(base, sequence=SequenceConfig(max_length=5), scoring=ScoringConfig(per_token=True))
    table = score(job, [LONG, "?"])
    assert table.column("truncated").to_pylist() == [True, False]
    assert table.column("token_ids").to_pylist() == [
        lm.encode([LONG])[0][:5],
        [*lm.encode(["?"])[0], lm.eos_id],
    ]


def test_the_longest_prompt_decides_the_windows(base):
    sequence = SequenceConfig(window=48)

    def windows(prompts: tuple[str, ...]) -> list[int]:
        job = job_of(base, systems=SystemsConfig(prompts=prompts), sequence=sequence)
        return score(job, TEXTS).column("num_windows").to_pylist()

    alone = np.array([windows((prompt,)) for prompt in SEVERAL])
    assert (alone != alone[0]).any(), "the prompts must ask for different numbers of windows"
    assert windows(SEVERAL) == alone.max(axis=0).tolist()
    assert windows(SEVERAL[::-1]) == windows(SEVERAL)


def test_a_text_without_tokens_has_likelihood_1(base):
    job = job_of(base, sequence=SequenceConfig(score_eos=False))
    row = score(job, [""]).to_pylist()[0]
    assert (row["score"], row["num_tokens"], row["num_windows"]) == (0, 0, 0)


def test_a_prompt_that_fills_the_window_is_refused(base):
    job = job_of(base, systems=SystemsConfig(prompts=("{class} " + LONG,)))
    with pytest.raises(ModelError, match="no room for the text"):
        score(job, TEXTS)


def test_neighbours_and_batches_change_nothing(base):
    systems = SystemsConfig(prompts=SEVERAL)

    def scores(texts: list[str], tokens: int) -> list[float]:
        job = job_of(base, systems=systems, scoring=ScoringConfig(tokens_per_batch=tokens))
        return score(job, texts).column("score").to_pylist()

    together = scores(TEXTS, 10_000)
    np.testing.assert_allclose(scores(TEXTS, 1), together, atol=1e-4, rtol=0)
    alone = [scores([text], 10_000)[0] for text in TEXTS]
    np.testing.assert_allclose(alone, together, atol=1e-4, rtol=0)


def test_rows_go_into_the_score_store(base, tmp_path):
    job = job_of(base, scoring=ScoringConfig(likelihood="loss"))
    models = job.system.load(job, frozenset(CLASSES))
    examples, store = examples_of(TEXTS), ScoreStore(tmp_path)
    encoded = models.encode(examples)
    told: list[int] = []
    for name in CLASSES:
        table = models.score(
            examples, name, job.sequence, job.scoring, encoded=encoded, on_batch=told.append
        )
        table.validate(full=True)
        assert table.schema.equals(SCORE_SCHEMA, check_metadata=True)
        for column in ("loss_score", "standard_error", "token_ids", "token_scores"):
            assert table.column(column).null_count == len(table)
        store.commit(ShardKey("zero-shot", name, 0, 1), table, start=0, digest="d")
    matrix = read_likelihoods(store, "zero-shot", CLASSES)
    assert matrix.quantity == job.system.quantity == "log_likelihood"
    assert max(told) == matrix.num_tokens.sum() * len(job.systems.prompts)


def test_rows_depend_on_the_prompts_of_every_class():
    """On those of the class, and through the windows on the longest of all."""
    job = job_of(ResolvedModel("x", Path("x"), "0" * 64, 0, {}))
    changed = dataclasses.replace(job, systems=SystemsConfig(class_words={"01": "sport"}))
    for name in CLASSES:
        assert job.system.depends_on(job, name) != job.system.depends_on(changed, name)
    parts = [job.system.depends_on(job, name)["prompts"] for name in CLASSES]
    assert len({tuple(prompts) for prompts in parts}) == len(CLASSES)


def test_token_scores_of_a_mixture():
    random = np.random.default_rng(0)
    token_scores = -10 * random.random((4, 300))
    # The mean of likelihoods as small as e^−1500 needs its own range.
    sums = token_scores.sum(axis=1)
    whole = sums.max() + np.log(np.mean(np.exp(sums - sums.max())))
    assert mixture(token_scores).sum() == pytest.approx(whole, abs=1e-9)
    # The first token knows of no prompt yet: the mean of its probabilities.
    assert mixture(token_scores)[0] == pytest.approx(np.log(np.exp(token_scores[:, 0]).mean()))
    assert (mixture(token_scores) < 0).all()
    single = token_scores[:1].astype(np.float32)
    assert (mixture(single) == single[0]).all()
    np.testing.assert_allclose(mixture(np.repeat(single, 3, axis=0)), single[0], atol=1e-9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"Sci-Tech": "sport"},
            r"(?s)words for a class.*found: 'Sci-Tech'.*01, Sci/Tech, a b.*did you mean `Sci/Tech`",
        ),
        ({"01": " \n"}, r"(?s)a class without words.*'01'"),
        ({"01": ""}, r"(?s)a class without words.*'01'"),
        ({"01": "a b"}, r"(?s)always tie.*'a b' for '01' and 'a b'"),
        ({"01": "x", "a b": "x"}, r"(?s)always tie.*'x' for '01' and 'a b'"),
    ],
)
def test_words_that_tell_no_classes_apart_are_refused(words, message):
    systems = SystemsConfig(class_words=words)
    with pytest.raises(UsageError, match=message):
        check_prompts(systems, CLASSES)
    job = job_of(ResolvedModel("no-such", Path("no-such"), "0" * 64, 0, {}), systems=systems)
    with pytest.raises(UsageError, match=message):
        job.system.load(job, frozenset(CLASSES))


def test_classes_may_change_words(base):
    swapped = SystemsConfig(class_words={"01": "a b", "a b": "01"})
    check_prompts(swapped, CLASSES)
    plain, other = job_of(base), job_of(base, systems=swapped)
    assert score(plain, TEXTS, "01").equals(score(other, TEXTS, "a b"))


def test_prompts_that_are_the_same_tokens_are_refused(lm):
    lower = load_tokenizer_lowercased(lm)
    prompts = {"US": ("about US",), "us": ("about us",)}
    PromptedModel(lm, prompts)
    with pytest.raises(ModelError, match=r"(?s)always tie.*'US' and class 'us'"):
        PromptedModel(lower, prompts)
    with pytest.raises(ModelError, match=r"no tokens of a prompt"):
        PromptedModel(lm, {"US": ("about US", "")})


def load_tokenizer_lowercased(lm: CausalLM) -> CausalLM:
    import copy

    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return dataclasses.replace(lm, tokenizer=tokenizer)


# A model that has read texts under their topics; nothing else tells the classes apart.

PLANTED = SystemsConfig(prompts=("Topic: {class}\n\n", "{class}\n"))
EXCHANGED = SystemsConfig(
    prompts=PLANTED.prompts, class_words=dict(zip(CLASSES, [*CLASSES[1:], CLASSES[0]], strict=True))
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> ResolvedModel:
    """Train one small model on texts of all classes, each after a prompt of its class."""
    folder = tmp_path_factory.mktemp("reader")
    texts = [
        prompt + text
        for name in CLASSES
        for number, prompt in enumerate(prompts_for(PLANTED, name))
        for text in sentences(name, 16, seed=number)
    ]
    make_model_folder(folder / "base", "gpt2", context=64)
    task = TrainingTask(
        class_name="all",
        class_id=0,
        digest="d" * 64,
        base=ResolvedModel.of_folder("base", folder / "base"),
        texts=texts,
        validation_texts=[],
        destination=folder / "reader",
        sequence=SequenceConfig(),
        training=TrainingConfig(epochs=8, batch_size=8, learning_rate=1e-2),
        lora_rank=None,
        lora_alpha=None,
        precision="fp32",
        device="cpu",
        threads=1,
        tokens_per_pass=2048,
    )
    train_class(task)
    return ResolvedModel.of_folder("reader", folder / "reader")


def accuracy(reader: ResolvedModel, systems: SystemsConfig) -> float:
    job = job_of(reader, systems=systems)
    texts = [text for name in CLASSES for text in sentences(name, 20, seed=99)]
    labels = np.repeat(np.arange(len(CLASSES)), 20)
    scores = [score(job, texts, name).column("score").to_numpy() for name in CLASSES]
    return float((np.argmax(scores, axis=0) == labels).mean())


def test_a_model_that_knows_the_prompts_classifies(reader):
    assert accuracy(reader, PLANTED) > 0.9
    assert accuracy(reader, SystemsConfig(prompts=PLANTED.prompts[:1])) > 0.9


def test_exchanged_prompts_are_worse_than_chance(reader):
    assert accuracy(reader, EXCHANGED) < 0.1


def test_a_longer_prompt_does_not_change_the_windows_of_its_class_alone(base):
    """A class must not be read in other windows because its name is longer."""
    job = job_of(base, sequence=SequenceConfig(window=48))
    tables = [score(job, TEXTS, name) for name in CLASSES]
    windows = [table.column("num_windows").to_pylist() for table in tables]
    assert windows[0] == windows[1] == windows[2]
    assert max(windows[0]) > 1
