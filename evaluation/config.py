"""The config of `python -m evaluation CONFIG.yaml`: models, data, and the tasks that score them."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainSerializer, WrapValidator, create_model, field_validator, model_validator

from evaluation.data.union import DataUnion
from evaluation.model_settings import ModelSettings
from evaluation.tasks import TASKS
from evaluation.tasks.base import Positions, different
from evaluation.tasks.robustness import RobustnessSettings
from evaluation.wise_ft import WiseFtSettings
from pipelines.io import storage
from pipelines.program.nodes import Selector
from pipelines.program.path_keys import LocalPlace, Place

_NAMED = [kind.info for kind in TASKS if kind.info.needs]
if TYPE_CHECKING:
    TaskName = str
    _TaskSettings = ModelSettings
else:
    # Or a class of the user's own, as module:Class (`evaluation.plan`).
    TaskName = Annotated[
        Literal[tuple(info.path for info in _NAMED)],
        WrapValidator(lambda value, validate: value if isinstance(value, str) and ":" in value else validate(value)),
        PlainSerializer(str),
    ]
    # One key for each task with settings.
    _TaskSettings = create_model(
        "TaskSettings",
        __base__=ModelSettings,
        **{
            kind.info.path: (kind.settings, Field(kind.settings(), description="of that task")) for kind in TASKS if kind.settings
        },
    )
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of folders


class EvaluateSettings(_TaskSettings):
    """Models, data and tasks. One model stands at the top, several stand in `models`."""

    name: str | None = Field(
        None, pattern=_NAME, description="what results call the one model; null: the run's name, or the embedder's function"
    )
    models: dict[str, ModelSettings] = Field(default_factory=dict, description="several models, by what results call them")
    wise_ft: WiseFtSettings | None = Field(
        None, description="instead of models: the weights between those that a fine-tuned run started from and its own"
    )
    data: dict[str, DataUnion] = Field(
        min_length=1, description="sets by what results call them; a folder that python -m pipelines made stands for itself"
    )
    tasks: Annotated[tuple[TaskName, ...], AfterValidator(different)] = Field(
        tuple(info.path for info in _NAMED if info.by_default),
        min_length=1,
        description="what is asked, also module:Class of your own; each set takes part in what it can",
    )
    recall_at: Positions = Field((1, 5, 10), min_length=1, description="k of R@k")
    robustness: dict[str, RobustnessSettings] = Field(
        default_factory=dict, description="effective robustness: entries of data that are shifts, and of what"
    )
    output: LocalPlace = Field(
        description="folder for results and report.html; results of other models there stay, and are compared"
    )
    cache: Place = Field(
        Path("data/embeddings"),
        description="embeddings are kept here by model and data: a folder of this machine, or a URI such as s3://bucket/embeddings",
    )
    actors: int = Field(1, ge=1, description="copies of the embedder")
    use_gpu: bool = Field(False, description="one GPU a copy")
    cpus_per_actor: int = Field(1, ge=1, description="CPUs a copy; so many threads decode images for it")
    node_labels: Selector = Field({}, description="Ray labels of the cluster's nodes on which copies run, such as {role: train}")

    @field_validator("data", mode="before")
    @classmethod
    def _prepared(cls, value: Any) -> Any:
        """`data: data/openmoji` is short for the prepared dataset there."""
        if isinstance(value, str | Path):
            return {Path(str(value)).name: {"name": "prepared", "path": value}}
        return value

    @model_validator(mode="after")
    def _names_fit(self) -> "EvaluateSettings":
        if self.names_model and self.models:
            raise ValueError(
                "models: a model is also named at the top; remove it there, or move it into models with models.NAME.embedder=..."
            )
        if self.wise_ft is not None and (self.names_model or self.models):
            raise ValueError(
                "wise_ft: it names all models; remove the others, or score them in a run of their own with this output"
            )
        if not self.names_model and not self.models and self.wise_ft is None:
            raise ValueError("embedder: no model is named; pass checkpoint=RUN, embedder=module:function, or embeddings=FOLDER")
        for key, names in (("models", self.models), ("data", self.data)):
            for name in names:
                if not re.match(_NAME, name):
                    raise ValueError(f"{key}: '{name}' must name a folder; use letters, digits, dots, hyphens and underscores")
        for shift, settings in self.robustness.items():
            for name in (shift, settings.reference):
                if name not in self.data:
                    raise ValueError(f"robustness.{shift}: '{name}' is not in data; it has {', '.join(self.data)}")
        return self

    def all_models(self) -> dict[str, ModelSettings]:
        """Models by name."""
        if self.wise_ft is not None:
            return self.wise_ft.models()
        if self.models:
            return self.models
        return {self.name or self._default_name(): self}

    def _default_name(self) -> str:
        path = self.checkpoint or self.embeddings
        if path is not None:
            name, run = storage.name_of(path), storage.name_of(str(storage.absolute(path)).rpartition("/")[0])
            return (f"{run}-{name}" if name.startswith(("checkpoint_", "best")) else name) or "model"
        model = self.embedder_arguments.get("model")
        return f"{model}".replace("/", "-") if model else self.embedder.partition(":")[2] or self.embedder

    def key_of(self, name: str) -> str:
        """Where the config names a model's embedder, or its embeddings, for errors."""
        if self.wise_ft is not None:
            return "wise_ft"
        part = "embedder" if self.all_models()[name].embeddings is None else "embeddings"
        return f"models.{name}.{part}" if self.models else part
