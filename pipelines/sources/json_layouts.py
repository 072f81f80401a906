"""JSON documents of captioned images in three layouts, all converted to objects with an image's path and its captions.

list      [{"image": "a.jpg", "caption": "a cat"}]
coco      {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
karpathy  {"images": [{"filepath": "val", "filename": "a.jpg", "split": "train", "sentences": [{"raw": "a cat"}]}]}
"""

import json
import re
from typing import Any

from pipelines.io import storage
from pipelines.io.http import is_web
from pipelines.io.storage import Missing
from pipelines.program.errors import UserError
from pipelines.sources.rows import Unreadable

_MERGED_INTO = {"restval": "train"}  # COCO's validation images outside val and test, which all papers train on
_END = 4096  # bytes read at either end
_NAMES = [re.compile(rb'^\s*\{\s*"dataset"\s*:\s*"([^"\\]+)"'), re.compile(rb'\]\s*,\s*"dataset"\s*:\s*"([^"\\]+)"\s*\}\s*$')]
Items = list[tuple[int, Any]]
"""Each image's index in its document, and its entry there: an object, if the document is well-formed."""


def layout_of(document: Any) -> str:
    """`list`, `coco` or `karpathy`. Raises `Unreadable`."""
    if isinstance(document, list):
        return "list"
    images = document.get("images") if isinstance(document, dict) else None
    if isinstance(images, list):
        if any(isinstance(item, dict) and "sentences" in item for item in images):
            return "karpathy"
        if "annotations" in document:
            return "coco"
    keys = f" with the keys {', '.join(map(repr, list(document)[:10]))}" if isinstance(document, dict) else ""
    problem = f"is neither a list nor COCO's or Karpathy's captions, but {type(document).__name__}{keys}"
    raise Unreadable(problem, "layout", "write it as a list of objects, or as one object per line")


def own_name(path: str) -> str:
    """The dataset's name in a document such as Karpathy's ("dataset": "coco", first or last in it); "" if it has none.

    Only the two ends are read, since the document is as large as all captions.
    """
    if path.endswith(".gz") or is_web(path):
        return ""
    try:
        (file,) = storage.find(path, "source.paths")
        ends = storage.read(file.path, 0, _END), storage.read(file.path, max(0, file.size - _END), _END)
    except (UserError, Missing, ValueError):  # reported when it is read; several files have no common name
        return ""
    matches = [pattern.search(end) for pattern, end in zip(_NAMES, ends, strict=True)]
    name = next((match[1].decode(errors="replace") for match in matches if match), "")
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")


def listed(document: Any) -> Items:
    """The members of a list. Raises `Unreadable`."""
    if not isinstance(document, list):
        raise Unreadable("is not a list", "layout", "check the layout")
    return list(enumerate(document))


def coco(document: Any, field: str) -> tuple[Items, list[tuple[int, str]]]:
    """The images, each with its list of `captions`, and (index, image id) of the annotations whose image is not listed.

    Args:
        document: in COCO's layout.
        field: the field of an annotation that holds the caption.

    Raises `Unreadable`.
    """
    notes = _members(document, "annotations")
    if not any(isinstance(note, dict) and field in note for note in notes):
        fields = dict.fromkeys(name for note in notes if isinstance(note, dict) for name in note)
        remedy = f"its annotations have: {', '.join(map(repr, list(fields)[:20]))}"
        raise Unreadable(f"has no annotation with the field '{field}'", "caption", remedy)
    captions: dict[str, list[tuple[int, Any]]] = {}
    for index, note in enumerate(notes):
        image, caption = (note.get("image_id"), note.get(field)) if isinstance(note, dict) else (None, None)
        captions.setdefault(json.dumps(image), []).append((index, caption))
    items: Items = []
    for index, item in enumerate(_members(document, "images")):
        if isinstance(item, dict):
            of_image = captions.pop(json.dumps(item["id"]), []) if "id" in item else []
            item = {**item, "captions": [caption for _, caption in of_image]}
        items.append((index, item))
    return items, [(index, image) for image, others in captions.items() for index, _ in others]


def karpathy(document: Any, splits: tuple[str, ...]) -> Items:
    """The images of these splits (all if empty), each with its path as `image`. Raises `Unreadable`."""
    images = _members(document, "images")
    present = {str(item.get("split")) for item in images if isinstance(item, dict)}
    # Only COCO's document has a restval.
    lacking = [name for name in splits if name not in present and (name not in _MERGED_INTO or not present & set(splits))]
    if lacking:
        remedy = f"its splits are: {', '.join(map(repr, sorted(present)))}"
        raise Unreadable(f"has no split {' or '.join(lacking)}", "split", remedy)
    items: Items = []
    for index, item in enumerate(images):
        if isinstance(item, dict):
            if splits and item.get("split") not in splits:
                continue
            # Flickr30k's document has no folders.
            folder, name = item.get("filepath"), item.get("filename")
            item = {**item, "image": f"{folder}/{name}" if folder and isinstance(name, str) else name}
        items.append((index, item))
    return items


def own_splits(items: Items) -> tuple[str, ...] | None:
    """The published split of each of Karpathy's images, "" for one without; None if no image has one."""
    names = [item.get("split") if isinstance(item, dict) else None for _, item in items]
    splits = tuple(_MERGED_INTO.get(name, name) if isinstance(name, str) else "" for name in names)
    return splits if any(splits) else None


def _members(document: Any, key: str) -> list[Any]:
    members = document.get(key) if isinstance(document, dict) else None
    if not isinstance(members, list):
        raise Unreadable(f"has no list '{key}'", "layout", "check the layout")
    return members
