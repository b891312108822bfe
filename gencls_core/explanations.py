"""Explain decisions of a run: evidence of a text, and phrases that decide over all texts.

Token scores that were kept (`--per-token`) are read; where they were not, or for another text, the
run's models are loaded here and score the text again. What the run said of a test text stands:
what its models say otherwise here is an item of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gencls_core.calibration import Calibration, Pool
from gencls_core.errors import StoreError, UsageError
from gencls_core.evidence import Bounds, Evidence, evidence_of
from gencls_core.phrases import Phrase, PhraseCounter
from gencls_core.posterior import posterior_of
from gencls_core.report.inference import Inference, Rule, origin_of, rule_of
from gencls_core.run import RunDirectory
from gencls_core.score_matrix import FloatArray, LikelihoodMatrix, iter_likelihoods
from gencls_core.token_offsets import TokenReader
from gencls_core.token_scores import Tokens, kept_tokens, ranges_of, stored_tokens, tokens_of
from gencls_core.trained_run import LocalModels

__all__ = ["decisive_phrases", "explain_example", "explain_kept", "explain_text", "laid_out"]

_FAR = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1e-2}
"""Part of a score by which one that is made here may differ from the stored one: other hardware
rounds otherwise."""


def explain_example(
    run: RunDirectory,
    example_id: str,
    *,
    class_name: str | None = None,
    against: str | None = None,
    prior: str | None = None,
    ensemble: str | None = None,
    models: LocalModels | None = None,
) -> Evidence:
    """Explain what a run said of a test text.

    Args:
        run: a run or an evaluation.
        example_id: the text.
        class_name: whose evidence is wanted; default: the answer.
        against: the class that it is compared with; default: the true one where the answer is
            wrong, else the second likeliest.
        prior: as for a report; default: the run's own.
        ensemble: likewise.
        models: the run's, where they are loaded already.

    Raises:
        UsageError: when there is no such text or class, or no sum decided.
        StoreError: when scores are missing.
    """
    rule = _rule_of_sums(run, prior=prior, ensemble=ensemble)
    row, text = _find(run, example_id)
    matrix = _scores_of(run, rule, row)
    log_posterior_C = posterior_of(matrix, rule.prior, rule.answer)[0]
    label = matrix.labels[0].as_py()
    pair = _pair(rule.classes, log_posterior_C, class_name, against, label)
    tokens, rounding = stored_tokens(run, rule.records, row, pair), 0.0
    if tokens is None:
        tokens = _scored_here(run, text, pair, models)
        rounding = _rounding(matrix, pair, tokens, run.manifest()["precision"])
    offsets_T = TokenReader(run).offsets(text, tokens[0])
    return laid_out(
        text, offsets_T, tokens, pair, _by_class(rule.classes, log_posterior_C), rule.prior,
        rule.answer, rounding=rounding, truncated=bool(matrix.truncated[0]),
    )  # fmt: skip


def explain_text(
    run: RunDirectory,
    text: str,
    *,
    class_name: str | None = None,
    against: str | None = None,
    prior: str | None = None,
    models: LocalModels | None = None,
) -> Evidence:
    """Explain what a run's models say of any text.

    A second system of an ensemble is not asked: the likelihoods are calibrated as they are in it.

    Args:
        run: a run or an evaluation.
        text: the text.
        class_name: whose evidence is wanted; default: the likeliest class.
        against: the class that it is compared with; default: the second likeliest.
        prior: as for a report; default: the run's own.
        models: the run's, where they are loaded already.

    Raises:
        UsageError: when there is no such class, or no sum decides.
        StoreError: when a model is missing.
    """
    rule = _rule_of_sums(run, prior=prior)
    answer = rule.answer.alone if isinstance(rule.answer, Pool) else rule.answer
    tables = _tables_of(run, text, rule.classes, models)
    matrix = LikelihoodMatrix.of_tables({name: tables[name] for name in rule.classes})
    log_posterior_C = posterior_of(matrix, rule.prior, answer)[0]
    pair = _pair(rule.classes, log_posterior_C, class_name, against, None)
    tokens = tokens_of(tables, 0, pair)
    assert tokens is not None, "scored with its tokens"
    offsets_T = TokenReader(run).offsets(text, tokens[0])
    return laid_out(
        text, offsets_T, tokens, pair, _by_class(rule.classes, log_posterior_C), rule.prior,
        answer, truncated=bool(matrix.truncated[0]),
    )  # fmt: skip


def explain_kept(
    run: RunDirectory, inference: Inference, texts: Mapping[int, str]
) -> Iterator[tuple[int, Evidence]]:
    """Explain what was answered of test texts whose token scores were kept; others are left out.

    As `explain_example`, without loading a model: the answer against the true class where it is
    wrong, else against the second likeliest.

    Args:
        run: a run or an evaluation.
        inference: its posteriors.
        texts: row → text.

    Raises:
        StoreError: when the tokenizer is gone, or is another one.
    """
    matrix, rule = inference.matrix, inference.decided_by
    if inference.by_loss:
        return
    pairs = {
        row: _pair(matrix.classes, inference.answer[row], None, None, matrix.label(row))
        for row in texts
    }
    reader = None
    for row, tokens in kept_tokens(run.scores, inference.records, pairs):
        reader = reader or TokenReader(run)
        said = _by_class(matrix.classes, inference.answer[row])
        offsets_T = reader.offsets(texts[row], tokens[0])
        yield row, laid_out(
            texts[row], offsets_T, tokens, pairs[row], said, inference.prior, rule,
            truncated=bool(matrix.truncated[row]),
        )  # fmt: skip


def decisive_phrases(
    run: RunDirectory, *, most: int = 20, longest: int = 3, fewest_texts: int = 5
) -> dict[str, list[Phrase]]:
    """Give the phrases that speak for each class over all test texts, the surest first.

    Args:
        run: a run or an evaluation that has kept token scores (`--per-token`).
        most: phrases of a class.
        longest: words of a phrase.
        fewest_texts: texts that must hold it.

    Raises:
        UsageError: when there are no token scores, or no sum decided.
        StoreError: when scores are missing, or classes were scored in unequal shards.
    """
    rule, dataset = _rule_of_sums(run), run.dataset()
    scale = 1.0 if rule.answer is None else _alone(rule.answer).scale
    # Less the mean of the others: the mean of all, but for the own part of it.
    scale *= len(rule.classes) / max(1, len(rule.classes) - 1)
    reader, counter = TokenReader(run), PhraseCounter(
        rule.classes, longest=longest, fewest_texts=fewest_texts
    )  # fmt: skip
    for batch in dataset.iter_batches("test", ["text"]):
        for text in batch.column("text").to_pylist():
            counter.see(text)
    for (start, rows), shards in ranges_of(rule.records, rule.classes).items():
        texts = dataset.read("test", start, start + rows)["text"].to_pylist()
        tables = [
            run.scores.read([shards[name]], ["token_ids", "token_scores"]) for name in rule.classes
        ]
        ids = tables[0]["token_ids"].to_pylist()
        scores = [table["token_scores"].to_pylist() for table in tables]
        for row, text in enumerate(texts):
            if ids[row] is None:
                raise UsageError.of(
                    "this run has kept no token scores",
                    place=run.scores.path,
                    remedy="run the same command again with --per-token",
                )
            nats_TK = np.array([of_class[row] for of_class in scores], dtype=np.float64).T
            nats_TK = scale * (nats_TK - nats_TK.mean(axis=1, keepdims=True))
            offsets_T = reader.offsets(text, ids[row])
            counter.add(text, offsets_T, nats_TK[: len(offsets_T)])
    return counter.decisive(most)


def laid_out(
    text: str,
    offsets_T: Sequence[Bounds],
    tokens: Tokens,
    pair: tuple[str, str],
    log_posterior: Mapping[str, float],
    prior: Mapping[str, float],
    answer: Calibration | Pool | None,
    *,
    rounding: float = 0.0,
    truncated: bool = False,
) -> Evidence:
    """Lay out what decided between two classes, by the rule that a run's answer is made with.

    Args:
        text: the text.
        offsets_T: characters of its tokens, the end left out.
        tokens: what they scored.
        pair: the two classes.
        log_posterior: what the answer says of either, in nats.
        prior: of either.
        answer: the calibration, or None.
        rounding: log-likelihood ratio by the scores that decided, less that by `tokens`.
        truncated: whether the text was cut before it was scored.
    """
    a, b = pair
    used = Calibration(1.0, {a: 0.0, b: 0.0}) if answer is None else _alone(answer)
    return evidence_of(
        text,
        offsets_T,
        *tokens[1:],
        class_name=a,
        against=b,
        log_odds=log_posterior[a] - log_posterior[b],
        scale=used.scale,
        calibration=used.biases[a] - used.biases[b],
        prior=float(np.log(prior[a]) - np.log(prior[b])),
        ensemble=isinstance(answer, Pool),
        rounding=rounding,
        truncated=truncated,
    )


def _by_class(classes: Sequence[str], log_posterior_C: FloatArray) -> dict[str, float]:
    return dict(zip(classes, log_posterior_C.tolist(), strict=True))


def _alone(answer: Calibration | Pool) -> Calibration:
    return answer.alone if isinstance(answer, Pool) else answer


def _rule_of_sums(
    run: RunDirectory, *, prior: str | None = None, ensemble: str | None = None
) -> Rule:
    """Give the rule of a run whose answers are sums over tokens.

    Raises:
        UsageError: when they are not.
    """
    rule = rule_of(run, prior=prior, ensemble=ensemble)
    if rule.by_loss:
        raise UsageError.of(
            "labels of this run are decided by mean losses, which are no sum over tokens",
            place=run.path,
            found="--likelihood loss",
            expected="exact log-likelihoods",
            remedy="score the texts with `gencls evaluate --likelihood exact`, and explain that",
        )
    return rule


def _pair(
    classes: tuple[str, ...],
    log_posterior_C: FloatArray,
    class_name: str | None,
    against: str | None,
    label: str | None,
) -> tuple[str, str]:
    """Give the two classes that are compared."""
    for name in (class_name, against):
        if name is not None and name not in classes:
            raise UsageError.of(
                "no such class",
                found=repr(name),
                expected=f"one of {', '.join(classes)}",
                remedy="--class and --against take names of the run's classes",
            )
    order = [classes[code] for code in np.argsort(-log_posterior_C, kind="stable")]
    first = class_name or next(name for name in order if name != against)
    others = [label] if label is not None and label != first else []
    second = against or next(name for name in [*others, *order] if name != first)
    if first == second:
        raise UsageError.of(
            "a class cannot be told from itself", found=repr(first), remedy="name two classes"
        )
    return first, second


def _find(run: RunDirectory, example_id: str) -> tuple[int, str]:
    """Give a test text's row and the text."""
    start, some = 0, ""
    for batch in run.dataset().iter_batches("test", ["example_id", "text"]):
        row = pc.index(batch.column("example_id"), example_id).as_py()
        if row >= 0:
            return start + row, str(batch.column("text")[row].as_py())
        some = some or batch.column("example_id")[0].as_py()
        start += batch.num_rows
    raise UsageError.of(
        "no such test text",
        place=run.dataset_path,
        found=repr(example_id),
        expected=f"an example_id such as {some!r}",
        remedy='gencls query RUN "select example_id from predictions where answer <> label" '
        "lists mistakes",
    )


