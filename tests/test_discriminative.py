"""The discriminative system: posteriors against a naive formula, training on planted problems."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from model_fixtures import ARCHITECTURES, CORPUS, make_model_folder, make_tokenizer
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax
from task_fixtures import examples_of, job_of, labelled_task
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CodeGenConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from gencls_core.class_models import ClassModel
from gencls_core.classifier_loading import load_classifier, load_trained, wrap_classifier
from gencls_core.classifiers import Classifier, text_batches
from gencls_core.config import ScoringConfig, SequenceConfig, TrainingConfig
from gencls_core.errors import ModelError, TrainingError
from gencls_core.model_source import ResolvedModel
from gencls_core.objectives.classification import ClassificationObjective
from gencls_core.posterior import posterior_of, read_likelihoods, resolve_prior
from gencls_core.scores import SCORE_SCHEMA, ScoreStore, ShardKey
from gencls_core.scoring_job import ScoringJob
from gencls_core.systems.discriminative import ClassifierScores, Discriminative
from gencls_core.training import TrainingTask, train_class

CLASSES = ("p before q", "Sci/Tech", "ünïcödé")
CONTEXT = 64
TEXTS = [
    *CORPUS[1:],
    "The end <|endoftext|>",
    "<|endoftext|>",
    "a",
]
"""Short enough for the context; one of them is empty."""
Labelled = list[tuple[str, int]]


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, ResolvedModel]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        name: ResolvedModel.of_folder(name, make_model_folder(folder / name, name, context=CONTEXT))
        for name in ARCHITECTURES
    }


@pytest.fixture(scope="module")
def saved(bases, tmp_path_factory) -> dict[str, tuple[Classifier, Path]]:
    """A classifier with a random head of each architecture, and the folder it was saved to."""
    result = {}
    for name, base in bases.items():
        torch.manual_seed(7)
        classifier = load_classifier(base, CLASSES, new_head=True)
        folder = tmp_path_factory.mktemp("saved") / name
        classifier.save(folder)
        result[name] = classifier, folder
    return result


@pytest.fixture(params=ARCHITECTURES)
def architecture(request) -> str:
    return request.param


def words(rng: random.Random) -> list[str]:
    return [rng.choice("aeionds") for _ in range(rng.randint(3, 6))]


def marked(count: int, seed: int) -> Labelled:
    """Texts with `p` somewhere, or with `q`."""
    rng = random.Random(seed)
    texts = []
    for number in range(count):
        text = words(rng)
        text.insert(rng.randint(0, len(text)), "pq"[number % 2])
        texts.append((" " + " ".join(text), number % 2))
    return texts


def ordered(count: int, seed: int) -> Labelled:
    """Texts with `p` before `q`, each followed by the same words with `q` before `p`."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count // 2):
        common = words(rng)
        first, second = sorted(rng.sample(range(len(common) + 1), 2))
        for label, (x, y) in enumerate(("pq", "qp")):
            text = [*common[:first], x, *common[first:second], y, *common[second:]]
            texts.append((" " + " ".join(text), label))
    return texts


def make_task(
    base: ResolvedModel, destination: Path, train: Labelled, held_out: Labelled, **changes
) -> TrainingTask:
    task = labelled_task(
        base,
        destination,
        train,
        held_out,
        system="discriminative",
        objective="classification",
        classes=CLASSES[:2],
    )
    return replace(task, **changes)


def make_job(trained: ClassModel, base: ResolvedModel, **changes) -> ScoringJob:
    job = job_of(trained, base, Discriminative(), CLASSES[:2])
    return replace(job, **changes)


def posteriors(
    classifier: Classifier, texts: list[str], sequence=None, tokens: int = 512
) -> np.ndarray:
    read = classifier.read(classifier.encode(texts), sequence or SequenceConfig())
    return classifier.log_posteriors(read, tokens_per_batch=tokens)


def nll_and_accuracy(job: ScoringJob, labelled: Labelled) -> tuple[float, float]:
    """Score as an actor does, from the committed folder."""
    models = job.system.load(job, frozenset(job.classes))
    examples = examples_of([text for text, _ in labelled])
    encoded = models.encode(examples)
    scores = np.array(
        [
            models.score(examples, name, job.sequence, job.scoring, encoded=encoded)["score"]
            for name in job.classes
        ]
    ).T
    labels = np.array([label for _, label in labelled])
    nll = -scores[np.arange(len(labels)), labels].mean()
    return float(nll), float((scores.argmax(axis=1) == labels).mean())


