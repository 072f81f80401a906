"""What is wrong with a config, in one line: pydantic's errors in the words of who wrote the file, and the key that was meant.

Where a key, a name or a value is unknown, something like it is looked for: the same key in another part of the config, a spelling
that is near, a word of the description of what can be chosen.
"""

import difflib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pipelines.program import yaml_text

OWN_CLASS = "own_class"  # an error of a class that a config names by an import string: its own key, and what is wrong
_MAPPING = ("model_type", "model_attributes_type", "dict_type", "dataclass_type")
_LISTS = ("tuple_type", "list_type", "set_type")


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """All errors of a validation: the first with its way out, of some more what is wrong, of the rest the keys."""
    items = error.errors()
    unknown = [item for item in items if item["type"] == "extra_forbidden"]
    meant = {_meant(model, item) for item in unknown}
    # A misspelt key that must be there is one mistake, and what is missing is told last.
    items = [item for item in items if item["type"] != "missing" or _key(model, item) not in meant]
    items.sort(key=lambda item: item["type"] == "missing")
    first, others = _explain(model, items[0]), [_explain(model, item, short=True) for item in items[1:]]
    if not others:
        return first
    rest = [_key(model, item) for item in items[4:]]
    return f"{first} (and {len(others)} more: {'; '.join(others[:3])}{'; ' if rest else ''}{', '.join(rest[:20])})"


def _key(model: type[BaseModel], error: Any) -> str:
    return ".".join(walk(model, _location(error))[1])


def _location(error: Any) -> list[str | int]:
    return [part for part in error["loc"] if isinstance(part, str | int)]


def _explain(model: type[BaseModel], error: Any, short: bool = False) -> str:
    """One clause for one of pydantic's errors; `short`: without the list of all keys that there are."""
    found, shown = walk(model, _location(error))
    key, value, kind = ".".join(shown) or "config", error["input"], error["type"]
    if kind == "extra_forbidden":
        renamed = {old: new for cls in found for old, new in getattr(cls, "renamed", {}).items()}
        now = renamed.get(shown[-1])
        if now is not None:
            return f"{key}: is called {now} now (value {plain(value)})"
        known = sorted({name for cls in found for name in cls.model_fields})
        meant, owners = _meant(model, error), [] if _near(shown[-1], known) else _owners(model, shown)
        hint = "" if meant is None else f"; did you mean {_quoted(_shortened(meant, shown))}?"
        if owners:
            hint = f"; {_or(owners)} has it."
        elif not hint and "overrides" in model.model_fields:
            hint = f"; a key of the runs is set as overrides.{key}."
        every = "" if short else f"{'' if hint else ';'} Known keys here: {', '.join(known)}"
        return f"{key}: unknown key (value {plain(value)}){hint}{every}"
    if kind == "missing":
        return f"{key}: missing" if short else f"{key}: missing; add it to the file or pass {key}=VALUE"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        context = error.get("ctx", {})
        given = f"{context['tag']!r} is unknown" if "tag" in context else "missing"
        names = ", ".join(sorted(_tags(found))) or context.get("expected_tags", "")
        near = near_tags(found, context["tag"]) if "tag" in context else []
        hint = f"; did you mean {_quoted(near)}?" if near else ""
        return f"{key}.name: {given}{hint or ';'} {'Choose' if hint else 'choose'} one of: {names}"
    if kind in _MAPPING:
        return f"{key}: {_for_a_mapping(found, key, value, free=kind == 'dict_type')}"
    if kind in _LISTS:
        return f"{key}: a list is wanted (value {plain(value)})" + ("" if isinstance(value, Mapping) else _as_list(key, value))
    if kind == "path_type":
        return f"{key}: a path is wanted (value {plain(value)})"
    if kind == "too_short":
        return f"{key}: at least {_count(error['ctx']['min_length'], 'value')} is wanted (value {plain(value)})"
    message = error["msg"].removeprefix("Value error, ")
    if kind == OWN_CLASS:
        return f"{key}.{message}"
    if kind == "value_error":
        return f"{key}: {message}" if key != "config" else message
    hint = ""
    if kind == "literal_error" and isinstance(value, str):
        near = alike(value, re.findall(r"'([^']+)'", error["ctx"]["expected"]))
        hint = f"; did you mean {_quoted(near)}?" if near else ""
    return f"{key}: {message[:1].lower()}{message[1:]} (value {plain(value)}){hint}"


