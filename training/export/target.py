"""The targets, and what each of them has to have."""

from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from training.export import huggingface, onnx, open_clip, safetensors
from training.export.model import Model


class Target(Protocol):
    """A module of this package that writes a run for another library."""

    NAME: str
    LIBRARY: str

    def check_library(self) -> None:
        """Raises `UserError` if a package is missing."""

    def express(self, model: Model) -> Any:
        """The run as the target's network. Raises `CannotHoldError`."""

    def write(self, model: Model, network: Any, folder: Path) -> None:
        """Write all files. Raises `CannotHoldError`."""

    def usage(self) -> ModuleType:
        """What reads the folder with that library alone: its `load`, `embed_images` and `embed_texts`."""

    def notes(self, model: Model, network: Any) -> list[str]:
        """Sentences for the model card."""


# In the order in which they are proposed in place of one that cannot hold a run.
TARGETS: dict[str, Target] = {module.NAME: module for module in (huggingface, open_clip, onnx, safetensors)}