def test_posteriors_are_those_of_the_naive_formula(saved, architecture):
    """One text at a time, no padding, everything in float64."""
    classifier, folder = saved[architecture]
    model = AutoModelForSequenceClassification.from_pretrained(folder).double()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = posteriors(classifier, TEXTS)
    for text, row in zip(TEXTS, found, strict=True):
        ids = [0, *tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids]
        with torch.no_grad():
            hidden = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        logits = (model.score.weight @ hidden).detach().numpy()
        assert row == pytest.approx(log_softmax(logits), abs=2e-5)
    assert np.exp(found).sum(axis=1) == pytest.approx(1, abs=1e-12)
    assert np.ptp(found, axis=0).min() > 0.1


def test_neither_batches_nor_padding_change_a_text(saved, architecture):
    classifier, _ = saved[architecture]
    alone = posteriors(classifier, TEXTS, tokens=1)
    assert posteriors(classifier, TEXTS, tokens=512) == pytest.approx(alone, abs=1e-5)
    assert posteriors(replace(classifier, padding_id=99), TEXTS) == pytest.approx(alone, abs=1e-5)


def test_transformers_itself_says_the_same_of_a_padded_batch(saved, architecture):
    """GPT-2 pads with its EOS, which is BOS too; none of it stands in a text."""
    classifier, folder = saved[architecture]
    config = AutoConfig.from_pretrained(folder)
    assert config.pad_token_id == classifier.tokenizer.pad_token_id == 0
    assert config.id2label == dict(enumerate(CLASSES))
    assert config.label2id == {name: number for number, name in enumerate(CLASSES)}
    texts = [text for text in TEXTS if text]
    read = classifier.read(classifier.encode(texts), SequenceConfig())
    assert all(0 not in text.inputs_T[1:] for text in read)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer.pad(
        {"input_ids": [text.inputs_T.tolist() for text in read]}, return_tensors="pt"
    )
    assert not batch["attention_mask"].all()
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        native = model(**batch).logits.double().log_softmax(dim=1).numpy()
    assert posteriors(classifier, texts) == pytest.approx(native, abs=1e-5)
    # Loading does not draw a head again.
    assert posteriors(load_folder(folder, CLASSES), texts) == pytest.approx(native, abs=1e-5)


def load_folder(folder: Path, classes: tuple[str, ...]) -> Classifier:
    return load_classifier(ResolvedModel.of_folder("saved", folder), classes)


def test_a_separator_written_in_a_text_is_text(saved, architecture):
    classifier, _ = saved[architecture]
    [written, empty] = classifier.read(classifier.encode(["<|endoftext|>", ""]), SequenceConfig())
    assert empty.inputs_T.tolist() == [0]
    assert len(written) > 5
    assert written.inputs_T.tolist().count(0) == 1


def test_an_empty_text_is_judged_by_bos_alone(saved, architecture):
    classifier, _ = saved[architecture]
    model = classifier.model
    with torch.no_grad():
        hidden = model.base_model(input_ids=torch.tensor([[0]])).last_hidden_state[0, 0]
        expected = model.score(hidden).log_softmax(dim=0).numpy()
    # Beside longer ones: BOS is followed by padding of the same id.
    assert posteriors(classifier, TEXTS)[TEXTS.index("")] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("sequence", "kept"),
    [
        (SequenceConfig(), CONTEXT - 1),
        (SequenceConfig(window=8), 7),
        (SequenceConfig(window=4096), CONTEXT - 1),
        (SequenceConfig(max_length=3), 3),
        (SequenceConfig(max_length=100), CONTEXT - 1),
    ],
)
def test_long_texts_are_cut_to_their_front_and_rows_say_so(saved, architecture, sequence, kept):
    classifier, _ = saved[architecture]
    long = "p q " * 40
    [ids, short] = classifier.encode([long, "p"])
    examples = examples_of([long, "p", ""])
    models = ClassifierScores(classifier)
    rows = models.score(examples, CLASSES[1], sequence, ScoringConfig())
    assert rows["truncated"].to_pylist() == [True, False, False]
    assert rows["num_tokens"].to_pylist() == [1 + kept, 1 + len(short), 1]
    front = classifier.log_posteriors(
        classifier.read([ids[:kept]], SequenceConfig()), tokens_per_batch=64
    )
    assert rows["score"][0].as_py() == pytest.approx(front[0, 1], abs=1e-5)
    assert not any(text.truncated for text in classifier.read([ids[:kept]], sequence))


