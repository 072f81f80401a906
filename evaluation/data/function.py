"""Evaluation data from a function of the user's own that returns a `Content`."""

from typing import Any, Literal

from pydantic import Field

from evaluation.data.base import Content
from pipelines.program.errors import UserError
from pipelines.program.import_string import call
from pipelines.program.settings_base import Settings


class FunctionData(Settings):
    """Data that a function of yours returns."""

    name: Literal["function"]
    function: str = Field(
        description="module:function that returns a Content, such as evaluation.data.digits:digits; the module is imported and "
        "the function called, with all your rights"
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="passed to it as keywords")

    def read(self, key: str) -> Content:
        """Call the function. Raises `UserError` where it cannot be imported or called, or returns something else."""
        content = call(self.function, self.arguments, f"{key}.function", f"{key}.arguments", "evaluation.data.digits:digits")
        if not isinstance(content, Content):
            problem = f"{self.function} returned a {type(content).__name__}"
            raise UserError(f"{key}.function", problem, "return an evaluation.data.base.Content")
        return content
