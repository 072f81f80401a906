"""Validation errors of a config as one `UserError`: the key, value and remedy in the words of the person who wrote the file.

For an unknown key, name or value it suggests the closest one: the same key in another part of the config, a similar spelling, or
a choice whose description has the word.
"""

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from pipelines.program import yaml_text
from pipelines.program.config_keys import (
    accepts,
    alike,
    classes,
    fixed_length,
    follow,
    keys_of,
    near_in,
    near_keys,
    near_tags,
    same_end,
    tag_of,
    walk,
)
from pipelines.program.errors import UserError

OWN_CLASS = "own_class"  # type of an error inside a user's own class; its context has the `UserError` as "error"
_MAPPING = ("model_type", "model_attributes_type", "dict_type", "dataclass_type")
_LISTS = ("tuple_type", "list_type", "set_type")
_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "must be letters, digits, dots, hyphens and underscores, and begin with a letter or digit",
    r'^[^"\r\n]$': "must be one character, and no quote",
}
_KEY = re.compile(r"([A-Za-z_][\w.\[\]-]*): ")  # what a validator of a whole class puts before its message


def user_error(model: type[BaseModel], error: ValidationError, where: str = "") -> UserError:
    """All errors of a validation in one: key and remedy are the first one's, its problem also lists the others.

    Args:
        where: the file or object that was validated, which the problem names too.
    """
    # A list whose values are wrong has enough of them all the same.
    items = [item for item in error.errors() if item["type"] != "too_short" or len(item["input"]) < item["ctx"]["min_length"]]
    unknown = [item for item in items if item["type"] == "extra_forbidden"]
    meant = {_meant(model, item) for item in unknown}
    # A required key that is misspelt is one mistake. Missing keys come last.
    items = [item for item in items if item["type"] != "missing" or _key(model, item) not in meant]
    items.sort(key=lambda item: item["type"] == "missing")
    told: dict[tuple[str, str], UserError] = {}  # each once, such as that a tuple is too short
    for item in items:
        one = _explain(model, item, short=bool(told))
        told.setdefault((one.key, one.problem), one)
    first, *others = told.values()
    problem = first.problem
    if others:
        rest = ", ".join(other.key for other in others[3:23])
        problem += f" (and {len(others)} more: {'; '.join([*map(str, others[:3]), *([rest] if rest else [])])})"
    return UserError(first.key, f"{problem} [{where}]" if where else problem, first.remedy)


def _key(model: type[BaseModel], error: Any) -> str:
    return ".".join(walk(model, _location(error))[1])


def _location(error: Any) -> list[str | int]:
    return [part for part in error["loc"] if isinstance(part, str | int)]


def _explain(model: type[BaseModel], error: Any, short: bool = False) -> UserError:
    """One of pydantic's errors; `short`: without the list of all valid keys."""
    classes_here, path = walk(model, _location(error))
    key, value, kind = ".".join(path), error["input"], error["type"]
    if kind == OWN_CLASS:
        return error["ctx"]["error"].under(key)
    if kind == "value_error":
        return _of_validator(model, error, classes_here, key)
    key = key or "config"
    if kind == "extra_forbidden":
        return _unknown_key(model, error, short)
    place = _Place(model, _location(error))
    if kind == "missing" and isinstance(place.location[-1], int):  # a position of a tuple
        return _of_fixed_length(_Place(model, place.location[:-1]), value)
    if kind == "missing":
        return UserError(key, "missing", "" if short else f"add it to the file{place.or_pass('VALUE')}")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        context = error.get("ctx", {})
        names = ", ".join(sorted(_tags(classes_here))) or context.get("expected_tags", "")
        if "tag" not in context:
            return UserError(f"{key}.name", "missing", f"choose one of: {names}")
        near = near_tags(classes_here, context["tag"])
        remedy = f"did you mean {_quoted(near)}? Choose one of: {names}" if near else f"choose one of: {names}"
        return UserError(f"{key}.name", f"{context['tag']!r} is unknown", remedy)
    if kind == "too_long" and any(fixed_length(each) for each in place.types):
        return _of_fixed_length(place, value)
    if kind == "too_short":
        least = error["ctx"]["min_length"]
        problem = f"needs at least {'one value' if least == 1 else f'{least} values'}"
    elif kind in _MAPPING:
        problem = "must have keys and values"
    elif kind in _LISTS:
        problem = "must be a list"
    elif kind == "path_type":
        problem = "must be a path"
    else:
        problem = f"{error['msg'][:1].lower()}{error['msg'][1:]}"
        if kind == "string_pattern_mismatch":
            problem = _PATTERNS.get(error["ctx"]["pattern"], problem)
    remedy = place.instead_of(value)
    if not remedy and kind == "dict_type":
        remedy = place.entries(value)
    elif not remedy and kind in _MAPPING:
        remedy = _as_mapping(classes_here, place, value)
    elif not remedy and kind in _LISTS:
        remedy = place.example()
    elif kind == "literal_error" and isinstance(value, str):
        near = alike(value, re.findall(r"'([^']+)'", error["ctx"]["expected"]))
        remedy = f"did you mean {_quoted(near)}?" if near else remedy
    return UserError(key, f"{problem} (value {plain(value)})", remedy)


