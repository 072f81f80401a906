"""Which model is scored: an embedder with its arguments, or embeddings that were computed before."""

from importlib.util import find_spec
from typing import Any

from pydantic import Field, model_validator

from pipelines.io import storage
from pipelines.io.retry import shown_place
from pipelines.program.config_keys import alike
from pipelines.program.errors import UserError
from pipelines.program.import_string import names_of
from pipelines.program.path_keys import LocalPlace, Place
from pipelines.program.settings_base import Settings


class ModelSettings(Settings):
    """An embedder, or embeddings on disk."""

    embedder: str = Field(
        "training.checkpoint:load_embedder",
        description="module:function that returns an Embedder: a run of ours, training.embedders:open_clip, "
        "training.embedders:huggingface, or yours; the module is imported and the function called, with all your rights",
    )
    checkpoint: Place | None = Field(
        None, description="passed to the embedder: a run such as runs/demo or s3://bucket/runs/demo, or one of its checkpoints"
    )
    embedder_arguments: dict[str, Any] = Field(default_factory=dict, description="passed to the embedder as keywords")
    embeddings: LocalPlace | None = Field(
        None, description="instead of an embedder: a folder of .npy files, rows in the order of the lists in OUTPUT/inputs"
    )
    scale: float | None = Field(
        None, gt=0, description="logit scale, 1 / temperature, for calibration; null: the embedder's own, if it has one"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> "ModelSettings":
        if self.embeddings is not None and self.names_embedder:
            raise ValueError(
                "embeddings: they replace an embedder; remove embedder, checkpoint and embedder_arguments, or embeddings"
            )
        return self

    @property
    def names_embedder(self) -> bool:
        """Whether the config sets any key of an embedder."""
        return self.checkpoint is not None or bool(self.embedder_arguments) or self.embedder != self.embedder_default()

    @property
    def names_model(self) -> bool:
        """Whether the config names a model here at all."""
        return self.embeddings is not None or self.names_embedder

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the embedder's function."""
        checkpoint = {} if self.checkpoint is None else {"checkpoint": str(storage.absolute(self.checkpoint))}
        return checkpoint | self.embedder_arguments

    def check(self) -> None:
        """Find mistakes without importing the embedder. Raises `UserError`."""
        if self.embeddings is not None:
            return
        module, colon, function = self.embedder.partition(":")
        example = f"such as {self.embedder_default()}"
        if not colon:
            raise UserError("embedder", f"'{self.embedder}' is not of the form module:function", f"give one, {example}")
        try:
            spec = find_spec(module)
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            raise UserError("embedder", f"there is no module '{module}'", "install it, or start in its folder")
        names = names_of(spec)
        if names is not None and function not in names:
            near = alike(function, names)
            remedy = f"did you mean {module}:{near[0]}?" if near else f"give a function of that module, {example}"
            raise UserError("embedder", f"{module} has no '{function}'", remedy)
        if self.checkpoint is None or self.embedder != self.embedder_default():
            return
        if isinstance(self.checkpoint, str):
            if not storage.data_below(self.checkpoint):
                problem = f"{shown_place(self.checkpoint)} holds nothing"
                raise UserError("checkpoint", problem, "give a run such as s3://bucket/runs/demo, or one of its checkpoints")
            return
        if not any(self.checkpoint.glob("checkpoint_*")) and not (self.checkpoint / "checkpoint.json").exists():
            state = "holds no checkpoint" if self.checkpoint.is_dir() else "is not a folder"
            raise UserError("checkpoint", f"{self.checkpoint} {state}", "give a run such as runs/demo, or one of its checkpoints")

    @classmethod
    def embedder_default(cls) -> str:
        """The function that opens a run."""
        return cls.model_fields["embedder"].default

    @property
    def pretrained(self) -> str:
        """Name of the weights, for tables."""
        if self.checkpoint is not None:
            return shown_place(self.checkpoint)
        return str(self.embeddings or self.embedder_arguments.get("weights") or "")
