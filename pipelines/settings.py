"""From a YAML file and `key=value` overrides to a validated, frozen settings object, or one line that says what is wrong.

A command line argument and a sweep's trial are the same thing: overrides, dotted paths to values. Every settings class in
the project derives from `Settings`: unknown keys are errors, and an error names the key, the value and what is allowed.
"""

import copy
import difflib
import hashlib
import json
import types
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pipelines import yaml_text

_MOST_BYTES = 4 * 2**20  # of a config; larger ones would be read for a minute


class UserError(Exception):
    """Something the user can put right. One line: what is wrong, and the way out. Programs print it and exit with 2."""


class Settings(BaseModel):
    """Base of every settings class: frozen, unknown keys forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    def digest(self) -> str:
        """Hex digest of the resolved values: equal settings, equal digest."""
        return digest(self.model_dump(mode="json"))


S = TypeVar("S", bound=Settings)


def digest(value: Any) -> str:
    """32 hex digits of any JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()  # names of files may be any bytes


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `UserError` where the file is missing or not a mapping."""
    if not path.exists():
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file" + (f"; there are: {', '.join(near)}" if near else ""))
    if path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes, and a config has {_MOST_BYTES:,} at most; is it one?")
    try:
        tree = yaml_text.parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected keys and values, found {type(tree).__name__}")
    return tree


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """`["optimizer.lr=1e-3"]` to `{"optimizer.lr": 0.001}`; values are read as YAML, so lists and null work."""
    overrides = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise UserError(f"'{argument}': expected key=value, for example optimizer.lr=1e-3")
        try:
            overrides[key] = yaml_text.parse(value)
        except yaml_text.TooMuch as error:
            raise UserError(f"{key}: {error}") from None
        except yaml.YAMLError:
            overrides[key] = value
    return overrides


def apply_overrides(
    tree: Mapping[str, Any], overrides: Mapping[str, Any], model: type[BaseModel] | None = None
) -> dict[str, Any]:
    """A copy of the tree with dotted keys set. A `name` that picks another class of `model` drops its siblings.

    Where the tree itself has a key with dots (a sweep's `overrides: {optimizer.lr: 1e-3}`), that key is the one that is meant.
    """
    result: dict[str, Any] = copy.deepcopy(dict(tree))
    # `objective.name` before `objective.temperature`, whatever order they were typed in.
    for dotted in sorted(overrides, key=lambda key: (not key.endswith(".name"), key.count("."))):
        node, last = _place(result, dotted.split("."))
        above = dotted.split(".")[:-1]
        if last == "name" and node.get("name") != overrides[dotted] and model and len(_walk(model, [*above])[0]) > 1:
            node.clear()
        node[last] = copy.deepcopy(overrides[dotted])
    return result


def _place(node: dict[str, Any], parts: list[str]) -> tuple[dict[str, Any], str]:
    """The mapping that a dotted key ends in, made where it is missing, and its key there."""
    longest = next((n for n in range(len(parts), 1, -1) if ".".join(parts[:n]) in node), 1)
    key, rest = ".".join(parts[:longest]), parts[longest:]
    if not rest:
        return node, key
    if not isinstance(node.get(key), dict):
        node[key] = {}
    return _place(node[key], rest)


def load(model: type[S], path: str | Path, overrides: Mapping[str, Any] | None = None) -> S:
    """Read, override, validate. Raises `UserError` in one line that names the key, the value and the way out."""
    return validate(model, apply_overrides(read_yaml(Path(path)), overrides or {}, model), str(path))


def validate(model: type[S], tree: Mapping[str, Any], where: str) -> S:
    """Validate a tree that is already read; `where` names it in errors."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(model, item) for item in error.errors()]
        more = f" (and {len(lines) - 1} more: {'; '.join(lines[1:4])})" if len(lines) > 1 else ""
        raise UserError(f"{where}: {lines[0]}{more}") from None


def readings(model: type[BaseModel], key: str, value: Any) -> list[Any]:
    """What a dotted key of the model makes of a value, as JSON has it; one for each member of a union that takes it.

    Empty where there is no such key, or its type takes no such value; what validators of the class say is not asked.
    """
    *above, last = key.split(".")
    classes = [model]
    for part in above:
        fields = [cls.model_fields[part] for cls in classes if part in cls.model_fields]
        classes = [inner for field in fields for inner in _classes(field.annotation)]
    found = []
    for field in [cls.model_fields[last] for cls in classes if last in cls.model_fields]:
        annotation: Any = field.annotation
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        with suppress(ValidationError):
            found.append(adapter.dump_python(adapter.validate_python(value), mode="json"))
    return found


def difference(old: Any, new: Any, key: str = "") -> list[str]:
    """Dotted keys whose values differ, as `key: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [line for k in keys for line in difference(old.get(k), new.get(k), f"{key}.{k}" if key else k)]
    return [] if old == new else [f"{key}: {old!r} -> {new!r}"]


def _explain(model: type[BaseModel], error: Any) -> str:
    """One clause for one of pydantic's errors."""
    location = [part for part in error["loc"] if isinstance(part, str | int)]
    classes, shown = _walk(model, location)
    key = ".".join(shown) or "config"
    if error["type"] == "extra_forbidden":
        known = sorted({name for cls in classes for name in cls.model_fields})
        near = difflib.get_close_matches(str(shown[-1]), known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ";"
        return f"{key}: unknown key (value {error['input']!r}){hint} Known keys here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{key}: missing; add it to the file or pass {key}=VALUE"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        context = error.get("ctx", {})
        given = f"{context['tag']!r} is unknown" if "tag" in context else "missing"
        names = ", ".join(sorted(_tags(classes))) or context.get("expected_tags", "")
        return f"{key}.name: {given}; choose one of: {names}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}: {message}" if key != "config" else message
    return f"{key}: {message[:1].lower()}{message[1:]} (value {error['input']!r})"


def _classes(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes inside an annotation such as `Annotated[A | B, Field(...)] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated, list, tuple, dict):
        return [cls for part in get_args(annotation) for cls in _classes(part)]
    return []


def _tag(cls: type[BaseModel]) -> str | None:
    """The value of a class's `name: Literal[...]` discriminator."""
    field = cls.model_fields.get("name")
    if field is None or get_origin(field.annotation) is not Literal:
        return None
    return get_args(field.annotation)[0]


def _tags(classes: Iterable[type[BaseModel]]) -> set[str]:
    return {tag for cls in classes if (tag := _tag(cls)) is not None}


def _walk(model: type[BaseModel], location: list[str | int]) -> tuple[list[type[BaseModel]], list[str]]:
    """Follow an error's location: the classes where it ends, and the key as the user wrote it (union tags left out)."""
    classes, shown = [model], []
    for position, part in enumerate(location):
        fields = [cls.model_fields[part] for cls in classes if isinstance(part, str) and part in cls.model_fields]
        last = position == len(location) - 1
        if fields:
            shown.append(str(part))
            inner = [c for f in fields for c in _classes(f.annotation)]
            if inner or not last:
                classes = inner
        elif any(_tag(cls) == part for cls in classes):
            classes = [cls for cls in classes if _tag(cls) == part]
        else:
            shown.append(str(part))
    return classes, shown


def describe(model: type[BaseModel], indent: str = "  ", defaults: BaseModel | None = None) -> str:
    """The keys of a settings class with their meaning and defaults, for `--help`; `defaults`: an object that has others."""
    lines = []
    for name, field in model.model_fields.items():
        nested = _classes(field.annotation)
        value = getattr(defaults, name) if defaults else field.get_default(call_default_factory=True)
        if field.is_required() and not defaults:
            default = "required"
        else:
            default = "" if isinstance(value, BaseModel) else f"default {json.dumps(value, default=str)}"
        if isinstance(value, BaseModel) and len(nested) > 1:
            default = f"default name: {_tag(type(value))}"
        about = " - ".join(part for part in (field.description or "", default) if part)
        lines.append(f"{indent}{name}: {about}")
        if len(nested) == 1:
            lines.append(describe(nested[0], indent + "  ", value if isinstance(value, BaseModel) else None))
        for cls in nested if len(nested) > 1 else []:
            summary = (cls.__doc__ or "").strip().split("\n")[0]
            lines.append(f"{indent}  name: {_tag(cls)} - {summary}")
            inner = describe(cls, indent + "    ").split("\n")
            lines += [line for line in inner if not line.startswith(f"{indent}    name:")]
    return "\n".join(line for line in lines if line.strip())