class _Place:
    """Where a wrong value stands, and what could stand there. Only values that the key's type accepts are suggested."""

    def __init__(self, model: type[BaseModel], location: Sequence[str | int]):
        self.model, self.location = model, list(location)
        _, self.path, self.fields, self.types = follow(model, location)
        self.key = ".".join(self.path)

    def setting(self, value: str, *inner: str) -> str:
        """`key=value`, with `inner` after the key; within a list, which dotted keys do not reach, as its item is written."""
        positions = [number for number, part in enumerate(self.location) if isinstance(part, int)]
        if not positions:
            return f"{'.'.join([*self.path, *inner])}={value}"
        above = walk(self.model, self.location[: positions[-1] + 1])[1]
        below = [*self.path[len(above) :], *inner]
        return "".join(f"{{{part}: " for part in below) + value + "}" * len(below)

    def or_pass(self, value: str) -> str:
        """The end of a remedy: the override, or how to write it within a list."""
        text = self.setting(value)
        return f" as {text}" if text.startswith("{") else f" or pass {text}"

    def instead_of(self, value: Any) -> str:
        """What was probably meant by a value, or "": null by None, 0.2 by 20%, a list by its only value, text by a number."""
        text, meant = str(value).strip(), list[Any]()
        if value is False or text.lower() in ("none", "null", "nil"):
            meant.append(None)
        if value is None and any(get_origin(field.annotation) is dict for field in self.fields):
            meant.append({})
        if isinstance(value, Mapping) and value and all(str(key).isdigit() for key in value):  # sizes.0=5
            meant.append(list(value.values()))
        if isinstance(value, str):
            share = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", text)
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
            meant += [float(share[1]) / 100] if share else [name] if name != value else []
        if value is not None and not meant and not isinstance(value, list | Mapping):
            meant.append([value])
        for one in meant:
            if accepts(self.types, one):
                return f"did you mean {self.setting(yaml_text.line(one))}?"
        if isinstance(value, bool | int | float | datetime.date) and accepts(self.types, text):
            quoted = f'"{plain(value)}"'
            return f"put it in quotes: {self.path[-1]}: {quoted} in a file, '{self.setting(quoted)}' in a command"
        if value is None and self.fields and any(field.is_required() for field in self.fields):
            return "" if any(classes(field.annotation) for field in self.fields) else f"give it a value{self.or_pass('VALUE')}"
        return self.example() or "leave it out for its default" if value is None and self.fields else ""

    def example(self) -> str:
        """With the default, where that is a list."""
        for field in self.fields:
            default = field.get_default(call_default_factory=True)
            if default is not PydanticUndefined and isinstance(default, list | tuple) and default:
                return f"write, for example, {self.setting(yaml_text.line(list(default)))}"
        return ""

    def entries(self, value: Any) -> str:
        """How a mapping with any keys is set: `grid.KEY=[VALUE]`."""
        if isinstance(value, str) and re.fullmatch(r"[\w.]+=.+", value):
            return f"did you mean {self.key}.{value}?"
        inner = [entry for field in self.fields for entry in get_args(field.annotation) if get_origin(field.annotation) is dict]
        keys = sorted({name for entry in inner for cls in classes(entry) for name in cls.model_fields})
        if keys:
            return f"write {self.setting('VALUE', 'NAME', 'KEY')} with these keys: {', '.join(keys)}"
        several = any(get_origin(entry) in (list, tuple) for entry in inner)
        return f"write {self.setting('[VALUE]' if several else 'VALUE', 'KEY')}"


def _of_fixed_length(place: _Place, value: Any) -> UserError:
    lengths = [length for kind in place.types if (length := fixed_length(kind))]
    return UserError(place.key, f"needs {lengths[0]} values (value {plain(value)})", place.example())


def _of_validator(model: type[BaseModel], error: Any, classes_here: Sequence[type[BaseModel]], key: str) -> UserError:
    """A validator's ValueError, `problem; remedy`; a validator of a whole class puts the key of one of its fields before it."""
    problem, _, remedy = error["msg"].removeprefix("Value error, ").partition("; ")
    *above, last = _location(error) or [""]
    parents = walk(model, above)[0]
    of_field = parents == list(classes_here) and any(last in cls.model_fields for cls in parents)
    named = None if of_field else _KEY.match(problem)
    if named and any(re.split(r"[.\[]", named[1])[0] in cls.model_fields for cls in classes_here):
        inner = UserError(named[1], problem[named.end() :], remedy)
        return inner.under(key) if key else inner
    return UserError(key, problem, remedy)


