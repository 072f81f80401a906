"""Documents of captioned images, each layout turned into the same: objects with the path of an image and its captions.

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

_PARTS_OF = {"restval": "train"}  # COCO's validation images beyond val and test, which all papers train on
_END = 4096  # bytes
_NAMES = [re.compile(rb'^\s*\{\s*"dataset"\s*:\s*"([^"\\]+)"'), re.compile(rb'\]\s*,\s*"dataset"\s*:\s*"([^"\\]+)"\s*\}\s*$')]
Found = list[tuple[int, Any]]
"""Each image's index in its document, and what the document says of it: an object, if it is in order."""


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
    raise Unreadable(f"is neither a list nor COCO's or Karpathy's captions, but {type(document).__name__}{keys}", "layout")


def own_name(path: str) -> str:
    """What a document calls its dataset, as Karpathy's do ("dataset": "coco", first or last in it); "" where it does not say.

    Only both ends are read: the document is as large as all captions.
    """
    if path.endswith(".gz") or is_web(path):
        return ""
    try:
        (file,) = storage.find(path, "source.paths")
        ends = storage.read(file.path, 0, _END), storage.read(file.path, max(0, file.size - _END), _END)
    except (UserError, Missing, ValueError):  # whoever reads it says so; several files have no one name
        return ""
    found = [pattern.search(end) for pattern, end in zip(_NAMES, ends, strict=True)]
    name = next((match[1].decode(errors="replace") for match in found if match), "")
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")


def listed(document: Any) -> Found:
    """The members of a list. Raises `Unreadable`."""
    if not isinstance(document, list):
        raise Unreadable("is not a list", "layout")
    return list(enumerate(document))


def coco(document: Any, field: str) -> tuple[Found, list[tuple[int, str]]]:
    """The images, each with its list of `captions`, and the index and image id of the annotations whose image is not there.

    Args:
        document: COCO's.
        field: of an annotation, that holds the caption.

    Raises `Unreadable`.
    """
    notes = _members(document, "annotations")
    if not any(isinstance(note, dict) and field in note for note in notes):
        raise Unreadable(f"has no annotation with the field '{field}'", "caption")
    captions: dict[str, list[tuple[int, Any]]] = {}
    for index, note in enumerate(notes):
        image, caption = (note.get("image_id"), note.get(field)) if isinstance(note, dict) else (None, None)
        captions.setdefault(json.dumps(image), []).append((index, caption))
    found: Found = []
    for index, item in enumerate(_members(document, "images")):
        if isinstance(item, dict):
            own = captions.pop(json.dumps(item["id"]), []) if "id" in item else []
            item = {**item, "captions": [caption for _, caption in own]}
        found.append((index, item))
    return found, [(index, image) for image, others in captions.items() for index, _ in others]


def karpathy(document: Any, splits: tuple[str, ...]) -> Found:
    """The images of these splits, or all, each with its path as `image`. Raises `Unreadable`."""
    images = _members(document, "images")
    there = {str(item.get("split")) for item in images if isinstance(item, dict)}
    # Not every list has COCO's restval.
    lacking = [name for name in splits if name not in there and (name not in _PARTS_OF or not there & set(splits))]
    if lacking:
        raise Unreadable(f"has no split {' or '.join(lacking)}; its splits are: {', '.join(map(repr, sorted(there)))}", "split")
    found: Found = []
    for index, item in enumerate(images):
        if isinstance(item, dict):
            if splits and item.get("split") not in splits:
                continue
            # Flickr30k's has no folders.
            folder, name = item.get("filepath"), item.get("filename")
            item = {**item, "image": f"{folder}/{name}" if folder and isinstance(name, str) else name}
        found.append((index, item))
    return found


def own_splits(found: Found) -> tuple[str, ...] | None:
    """The published split of each of Karpathy's images, "" for one that names none; None where none of them does."""
    names = [item.get("split") if isinstance(item, dict) else None for _, item in found]
    splits = tuple(_PARTS_OF.get(name, name) if isinstance(name, str) else "" for name in names)
    return splits if any(splits) else None


def _members(document: Any, key: str) -> list[Any]:
    members = document.get(key) if isinstance(document, dict) else None
    if not isinstance(members, list):
        raise Unreadable(f"has no list '{key}'", "layout")
    return members
