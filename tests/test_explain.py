"""Explained decisions of real runs: items add up to what decided, stored or scored here."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cluster_fixtures import gencls, succeed
from rich.console import Console
from run_fixtures import make_config, make_data

from cluster.evaluation import evaluate_models
from cluster.pipeline import run_all
from gencls_core import ClassifierRun
from gencls_core.config import DataConfig
from gencls_core.errors import UsageError
from gencls_core.explanations import decisive_phrases, explain_example, explain_text
from gencls_core.report.inference import infer
from gencls_core.run import RunDirectory
from jobs.explain import print_evidence

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]

RECIPES = {"independent": True, "joint": False}
"""Recipe → whether token scores are kept."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, RunDirectory]:
    folder = tmp_path_factory.mktemp("explained")
    found = {}
    for recipe, per_token in RECIPES.items():
        config = make_config(
            folder, recipe={"recipe": recipe}, compute={"actors": 1},
            scoring={"per_token": per_token}, output_dir=str(folder / recipe),
            posterior={"prior": "uniform"},
        )  # fmt: skip
        for _ in run_all(config):
            pass
        found[recipe] = RunDirectory(folder / recipe)
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_items_add_up_to_what_decided(runs, recipe):
    run = runs[recipe]
    inference = infer(run)
    classes = inference.matrix.classes
    for row in (0, 17, 41):
        example = inference.matrix.example_ids[row].as_py()
        found = explain_example(run, example)
        order = np.argsort(-inference.answer[row])
        assert found.class_name == classes[order[0]]
        label = inference.matrix.labels[row].as_py()
        assert found.against == (classes[order[1]] if label == found.class_name else label)
        first, second = (classes.index(name) for name in (found.class_name, found.against))
        decided = inference.answer[row, first] - inference.answer[row, second]
        assert found.log_odds == pytest.approx(decided, abs=1e-9)
        if RECIPES[recipe]:
            assert found.rounding == 0  # stored token scores are those that decided
        assert found.total == pytest.approx(found.log_odds, abs=1e-6)
        assert sum(word.nats for word in found.words) == pytest.approx(
            sum(token.nats for token in found.tokens)
        )
        assert len(found.tokens) == inference.matrix.num_tokens[row] - 1  # and the end


def test_the_other_way_round_it_is_the_negative(runs):
    run = runs["independent"]
    a, b = run.manifest()["classes"][:2]
    there = explain_example(run, "test-3", class_name=a, against=b)
    back = explain_example(run, "test-3", class_name=b, against=a)
    assert back.log_odds == pytest.approx(-there.log_odds)
    assert [word.nats for word in back.words] == pytest.approx([-w.nats for w in there.words])


def test_any_text(runs):
    run = runs["joint"]
    text = "<script>alert(1)</script> and\n a 天气"
    found = explain_text(run, text)
    assert found.total == pytest.approx(found.log_odds, abs=1e-6)
    assert "".join(text[token.start : token.stop] for token in found.tokens[:3]) in text
    said = json.loads(succeed("explain", str(run.path), "--text", text, "--json"))
    assert said["text"] == text
    assert said["log_odds"] == pytest.approx(found.log_odds)
    assert [word["text"] for word in said["words"]][1] == "script"
    assert explain_text(run, "").tokens == ()


def test_what_a_person_sees(runs):
    found = explain_example(runs["independent"], "test-5")
    stream = io.StringIO()
    print_evidence(found, Console(file=stream, width=100, color_system=None))
    shown = stream.getvalue()
    assert f"{found.class_name} rather than {found.against}" in shown
    assert " ".join(found.text.split()) in " ".join(shown.split())
    assert "together" in shown
    assert f"{found.log_odds:+.2f}".replace("-", "−") in shown
    assert f"For {found.class_name}:" in shown
    said = succeed("explain", str(runs["independent"].path), "--example", "test-5")
    assert "what speaks" in said


def test_phrases_of_a_run_that_kept_token_scores(runs):
    run = runs["independent"]
    found = decisive_phrases(run, fewest_texts=4)
    texts = [
        f" {' '.join(text.casefold().replace('.', ' .').split())} "
        for text in run.dataset().read("test")["text"].to_pylist()
    ]
    assert any(found.values())
    for phrases in found.values():
        for phrase in phrases:
            assert 0 < phrase.low <= phrase.nats <= phrase.high
            assert phrase.texts >= 4
            assert phrase.texts == sum(f" {phrase.words} " in text for text in texts)
    said = json.loads(succeed("explain", str(run.path), "--phrases", "--json"))
    assert set(said) == set(run.manifest()["classes"])
    assert "95 % interval" in succeed("explain", str(run.path), "--phrases")
    code, said = gencls("explain", str(runs["joint"].path), "--phrases")
    assert (code, "--per-token" in said) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--example", "nothing"], "no such test text"),
        (["--example", "test-1", "--against", "nothing"], "no such class"),
        (["--text", "a", "--class", "news", "--against", "news"], "no such class"),
        (["--example", "test-1", "--text", "a"], "--example ID, --text TEXT"),
        ([], "--example ID, --text TEXT"),
        (["--phrases", "--class", "news"], "--phrases is of all classes"),
        (["--text", "a", "--ensemble", "tfidf"], "the likelihoods alone"),
        (["--text", "a", "--prior", "uniform", "--prior-from", "unlabelled"], "not both"),
    ],
)
def test_mistakes(runs, arguments, words):
    code, said = gencls("explain", str(runs["independent"].path), *arguments)
    assert code == 2
    assert words in said


