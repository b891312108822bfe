"""Build the report of a run from its committed files, and publish it.

Reads run.json, the dataset, the score shards and the class models' commit records, and nothing
else: a report can be rebuilt anywhere the run directory can be read, without torch or a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np

from gencls_core.calibration import Pool
from gencls_core.cost_file import CostPair
from gencls_core.cost_matrix import costs_of_run
from gencls_core.datasets.dataset import Dataset
from gencls_core.errors import DataError
from gencls_core.metrics import Metrics, evaluate, perplexities
from gencls_core.posterior import (
    log_posterior,
    posterior_of,
)
from gencls_core.report.baselines import baselines_of
from gencls_core.report.costs import tasks_of, timing_of, training_of
from gencls_core.report.decisions import decision_report
from gencls_core.report.details import details_of
from gencls_core.report.fitting import CalibrationFit
from gencls_core.report.html import render_html
from gencls_core.report.inference import Inference, infer, origin_of
from gencls_core.report.markdown import render_markdown
from gencls_core.report.predictions import write_predictions
from gencls_core.report.rejections import Rejecter, Wanted, selective_report
from gencls_core.report.schema import (
    MEMBERS,
    Both,
    CalibrationReport,
    ClassReport,
    DatasetReport,
    EnsembleReport,
    LikelihoodCheck,
    PerplexityReport,
    PoolMemberReport,
    PriorReport,
    ReliabilityBinReport,
    Report,
)
from gencls_core.report.texts import shown_texts
from gencls_core.run import RunDirectory, system_of
from gencls_core.scores import ShardRecord
from gencls_core.storage import digest_of, publish_file, write_json

__all__ = ["build_report"]


T = TypeVar("T")


def build_report(
    run: RunDirectory,
    *,
    prior: str | None = None,
    ensemble: str | None = None,
    system: str | None = None,
    models_of: RunDirectory | None = None,
    costs: Sequence[CostPair] | None = None,
    reject: Wanted | None = None,
) -> Report:
    """Evaluate the test scores of a run and write predictions.parquet and report.{json,md,html}.

    Arguments are those of `gencls_core.report.inference.infer`, and `costs`, what mistakes cost
    (default: as the run's settings say): what is decided by them is shown beside. What is to be
    refused (`reject`) is left without an answer in the predictions. Built twice from the same
    files, everything but the time of writing is the same byte for byte.

    Raises:
        DataError: when no test text has a label; predictions can still be had with `infer` and
            `write_predictions`.
        StoreError: when scores are missing or contradict each other.
        UsageError: when the prior or what is to be refused cannot be obeyed, or the costs do
            not fit the classes.
    """
    manifest = run.manifest()
    system = system or system_of(manifest)
    of_decisions = costs_of_run(manifest, costs)
    inference = infer(run, prior=prior, ensemble=ensemble, system=system, models_of=models_of)
    dataset = run.dataset()
    if (inference.matrix.label_codes < 0).all():
        raise DataError.of(
            "no test text has a label, so there is nothing to report",
            place=run.dataset_path,
            found=f"{len(inference.matrix):,} unlabelled texts",
            remedy="predict their classes instead: predictions need no labels",
        )
    origin = models_of or origin_of(run, manifest)
    rejecter = None if reject is None else Rejecter.of(run, inference, reject, models_of)
    report = _report(run, origin, manifest, inference, dataset, system).model_copy(
        update={
            "decisions": of_decisions and decision_report(of_decisions, inference),
            "selective": selective_report(inference, rejecter),
            "rejection": rejecter and rejecter.report(inference),
        }
    )
    # All is made before anything is published: no page stays beside figures of another report.
    markdown = render_markdown(report)
    texts = shown_texts(run, inference, dataset, rejecter and rejecter.reasons(inference))
    html = render_html(report, details_of(inference), texts)
    write_predictions(inference, run.predictions_path, of_decisions, rejecter)
    write_json(run.report_path / "report.json", report.model_dump(mode="json"))
    _publish(run, "report.md", markdown)
    _publish(run, "report.html", html)
    return report


def _publish(run: RunDirectory, name: str, text: str) -> None:
    with publish_file(run.report_path / name) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _report(
    run: RunDirectory,
    origin: RunDirectory,
    manifest: dict[str, Any],
    inference: Inference,
    dataset: Dataset,
    system: str,
) -> Report:
    matrix = inference.matrix
    plain = evaluate(inference.log_posterior, matrix.label_codes, matrix.classes)
    calibrated = None
    if inference.calibrated is not None:
        calibrated = evaluate(inference.calibrated, matrix.label_codes, matrix.classes)

    def both(value: Callable[[Metrics], T]) -> Both[T]:
        return Both(
            uncalibrated=value(plain),
            calibrated=None if calibrated is None else value(calibrated),
        )

    records = inference.records
    models = origin if system == system_of(manifest) else None
    tasks = tasks_of(matrix.classes, records, models, system)
    shared = None if models is None else training_of(models, system)
    baselines, baseline_notes = baselines_of(run, origin, manifest, inference, system)
    selection = None if models is None else origin.manifest().get("selection")
    notes = [*manifest.get("notes", []), *inference.notes, *baseline_notes]
    notes.extend(_notes_on_classes(plain, inference))
    untrained = [name for name, task in tasks.items() if task.training is None]
    if models is not None and untrained and shared is None:
        notes.append(f"No committed class model was found for: {', '.join(untrained)}.")
    return Report(
        generated=datetime.now(UTC).isoformat(timespec="seconds"),
        system=system,
        quantity=matrix.quantity,
        answer="calibrated" if inference.stands_by_calibrated else "uncalibrated",
        classes=list(matrix.classes),
        num_examples=len(matrix),
        num_unlabelled=plain.num_unlabelled,
        accuracy=both(lambda m: m.accuracy),
        accuracy_ci95=both(lambda m: m.accuracy_ci95),
        macro_f1=both(lambda m: m.macro_f1),
        weighted_f1=both(lambda m: m.weighted_f1),
        nll=both(lambda m: m.nll),
        brier=both(lambda m: m.brier),
        ece=both(lambda m: m.ece),
        ece_by_chance=both(lambda m: m.ece_by_chance),
        per_class=both(
            lambda m: {name: ClassReport(**asdict(of)) for name, of in m.per_class.items()}
        ),
        confusion=both(lambda m: [list(row) for row in m.confusion]),
        reliability=both(lambda m: [ReliabilityBinReport(**asdict(b)) for b in m.reliability]),
        prior=PriorReport(
            name=inference.prior_name,
            per_class=inference.prior,
            standard_error=inference.estimate and inference.estimate.standard_error,
        ),
        calibration=_calibration(inference),
        perplexity={
            name: None if found is None else PerplexityReport(**asdict(found))
            for name, found in perplexities(matrix).items()
        },
        truncated=int(matrix.truncated.sum()),
        windowed=int((matrix.num_windows > 1).sum()),
        baselines=baselines,
        likelihood_check=_likelihood_check(inference),
        timing=timing_of(tasks, shared, manifest.get("seconds")),
        tasks=tasks,
        training=shared,
        selection=selection,
        dataset=DatasetReport(
            name=dataset.name,
            fingerprint=dataset.fingerprint,
            source=dataset.source,
            counts={name: dict(split.class_counts) for name, split in dataset.splits.items()},
            warnings=list(dataset.warnings),
        ),
        model=manifest["model"],
        config=_config(manifest, system),
        environment=manifest["environment"],
        score_digest=_score_digest(records),
        notes=notes,
    )


def _config(manifest: dict[str, Any], system: str) -> dict[str, Any]:
    """Give the settings of a run, with what they left open as it was for the system."""
    config: dict[str, Any] = manifest["config"]
    trained = manifest.get("training", {}).get(system)
    return config if trained is None else {**config, "training": trained}


def _score_digest(records: Sequence[ShardRecord]) -> str:
    return digest_of([[r.class_name, r.index, r.count, r.rows, r.sha256] for r in records])


def _calibration(inference: Inference) -> CalibrationReport | None:
    fit = inference.fit
    if fit is None:
        return None
    before, after = (
        evaluate(
            posterior_of(fit.texts, fit.text_prior, calibration),
            fit.texts.label_codes,
            fit.texts.classes,
        )
        for calibration in (None, fit.calibration)
    )
    return CalibrationReport(
        scale=fit.alone.scale,
        biases=fit.alone.biases,
        num_texts=before.num_labelled,
        nll_before=before.nll,
        nll_after=after.nll,
        ensemble=_ensemble(fit),
    )


def _ensemble(fit: CalibrationFit) -> EnsembleReport | None:
    if fit.ensemble is None:
        return None
    found = fit.ensemble
    members = []
    if isinstance(fit.calibration, Pool):
        pool = fit.calibration
        for of, member, share in zip(MEMBERS, pool.members, pool.shares, strict=True):
            members.append(
                PoolMemberReport(
                    of=of,
                    share=share,
                    scale=member.scale,
                    weight=member.weight,
                    biases=member.biases,
                )
            )
    return EnsembleReport(
        system=found.system,
        taken=found.taken,
        reason=found.reason,
        members=members,
        num_texts=len(found.fitted.alone),
        nll_alone=found.fitted.nll_alone,
        nll_together=found.fitted.nll_together,
        standard_error=found.fitted.standard_error,
    )


def _likelihood_check(inference: Inference) -> LikelihoodCheck | None:
    matrix = inference.matrix
    if matrix.loss_scores is None:
        return None
    ordered = {name: inference.prior[name] for name in matrix.classes}
    by_loss_N, exact_N = (
        log_posterior(scores, ordered, quantity=matrix.quantity).argmax(axis=1)
        for scores in (matrix.loss_scores, matrix.scores)
    )
    difference_NC = np.abs(matrix.scores - matrix.loss_scores)
    return LikelihoodCheck(
        rows=int(difference_NC.size),
        max_abs_difference=float(difference_NC.max()),
        mean_abs_difference=float(difference_NC.mean()),
        argmax_disagreements=int((by_loss_N != exact_N).sum()),
    )


def _notes_on_classes(metrics: Metrics, inference: Inference) -> list[str]:
    notes = []
    empty = [name for name, of in metrics.per_class.items() if not of.support]
    if empty:
        notes.append(
            f"The test split has no text of: {', '.join(empty)}. Their precision, recall and F1 "
            "are 0 and count in macro F1."
        )
    if metrics.num_unlabelled:
        notes.append(
            f"{metrics.num_unlabelled:,} test texts have no label and are left out of every figure."
        )
    fit = inference.fit
    if fit is not None:
        held_out = set(np.unique(fit.texts.label_codes).tolist())
        absent = [name for c, name in enumerate(fit.texts.classes) if c not in held_out]
        if absent:
            notes.append(
                f"No held-out text is of: {', '.join(absent)}. The calibration has nothing to go "
                "by for them."
            )
    return notes
