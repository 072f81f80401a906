"""Validation errors of a config as one `UserError`: the key, value and remedy in the words of the person who wrote the file.

For an unknown key, name or value it suggests the closest one: the same key in another part of the config, a similar spelling, or
a choice whose description has the word.
"""

import difflib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pipelines.program import yaml_text
from pipelines.program.errors import UserError

OWN_CLASS = "own_class"  # type of an error inside a user's own class; its context has the `UserError` as "error"
_MAPPING = ("model_type", "model_attributes_type", "dict_type", "dataclass_type")
_LISTS = ("tuple_type", "list_type", "set_type")
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
    first, *others = [_explain(model, item, short=number > 0) for number, item in enumerate(items)]
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
    if kind == "missing":
        return UserError(key, "missing", "" if short else f"add it to the file or pass {key}=VALUE")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        context = error.get("ctx", {})
        names = ", ".join(sorted(_tags(classes_here))) or context.get("expected_tags", "")
        if "tag" not in context:
            return UserError(f"{key}.name", "missing", f"choose one of: {names}")
        near = near_tags(classes_here, context["tag"])
        remedy = f"did you mean {_quoted(near)}? Choose one of: {names}" if near else f"choose one of: {names}"
        return UserError(f"{key}.name", f"{context['tag']!r} is unknown", remedy)
    if kind in _MAPPING:
        remedy = "" if kind == "dict_type" else _as_mapping(classes_here, key, value)
        return UserError(key, f"must have keys and values (value {plain(value)})", remedy)
    if kind in _LISTS:
        return UserError(key, f"must be a list (value {plain(value)})", _as_list(key, value))
    if kind == "path_type":
        return UserError(key, f"must be a path (value {plain(value)})")
    if kind == "too_short":
        least = error["ctx"]["min_length"]
        return UserError(key, f"needs at least {'one value' if least == 1 else f'{least} values'} (value {plain(value)})")
    near = []
    if kind == "literal_error" and isinstance(value, str):
        near = alike(value, re.findall(r"'([^']+)'", error["ctx"]["expected"]))
    message = f"{error['msg'][:1].lower()}{error['msg'][1:]} (value {plain(value)})"
    return UserError(key, message, f"did you mean {_quoted(near)}?" if near else "")


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
    meant, owners = _meant(model, error), [] if _near(path[-1], names) else _owners(model, path)
    hint = "" if meant is None else f"did you mean {_quoted(_shortened(meant, path))}?"
    if owners:
        hint = f"{_or(owners)} has it."
    elif not hint and "overrides" in model.model_fields:
        hint = f"a key of the runs is set as overrides.{key}."
    all_names = "" if short else f"Known keys here: {', '.join(names)}"
    return UserError(key, f"unknown key (value {plain(value)})", " ".join(filter(None, [hint, all_names])))


