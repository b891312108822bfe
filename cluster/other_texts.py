"""Which texts a run's models are applied to, with which settings, and where their scores go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from gencls_core.config import DataConfig, RunConfig
from gencls_core.config_parsing import parse_run_config
from gencls_core.datasets import Dataset, SplitName, ingest
from gencls_core.remote_path import uri_of
from gencls_core.run import RunDirectory
from gencls_core.run_folder import incoming_folder, owned
from gencls_core.storage import digest_of

__all__ = ["OtherTexts", "evaluated_settings", "other_texts"]


@dataclass(frozen=True)
class OtherTexts:
    """Texts to be scored, where their scores go, and with which settings."""

    source: RunDirectory
    run: RunDirectory
    dataset: Dataset
    config: RunConfig
    notes: tuple[str, ...]


def evaluated_settings(
    source: RunDirectory,
    manifest: dict[str, Any],
    data: DataConfig | None,
    changes: dict[str, Any],
) -> tuple[RunConfig, DataConfig | None]:
    """Give the run's settings with the changes, and the texts to score; None for its own."""
    settings = dict(manifest["config"])
    for section, values in changes.items():
        settings[section] = {**settings[section], **values}
    settings["output_dir"] = uri_of(source.path)
    config = parse_run_config(settings)
    if data is None and _scored_otherwise(source, config) and "test" in source.dataset().splits:
        # The run's own scores and report stay: these go to an evaluation of their own.
        data = DataConfig(data_dir=source.dataset_path)
    return config, data


def _scored_otherwise(source: RunDirectory, config: RunConfig) -> bool:
    """Say whether the settings would change the score rows that the run has."""
    before = RunConfig.model_validate(source.manifest()["config"])
    scored = source.scores.records(before.recipe.system)
    return bool(scored) and _scored_as(config) != _scored_as(before)


def other_texts(
    source: RunDirectory, config: RunConfig, data: DataConfig, *, labelled: bool
) -> OtherTexts:
    """Prepare other texts in a folder of their own; the run itself where they are its own."""
    data = data.model_copy(update={"classes": tuple(source.manifest()["classes"])})
    apart = _scored_otherwise(source, config)
    scored_as = _scored_as(config) if apart else None
    parts = [data.model_dump(mode="json"), labelled, scored_as]
    if config.recipe.recipe != "independent":
        # Scores of another recipe's models would not be noticed when those are trained again.
        parts.append(config.recipe.system)
    run = source.evaluation(digest_of(parts))
    own = source.dataset()
    asked, config = config, config.model_copy(update={"data": data})
    with incoming_folder(run) as incoming:
        dataset = ingest(
            data, incoming, splits=("test",), labelled=labelled, reuse=run.dataset_path
        )
        tested = own.splits.get("test")
        same = tested and tested.fingerprint == dataset.split("test").fingerprint
        if labelled and same and not apart:
            return OtherTexts(source, source, own, asked, ())
        if dataset.path != run.dataset_path:
            with owned(run, "preparing texts"):
                run.adopt_dataset(incoming)
        dataset = replace(dataset, path=run.dataset_path)
        notes = _leaks(own, dataset) if labelled else ()
        return OtherTexts(source, run, dataset, config, notes)


def _scored_as(config: RunConfig) -> list[Any]:
    """Give the settings that change score rows; with others, a run's own scores stay."""
    scoring = config.scoring
    return [scoring.likelihood, scoring.per_token, scoring.shard_size, config.compute.precision]


def _leaks(own: Dataset, dataset: Dataset) -> tuple[str, ...]:
    """Say how many of the texts were trained on: their figures would flatter."""

    def hashes(texts: Dataset, split: SplitName) -> Iterator[int]:
        for batch in texts.iter_batches(split, ["text"]):
            yield from (hash(" ".join(text.split())) for text in batch.column("text").to_pylist())

    if "train" not in own.splits:
        return ()
    tested = set(hashes(dataset, "test"))
    trained = {value for value in hashes(own, "train") if value in tested}
    leaked = sum(value in trained for value in hashes(dataset, "test"))
    if not leaked:
        return ()
    return (f"{leaked:,} of the texts also stand in the train texts of these class models",)
