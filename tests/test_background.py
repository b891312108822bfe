"""The untrained base beside class models: exact rows, whole runs, refusals by the ratio."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from cluster_fixtures import succeed
from report_fixtures import make_run, score_table
from run_fixtures import CLASSES, make_config, sentences, write_jsonl

from cluster.evaluation import classify_texts, evaluate_models
from cluster.pipeline import run_all
from gencls_core.config import DataConfig
from gencls_core.errors import StoreError, UsageError
from gencls_core.events import ShardCommitted, StageFinished
from gencls_core.model_source import ResolvedModel
from gencls_core.models import load_causal_lm
from gencls_core.report.background import background_of, likelihood_ratio
from gencls_core.report.build import build_report
from gencls_core.report.inference import infer
from gencls_core.report.predictions import predict
from gencls_core.report.rejections import Rejecter, Wanted
from gencls_core.run import RunDirectory
from gencls_core.score_matrix import LikelihoodMatrix
from gencls_core.scores import ShardKey
from gencls_core.scoring_job import ANY_CLASS, BACKGROUND
from gencls_core.verify import verify

HALF = Wanted.of("background", 0.5, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("background")
    list(run_all(make_config(folder, scoring={"background": True, "per_token": True})))
    return folder


@pytest.fixture
def copy(folder, tmp_path) -> RunDirectory:
    shutil.copytree(folder / "run", tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def committed(events: list[object]) -> int:
    return sum(isinstance(event, ShardCommitted) for event in events)


@pytest.mark.ray
@pytest.mark.usefixtures("shared_ray")
class TestRuns:
    def test_rows_are_those_of_the_base_in_float64(self, folder):
        run = RunDirectory(folder / "run")
        lm = load_causal_lm(ResolvedModel.of_folder("base", folder / "base"))
        model = lm.model.double()
        texts = pq.read_table(run.dataset_path / "test.parquet").to_pylist()
        rows = run.scores.read(run.scores.records(BACKGROUND)).to_pylist()
        assert [row["example_id"] for row in rows] == [text["example_id"] for text in texts]
        assert {row["class"] for row in rows} == {ANY_CLASS}
        base = {}
        for text, row in zip(texts, rows, strict=True):
            targets = [*lm.encode([text["text"]])[0], lm.eos_id]
            assert row["token_ids"] == targets
            with torch.no_grad():
                logits = model(torch.tensor([[lm.bos_id, *targets[:-1]]])).logits[0]
            of_each = torch.log_softmax(logits, -1)[range(len(targets)), targets]
            np.testing.assert_allclose(row["token_scores"], of_each.numpy(), atol=2e-4)
            base[text["example_id"]] = (of_each.sum().item(), len(targets))
        # The ratio, by a loop over the classes' own rows.
        found = infer(run)
        ratio_N = likelihood_ratio(
            found.matrix, found.prior, background_of([run.scores]), run.scores.path
        )
        for number, ratio in enumerate(ratio_N):
            log_p, tokens = base[found.matrix.example_id(number)]
            mixed = sum(
                found.prior[name] * np.exp(np.longdouble(found.matrix.scores[number, c]))
                for c, name in enumerate(found.matrix.classes)
            )
            assert ratio == pytest.approx(float(np.log(mixed) - log_p) / tokens, abs=1e-4)

    def test_report_reject_and_verify(self, copy):
        report = build_report(copy, reject=HALF)
        assert report.rejection.method == "background"
        assert BACKGROUND not in report.baselines
        assert not [note for note in report.notes if BACKGROUND in note]
        rejecter = Rejecter.of(copy, infer(copy), HALF)
        rows = pq.read_table(copy.predictions_path).to_pylist()
        answered_N = rejecter.answers(infer(copy))
        for row, answered in zip(rows, answered_N, strict=True):
            assert row["reason"] == (None if answered else "background")
        assert verify(copy).whole
        both = build_report(copy, reject=Wanted.of("both", 0.5, None))
        assert both.rejection.coverage < 1
        reasons = set(pq.read_table(copy.predictions_path)["reason"].to_pylist())
        assert reasons <= {None, "posterior", "background", "posterior, background"}
        assert len(reasons) > 2

    def test_the_same_command_again_scores_nothing(self, folder):
        config = make_config(folder, scoring={"background": True, "per_token": True})
        assert committed(list(run_all(config))) == 0

    def test_other_texts(self, copy, folder, tmp_path):
        texts = [*sentences("01", 3, 9), "zq xv jk wq zz qj vx kq"]
        path = write_jsonl(tmp_path / "new.jsonl", [{"text": text} for text in texts])
        data = DataConfig(data=str(path))
        changes = {"scoring": {"background": True}}
        *_, last = events = list(classify_texts(copy.path, data, changes))
        assert isinstance(last, StageFinished)
        # One shard for each class and one for the base.
        assert committed(events) == len(CLASSES) + 1
        other = RunDirectory(Path(last.message))
        predict(other, tmp_path / "found.parquet", reject=HALF, models_of=copy)
        rows = pq.read_table(tmp_path / "found.parquet").to_pylist()
        assert (rows[3]["reason"], rows[3]["answer"]) == ("background", None)

    def test_classify_writes_null_and_a_reason(self, copy, tmp_path):
        texts = [*sentences("01", 3, 9), "zq xv jk wq zz qj vx kq"]
        path = write_jsonl(tmp_path / "new.jsonl", [{"text": text} for text in texts])
        output = tmp_path / "found.jsonl"
        command = ["classify", "--model-dir", str(copy.path), str(path), "--output", str(output)]
        # It asks for the base's scores itself.
        succeed(*command, "--reject", "both", "--coverage", "0.6")
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        assert "background" in rows[3]["reason"]
        for name in ("answer", "predicted", "calibrated_predicted"):
            assert rows[3][name] is None
        assert rows[3]["probability"] > 0
        assert any(row["reason"] is None and row["answer"] for row in rows)

    def test_adapters_on_a_base_from_scratch(self, tmp_path):
        model = {"model": "scratch:tiny", "lora_rank": 2}
        training = {"epochs": 1}
        config = make_config(tmp_path, model=model, training=training, scoring={"background": True})
        list(run_all(config))
        run = RunDirectory(tmp_path / "run")
        assert build_report(run, reject=HALF).rejection.answered > 0
        data = DataConfig(data=str(write_jsonl(tmp_path / "new.jsonl", [{"text": "orbit 1."}])))
        *_, last = classify_texts(run.path, data, {"scoring": {"background": True}})
        assert len(RunDirectory(Path(last.message)).scores.records(BACKGROUND)) == 1

    def test_a_run_that_did_without_gets_it_afterwards(self, copy):
        for store in (copy.scores, copy.validation_scores):
            store.retire(BACKGROUND, ())
        with pytest.raises(StoreError, match="--background"):
            build_report(copy, reject=HALF)
        before = {path: path.stat().st_mtime_ns for path in copy.path.rglob("*.parquet")}
        list(evaluate_models(copy.path, None, {"scoring": {"background": True}}))
        assert build_report(copy, reject=HALF).rejection is not None
        for path, changed in before.items():
            assert "report" in path.parts or path.stat().st_mtime_ns == changed


def write_background(run: RunDirectory, *, per_token: float = 0.0, tokens: int = 0) -> None:
    """Commit made-up scores of the base: as likely as in the mean of the classes, and `per_token`.

    `tokens` is how many more it says it has scored.
    """
    found = infer(run)
    for store, matrix in ((run.scores, found.matrix), (run.validation_scores, found.fit.texts)):
        table = score_table(
            matrix.example_ids.to_pylist(),
            matrix.labels.to_pylist(),
            matrix.scores.mean(axis=1) + per_token * matrix.num_tokens,
            num_tokens=matrix.num_tokens + tokens,
        )
        store.commit(ShardKey(BACKGROUND, ANY_CLASS, 0, 1), table, start=0, digest="b" * 64)


def test_the_lower_rank_counts_of_both(tmp_path):
    run = make_run(tmp_path / "run")
    write_background(run)
    inference = infer(run)
    single = [
        Rejecter.of(run, inference, Wanted.of(name, 0.8, None))
        for name in ("posterior", "background")
    ]
    both = Rejecter.of(run, inference, Wanted.of("both", 0.8, None))
    names, held_out = [], len(single[0].signals[0].held_out_M)
    values = [rejecter.confidence(inference) for rejecter in single]
    for row, found in enumerate(both.confidence(inference)):
        ranks = [
            1 + int((rejecter.signals[0].held_out_M <= value_N[row]).sum())
            for rejecter, value_N in zip(single, values, strict=True)
        ]
        assert found == pytest.approx(min(ranks) + max(ranks) / (held_out + 2))
        low = [
            r.wanted.method
            for r, rank in zip(single, ranks, strict=True)
            if rank <= both.threshold.value
        ]
        names.append(", ".join(low) if found <= both.threshold.value else None)
    assert both.reasons(inference).to_pylist() == names
    assert len(set(names)) == 4


def test_the_coverage_of_both_is_the_wanted_one_in_the_mean(tmp_path):
    covered = []
    for seed in range(25):
        run = make_run(tmp_path / str(seed), validation_rows=19, baseline=False, seed=seed)
        write_background(run)
        inference = infer(run)
        rejecter = Rejecter.of(run, inference, Wanted.of("both", 0.8, None))
        covered.append(rejecter.answers(inference).mean())
    assert np.mean(covered) == pytest.approx(0.8, abs=0.06)


def test_a_base_that_is_likelier_everywhere_refuses_the_same(tmp_path):
    answers = []
    for per_token in (0.0, 0.5):
        run = make_run(tmp_path / str(per_token))
        write_background(run, per_token=per_token)
        inference = infer(run)
        answers.append(Rejecter.of(run, inference, HALF).answers(inference).tolist())
    assert answers[0] == answers[1]


@pytest.mark.parametrize("tested", [True, False])
def test_no_scores_of_the_base(tmp_path, tested):
    run = make_run(tmp_path / "run")
    write_background(run)
    (run.scores if tested else run.validation_scores).retire(BACKGROUND, ())
    with pytest.raises(StoreError) as error:
        build_report(run, reject=HALF)
    store = run.scores if tested else run.validation_scores
    for word in (str(store.path), "without a score of background", "--background"):
        assert word in str(error.value)


def test_other_tokens_and_other_quantities_are_refused(tmp_path):
    run = make_run(tmp_path / "run")
    write_background(run, tokens=1)
    with pytest.raises(StoreError, match="other tokens"):
        build_report(run, reject=HALF)
    by_loss = dataclasses.replace(infer(run), by_loss=True)
    with pytest.raises(UsageError, match="--likelihood loss"):
        Rejecter.of(run, by_loss, HALF)
    matrix: LikelihoodMatrix = infer(run, system="tfidf").matrix
    with pytest.raises(UsageError, match="log_posterior"):
        likelihood_ratio(matrix, {}, background_of([run.scores]), run.scores.path)


def test_torn_rows_of_the_base_are_none(tmp_path):
    run = make_run(tmp_path / "run")
    write_background(run)
    [record] = run.scores.records(BACKGROUND)
    run.scores.shard_path(record.key).write_bytes(b"")
    with pytest.raises(StoreError, match="--background"):
        build_report(run, reject=HALF)
