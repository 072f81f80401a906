"""Retrieval sets of images with captions: COCO's json, Karpathy's json of COCO and Flickr30k, and Flickr30k's lists.

coco      {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
karpathy  {"images": [{"filepath": "val2014", "filename": "a.jpg", "split": "test", "sentences": [{"raw": "a cat"}]}]}
lists     of Flickr30k: `a.jpg#0<tab>a cat` (results_20130124.token), `a.jpg| 0| a cat` (results.csv), `a.jpg,a cat`
          (flickr30k_test_karpathy.txt), or a csv with columns filename, raw (a json list) and split (flickr_annotations_30k.csv)

Every caption of an image is right for it, and no other, as published scores have it. Images are in the order of the file.
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
from evaluation.data.files import Located, changes, files_in, fingerprint, read_text
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
    "COCO's val2017.zip or val2014.zip (https://cocodataset.org/#download), or flickr30k-images (asked for at "
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
            found = list(self._rows(text, key))
        except Unreadable as problem:
            raise UserError(f"{key}.path: {self.path} {problem}; put there: {_CAPTIONS}") from None
        if not found:
            raise UserError(f"{key}.path: {self.path} lists no image; put there: {_CAPTIONS}")
        files = files_in(self.images, f"{key}.images", _IMAGES)
        names = self._files(key, [name for name, _ in found], files)
        texts = [caption for _, captions in found for caption in captions]
        ends = np.cumsum([len(captions) for _, captions in found])
        right = np.split(np.arange(len(texts)), ends[:-1])
        digest = fingerprint([*changes(names, files), fingerprint([text])])
        return Content(retrieval=Retrieval(Located(key, self.images, tuple(names), digest), texts, right))

    def _files(self, key: str, wanted: list[str], files: dict[str, File]) -> list[str]:
        """The file of each image: under its whole name, or, where folders are others, the only one with its last part."""
        by_last: dict[str, list[str]] = {}
        for name in files:
            by_last.setdefault(storage.name_of(name), []).append(name)
        found = [[name] if name in files else by_last.get(storage.name_of(name), []) for name in wanted]
        missing = [name for name, there in zip(wanted, found, strict=True) if not there]
        if missing:
            raise UserError(
                f"{key}.images: {self.images} has no '{missing[0]}' ({len(missing)} of {len(wanted)} images of {self.path} are "
                f"missing); put there: {_IMAGES}"
            )
        several = next((there for there in found if len(there) > 1), None)
        if several:
            raise UserError(
                f"{key}.images: which of {' and '.join(several[:2])} in {self.images} is meant? Keep one of them there"
            )
        return [there[0] for there in found]

    def _rows(self, text: str, key: str) -> Iterator[tuple[str, list[str]]]:
        """Each image's name and captions. Raises `UserError`, `Unreadable`."""
        for name, captions in self._split_rows(text, key):
            texts = [caption.strip() for caption in captions if isinstance(caption, str) and caption.strip()]
            if not isinstance(name, str) or not name:
                raise UserError(f"{key}.path: {self.path} has an image without a file's name, but {name!r}; correct it")
            if not texts:
                raise UserError(f"{key}.path: '{name}' in {self.path} has no caption; give it one, or take it out")
            yield name, texts

    def _split_rows(self, text: str, key: str) -> Iterator[tuple[Any, list[Any]]]:
        if not str(self.path).endswith(".json"):
            yield from self._listed(text, key)
            return
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{key}.path: {self.path} is not JSON: {error}; put there: {_CAPTIONS}") from None
        layout = json_layouts.layout_of(document)
        if layout == "karpathy":
            for _, item in json_layouts.karpathy(document, (self.split or "test",)):
                yield item.get("image"), [sentence.get("raw") for sentence in item.get("sentences", [])]
            return
        self._no_splits(key)
        if layout == "list":
            raise Unreadable("is a list, neither COCO's nor Karpathy's captions")
        items, alone = json_layouts.coco(document, "caption")
        if alone:
            raise UserError(
                f"{key}.path: annotation {alone[0][0]} of {self.path} is of image {alone[0][1]}, which it does not list"
            )
        for _, item in items:
            yield item.get("file_name"), item["captions"]

    def _listed(self, text: str, key: str) -> Iterator[tuple[str, list[Any]]]:
        first = text.partition("\n")[0]
        if {"filename", "raw"} <= set(first.strip().split(",")):
            yield from self._table(text)
            return
        self._no_splits(key)
        captions: dict[str, list[Any]] = {}
        lines = [line for line in lines_of(text) if line.strip()]
        form = next((form for form in _LISTED if any(form.fullmatch(line) for line in lines[:2])), None)
        if form is None:
            raise Unreadable(f"begins with '{first.strip()[:80]}', which is none of Flickr30k's lists of captions")
        for number, line in enumerate(lines):
            found = form.fullmatch(line)
            if found:
                captions.setdefault(found[1], []).append(_unquoted(found[2].strip()))
            elif number > 0:  # the first may be a header
                raise Unreadable(f"has the line '{line[:80]}', unlike the lines before it")
        yield from captions.items()

    def _table(self, text: str) -> Iterator[tuple[str, list[Any]]]:
        wanted = self.split or "test"
        rows = list(csv.DictReader(io.StringIO(text)))
        there = {row["split"] for row in rows if row.get("split")}
        if there and wanted not in there:
            raise Unreadable(f"has no split {wanted}; its splits are: {', '.join(sorted(there))}")
        for row in rows:
            if not there or row.get("split") == wanted:
                try:
                    yield row["filename"], json.loads(row["raw"])
                except (ValueError, TypeError):
                    raise Unreadable(f"has no json list of captions for '{row['filename']}', but: {row['raw']!r}") from None

    def _no_splits(self, key: str) -> None:
        if self.split is not None:
            raise UserError(f"{key}.split: {self.path} has no splits; leave {key}.split null")


def _unquoted(text: str) -> str:
    """As csv quotes what has commas in it."""
    return text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text
