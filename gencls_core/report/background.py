"""What the untrained base model says of a run's texts, and how much likelier the classes make them.

    r(x) = (log Σ_c P(c) P(x | c) − log P_base(x)) / tokens of x                   nats per token

A likelihood alone says little of whether a text is of the run's kind: short, frequent words are
likely anywhere, and language models find strange texts likelier than their own (Nalisnick et al.
2019, "Do deep generative models know what they don't know?"). The ratio to a model of texts in
general leaves that out (Ren et al. 2019, "Likelihood ratios for out-of-distribution detection").
Per token, since both are sums over the text: a sum would call long texts strange, or short ones.

Shapes: N texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import logsumexp

from gencls_core.errors import StoreError, UsageError
from gencls_core.remote_path import Location
from gencls_core.run import RunDirectory
from gencls_core.score_matrix import FloatArray, LikelihoodMatrix
from gencls_core.scores import ScoreStore
from gencls_core.scoring_job import BACKGROUND
from gencls_core.selection import part_name
from gencls_core.selection_report import SelectionReport

__all__ = ["background_of", "likelihood_ratio", "stores_of_held_out"]

_COLUMNS = ["example_id", "score", "num_tokens"]


def background_of(stores: Sequence[ScoreStore]) -> pa.Table:
    """Read what the base model says of texts: `example_id`, `score` in nats, `num_tokens`.

    Where two stores have scored a text, the first is heard first.
    """
    tables = [store.read(store.records(BACKGROUND), _COLUMNS) for store in stores]
    return pa.concat_tables(table.select(_COLUMNS) for table in tables)


def stores_of_held_out(run: RunDirectory, origin: RunDirectory) -> list[ScoreStore]:
    """Give where held-out texts of a run are scored: its own, and the parts of its choice."""
    stores = [directory.validation_scores for directory in dict.fromkeys((run, origin))]
    made = origin.manifest().get("selection")
    parts = 0 if made is None else SelectionReport.model_validate(made).parts
    for number in range(parts or 0):
        part = RunDirectory(origin.candidate_path(part_name(number)))
        stores.append(part.validation_scores)
    return stores


def likelihood_ratio(
    matrix: LikelihoodMatrix,
    prior: Mapping[str, float],
    background: pa.Table,
    place: Location,
) -> FloatArray:
    """Give how much likelier each text is under the classes than under the base, [N] nats a token.

    Args:
        matrix: its log-likelihoods.
        prior: class → probability.
        background: what `background_of` gave.
        place: where it should be, for errors.

    Raises:
        UsageError: for scores that are no log-likelihoods.
        StoreError: when the base has not scored a text, or other tokens of it.
    """
    if matrix.quantity != "log_likelihood":
        raise UsageError.of(
            "these scores cannot be compared with the base model's",
            place=place,
            found=matrix.quantity,
            expected="log_likelihood, that of a causal language model",
            remedy="--reject posterior",
        )
    found = pc.index_in(matrix.example_ids, value_set=background["example_id"])
    if found.null_count:
        raise StoreError.of(
            "the base model has not scored these texts",
            place=place,
            found=f"{found.null_count:,} of {len(matrix):,} texts without a score of {BACKGROUND}",
            remedy="give the command that scored them (run, evaluate or classify) again with "
            "--background",
        )
    rows_N = found.to_numpy()
    if (background["num_tokens"].to_numpy()[rows_N] != matrix.num_tokens).any():
        raise StoreError.of(
            "the base model scored other tokens than the class models",
            place=place,
            remedy="score both with the same settings again",
        )
    log_prior_C = np.log([prior[name] for name in matrix.classes])
    ratio_N = logsumexp(matrix.scores + log_prior_C, axis=1)
    ratio_N -= background["score"].to_numpy()[rows_N]
    per_token_N: FloatArray = ratio_N / np.maximum(matrix.num_tokens, 1)
    return per_token_N
