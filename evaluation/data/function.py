"""Evaluation data of your own: any function that returns a `Content`."""

from typing import Any, Literal

from pydantic import Field

from evaluation.data.base import Content
from pipelines.program.errors import UserError
from pipelines.program.import_string import call
from pipelines.program.settings_base import Settings


class FunctionData(Settings):
    """What a function of yours returns."""

    name: Literal["function"]
    function: str = Field(
        description="module:function that returns a Content, such as evaluation.data.digits:digits; the module is imported and "
        "the function called, with all your rights"
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="passed to it as keywords")

    def read(self, key: str) -> Content:
        """Call it. Raises `UserError` where it cannot be found or called, or returns something else."""
        found = call(self.function, self.arguments, f"{key}.function", f"{key}.arguments", "evaluation.data.digits:digits")
        if not isinstance(found, Content):
            raise UserError(f"{key}.function: {self.function} gave a {type(found).__name__}; it must return a Content")
        return found