def test_another_prior_is_another_item(runs):
    run = runs["independent"]
    a, b, *_ = run.manifest()["classes"]
    others = ",".join(f"{name}=0.1" for name in run.manifest()["classes"] if name not in (a, b))
    plain = explain_example(run, "test-3", class_name=a, against=b)
    found = explain_example(
        run, "test-3", class_name=a, against=b, prior=f"{a}=0.7,{b}=0.2,{others}"
    )
    assert plain.prior == 0
    assert found.prior == pytest.approx(np.log(3.5))
    assert found.log_odds - plain.log_odds == pytest.approx(np.log(3.5))
    assert found.total == pytest.approx(found.log_odds, abs=1e-6)


def test_an_evaluation_is_explained_by_the_models_of_its_run(runs, tmp_path):
    make_data(tmp_path / "other", train=3, test=5)
    other = DataConfig(data_dir=tmp_path / "other")
    *_, last = evaluate_models(runs["joint"].path, other, {"compute": {"actors": 1}})
    evaluation = RunDirectory(Path(last.message).parent)
    assert evaluation.path != runs["joint"].path
    inference = infer(evaluation)
    found = explain_example(evaluation, inference.matrix.example_ids[1].as_py())
    classes = inference.matrix.classes
    first, second = (classes.index(name) for name in (found.class_name, found.against))
    decided = inference.answer[1, first] - inference.answer[1, second]
    assert found.log_odds == pytest.approx(decided, abs=1e-9)
    assert found.total == pytest.approx(found.log_odds, abs=1e-6)
    assert explain_text(evaluation, found.text).class_name in classes


def test_what_mean_losses_decided_is_no_sum(runs):
    changes = {"scoring": {"likelihood": "loss"}, "compute": {"actors": 1}}
    *_, last = evaluate_models(runs["independent"].path, None, changes)
    run = RunDirectory(Path(last.message).parent)
    by_python = ClassifierRun.open(run.path)
    for explain in (
        lambda: explain_example(run, "test-1"),
        lambda: explain_text(run, "a goal"),
        lambda: decisive_phrases(run),
        lambda: by_python.explain(text="a goal"),
    ):
        with pytest.raises(UsageError, match=r"mean losses(.|\n)*found: --likelihood loss"):
            explain()


def test_a_class_is_not_told_from_itself(runs):
    run = runs["independent"]
    name = run.manifest()["classes"][0]
    with pytest.raises(UsageError, match="from itself"):
        explain_example(run, "test-1", class_name=name, against=name)


def score_otherwise(monkeypatch, nats: float) -> None:
    """Let this machine find a text's first token so much likelier under the first class."""
    import gencls_core.explanations as module

    made = module._scored_here

    def other(*arguments):
        ids, first, second = made(*arguments)
        first[0] += nats
        return ids, first, second

    monkeypatch.setattr(module, "_scored_here", other)


def test_a_close_decision_stands_where_this_machine_rounds_otherwise(runs, monkeypatch):
    run = runs["joint"]
    plain = explain_example(run, "test-3")
    a, b = plain.class_name, plain.against
    [other] = {*run.manifest()["classes"]} - {a, b}
    # A prior under which the run just answers a.
    odds = float(np.exp(1e-4 - plain.log_odds))
    prior = f"{a}={odds / (1 + odds)!r},{b}={1 / (1 + odds)!r},{other}=1e-30"
    score_otherwise(monkeypatch, -7e-4)
    found = explain_example(run, "test-3", prior=prior)
    inference = infer(run, prior=prior)
    row = inference.matrix.example_ids.to_pylist().index("test-3")
    assert found.class_name == inference.matrix.classes[inference.answer[row].argmax()] == a
    assert found.log_odds == pytest.approx(1e-4, abs=1e-9)
    assert found.total == pytest.approx(found.log_odds, abs=1e-6)
    assert found.total - found.rounding < 0 < found.rounding
    by_python = ClassifierRun.open(run.path).explain(example="test-3", prior=prior)
    assert by_python == found
    told = succeed("explain", str(run.path), "--example", "test-3", "--prior", prior, "--json")
    said = json.loads(told)
    items = [said[name] for name in ("end", "calibration", "prior", "ensemble", "rounding")]
    items += [token["nats"] for token in said["tokens"]]
    assert (said["class"], said["rounding"]) == (a, found.rounding)
    assert sum(items) == pytest.approx(said["log_odds"], abs=1e-6)
    for rounding, is_shown in ((0.0004, False), (0.3, True)):
        stream = io.StringIO()
        print_evidence(replace(found, rounding=rounding), Console(file=stream, width=100))
        assert ("rounding of this machine" in stream.getvalue()) == is_shown


def test_models_that_did_not_score_the_text_are_noticed(runs, monkeypatch):
    run = runs["joint"]
    score_otherwise(monkeypatch, -1.0)
    with pytest.raises(UsageError, match="do not say of this text what its scores say"):
        explain_example(run, "test-1")
    assert Path(run.path).exists()