def _scores_of(run: RunDirectory, rule: Rule, row: int) -> LikelihoodMatrix:
    """Read the scores of one test text under all classes, and what a second system says."""
    start = 0
    for part in iter_likelihoods(run.scores, rule.system, rule.classes, rule.records):
        if row < start + len(part):
            return rule.completed(part, start).take(np.array([row - start]))
        start += len(part)
    raise StoreError(f"{run.scores.path}: the text has not been scored")


def _scored_here(
    run: RunDirectory, text: str, pair: tuple[str, str], models: LocalModels | None
) -> Tokens:
    tokens = tokens_of(_tables_of(run, text, pair, models), 0, pair)
    assert tokens is not None, "scored with its tokens"
    return tokens


def _tables_of(
    run: RunDirectory, text: str, classes: Sequence[str], models: LocalModels | None
) -> dict[str, pa.Table]:
    """Score a text under some classes; of models of their own, where none are loaded yet, one is
    in memory at a time."""
    if models is not None:
        return models.score([text], classes, per_token=True)
    origin = origin_of(run, run.manifest())
    whole = LocalModels.open(origin, classes[:1], scored=run)
    if not whole.job.system.model_per_class:
        whole = LocalModels.open(origin, classes, scored=run)
        return whole.score([text], classes, per_token=True)
    found = whole.score([text], classes[:1], per_token=True)
    for name in classes[1:]:
        del whole
        whole = LocalModels.open(origin, [name], scored=run)
        found |= whole.score([text], [name], per_token=True)
    return found


def _rounding(
    matrix: LikelihoodMatrix, pair: tuple[str, str], tokens: Tokens, precision: str
) -> float:
    """Give the log-likelihood ratio of two classes by the stored scores, less that by the tokens.

    Raises:
        UsageError: when the scores are far from the sums: these models did not score the text.
    """
    differences = []
    for name, scores_T in zip(pair, tokens[1:], strict=True):
        total = float(scores_T.sum(dtype=np.float64))
        stored = float(matrix.scores[0, matrix.classes.index(name)])
        if abs(total - stored) > 1e-3 + _FAR[precision] * abs(stored):
            raise UsageError.of(
                "the run's models do not say of this text what its scores say",
                found=f"{total:.4f} nats under {name!r} ({precision})",
                expected=f"{stored:.4f}",
                remedy="`gencls verify RUN`, and the run's own command again; --text explains what "
                "the models say now",
            )
        differences.append(stored - total)
    return differences[0] - differences[1]