def test_training_cuts_texts_as_scoring_does(bases, tmp_path):
    texts = [("p q " * 40, 0), ("p", 1), ("", 0)]
    task = make_task(bases["gpt2"], tmp_path / "m", texts, texts, sequence=SequenceConfig(window=9))
    objective = ClassificationObjective.of(task)
    assert objective.lengths == [9, 2, 1]
    assert objective.units([0, 1]) == 2


def test_the_loss_is_what_scoring_says_whatever_the_passes(bases, tmp_path, architecture):
    texts = [(text, number % 2) for number, text in enumerate(TEXTS)]
    task = make_task(bases[architecture], tmp_path / "m", texts, texts)
    objective = ClassificationObjective.of(task)
    numbers = list(range(len(texts)))
    for tokens in (1, 40, 4096):
        passes = list(objective.passes(numbers, tokens, 0))
        assert sorted(number for part in passes for number in part) == numbers
        lengths = [objective.lengths[number] for part in passes for number in part]
        assert lengths == sorted(lengths, reverse=True)
        assert all(
            len(part) == 1 or max(objective.lengths[i] for i in part) * len(part) <= tokens
            for part in passes
        )
        loss = sum(objective.loss(part).item() for part in passes) / len(texts)
        assert loss == pytest.approx(objective.held_out_nll(64), abs=1e-5)


@pytest.mark.parametrize("plant", [marked, ordered])
def test_learns_what_is_planted(bases, tmp_path, architecture, plant):
    train, held_out = plant(160, 1), plant(40, 2)
    if plant is ordered:
        # The same words in another order: a bag of words is right by chance alone.
        for (text, _), (other, _) in zip(held_out[::2], held_out[1::2], strict=True):
            assert Counter(text.split()) == Counter(other.split())
    base = bases[architecture]
    training = TrainingConfig(epochs=10, batch_size=16, learning_rate=5e-3, patience=4)
    trained = train_class(make_task(base, tmp_path / "m", train, held_out, training=training))
    assert ClassModel.open(tmp_path / "m") == trained
    assert (trained.system, trained.class_name, trained.kind) == ("discriminative", "", "full")
    nll, accuracy = nll_and_accuracy(make_job(trained, base), held_out)
    assert accuracy >= 0.95
    assert nll == pytest.approx(trained.training.validation_nll, abs=1e-5)
    assert trained.training.validation_perplexity is None
    _, accuracy = nll_and_accuracy(make_job(trained, base), plant(40, 3))
    assert accuracy >= 0.9


def test_early_stopping_keeps_the_best_epoch(bases, tmp_path):
    """Held-out labels are wrong: what is learned makes them worse."""
    train = marked(60, 1)
    held_out = [(text, 1 - label) for text, label in marked(60, 2)]
    base = bases["llama"]
    training = TrainingConfig(epochs=12, batch_size=8, learning_rate=1e-2, patience=2)
    trained = train_class(make_task(base, tmp_path / "m", train, held_out, training=training))
    record = trained.training
    assert record.best_epoch < record.epochs < 12
    assert record.validation_nll == min(epoch.validation_nll for epoch in record.history)
    nll, _ = nll_and_accuracy(make_job(trained, base), held_out)
    assert nll == pytest.approx(record.validation_nll, abs=1e-5)
    assert nll < record.history[-1].validation_nll - 0.1


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_same_task_same_bytes_other_seed_other(bases, tmp_path, architecture, lora_rank):
    models = []
    for number, seed in enumerate((0, 0, 1)):
        training = TrainingConfig(epochs=1, batch_size=16, seed=seed)
        task = make_task(
            bases[architecture],
            tmp_path / str(number),
            marked(32, 1),
            marked(8, 2),
            training=training,
            lora_rank=lora_rank,
        )
        torch.manual_seed(number)
        models.append(train_class(task))
    assert models[0].files == models[1].files
    weights = "model.safetensors" if lora_rank is None else "adapter_model.safetensors"
    assert models[0].files[weights] != models[2].files[weights]


