"""The base of every settings class. pipelines/program/settings.py reads them from files and overrides."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Settings(BaseModel):
    """Base of every settings class: frozen, unknown keys forbidden. `renamed`: old names of keys, and their current names."""

    renamed: ClassVar[dict[str, str]] = {}
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    def digest(self) -> str:
        """Hex digest of the resolved values: equal settings, equal digest."""
        return digest(self.model_dump(mode="json"))


class Named(Settings):
    """Base of settings classes that a config selects by name. The name of a user's own class is its place, `module:Class`."""

    name: str = ""

    @model_validator(mode="before")
    @classmethod
    def _by_its_place(cls, value: Any) -> Any:
        own = isinstance(value, Mapping) and cls.model_fields["name"].annotation is str
        return {"name": f"{cls.__module__}:{cls.__qualname__}"} | value if own else value


def digest(value: Any) -> str:
    """32 hex digits of any JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()  # names of files may be any bytes
