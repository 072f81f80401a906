"""Evaluation data of your own: any function that returns a `Content`."""

import importlib
import inspect
from typing import Any, Literal

from pydantic import Field

from evaluation.data.base import Content
from pipelines.settings import Settings, UserError


class FunctionData(Settings):
    """What a function of yours returns."""

    name: Literal["function"]
    function: str = Field(description="module:function that returns a Content, such as evaluation.data.digits:digits")
    arguments: dict[str, Any] = Field(default_factory=dict, description="passed to it as keywords")

    def read(self, key: str) -> Content:
        """Call it. Raises `UserError` where it cannot be found or called, or returns something else."""
        module_name, colon, name = self.function.partition(":")
        if not colon:
            raise UserError(f"{key}.function: '{self.function}' is not of the form module:function")
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise UserError(f"{key}.function: {module_name} cannot be imported: {error}") from None
        function = getattr(module, name, None)
        if not callable(function):
            raise UserError(f"{key}.function: {module_name} has no function '{name}'")
        try:
            inspect.signature(function).bind(**self.arguments)
        except TypeError as error:
            raise UserError(f"{key}.arguments: {self.function} does not take these: {error}") from None
        found = function(**self.arguments)
        if not isinstance(found, Content):
            raise UserError(f"{key}.function: {self.function} gave a {type(found).__name__}; it must return a Content")
        return found
