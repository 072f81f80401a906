"""The keys of a config's classes: where a key or an error's location leads, and which keys and names resemble a misspelt one."""

import difflib
import re
import types
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo


class Found(NamedTuple):
    """What a location leads to: the classes there, and its key as the user wrote it, in parts, without tags of unions."""

    classes: list[type[BaseModel]]
    path: list[str]
    fields: list[FieldInfo]  # of that key: one for each member of a union that has it; none for an item of a list or mapping
    types: list[Any]  # of that key's values, with their bounds; also those of an item


def follow(model: type[BaseModel], location: Sequence[str | int]) -> Found:
    """Follow an error's location, or the parts of a key. Where the end is a plain value, the classes are those that hold it."""
    current: list[type[BaseModel]] = [model]
    path: list[str] = []
    fields: list[FieldInfo] = []
    values: list[Any] = []
    for position, part in enumerate(location):
        labels = [label for value in values for label in _members(value)]
        is_label = isinstance(part, str) and any(
            part == label or (label[-1] == "[" and part.startswith(label)) for label in labels
        )
        items = [] if is_label else [item for value in values for item in _items(value, part)]
        fields, last = [], position == len(location) - 1
        if items:  # may be called as a key or a class
            path.append(str(part))
            values = items
            continue
        fields = [cls.model_fields[part] for cls in current if isinstance(part, str) and part in cls.model_fields]
        if fields:
            path.append(str(part))
            inner = [cls for field in fields for cls in classes(field.annotation)]
            values = [_bounded(field) for field in fields]
            if inner or not last:
                current = inner
        elif len(current) > 1 and any(tag_of(cls) == part for cls in current):
            current = [cls for cls in current if tag_of(cls) == part]
        elif is_label:
            continue  # pydantic's word for a member of a union of plain types
        else:
            path.append(str(part))
            values = []
    return Found(current, path, fields, values)


def walk(model: type[BaseModel], location: Sequence[str | int]) -> tuple[list[type[BaseModel]], list[str]]:
    """The classes at a location's end, and the parts of its key, as `follow` finds them."""
    found = follow(model, location)
    return found.classes, found.path


def accepts(types_here: Iterable[Any], value: Any, strict: bool = False) -> bool:
    """Whether one of the types does; `strict`: without conversions, such as of true to 1. Validators of classes are not run."""
    for kind in types_here:
        with suppress(ValidationError):
            TypeAdapter(kind).validate_python(value, strict=strict)
            return True
    return False


def fixed_length(kind: Any) -> int | None:
    """The number of values of a tuple type that has a value for each position; None for other types."""
    kind = _bare(kind)
    return len(get_args(kind)) if get_origin(kind) is tuple and ... not in get_args(kind) else None


def _bounded(field: FieldInfo) -> Any:
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _bare(kind: Any) -> Any:
    """A type without its bounds, and without `| None`."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, types.UnionType):
        members = [member for member in get_args(kind) if member is not type(None)]
        return _bare(members[0]) if len(members) == 1 else kind
    return kind


def _items(kind: Any, part: str | int) -> list[Any]:
    """The type of one item of a list or mapping type."""
    kind = _bare(kind)
    inner = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return [item for member in inner for item in _items(member, part)]
    if get_origin(kind) is dict:
        return [inner[1]]
    if get_origin(kind) in (list, tuple, set, frozenset):
        position = part if isinstance(part, int) and ... not in inner else 0
        return [inner[min(position, len(inner) - 1)]]
    return []


def _members(kind: Any) -> list[str]:
    """How locations call the members of a union of plain types: `int`, `str`, `tuple[`."""
    kind = _bare(kind)
    if get_origin(kind) not in (Union, types.UnionType) or classes(kind):
        return []
    bare = [(_bare(member), get_origin(_bare(member))) for member in get_args(kind)]
    return [f"{getattr(origin, '__name__', str(origin)).lower()}[" if origin else member.__name__ for member, origin in bare]


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


def near_in(given: str, names: Iterable[str]) -> list[str]:
    """Names that differ by a letter or so, or extend it: global_batch_size for batch_size."""
    names = list(names)
    return [name for name in names if name.endswith(f"_{given}")] or alike(given, names, cutoff=0.8)


def near_keys(model: type[BaseModel], given: str) -> list[str]:
    """Full keys that may be meant; several if they are equally likely."""
    given = given.replace("-", "_")
    paths = keys_of(model)
    first = model.model_fields.get(given.partition(".")[0])
    if given in paths or ("." in given and first is not None and in_a_collection(first.annotation)):
        return [given]
    last = given.rpartition(".")[2]
    same = list(dict.fromkeys([*near_in(given, model.model_fields), *same_end(model, given)]))
    return same[:3] or difflib.get_close_matches(given, paths, n=1, cutoff=0.7) or _nearly(last, paths)


def same_end(model: type[BaseModel], given: str) -> list[str]:
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
        if not in_a_collection(field.annotation):
            keys |= dict.fromkeys(f"{name}.{inner}" for cls in classes(field.annotation) for inner in keys_of(cls))
    return list(keys)


def in_a_collection(annotation: Any) -> bool:
    return get_origin(annotation) in (list, tuple, dict) or any(
        in_a_collection(part) for part in get_args(annotation) if get_origin(annotation) in (Union, types.UnionType, Annotated)
    )


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