def plain(value: Any) -> str:
    """A value as its owner would write it: null, not None."""
    text = {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _as_list(key: str, value: Any) -> str:
    if value is None or isinstance(value, Mapping):
        return ""
    return f"did you mean {key}={yaml_text.dump([value], flow=True).strip()}?"


def _as_mapping(classes_here: Sequence[type[BaseModel]], key: str, value: Any) -> str:
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
            return f"did you mean {_or(f'{key}.name={name}' for name in near)}?"
        return f"choose {key}.name from: {', '.join(sorted(tags))}"
    if len(classes_here) == 1 and value is not None and not isinstance(value, list):
        required = [name for name, field in fields.items() if field.is_required()]
        if len(required) == 1:
            in_list = key.rpartition(".")[2].isdigit()
            return f"did you mean {f'{{{required[0]}: {value}}}' if in_list else f'{key}.{required[0]}={value}'}?"
    return f"its keys: {', '.join(sorted(fields))}"


def _meant(model: type[BaseModel], error: Any) -> str | None:
    """The full key that an unknown one probably means."""
    classes_here, path = walk(model, _location(error))
    if not path:
        return None
    names = sorted({name for cls in classes_here for name in cls.model_fields})
    full = ".".join(path)
    elsewhere = [other for other in _ending(model, full) if other != full]
    if near := _near(path[-1], names) or ([] if elsewhere else alike(path[-1], names)):
        return ".".join([*path[:-1], near[0]])
    # Keys with the same parent were compared above; others of them belong to another member of a union.
    parent = full.rpartition(".")[0]
    return next(iter(elsewhere or [key for key in near_keys(model, full) if key.rpartition(".")[0] != parent]), None)


def _owners(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Other members of a union that have a key, as `objective.name=fastclip`."""
    tags = [tag_of(cls) for cls in walk(model, path[:-1])[0] if path[-1] in cls.model_fields]
    return [".".join([*path[:-1], f"name={tag}"]) for tag in tags if tag is not None][:3]


def _shortened(meant: str, path: Sequence[str]) -> list[str]:
    """The last part of a key that stands beside the wrong one; any other key in full."""
    parent, _, last = meant.rpartition(".")
    return [last if parent == ".".join(path[:-1]) else meant]


def alike(given: str, names: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The name with the most similar spelling, ignoring case; or none."""
    folded = {name.lower(): name for name in names}
    return [folded[name] for name in difflib.get_close_matches(given.lower(), folded, n=1, cutoff=cutoff)]


def near_tags(classes_here: Sequence[type[BaseModel]], given: Any) -> list[str]:
    """Names of classes with a similar spelling, or whose description contains the word, as that of `table` contains csv."""
    tags = {tag: cls for cls in classes_here if (tag := tag_of(cls)) is not None}
    near = alike(str(given), tags, cutoff=0.7)
    word = re.compile(rf"(?<!\w){re.escape(str(given).lower().removesuffix('s'))}s?(?!\w)")
    return near or [tag for tag, cls in tags.items() if given and word.search(cls.__doc__.lower() if cls.__doc__ else "")][:3]


def _near(given: str, names: Iterable[str]) -> list[str]:
    """Names that differ by a letter or so, or extend it: global_batch_size for batch_size."""
    names = list(names)
    return [name for name in names if name.endswith(f"_{given}")] or alike(given, names, cutoff=0.8)


def near_keys(model: type[BaseModel], given: str) -> list[str]:
    """Full keys that may be meant; several if they are equally likely."""
    given = given.replace("-", "_")
    paths = keys_of(model)
    if given in paths:
        return [given]
    last = given.rpartition(".")[2]
    same = list(dict.fromkeys([*_near(given, model.model_fields), *_ending(model, given)]))
    return same[:3] or difflib.get_close_matches(given, paths, n=1, cutoff=0.7) or _nearly(last, paths)


def _ending(model: type[BaseModel], given: str) -> list[str]:
    """Keys anywhere in the config with the same last part, or with its initials: lr, learning_rate."""
    last = given.rpartition(".")[2]
    ends = {path: path.rpartition(".")[2] for path in sorted(keys_of(model), key=lambda path: path.count("."))}
    same = [path for path, end in ends.items() if end == last]
    return same or [path for path, end in ends.items() if len(last) > 1 and (_initials(end) == last or _initials(last) == end)]


def _nearly(last: str, paths: Sequence[str]) -> list[str]:
    ends = {path: path.rpartition(".")[2] for path in sorted(paths, key=lambda path: path.count("."))}
    near = difflib.get_close_matches(last, set(ends.values()), n=1, cutoff=0.75)
    return [path for path, end in ends.items() if end in near][:3]


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))


def keys_of(model: type[BaseModel]) -> list[str]:
    """Every dotted key, including those of all members of a union, but none inside lists and free mappings."""
    keys: dict[str, None] = {}
    for name, field in model.model_fields.items():
        keys[name] = None
        if not _in_a_collection(field.annotation):
            keys |= dict.fromkeys(f"{name}.{inner}" for cls in classes(field.annotation) for inner in keys_of(cls))
    return list(keys)


def _in_a_collection(annotation: Any) -> bool:
    return get_origin(annotation) in (list, tuple, dict) or any(
        _in_a_collection(part) for part in get_args(annotation) if get_origin(annotation) in (Union, types.UnionType, Annotated)
    )


def _choices(annotation: Any) -> list[str]:
    return [str(choice) for choice in get_args(annotation)] if get_origin(annotation) is Literal else []


def _quoted(names: Iterable[str]) -> str:
    return _or(f"'{name}'" for name in names)


def _or(names: Iterable[str]) -> str:
    return " or ".join(names)


def classes(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes inside an annotation such as `Annotated[A | B, Field(...)] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated, list, tuple, dict):
        return [cls for part in get_args(annotation) for cls in classes(part)]
    return []


def tag_of(cls: type[BaseModel]) -> str | None:
    """The value of a class's `name: Literal[...]` discriminator."""
    field = cls.model_fields.get("name")
    if field is None or get_origin(field.annotation) is not Literal:
        return None
    return get_args(field.annotation)[0]


def _tags(classes_here: Iterable[type[BaseModel]]) -> set[str]:
    return {tag for cls in classes_here if (tag := tag_of(cls)) is not None}


def walk(model: type[BaseModel], location: Sequence[str | int]) -> tuple[list[type[BaseModel]], list[str]]:
    """Follow an error's location: the classes at its end, and the parts of the key as the user wrote it (without union tags)."""
    current, path = [model], []
    for position, part in enumerate(location):
        fields = [cls.model_fields[part] for cls in current if isinstance(part, str) and part in cls.model_fields]
        last = position == len(location) - 1
        if fields:
            path.append(str(part))
            inner = [cls for field in fields for cls in classes(field.annotation)]
            if inner or not last:
                current = inner
        elif any(tag_of(cls) == part for cls in current):
            current = [cls for cls in current if tag_of(cls) == part]
        else:
            path.append(str(part))
    return current, path
