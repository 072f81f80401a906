"""A class of the user's own in the place of one of ours: `objective.name: mypackage.mymodule:MySettings`.

A union of settings classes is picked by `name`. Where that is `module:Class`, the module is imported, with all the user's rights,
and the class, which derives from the union's base, reads the other keys. So a config runs code. A config that comes with a
checkpoint does not: `as_data()` reads it without importing what it names.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from pipelines.program.config_errors import OWN_CLASS, explain
from pipelines.program.errors import UserError
from pipelines.program.import_string import find
from pipelines.program.settings import Settings

_as_data: ContextVar[bool] = ContextVar("as_data", default=False)


class Named(Settings):
    """Base of what a config picks by name. A class of the user's own is called by where it is, as `module:Class`."""

    name: str = ""

    @model_validator(mode="before")
    @classmethod
    def _by_its_place(cls, value: Any) -> Any:
        own = isinstance(value, Mapping) and cls.model_fields["name"].annotation is str
        return {"name": f"{cls.__module__}:{cls.__qualname__}"} | value if own else value


@contextmanager
def as_data() -> Iterator[None]:
    """Classes that a config names by import strings are not imported; a stand-in holds their keys."""
    token = _as_data.set(True)
    try:
        yield
    finally:
        _as_data.reset(token)


@dataclass(frozen=True)
class OrOwn:
    """An annotation of a union: beside its members, classes of the user's that derive from `base`.

    `stand_in`: of `base` too, with any keys; what `as_data` reads. None where no such config comes from elsewhere.
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
        told, own = "", self.base
        try:
            own = self._find(name)
            return own.model_validate(value)
        except UserError as error:
            told = str(error)
        except ValidationError as error:
            told = explain(own, error)
        raise PydanticCustomError(OWN_CLASS, "{told}", {"told": told})

    def _find(self, name: str) -> type[Named]:
        base = f"{self.base.__module__}:{self.base.__name__}"
        found: Any = find(name, None, "name", "", "mypackage.mymodule:MySettings")
        if not isinstance(found, type) or not issubclass(found, self.base):
            raise UserError(f"name: {name} is no settings class of this kind; derive it from {base}")
        return found

    @staticmethod
    def _write(value: Any, members: Any, info: core_schema.SerializationInfo) -> Any:
        own = isinstance(value, Named) and ":" in value.name
        return value.model_dump(mode=info.mode, exclude_unset=info.exclude_unset) if own else members(value)
