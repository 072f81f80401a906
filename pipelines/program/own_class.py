"""A user's own class in place of a built-in one: `objective.name: mypackage.mymodule:MySettings`.

The key `name` selects a member of a union of settings classes. If it is `module:Class`, the module is imported, with all of the
user's rights, and the class, which must derive from the union's base, reads the other keys. So such a config runs code. A config
that comes with a checkpoint does not: `as_data()` reads it without importing what it names.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from pipelines.program.config_errors import OWN_CLASS, user_error
from pipelines.program.errors import UserError
from pipelines.program.import_string import find
from pipelines.program.settings_base import Named

_as_data: ContextVar[bool] = ContextVar("as_data", default=False)


@contextmanager
def as_data() -> Iterator[None]:
    """Inside the block, classes that a config names by import string are not imported; a stand-in holds their keys."""
    token = _as_data.set(True)
    try:
        yield
    finally:
        _as_data.reset(token)


@dataclass(frozen=True)
class OrOwn:
    """Annotation of a union: besides its members, it accepts the user's own classes that derive from `base`.

    Args:
        stand_in: a subclass of `base` that accepts any keys, for `as_data`; None if such configs never come from elsewhere.
    """

    base: type[Named]
    stand_in: type[Named] | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        members = handler(source)
        written = core_schema.wrap_serializer_function_ser_schema(self._write, info_arg=True, schema=members)
        return core_schema.no_info_wrap_validator_function(self._read, members, serialization=written)

    def _read(self, value: Any, members: Any) -> Any:
        name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
        if not isinstance(name, str) or ":" not in name:
            return members(value)
        if isinstance(value, self.base):
            return value
        if _as_data.get() and self.stand_in is not None:
            return self.stand_in.model_validate(value)
        own = self.base
        try:
            own = self._find(name)
            return own.model_validate(value)
        except UserError as error:
            mistake = error
        except ValidationError as error:
            mistake = user_error(own, error)
        raise PydanticCustomError(OWN_CLASS, "{text}", {"text": str(mistake), "error": mistake})

    def _find(self, name: str) -> type[Named]:
        base = f"{self.base.__module__}:{self.base.__name__}"
        own: Any = find(name, None, "name", "", "mypackage.mymodule:MySettings")
        if not isinstance(own, type) or not issubclass(own, self.base):
            raise UserError("name", f"{name} is not a settings class for this key", f"derive it from {base}")
        return own

    @staticmethod
    def _write(value: Any, members: Any, info: core_schema.SerializationInfo) -> Any:
        own = isinstance(value, Named) and ":" in value.name
        return value.model_dump(mode=info.mode, exclude_unset=info.exclude_unset) if own else members(value)
