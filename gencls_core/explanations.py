"""Explain one decision of a run: its evidence, from stored token scores or from the models.

Token scores that were kept (`--per-token`) are read; where they were not, or for another text, the
run's models are loaded here and score the text again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gencls_core.calibration import Calibration, Pool
from gencls_core.errors import UsageError
from gencls_core.evidence import Evidence, evidence_of
from gencls_core.phrases import Phrase, PhraseCounter, phrases_in
from gencls_core.posterior import posterior_of
from gencls_core.report.inference import Inference, infer
from gencls_core.run import RunDirectory, system_of
from gencls_core.score_matrix import FloatArray, LikelihoodMatrix
from gencls_core.scores import ShardRecord
from gencls_core.trained_run import LocalModels, base_of, models_of_run

__all__ = ["decisive_phrases", "explain_example", "explain_text"]

_FAR = 0.01
"""Nats by which scores made here may differ from stored ones: other hardware rounds otherwise."""


def explain_example(
    run: RunDirectory,
    example_id: str,
    *,
    class_name: str | None = None,
    against: str | None = None,
) -> Evidence:
    """Explain what a run said of a test text.

    Args:
        run: a run or an evaluation of causal language models.
        example_id: the text.
        class_name: whose evidence is wanted; default: the answer.
        against: the class that it is compared with; default: the true one where the answer is
            wrong, else the second likeliest.

    Raises:
        UsageError: when there is no such text or class, or the system's scores are no sum over
            tokens.
        StoreError: when scores are missing.
    """
    inference = infer(run)
    found = pc.index(inference.matrix.example_ids, example_id).as_py()
    if found < 0:
        raise UsageError.of(
            "no such test text",
            place=run.scores.path,
            found=repr(example_id),
            expected=f"an example_id such as {inference.matrix.example_ids[0].as_py()!r}",
            remedy='gencls query RUN "select example_id, text from errors" lists mistakes',
        )
    matrix = inference.matrix.take(np.array([found]))
    text = _text_of(run, example_id)
    label = matrix.labels[0].as_py()
    pair = _pair(matrix.classes, inference.answer[found], class_name, against, label)
    tokens = _stored_tokens(inference, run, found, pair)
    if tokens is None:
        tokens = _scored_here(_origin(run), text, pair)
        matrix = _with_sums(matrix, pair, tokens)
    return _evidence(run, inference, matrix, text, pair, tokens)


def explain_text(
    run: RunDirectory,
    text: str,
    *,
    class_name: str | None = None,
    against: str | None = None,
) -> Evidence:
    """Explain what a run's models say of any text; a second system of an ensemble is not asked.

    Args:
        run: a run of causal language models.
        text: the text.
        class_name: whose evidence is wanted; default: the likeliest class.
        against: the class that it is compared with; default: the second likeliest.

    Raises:
        UsageError: when there is no such class, or the system's scores are no sum over tokens.
    """
    inference = infer(run, ensemble="none")
    classes = inference.matrix.classes
    tables = LocalModels.open(run).score([text], per_token=True)
    first = next(iter(tables.values()))
    matrix = LikelihoodMatrix(
        example_ids=pa.chunked_array([["0"]], pa.string()),
        label_codes=np.array([-1]),
        classes=classes,
        scores=np.array([[tables[name]["score"][0].as_py() for name in classes]]),
        num_tokens=first["num_tokens"].to_numpy(),
        truncated=first["truncated"].to_numpy(zero_copy_only=False),
        num_windows=first["num_windows"].to_numpy(),
        loss_scores=None,
        quantity=inference.matrix.quantity,
    )
    log_posterior_C = posterior_of(matrix, inference.prior, inference.calibration)[0]
    pair = _pair(classes, log_posterior_C, class_name, against, None)
    tokens = _tokens_of({name: tables[name] for name in pair}, 0, pair)
    return _evidence(run, inference, matrix, text, pair, tokens)


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
        UsageError: when there are no token scores.
        StoreError: when scores are missing.
    """
    inference = infer(run)
    classes = inference.matrix.classes
    calibration = _calibration_of(inference)
    scale = 1.0 if calibration is None else _alone(calibration).scale
    reader = _Reader(run)
    counter = PhraseCounter(classes)
    ranges: dict[tuple[int, int], dict[str, ShardRecord]] = {}
    for record in inference.records:
        ranges.setdefault((record.start, record.rows), {})[record.class_name] = record
    for (start, rows), of_class in sorted(ranges.items()):
        texts = run.dataset().read("test", start, start + rows)["text"].to_pylist()
        columns = ["token_ids", "token_scores"]
        tables = [run.scores.read([of_class[name]], columns) for name in classes]
        ids = tables[0]["token_ids"].to_pylist()
        scores = [table["token_scores"].to_pylist() for table in tables]
        for row, text in enumerate(texts):
            if ids[row] is None:
                _refuse_without_tokens(system_of(run.manifest()))
                raise UsageError.of(
                    "this run has kept no token scores",
                    place=run.scores.path,
                    remedy="run the same command again with --per-token",
                )
            nats_TK = np.array([of_class[row] for of_class in scores], dtype=np.float64).T
            nats_TK -= nats_TK.mean(axis=1, keepdims=True)
            # Less the mean of the others: the own part of the mean goes, too.
            nats_TK *= scale * len(classes) / max(1, len(classes) - 1)
            offsets_T = reader.offsets(text, ids[row])
            counter.add(phrases_in(text, offsets_T, nats_TK[: len(offsets_T)], longest))
    return counter.decisive(most, fewest_texts)


