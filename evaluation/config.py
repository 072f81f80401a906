"""What `python -m evaluation CONFIG.yaml` is told: models, data, and which tasks to set them."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, PlainSerializer, WrapValidator, field_validator, model_validator

from evaluation.corruptions import PARAMETERS, SEVERITIES
from evaluation.data.union import DataUnion
from evaluation.model_settings import ModelSettings
from evaluation.suite import Positions, different
from pipelines.program.path_keys import LocalPlace
from pipelines.program.settings import Settings

TaskName = Literal["zero_shot", "retrieval", "sugarcrepe", "linear_probe", "few_shot", "corruption"]
# Beside them functions of the user's own, as module:function (`evaluation.plan`).
AnyTask = Annotated[
    TaskName,
    WrapValidator(lambda value, ours: value if isinstance(value, str) and ":" in value else ours(value)),
    PlainSerializer(str),
]
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of folders


class LinearProbeSettings(Settings):
    """A classifier on features of all training images."""

    views: int = Field(
        0, ge=0, description="random crops, half of them mirrored, of each training image that are fitted beside it"
    )
    seed: int = Field(0, ge=0, description="of the crops")


class FewShotSettings(Settings):
    """Probes on a few images a class."""

    shots: Positions = Field((1, 2, 4, 8, 16), min_length=1, description="training images a class")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(different)] = Field(
        (0, 1, 2), min_length=1, description="each draws other images"
    )


class CorruptionSettings(Settings):
    """Zero-shot classification of corrupted images."""

    renamed: ClassVar[dict[str, str]] = {"pictures": "images"}
    names: tuple[str, ...] = Field(tuple(PARAMETERS), min_length=1, description="which corruptions")
    severities: tuple[int, ...] = Field(SEVERITIES, min_length=1, description="1 (mild) to 5")
    images: int = Field(1000, ge=1, description="of each set at most so many, drawn by seed")
    size: int = Field(224, ge=8, description="pixels of the shorter side to which images are shrunk before")
    seed: int = Field(0, ge=0, description="of the draw, and of noise")

    @field_validator("names")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in PARAMETERS:
                raise ValueError(f"'{name}' is unknown; choose of: {', '.join(PARAMETERS)}")
        return value

    @field_validator("severities")
    @classmethod
    def _degrees(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for severity in value:
            if severity not in SEVERITIES:
                raise ValueError(f"{severity} is none; choose of 1, 2, 3, 4 and 5")
        return value


class RobustnessSettings(Settings):
    """Effective robustness of one set, which is a shift of another."""

    reference: str = Field(description="entry of data: the set without the shift")
    line: str | None = Field(
        None, description="one of the lines that ship: imagenet_v2, imagenet_sketch, imagenet_r, imagenet_a, objectnet"
    )
    baselines: LocalPlace | None = Field(None, description="instead: csv with a row a baseline model, accuracies in percent")
    reference_column: str | None = Field(None, description="of baselines: accuracy on the reference")
    shift_column: str | None = Field(None, description="of baselines: accuracy under the shift")

    @model_validator(mode="after")
    def _one_line(self) -> "RobustnessSettings":
        columns = [self.reference_column, self.shift_column]
        if (self.line is None) == (self.baselines is None):
            raise ValueError("line: give either one of the lines that ship, or baselines with its two columns")
        if (self.baselines is None) != (columns == [None, None]) or (self.baselines is not None and None in columns):
            raise ValueError("baselines: needs reference_column and shift_column, and they need it")
        return self


class EvaluateSettings(ModelSettings):
    """Models and data in, scores and a page that compares them out. One model is named at the top, several in `models`."""

    name: str | None = Field(
        None, pattern=_NAME, description="what results call the one model; null: the run's name, or the embedder's function"
    )
    models: dict[str, ModelSettings] = Field(default_factory=dict, description="several models, by what results call them")
    data: dict[str, DataUnion] = Field(
        min_length=1, description="sets by what results call them; a folder that python -m pipelines made stands for itself"
    )
    tasks: Annotated[tuple[AnyTask, ...], AfterValidator(different)] = Field(
        ("zero_shot", "retrieval", "sugarcrepe"),
        min_length=1,
        description="what is asked, also module:function of your own; each set takes part in what it can",
    )
    recall_at: Positions = Field((1, 5, 10), min_length=1, description="k of R@k")
    linear_probe: LinearProbeSettings = Field(LinearProbeSettings(), description="of that task")
    few_shot: FewShotSettings = Field(FewShotSettings(), description="of that task")
    corruption: CorruptionSettings = Field(CorruptionSettings(), description="of that task")
    robustness: dict[str, RobustnessSettings] = Field(
        default_factory=dict, description="effective robustness: entries of data that are shifts, and of what"
    )
    output: LocalPlace = Field(
        description="folder for results and report.html; results of other models there stay, and are compared"
    )
    cache: LocalPlace = Field(
        Path("data/embeddings"),
        description="embeddings are kept here by model and data; on a cluster, one that every node shares",
    )
    actors: int = Field(1, ge=1, description="copies of the embedder")
    use_gpu: bool = Field(False, description="one GPU a copy")
    cpus_per_actor: int = Field(1, ge=1, description="CPUs a copy; so many threads decode images for it")

    @field_validator("data", mode="before")
    @classmethod
    def _prepared(cls, value: Any) -> Any:
        """`data: data/openmoji` is short for the prepared dataset there."""
        if isinstance(value, str | Path):
            return {Path(str(value)).name: {"name": "prepared", "path": value}}
        return value

    @model_validator(mode="after")
    def _names_fit(self) -> "EvaluateSettings":
        if self.given and self.models:
            raise ValueError(
                "models: a model is named at the top too; leave that out, or add it to the others with models.NAME.embedder=..."
            )
        if not self.given and not self.models:
            raise ValueError("embedder: no model is named; pass checkpoint=RUN, embedder=module:function, or embeddings=FOLDER")
        for key, names in (("models", self.models), ("data", self.data)):
            for name in names:
                if not re.match(_NAME, name):
                    raise ValueError(f"{key}: '{name}' names a folder; use letters, digits, dots, hyphens and underscores")
        for shift, settings in self.robustness.items():
            for name in (shift, settings.reference):
                if name not in self.data:
                    raise ValueError(f"robustness.{shift}: '{name}' is not in data; it has {', '.join(self.data)}")
        return self

    def all_models(self) -> dict[str, ModelSettings]:
        """Models by name."""
        if self.models:
            return self.models
        return {self.name or self._own_name(): self}

    def _own_name(self) -> str:
        if self.checkpoint is not None or self.embeddings is not None:
            path = self.checkpoint or self.embeddings
            assert path is not None
            own = path.name if not path.name.startswith(("checkpoint_", "best")) else f"{path.absolute().parent.name}-{path.name}"
            return own or "model"
        model = self.embedder_arguments.get("model")
        return f"{model}".replace("/", "-") if model else self.embedder.partition(":")[2] or self.embedder

    def key_of(self, name: str) -> str:
        """Where the config names a model, for errors."""
        return f"models.{name}" if self.models else "embedder"