def _unknown_key(model: type[BaseModel], error: Any, short: bool) -> UserError:
    """`short`: without the list of all valid keys."""
    classes_here, path = walk(model, _location(error))
    key, value = ".".join(path), error["input"]
    new_names = {old: new for cls in classes_here for old, new in getattr(cls, "renamed", {}).items()}
    if path[-1] in new_names:
        new_key = ".".join([*path[:-1], new_names[path[-1]]])
        return UserError(key, f"has a new name (value {plain(value)})", f"write {new_key} instead")
    names = sorted({name for cls in classes_here for name in cls.model_fields})
    meant, owners = _meant(model, error), [] if near_in(path[-1], names) else _owners(model, path)
    hint = "" if meant is None else f"did you mean {_quoted(_shortened(meant, path))}?"
    place = _Place(model, _location(error)[:-1])
    above, dot, last = path[-1].rpartition(".")
    if dot and any(path[-1] in keys_of(cls) for cls in classes_here):
        hint = f"move it below {'.'.join([*path[:-1], above])}, as {last}: {yaml_text.line(value)}."
    elif owners:
        hint = f"{_or(owners)} has it."
    elif not hint and path[-1] in _tags(walk(model, path[:-1])[0]) - _tags(classes_here):
        hint = f"did you mean {place.setting(path[-1], 'name')}?"
    elif not hint and len(path) == 1 and "overrides" in model.model_fields:
        hint = f"a key of the runs is set as overrides.{key}."
    all_names = "" if short else f"Known keys here: {', '.join(names)}"
    return UserError(key, f"unknown key (value {plain(value)})", " ".join(filter(None, [hint, all_names])))


def plain(value: Any) -> str:
    """A value as its owner would write it: null, not None, and 2026-11-29, not datetime.date(2026, 11, 29)."""
    if isinstance(value, datetime.date):
        return str(value)
    text = {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _as_mapping(classes_here: Sequence[type[BaseModel]], place: _Place, value: Any) -> str:
    """What was meant by a plain value in place of a mapping: `objective=siglip`, `data=data/openmoji`."""
    if not classes_here:
        return ""
    fields = {name: field for cls in classes_here for name, field in cls.model_fields.items()}
    if "name" in fields and isinstance(value, str):
        tags = {
            tag for cls in classes_here if "name" in cls.model_fields for tag in _choices(cls.model_fields["name"].annotation)
        }
        near = [value] if value in tags or not tags else near_tags(classes_here, value) or alike(value, tags, cutoff=0.7)
        if near:
            return f"did you mean {_or(place.setting(name, 'name') for name in near)}?"
        return f"choose {place.key}.name from: {', '.join(sorted(tags))}"
    if len(classes_here) == 1 and value is not None and not isinstance(value, list):
        required = [name for name, field in fields.items() if field.is_required()]
        if len(required) == 1:
            return f"did you mean {place.setting(str(value), required[0])}?"
    return f"its keys: {', '.join(sorted(fields))}"


def _meant(model: type[BaseModel], error: Any) -> str | None:
    """The full key that an unknown one probably means."""
    classes_here, path = walk(model, _location(error))
    if not path:
        return None
    names = sorted({name for cls in classes_here for name in cls.model_fields})
    full, above = ".".join(path), path[:-1]
    if any(isinstance(part, int) for part in _location(error)):  # a key outside the list is none of its item
        elsewhere = [".".join([*above, inner]) for cls in classes_here for inner in same_end(cls, path[-1])]
        others = []
    else:
        elsewhere, others = same_end(model, full), near_keys(model, full)
    # What the key is in is no remedy.
    elsewhere, others = ([key for key in keys if not f"{full}.".startswith(f"{key}.")] for keys in (elsewhere, others))
    if near := near_in(path[-1], names) or ([] if elsewhere else alike(path[-1], names)):
        return ".".join([*above, near[0]])
    # Keys with the same parent were compared above; others of them belong to another member of a union.
    return next(iter(elsewhere or [key for key in others if key.rpartition(".")[0] != ".".join(above)]), None)


def _owners(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Other members of a union that have a key, as `objective.name=fastclip`."""
    tags = [tag_of(cls) for cls in walk(model, path[:-1])[0] if path[-1] in cls.model_fields]
    return [".".join([*path[:-1], f"name={tag}"]) for tag in tags if tag is not None][:3]


def _shortened(meant: str, path: Sequence[str]) -> list[str]:
    """The last part of a key that stands beside the wrong one; any other key in full."""
    parent, _, last = meant.rpartition(".")
    return [last if parent == ".".join(path[:-1]) else meant]


def _choices(annotation: Any) -> list[str]:
    return [str(choice) for choice in get_args(annotation)] if get_origin(annotation) is Literal else []


def _quoted(names: Iterable[str]) -> str:
    return _or(f"'{name}'" for name in names)


def _or(names: Iterable[str]) -> str:
    return " or ".join(names)


def _tags(classes_here: Iterable[type[BaseModel]]) -> set[str]:
    return {tag for cls in classes_here if (tag := tag_of(cls)) is not None}
