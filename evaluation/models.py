"""What is judged: an embedder and what it is told, or embeddings that somebody computed before."""

from typing import Any

from pydantic import Field, model_validator

from pipelines.settings import Settings
from pipelines.storage import LocalPlace


class ModelSettings(Settings):
    """An embedder, or embeddings on disk."""

    embedder: str = Field(
        "training.checkpoint:load_embedder",
        description="module:function that returns an Embedder: a run of ours, training.embedders:open_clip, "
        "training.embedders:huggingface, or yours; the module is imported and the function called, with all your rights",
    )
    checkpoint: LocalPlace | None = Field(
        None, description="passed to the embedder: a run such as runs/demo, or one of its checkpoints"
    )
    embedder_arguments: dict[str, Any] = Field(default_factory=dict, description="passed to the embedder as keywords")
    embeddings: LocalPlace | None = Field(
        None, description="instead of an embedder: a folder of .npy files, rows in the order of the lists in OUTPUT/inputs"
    )
    scale: float | None = Field(
        None, gt=0, description="logit scale, 1 / temperature, for calibration; null: the embedder's own, if it tells"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> "ModelSettings":
        if self.embeddings is not None and self.names_embedder:
            raise ValueError("embeddings: stands for an embedder; leave embedder, checkpoint and embedder_arguments out, or it")
        return self

    @property
    def names_embedder(self) -> bool:
        """Whether the config says anything about an embedder."""
        default = type(self).model_fields["embedder"].default
        return self.checkpoint is not None or bool(self.embedder_arguments) or self.embedder != default

    @property
    def given(self) -> bool:
        """Whether the config names a model here at all."""
        return self.embeddings is not None or self.names_embedder

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the embedder's function."""
        given = {} if self.checkpoint is None else {"checkpoint": str(self.checkpoint.absolute())}
        return given | self.embedder_arguments

    @property
    def pretrained(self) -> str:
        """What weights these are, for tables."""
        return str(self.checkpoint or self.embeddings or self.embedder_arguments.get("weights") or "")