Tokens = tuple[list[int], "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]
"""Ids of the scored tokens, and their scores under either class."""


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
                "no such class", found=repr(name), expected=f"one of {', '.join(classes)}"
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


def _evidence(
    run: RunDirectory,
    inference: Inference,
    matrix: LikelihoodMatrix,
    text: str,
    pair: tuple[str, str],
    tokens: Tokens,
) -> Evidence:
    ids, scores_T, others_T = tokens
    offsets_T = _Reader(run).offsets(text, ids)
    calibration = _calibration_of(inference)
    posterior_C = posterior_of(matrix, inference.prior, calibration)[0]
    first, second = (matrix.classes.index(name) for name in pair)
    used = Calibration(1.0, dict.fromkeys(matrix.classes, 0.0))
    if calibration is not None:
        used = _alone(calibration)
    a, b = pair
    return evidence_of(
        text,
        offsets_T,
        scores_T,
        others_T,
        class_name=a,
        against=b,
        log_odds=float(posterior_C[first] - posterior_C[second]),
        scale=used.scale,
        calibration=used.biases[a] - used.biases[b],
        prior=float(np.log(inference.prior[a]) - np.log(inference.prior[b])),
        ensemble=isinstance(calibration, Pool),
        truncated=bool(matrix.truncated[0]),
    )


def _calibration_of(inference: Inference) -> Calibration | Pool | None:
    """Give the calibration of the run's answer."""
    return inference.calibration if inference.stands_by_calibrated else None


def _alone(calibration: Calibration | Pool) -> Calibration:
    return calibration.alone if isinstance(calibration, Pool) else calibration


def _text_of(run: RunDirectory, example_id: str) -> str:
    for batch in run.dataset().iter_batches("test", ["example_id", "text"]):
        row = pc.index(batch.column("example_id"), example_id).as_py()
        if row >= 0:
            return str(batch.column("text")[row].as_py())
    raise AssertionError("a scored text is in the dataset")


def _stored_tokens(
    inference: Inference, run: RunDirectory, row: int, pair: tuple[str, str]
) -> Tokens | None:
    """Read a text's token scores; None where they were not kept."""
    tables: dict[str, pa.Table] = {}
    system = system_of(run.manifest())
    for record in inference.records:
        if record.class_name in pair and record.start <= row < record.start + record.rows:
            table = run.scores.read([record], ["token_ids", "token_scores"])
            tables[record.class_name] = table.slice(row - record.start, 1)
    if set(tables) != set(pair) or any(
        table["token_scores"][0].as_py() is None for table in tables.values()
    ):
        _refuse_without_tokens(system)
        return None
    return _tokens_of(tables, 0, pair)


def _refuse_without_tokens(system: str) -> None:
    if system not in ("class-lm", "conditional-lm", "joint-lm"):
        raise UsageError.of(
            "the scores of this system are no sum over tokens, so there is no evidence to show",
            found=system,
            expected="a run of --recipe independent, conditional or joint",
        )


def _scored_here(run: RunDirectory, text: str, pair: tuple[str, str]) -> Tokens:
    tables = LocalModels.open(run, pair).score([text], pair, per_token=True)
    return _tokens_of(tables, 0, pair)


def _tokens_of(tables: dict[str, pa.Table], row: int, pair: tuple[str, str]) -> Tokens:
    ids = tables[pair[0]]["token_ids"][row].as_py()
    first, second = (
        np.asarray(tables[name]["token_scores"][row].as_py(), dtype=np.float32) for name in pair
    )
    return ids, first, second


def _with_sums(matrix: LikelihoodMatrix, pair: tuple[str, str], tokens: Tokens) -> LikelihoodMatrix:
    """Put the sums of what was scored here in the place of the stored scores.

    Raises:
        UsageError: when they are far from those: these models did not score the text.
    """
    scores_NC = matrix.scores.copy()
    for name, scores_T in zip(pair, tokens[1:], strict=True):
        place = matrix.classes.index(name)
        total = float(scores_T.sum(dtype=np.float64))
        if abs(total - scores_NC[0, place]) > max(_FAR, 1e-3 * abs(total)):
            raise UsageError.of(
                "the run's models do not say of this text what its scores say",
                found=f"{total:.3f} nats under {name!r}",
                expected=f"{scores_NC[0, place]:.3f}",
                remedy="score the texts again (run the same command), or explain it as --text",
            )
        scores_NC[0, place] = total
    return replace(matrix, scores=scores_NC)


def _origin(run: RunDirectory) -> RunDirectory:
    """Give the run whose models scored the texts."""
    from gencls_core.report.inference import origin_of

    return origin_of(run, run.manifest())


class _Reader:
    """Tells the characters of tokens, by the tokenizer that all models of a run share."""

    def __init__(self, run: RunDirectory) -> None:
        from tokenizers import Tokenizer

        origin = _origin(run)
        models = models_of_run(origin, origin.manifest())
        self._folder = models[0].local()
        if not (self._folder / "tokenizer.json").exists():
            self._folder = base_of(origin, models).local()
        # A second sooner than transformers, and without torch.
        self._plain = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
        self._plain.no_truncation()
        self._plain.no_padding()
        # `<|endoftext|>` written in a text is text, not the end of it.
        self._plain.encode_special_tokens = True
        self._exact: Any = None

    def offsets(self, text: str, ids: list[int]) -> list[tuple[int, int]]:
        """Give the characters of each scored token but the end of the text."""
        if self._exact is None:
            read = self._plain.encode(text, add_special_tokens=False)
            if (count := _same(read.ids, ids)) >= len(ids) - 1:
                return list(read.offsets[:count])
        # What transformers does beside the file.
        from gencls_core.model_loading import load_tokenizer
        from gencls_core.model_source import ResolvedModel

        if self._exact is None:
            self._exact = load_tokenizer(ResolvedModel.of_folder("tokenizer", self._folder))
        found = self._exact(
            text, add_special_tokens=False, split_special_tokens=True,
            return_offsets_mapping=True, return_attention_mask=False, verbose=False,
        )  # fmt: skip
        count = _same(found["input_ids"], ids)
        return [(int(start), int(stop)) for start, stop in found["offset_mapping"][:count]]


def _same(read: list[int], scored: list[int]) -> int:
    """Count the tokens at the beginning that are the same: all, but for the end of the text."""
    pairs = zip(read, scored, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(read), len(scored)))
