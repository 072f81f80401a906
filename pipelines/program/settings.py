"""From a YAML file and `key=value` overrides to a validated, frozen settings object, or a `UserError`.

Command line arguments and a sweep's trials are both overrides: dotted keys and their values. Every settings class of the project
derives from `Settings`: unknown keys are errors, and an error names the key, the value and what is allowed.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from pipelines.io.secrets import secrets_in
from pipelines.program import yaml_text
from pipelines.program.config_errors import plain, user_error
from pipelines.program.config_files import find_shipped, short_name
from pipelines.program.config_keys import accepts, classes, follow, near_keys, tag_of, walk
from pipelines.program.errors import UserError
from pipelines.program.settings_base import Settings

# An override for --help, by a field that only this program's settings have.
_EXAMPLES = {
    "optimizer": "optimizer.lr=1e-3",
    "few_shot": "few_shot.shots=[1]",
    "budget": "budget.epochs=5",
    "source": "image.size=256",
    "dataset": "dataset=data/mine",
}
_MOST_BYTES = 4 * 2**20  # of a config; reading a larger one would take a minute


S = TypeVar("S", bound=Settings)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `UserError` if the file is missing or not a mapping."""
    name = short_name(path)
    if not path.exists():
        near = sorted(short_name(file) for file in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(name, "no such file", f"there are: {', '.join(near)}" if near else "")
    if path.is_dir():
        raise UserError(name, "is a folder, not a YAML file", "give a file in it")
    if path.stat().st_size > _MOST_BYTES:
        size = path.stat().st_size
        raise UserError(name, f"has {size:,} bytes, and a config at most {_MOST_BYTES:,}", "give a config file")
    try:
        tree = yaml_text.parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(name, f"not readable as YAML: {' '.join(str(error).split())}", "correct the file") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(name, f"expected keys and values, found {type(tree).__name__}", "write it as key: value lines")
    return tree


def read_config(path: Path, model: type[BaseModel], chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in a YAML file, merged over that of the file which its key `base` names, if any; a base may have a base.

    A base is a file relative to the folder of the one that names it, or an included config. Mappings are merged key by key; a
    `name` that selects another class drops the base's other keys. If `base` is a key of `model` itself, as of a sweep's, its file
    is found but not merged. Raises `UserError` for a base that is missing, or is its own base.

    Args:
        chain: the files that led to this one.
    """
    tree, package = read_yaml(path), model.__module__.partition(".")[0]
    if "base" not in tree:
        return tree
    base = tree["base"]
    if not isinstance(base, str):
        raise UserError("base", f"must be one file (value {plain(base)}) [{short_name(path)}]", "give its name")
    beside = path.parent / Path(base).expanduser()
    if "base" in model.model_fields:
        return tree | {"base": str(beside)} if beside.is_file() else tree
    file = beside if beside.exists() else find_shipped(base, package)
    if file is None or not file.is_file():
        what = "does not exist" if file is None else "is a folder"
        remedy = f"give a file, relative to the one that names it, or an included config of {package}"
        raise UserError("base", f"{short_name(beside)} {what} [{short_name(path)}]", remedy)
    chain = (*chain, path)
    if any(file.resolve() == earlier.resolve() for earlier in chain):
        circle = " -> ".join(short_name(link) for link in (*chain, file))
        raise UserError("base", f"a file is its own base: {circle}", "remove one base")
    return _merged(read_config(file, model, chain), {key: value for key, value in tree.items() if key != "base"}, model, [])


def _merged(base: Mapping[str, Any], own: Mapping[str, Any], model: type[BaseModel], above: list[str]) -> dict[str, Any]:
    """`own` merged over `base`; `above`: the keys that lead to both."""
    result = dict(base)
    for key, value in own.items():
        old, path = result.get(key), [*above, str(key)]
        if isinstance(value, dict) and isinstance(old, dict):
            another_class = value.get("name", old.get("name")) != old.get("name") and len(walk(model, path)[0]) > 1
            result[key] = value if another_class else _merged(old, value, model, path)
        else:
            result[key] = value
    return result


def parse_overrides(arguments: Sequence[str], model: type[BaseModel] | None = None) -> dict[str, Any]:
    """`["optimizer.lr=1e-3"]` to `{"optimizer.lr": 0.001}`; values are read as YAML, so lists and null work.

    Raises `UserError` for an argument that is not key=value, has no value, or sets a key twice. `model` is used to suggest keys.
    """
    overrides: dict[str, Any] = {}
    for position, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise UserError(f"'{argument}'", "is not of the form key=value", hint_of(arguments[position:], model))
        if not value.strip():
            raise UserError(key, "no value follows the equals sign", hint_of(arguments[position:], model))
        try:
            parsed = yaml_text.parse(value)
        except (yaml_text.TooMuch, yaml_text.Twice) as error:
            raise UserError(key, getattr(error, "problem", None) or str(error), "correct its value") from None
        except yaml.YAMLError:
            parsed = value
        if key in overrides:
            raise UserError(key, f"is set twice, to {plain(overrides[key])} and to {plain(parsed)}", "leave one of them out")
        overrides[key] = parsed
    return overrides


def example_of(model: type[BaseModel] | None) -> str:
    """An override that this program accepts, as an example."""
    fields = {"optimizer"} if model is None else model.model_fields.keys()
    return next((text for key, text in _EXAMPLES.items() if key in fields), "key=value")


def hint_of(arguments: Sequence[str], model: type[BaseModel] | None) -> str:
    """A remedy for arguments that begin with something other than key=value: `--epochs 3`, `epochs: 3`, `epochs = 3`."""
    given = re.match(r"-{0,2}([A-Za-z_][\w.-]*)\s*[:=]?\s*(.*)$", arguments[0], re.DOTALL)
    example = f"write, for example, {example_of(model)}"
    if given is None:
        return example
    key, value, is_option = given[1].rstrip("."), given[2], arguments[0].startswith("-")
    negated = is_option and key.startswith(("no-", "no_"))
    key = key[3:] if negated else key
    for following in arguments[1:3] if not value else ():
        value = following.strip().removeprefix("=").strip()
        if value:
            break
    if key.endswith((".yaml", ".yml")):
        return example
    if model is None:
        return f"did you mean {key}={value or 'VALUE'}?"
    value = "" if value.startswith("-") or "=" in value else value
    settings = [setting for name in near_keys(model, key) if (setting := _setting(model, name, value, is_option, negated))]
    null = any(setting.endswith("=VALUE") and accepts(follow(model, setting[:-6].split(".")).types, None) for setting in settings)
    return f"did you mean {' or '.join(settings)}?{' (null for none)' if null else ''}" if settings else example


def _setting(model: type[BaseModel], key: str, value: str, is_option: bool, negated: bool) -> str:
    """`key=value`, with a value that the key accepts, else VALUE; "" for the negation of what has none.

    Args:
        is_option: `--tensorboard` means true.
        negated: `--no-tensorboard` means false, and of a key that is no switch null.
    """
    kinds = follow(model, key.split(".")).types
    is_switch = accepts(kinds, True, strict=True)
    if negated:
        off = "true" if value == "false" else "false"
        return f"{key}={off}" if is_switch else f"{key}=null" if accepts(kinds, None) else ""
    with suppress(yaml.YAMLError):
        if value and (not kinds or accepts(kinds, yaml_text.parse(value))):
            return f"{key}={value}"
    return f"{key}={'true' if is_option and is_switch else 'VALUE'}"


def apply_overrides(
    tree: Mapping[str, Any], overrides: Mapping[str, Any], model: type[BaseModel] | None = None
) -> dict[str, Any]:
    """A copy of the tree with dotted keys set. A `name` that selects another class of `model` drops its siblings.

    If the tree itself has a key with dots (a sweep's `overrides: {optimizer.lr: 1e-3}`), that key is set.
    """
    result: dict[str, Any] = copy.deepcopy(dict(tree))
    # `objective.name` before `objective.temperature`, in whatever order they were typed.
    for dotted in sorted(overrides, key=lambda key: (not key.endswith(".name"), key.count("."))):
        node, last = _place(result, dotted.split("."))
        above = dotted.split(".")[:-1]
        if last == "name" and node.get("name") != overrides[dotted] and model and len(walk(model, [*above])[0]) > 1:
            node.clear()
        node[last] = copy.deepcopy(overrides[dotted])
    return result


def _place(node: dict[str, Any], parts: list[str]) -> tuple[dict[str, Any], str]:
    """The mapping that contains a dotted key, created if missing, and the key's last part."""
    longest = next((n for n in range(len(parts), 1, -1) if ".".join(parts[:n]) in node), 1)
    key, rest = ".".join(parts[:longest]), parts[longest:]
    if not rest:
        return node, key
    if not isinstance(node.get(key), dict):
        node[key] = {}
    return _place(node[key], rest)


def load(model: type[S], path: str | Path, overrides: Mapping[str, Any] | None = None) -> S:
    """Read, override, validate. Raises `UserError` with the key, the value and the remedy."""
    path = Path(path)
    return validate(model, apply_overrides(read_config(path, model), overrides or {}, model), short_name(path))


def validate(model: type[S], tree: Mapping[str, Any], where: str) -> S:
    """Validate a parsed tree; `where` names it in errors. Raises `UserError` about a key that is wrong, or that has a secret."""
    for key, problem, remedy in secrets_in(tree):
        raise UserError(key, f"{problem} [{where}]", remedy)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise user_error(model, error, where) from None


def readings(model: type[BaseModel], key: str, value: Any) -> list[Any]:
    """A value as a dotted key of the model reads it, as JSON values: one for each member of a union that accepts it.

    Empty if there is no such key, or its type does not accept the value. Validators of the class are not run.
    """
    *above, last = key.split(".")
    inside: list[type[BaseModel]] = [model]
    for part in above:
        fields = [cls.model_fields[part] for cls in inside if part in cls.model_fields]
        inside = [inner for field in fields for inner in classes(field.annotation)]
    values = []
    for field in [cls.model_fields[last] for cls in inside if last in cls.model_fields]:
        annotation: Any = field.annotation
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        with suppress(ValidationError):
            values.append(adapter.dump_python(adapter.validate_python(value), mode="json"))
    return values


def difference(old: Any, new: Any, key: str = "") -> list[str]:
    """Dotted keys whose values differ, as `key: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [line for k in keys for line in difference(old.get(k), new.get(k), f"{key}.{k}" if key else k)]
    return [] if old == new else [f"{key}: {old!r} -> {new!r}"]


def describe(model: type[BaseModel], indent: str = "  ", defaults: BaseModel | None = None) -> str:
    """The keys of a settings class with their meaning and defaults, for `--help`.

    Args:
        defaults: an object whose values are shown in place of the class's defaults.
    """
    lines = []
    for name, field in model.model_fields.items():
        nested = classes(field.annotation)
        value = getattr(defaults, name) if defaults else field.get_default(call_default_factory=True)
        if field.is_required() and not defaults:
            default = "required"
        else:
            default = "" if isinstance(value, BaseModel) else f"default {json.dumps(value, default=str)}"
        if isinstance(value, BaseModel) and len(nested) > 1:
            default = f"default name: {tag_of(type(value))}"
        about = " - ".join(part for part in (field.description or "", default) if part)
        lines.append(f"{indent}{name}: {about}")
        if len(nested) == 1:
            lines.append(describe(nested[0], indent + "  ", value if isinstance(value, BaseModel) else None))
        for cls in nested if len(nested) > 1 else []:
            summary = (cls.__doc__ or "").strip().split("\n")[0]
            lines.append(f"{indent}  name: {tag_of(cls)} - {summary}")
            inner = describe(cls, indent + "    ").split("\n")
            lines += [line for line in inner if not line.startswith(f"{indent}    name:")]
    return "\n".join(line for line in lines if line.strip())