def test_lora_trains_an_adapter_and_a_whole_head(bases, tmp_path, architecture):
    base = bases[architecture]
    train, held_out = marked(160, 1), marked(40, 2)
    training = TrainingConfig(epochs=8, batch_size=8, learning_rate=2e-2)
    trained = train_class(
        make_task(base, tmp_path / "m", train, held_out, training=training, lora_rank=4)
    )
    assert trained.kind == "lora"
    assert not (trained.path / "model.safetensors").exists()
    weights = load_file(trained.path / "adapter_model.safetensors")
    assert [name for name in weights if name.endswith("score.weight")]
    assert sum(name.endswith("lora_A.weight") for name in weights) > 4
    adapter = json.loads((trained.path / "adapter_config.json").read_text())
    # The order of a set differs from process to process.
    assert adapter["target_modules"] == sorted(adapter["target_modules"])
    assert not [name for name in adapter["target_modules"] if "score" in name]
    # A head drawn at scoring must not be the one that is used.
    torch.manual_seed(99)
    nll, accuracy = nll_and_accuracy(make_job(trained, base), held_out)
    assert nll == pytest.approx(trained.training.validation_nll, abs=1e-5)
    assert accuracy >= 0.9
    half, _ = nll_and_accuracy(make_job(trained, base, precision="bf16"), held_out)
    assert half == pytest.approx(nll, abs=0.05)
    with pytest.raises(ModelError, match="other classes"):
        load_trained(trained, base, CLASSES[1::-1])


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_bf16_and_gradient_checkpointing(bases, tmp_path, architecture, lora_rank):
    training = TrainingConfig(epochs=2, learning_rate=5e-3, gradient_checkpointing=True)
    base = bases[architecture]
    texts = marked(40, 1)
    trained = train_class(
        make_task(
            base, tmp_path / "m", texts, texts,
            training=training, precision="bf16", lora_rank=lora_rank,
        )
    )  # fmt: skip
    nll, _ = nll_and_accuracy(make_job(trained, base, precision="bf16"), texts)
    assert nll == pytest.approx(trained.training.validation_nll, abs=0.05)


@pytest.fixture(scope="module")
def trained(bases, tmp_path_factory) -> ClassModel:
    folder = tmp_path_factory.mktemp("trained") / "m"
    return train_class(make_task(bases["gpt2"], folder, marked(64, 1), marked(8, 2)))


def test_rows_hold_one_class_and_texts_are_read_once(bases, trained, monkeypatch):
    job = make_job(trained, bases["gpt2"], scoring=ScoringConfig(per_token=True))
    models = job.system.load(job, frozenset(job.classes[:1]))
    calls = []
    original = Classifier.log_posteriors

    def counted(self, texts, **options):
        calls.append(len(texts))
        return original(self, texts, **options)

    monkeypatch.setattr(Classifier, "log_posteriors", counted)
    first, second = examples_of(TEXTS), examples_of(TEXTS[::-1])
    tokens: list[int] = []

    def rows(examples, name, encoded=None, sequence=job.sequence):
        return models.score(
            examples, name, sequence, job.scoring, encoded=encoded, on_batch=tokens.append
        )

    encoded = models.encode(first)
    tables = [rows(first, name, encoded) for name in job.classes]
    assert calls == [len(TEXTS)]
    total = sum(tables[0]["num_tokens"].to_pylist())
    assert tokens[-1] == tokens[-2] == total
    for table in tables:
        assert table.schema == SCORE_SCHEMA
        assert set(table["quantity"].to_pylist()) == {"log_posterior"}
        assert set(table["num_windows"].to_pylist()) == {1}
        empty = ("standard_error", "loss_score", "token_ids", "token_scores")
        assert all(table[name].null_count == len(TEXTS) for name in empty)
    sums = sum(np.exp(table["score"].to_numpy()) for table in tables)
    assert sums == pytest.approx(1, abs=1e-12)
    # Other texts, or less of them, are read anew; so are texts that are not encoded before.
    backward = rows(second, job.classes[0], models.encode(second))
    assert backward["score"].to_pylist()[::-1] == pytest.approx(tables[0]["score"].to_pylist())
    rows(first, job.classes[0], encoded)
    shorter = rows(first, job.classes[0], encoded, SequenceConfig(max_length=2))
    assert max(shorter["num_tokens"].to_pylist()) == 3
    rows(first, job.classes[0])
    assert len(calls) == 5


def test_the_prior_is_not_counted_twice(bases, trained, tmp_path):
    job = make_job(trained, bases["gpt2"])
    models = job.system.load(job, frozenset(job.classes))
    examples = examples_of(TEXTS)
    store = ScoreStore(tmp_path)
    for name in job.classes:
        rows = models.score(examples, name, job.sequence, job.scoring)
        store.commit(ShardKey("discriminative", name, 0, 1), rows, start=0, digest="d")
    matrix = read_likelihoods(store, "discriminative", job.classes)
    softmax = posteriors(load_trained(trained, job.base, job.classes), TEXTS)
    for prior in ("train", "uniform"):
        weights = resolve_prior(prior, job.classes, {job.classes[0]: 900, job.classes[1]: 100})
        assert posterior_of(matrix, weights) == pytest.approx(softmax, abs=1e-6)


