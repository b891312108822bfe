"""What a run is asked to do: the models of the run file (TOML) and of every command-line option.

One section per room of the house. A field is declared once, here: its name is the TOML key and
(with dashes) the flag, its description is the help text, its bounds are checked at construction.
Field names are unique over all sections, so that a flag names its field without a prefix.

    RunConfig
    ├── data         DataConfig        where the labelled texts are, and how they are split
    ├── model        ModelConfig       the base model of every class
    ├── sequence     SequenceConfig    what is scored of a text: BOS, EOS, windows, truncation
    ├── training     TrainingConfig    how one class model is trained
    ├── recipe       RecipeConfig      one model for all classes: what it reads, how it is tuned
    ├── scoring      ScoringConfig     how texts are scored
    ├── systems      SystemsConfig     what other systems need
    ├── posterior    PosteriorConfig   prior and calibration
    └── compute      ComputeConfig     precision, CPUs, GPUs, memory
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from gencls_core.config_sections import (
    ComputeConfig,
    DataConfig,
    ModelConfig,
    Place,
    PosteriorConfig,
    ScoringConfig,
    Section,
    SequenceConfig,
    SystemsConfig,
)
from gencls_core.config_training import (
    COMPARING,
    MIN_HELD_OUT,
    ObjectiveName,
    RecipeConfig,
    ResolvedTraining,
    TrainingConfig,
)
from gencls_core.remote_path import Location

__all__ = [
    "COMPARING",
    "MIN_HELD_OUT",
    "SECTIONS",
    "ComputeConfig",
    "DataConfig",
    "ModelConfig",
    "ObjectiveName",
    "Place",
    "PosteriorConfig",
    "RecipeConfig",
    "ResolvedTraining",
    "RunConfig",
    "ScoringConfig",
    "Section",
    "SequenceConfig",
    "SystemsConfig",
    "TrainingConfig",
]

SECTIONS: dict[str, type[Section]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "sequence": SequenceConfig,
    "training": TrainingConfig,
    "recipe": RecipeConfig,
    "scoring": ScoringConfig,
    "systems": SystemsConfig,
    "posterior": PosteriorConfig,
    "compute": ComputeConfig,
}


class RunConfig(Section):
    """Everything that one run is asked to do."""

    output_dir: Place = Field(
        Path("runs/latest"),
        validate_default=True,
        description="The run directory: a folder, or a place in an object store (s3://…).",
    )
    class_id: int | None = Field(
        None, ge=0, description="Train only the class with this number (0 is the first)."
    )
    baseline: bool = Field(
        True, description="Also train TF-IDF with logistic regression on the same split."
    )
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    sequence: SequenceConfig = Field(default_factory=SequenceConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    recipe: RecipeConfig = Field(default_factory=RecipeConfig)
    scoring: ScoringConfig = Field(default_factory=ScoringConfig)
    systems: SystemsConfig = Field(default_factory=SystemsConfig)
    posterior: PosteriorConfig = Field(default_factory=PosteriorConfig)
    compute: ComputeConfig = Field(default_factory=ComputeConfig)

    @field_validator("output_dir")
    @classmethod
    def _absolute(cls, value: Location) -> Location:
        return value.expanduser().absolute()

    @model_validator(mode="after")
    def _one_source(self) -> RunConfig:
        if self.data.data is not None and self.data.data_dir is not None:
            raise ValueError("give either --data or --data-dir, not both")
        return self

    @model_validator(mode="after")
    def _fitting_recipe(self) -> RunConfig:
        if self.recipe.recipe == "independent":
            return self
        if self.class_id is not None and self.recipe.recipe == "auto":
            raise ValueError(
                "--class-id trains one class model, and --recipe auto chooses by all of them: give "
                "--recipe independent with it"
            )
        if self.scoring.likelihood == "loss":
            raise ValueError(
                "--likelihood loss is of the original experiment's class models: give "
                "--recipe independent with it"
            )
        if self.class_id is not None:
            raise ValueError(
                f"--class-id trains one of several class models, and --recipe {self.recipe.recipe} "
                "has one for all classes: leave one of the two out"
            )
        return self
