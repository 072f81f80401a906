"""Retrieval sets of images with captions: COCO's json, Karpathy's json of COCO and Flickr30k, and Flickr30k's lists.

coco      {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
karpathy  {"images": [{"filepath": "val2014", "filename": "a.jpg", "split": "test", "sentences": [{"raw": "a cat"}]}]}
lists     of Flickr30k: `a.jpg#0<tab>a cat` (results_20130124.token), `a.jpg| 0| a cat` (results.csv), `a.jpg,a cat`
          (flickr30k_test_karpathy.txt), or a csv with columns filename, raw (a json list) and split (flickr_annotations_30k.csv)

As for published scores, an image's own captions are right for it, and no others. Images keep the order of the file.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from pydantic import Field

from evaluation.data.base import Content, Retrieval
from evaluation.data.files import FileImages, changes, files_in, fingerprint, read_text
from pipelines.io import storage
from pipelines.io.storage import File
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from pipelines.program.settings_base import Settings
from pipelines.program.text_lines import lines_of
from pipelines.sources import json_layouts
from pipelines.sources.rows import Unreadable

_CAPTIONS = (
    "annotations/captions_val2017.json of COCO (https://cocodataset.org/#download), dataset_coco.json or dataset_flickr30k.json "
    "of https://cs.stanford.edu/people/karpathy/deepimagesent/, or Flickr30k's results_20130124.token"
)
_IMAGES = (
    "COCO's val2017.zip or val2014.zip (https://cocodataset.org/#download), or flickr30k-images (on request from "
    "https://shannon.cs.illinois.edu/DenotationGraph/), unpacked"
)
_LISTED = (re.compile(r"(.+?)#\d+\t(.*)"), re.compile(r"(.+?)\|\s*\d+\|(.*)"), re.compile(r"(.+?\.jpe?g|.+?\.png),(.*)", re.I))


class CaptionsData(Settings):
    """COCO, Flickr30k, or others: images and their captions, as COCO's or Karpathy's json, or Flickr30k's lists."""

    name: Literal["captions"]
    path: Place = Field(description="file of captions: COCO's json, Karpathy's json, or Flickr30k's .token, .csv or .txt")
    images: Place = Field(description="folder with the images, at any depth")
    split: str | None = Field(None, description="of a file that has splits: test, val, restval, ...; null: test")

    def read(self, key: str) -> Content:
        """Retrieval with all captions of every image. Raises `UserError`, also where an image has no caption or no file."""
        text = read_text(self.path, f"{key}.path", _CAPTIONS)
        try:
            rows = list(self._rows(text, key))
        except Unreadable as error:
            setting, remedy = ("split", error.remedy) if error.key == "split" else ("path", f"put there: {_CAPTIONS}")
            raise UserError(f"{key}.{setting}", f"{self.path} {error.problem}", remedy) from None
        if not rows:
            raise UserError(f"{key}.path", f"{self.path} lists no image", f"put there: {_CAPTIONS}")
        files = files_in(self.images, f"{key}.images", _IMAGES)
        names = self._files(key, [name for name, _ in rows], files)
        texts = [caption for _, captions in rows for caption in captions]
        ends = np.cumsum([len(captions) for _, captions in rows])
        right = np.split(np.arange(len(texts)), ends[:-1])
        digest = fingerprint([*changes(names, files), fingerprint([text])])
        return Content(retrieval=Retrieval(FileImages(key, self.images, tuple(names), digest), texts, right))

    def _files(self, key: str, names: list[str], files: dict[str, File]) -> list[str]:
        """The file of each image: by its whole path, or else the only file with the same last part."""
        by_last_part: dict[str, list[str]] = {}
        for name in files:
            by_last_part.setdefault(storage.name_of(name), []).append(name)
        matches = [[name] if name in files else by_last_part.get(storage.name_of(name), []) for name in names]
        missing = [name for name, match in zip(names, matches, strict=True) if not match]
        if missing:
            raise UserError(
                f"{key}.images",
                f"{self.images} has no '{missing[0]}' ({len(missing)} of {len(names)} images of {self.path} are missing)",
                f"put there: {_IMAGES}",
            )
        several = next(((name, match) for name, match in zip(names, matches, strict=True) if len(match) > 1), None)
        if several:
            name, match = several
            problem = f"{' and '.join(match[:2])} in {self.images} could both be '{name}' of {self.path}"
            raise UserError(f"{key}.images", problem, "remove one of them")
        return [match[0] for match in matches]

    def _rows(self, text: str, key: str) -> Iterator[tuple[str, list[str]]]:
        """Each image's name and captions. Raises `UserError`, `Unreadable`."""
        for name, captions in self._split_rows(text, key):
            texts = [caption.strip() for caption in captions if isinstance(caption, str) and caption.strip()]
            if not isinstance(name, str) or not name:
                problem = f"{self.path} has an image whose file name is {name!r}"
                raise UserError(f"{key}.path", problem, "give it a file name, or remove it")
            if not texts:
                raise UserError(f"{key}.path", f"'{name}' in {self.path} has no caption", "give it one, or remove it")
            yield name, texts

    def _split_rows(self, text: str, key: str) -> Iterator[tuple[Any, list[Any]]]:
        if not str(self.path).endswith(".json"):
            yield from self._listed(text, key)
            return
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{key}.path", f"{self.path} is not JSON: {error}", f"put there: {_CAPTIONS}") from None
        layout = json_layouts.layout_of(document)
        if layout == "karpathy":
            for _, item in json_layouts.karpathy(document, (self.split or "test",)):
                yield item.get("image"), [sentence.get("raw") for sentence in item.get("sentences", [])]
            return
        self._no_splits(key)
        if layout == "list":
            raise Unreadable("is a list, not COCO's or Karpathy's captions")
        items, orphans = json_layouts.coco(document, "caption")
        if orphans:
            problem = f"annotation {orphans[0][0]} of {self.path} is of image {orphans[0][1]}, which its images do not list"
            raise UserError(f"{key}.path", problem, "add the image to images, or remove the annotation")
        for _, item in items:
            yield item.get("file_name"), item["captions"]

    def _listed(self, text: str, key: str) -> Iterator[tuple[str, list[Any]]]:
        first = text.partition("\n")[0]
        if {"filename", "raw"} <= set(first.strip().split(",")):
            yield from self._table(text, key)
            return
        self._no_splits(key)
        captions: dict[str, list[Any]] = {}
        lines = [line for line in lines_of(text) if line.strip()]
        pattern = next((pattern for pattern in _LISTED if any(pattern.fullmatch(line) for line in lines[:2])), None)
        if pattern is None:
            raise Unreadable(f"begins with '{first.strip()[:80]}', which is no line of Flickr30k's lists of captions")
        for number, line in enumerate(lines):
            match = pattern.fullmatch(line)
            if match:
                captions.setdefault(match[1], []).append(_unquoted(match[2].strip()))
            elif number > 0:  # the first may be a header
                raise Unreadable(f"has the line '{line[:80]}', unlike the lines before it")
        yield from captions.items()

    def _table(self, text: str, key: str) -> Iterator[tuple[str, list[Any]]]:
        split = self.split or "test"
        rows = list(csv.DictReader(io.StringIO(text)))
        splits = {row["split"] for row in rows if row.get("split")}
        if splits and split not in splits:
            problem = f"{self.path} has no split '{split}'"
            raise UserError(f"{key}.split", problem, f"choose one of {', '.join(sorted(splits))}")
        for row in rows:
            if not splits or row.get("split") == split:
                try:
                    yield row["filename"], json.loads(row["raw"])
                except (ValueError, TypeError):
                    problem = f"has {row['raw']!r} as captions of '{row['filename']}', which is no json list"
                    raise Unreadable(problem) from None

    def _no_splits(self, key: str) -> None:
        if self.split is not None:
            raise UserError(f"{key}.split", f"{self.path} has no splits", f"pass {key}.split=null")


def _unquoted(text: str) -> str:
    """Without the quotes that csv puts around a text with commas."""
    return text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text