def plain(value: Any) -> str:
    """A value as its owner would write it: null, not None."""
    text = {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _as_list(key: str, value: Any) -> str:
    if value is None:
        return ""
    return f"; did you mean {key}={yaml_text.dump([value], flow=True).strip()}?"


def _for_a_mapping(found: Sequence[type[BaseModel]], key: str, value: Any, free: bool) -> str:
    """What was meant by a plain value where keys are wanted: `objective=siglip`, `data=data/openmoji`; `free`: any keys."""
    text = f"keys and values are wanted (value {plain(value)})"
    if free or not found:
        return text
    fields = {name: field for cls in found for name, field in cls.model_fields.items()}
    if "name" in fields and isinstance(value, str):
        tags = {tag for cls in found if "name" in cls.model_fields for tag in _choices(cls.model_fields["name"].annotation)}
        near = [value] if value in tags or not tags else near_tags(found, value) or alike(value, tags, cutoff=0.7)
        if near:
            return f"{text}; did you mean {_or(f'{key}.name={one}' for one in near)}?"
        return f"{text}; choose {key}.name from: {', '.join(sorted(tags))}"
    if len(found) == 1 and value is not None and not isinstance(value, list):
        required = [name for name, field in fields.items() if field.is_required()]
        if len(required) == 1:
            listed = key.rpartition(".")[2].isdigit()
            return f"{text}; did you mean {f'{{{required[0]}: {value}}}' if listed else f'{key}.{required[0]}={value}'}?"
    return f"{text}; its keys: {', '.join(sorted(fields))}"


def _meant(model: type[BaseModel], error: Any) -> str | None:
    """The whole key that was probably meant by an unknown one."""
    found, shown = walk(model, _location(error))
    if not shown:
        return None
    here = sorted({name for cls in found for name in cls.model_fields})
    whole = ".".join(shown)
    elsewhere = [path for path in _ending(model, whole) if path != whole]
    if near := _near(shown[-1], here) or ([] if elsewhere else alike(shown[-1], here)):
        return ".".join([*shown[:-1], near[0]])
    return next(iter(elsewhere or near_keys(model, whole)), None)


def _owners(model: type[BaseModel], shown: Sequence[str]) -> list[str]:
    """Other members of a union that have a key, as `objective.name=fastclip`."""
    tags = [tag_of(cls) for cls in walk(model, shown[:-1])[0] if shown[-1] in cls.model_fields]
    return [".".join([*shown[:-1], f"name={tag}"]) for tag in tags if tag is not None][:3]


def _shortened(meant: str, shown: Sequence[str]) -> list[str]:
    """A key beside the wrong one by its own name, any other as a whole."""
    above, _, last = meant.rpartition(".")
    return [last if above == ".".join(shown[:-1]) else meant]


def alike(given: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The name that is spelled most like the given one, whatever its case; or none."""
    folded = {name.lower(): name for name in known}
    return [folded[name] for name in difflib.get_close_matches(given.lower(), folded, n=1, cutoff=cutoff)]


def near_tags(found: Sequence[type[BaseModel]], given: Any) -> list[str]:
    """Names of classes that are spelled like the given one, or whose description has it as a word: csv is one of table."""
    tags = {tag: cls for cls in found if (tag := tag_of(cls)) is not None}
    near = alike(str(given), tags, cutoff=0.7)
    word = re.compile(rf"(?<!\w){re.escape(str(given).lower().removesuffix('s'))}s?(?!\w)")
    return near or [tag for tag, cls in tags.items() if given and word.search(cls.__doc__.lower() if cls.__doc__ else "")][:3]


def _near(given: str, known: Iterable[str]) -> list[str]:
    """Names beside it that differ by a letter or so, or say more: global_batch_size of batch_size."""
    known = list(known)
    return [name for name in known if name.endswith(f"_{given}")] or alike(given, known, cutoff=0.8)


def near_keys(model: type[BaseModel], given: str) -> list[str]:
    """Whole keys that are perhaps meant, some where several are as likely."""
    given = given.replace("-", "_")
    paths = keys_of(model)
    if given in paths:
        return [given]
    last = given.rpartition(".")[2]
    same = list(dict.fromkeys([*_near(given, model.model_fields), *_ending(model, given)]))
    return same[:3] or difflib.get_close_matches(given, paths, n=1, cutoff=0.7) or _nearly(last, paths)


def _ending(model: type[BaseModel], given: str) -> list[str]:
    """Keys that end alike wherever they stand, or by their initials: lr, learning_rate."""
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
    """Every key with dots, those of all members of a union; without what lists and free keys hold."""
    found: dict[str, None] = {}
    for name, field in model.model_fields.items():
        found[name] = None
        if not _in_a_collection(field.annotation):
            found |= dict.fromkeys(f"{name}.{inner}" for cls in classes(field.annotation) for inner in keys_of(cls))
    return list(found)


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


def _count(number: int, noun: str) -> str:
    return "one" if number == 1 else f"{number} {noun}s"


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


def _tags(found: Iterable[type[BaseModel]]) -> set[str]:
    return {tag for cls in found if (tag := tag_of(cls)) is not None}


def walk(model: type[BaseModel], location: Sequence[str | int]) -> tuple[list[type[BaseModel]], list[str]]:
    """Follow an error's location: the classes where it ends, and the key as the user wrote it (union tags left out)."""
    found, shown = [model], []
    for position, part in enumerate(location):
        fields = [cls.model_fields[part] for cls in found if isinstance(part, str) and part in cls.model_fields]
        last = position == len(location) - 1
        if fields:
            shown.append(str(part))
            inner = [c for f in fields for c in classes(f.annotation)]
            if inner or not last:
                found = inner
        elif any(tag_of(cls) == part for cls in found):
            found = [cls for cls in found if tag_of(cls) == part]
        else:
            shown.append(str(part))
    return found, shown