def test_rows_depend_on_the_order_of_the_classes(bases, trained):
    job = make_job(trained, bases["gpt2"])
    other = replace(job, classes=CLASSES[1::-1])
    name = CLASSES[0]
    assert job.system.depends_on(job, name) != other.system.depends_on(other, name)
    with pytest.raises(ModelError, match="other classes"):
        other.system.load(other, frozenset(other.classes))


def test_a_class_without_texts_is_named(bases, tmp_path):
    train = [(text, 0) for text in TEXTS]
    task = make_task(bases["gpt2"], tmp_path / "m", train, [])
    with pytest.raises(TrainingError, match=r"discriminative: .*(\n.*)*no text of Sci/Tech"):
        ClassificationObjective.of(task)


def test_without_held_out_texts_the_last_weights_are_kept(bases, tmp_path):
    trained = train_class(make_task(bases["gpt2"], tmp_path / "m", marked(20, 1), []))
    assert trained.training.validation_nll is None


def test_an_architecture_without_classifier_is_named(tmp_path):
    CodeGenConfig(n_layer=1, n_embd=16, n_head=4, rotary_dim=4).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"codegen(.*\n)*.*--systems"):
        load_classifier(ResolvedModel("x", tmp_path, "", 0, {}), CLASSES, new_head=True)


def test_folders_that_are_no_classifier_or_no_base_are_refused(saved, bases, tmp_path):
    _, folder = saved["gpt2"]
    with pytest.raises(ModelError, match="a classification head"):
        load_classifier(ResolvedModel.of_folder("x", folder), CLASSES, new_head=True)
    with pytest.raises(ModelError, match="other classes"):
        load_folder(folder, CLASSES[:2])
    with pytest.raises(ModelError, match="other classes"):
        load_folder(bases["gpt2"].path, CLASSES)
    AutoConfig.from_pretrained(folder).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no score\.weight"):
        load_folder(tmp_path, CLASSES)


def small_gpt2(kind=GPT2ForSequenceClassification, vocabulary: int | None = None):
    rows = vocabulary or len(make_tokenizer())
    config = GPT2Config(
        vocab_size=rows, n_positions=16, n_embd=16, n_layer=1, n_head=2, num_labels=3
    )
    torch.manual_seed(0)
    return kind(config)


class Scaled(GPT2ForSequenceClassification):
    def forward(self, *arguments, **options):
        output = super().forward(*arguments, **options)
        output.logits = output.logits * 2
        return output


class OtherHead(GPT2ForSequenceClassification):
    def __init__(self, config):
        super().__init__(config)
        self.classifier, self.score = self.score, None


def test_models_that_cannot_be_run_as_trunk_and_head_are_refused():
    def wrap(model):
        return wrap_classifier(model, make_tokenizer(), CLASSES, place="x")

    assert wrap(small_gpt2()).context == 16
    with pytest.raises(ModelError, match="more than a head"):
        wrap(small_gpt2(Scaled))
    with pytest.raises(ModelError, match="head of another kind"):
        wrap(small_gpt2(OtherHead))
    with pytest.raises(ModelError, match="does not fit the model's vocabulary"):
        wrap(small_gpt2(vocabulary=100))
    looks_ahead = small_gpt2()

    def add_mean(_module, _inputs, output):
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(
            dim=1, keepdim=True
        )
        return output

    looks_ahead.transformer.register_forward_hook(add_mean)
    with pytest.raises(ModelError, match="padding changes"):
        wrap(looks_ahead)


def test_padding_is_never_a_token_that_a_text_may_end_with():
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    assert wrap_classifier(small_gpt2(), tokenizer, CLASSES, place="x").padding_id == 0
    tokenizer.unk_token = tokenizer.pad_token = "a"
    assert wrap_classifier(small_gpt2(), tokenizer, CLASSES, place="x").padding_id == 0
    tokenizer.unk_token, tokenizer.pad_token = None, "b"
    own = tokenizer.convert_tokens_to_ids("b")
    assert wrap_classifier(small_gpt2(), tokenizer, CLASSES, place="x").padding_id == own


def test_another_tokenizer_than_the_committed_is_refused(bases, trained):
    with pytest.raises(ModelError, match="tokenizer is not the one"):
        load_trained(replace(trained, tokenizer_digest="0" * 64), bases["gpt2"], CLASSES[:2])


def test_batches_keep_to_the_budget(saved):
    classifier, _ = saved["gpt2"]
    read = classifier.read(classifier.encode(TEXTS), SequenceConfig())
    batches = list(text_batches(read, range(len(read)), 40))
    assert len(read[batches[0][0]]) == max(map(len, read))
    assert sorted(number for batch in batches for number in batch) == list(range(len(read)))
