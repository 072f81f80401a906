"""What `python -m evaluation CONFIG.yaml` is told: an embedder, a prepared dataset, and what is scored."""

from pathlib import Path
from typing import Any

from pydantic import Field

from evaluation.suite import SuiteSettings
from pipelines.settings import Settings
from pipelines.storage import Place


class EvaluateSettings(Settings):
    """Embedder and data in, scores out."""

    embedder: str = Field("training.checkpoint:load_embedder", description="module:function that returns an Embedder")
    checkpoint: Path | None = Field(
        None, description="passed to the embedder: a run such as runs/demo, or one of its checkpoints"
    )
    embedder_arguments: dict[str, Any] = Field(default_factory=dict, description="passed to the embedder as keywords")
    data: Place = Field(description="folder that python -m pipelines made")
    split_seed: int | None = Field(None, ge=0, description="hold out other groups than the dataset was prepared with")
    suite: SuiteSettings = Field(SuiteSettings(), description="what is scored")
    output: Path = Field(description="folder for result.json")
    batch_size: int = Field(64, ge=1, description="pictures or texts that an actor embeds at a time")
    actors: int = Field(1, ge=1, description="copies of the embedder; each books one CPU, or one GPU with use_gpu")
    use_gpu: bool = Field(False, description="one GPU an actor")

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the embedder's function."""
        given = {} if self.checkpoint is None else {"checkpoint": str(self.checkpoint.absolute())}
        return given | self.embedder_arguments
