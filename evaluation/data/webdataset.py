"""CLIP_benchmark's layout of evaluation sets: WebDataset tars by split, and what is right in text files beside them.

path/test/nshards.txt, 0.tar, 1.tar, ... and likewise train and val, which are for probes and may be missing; path/classnames.txt
and zeroshot_classification_templates.txt, a class or template a line; path/dataset_type.txt, which says `retrieval` where tars
hold captions. A sample is an image and a class number (.cls) or captions, one a line (.txt).
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
from pydantic import Field

from evaluation.class_sets import ClassSet
from evaluation.data.base import Content, LabelledImages, Retrieval
from evaluation.data.class_names import PLAIN_TEMPLATES, NamedSettings, positions
from evaluation.data.files import FileImages, changes, files_in, fingerprint, read_text
from pipelines.dataset.image_formats import EXTENSIONS
from pipelines.io import storage
from pipelines.io.image_bytes import Location
from pipelines.io.storage import File, Missing
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from pipelines.program.text_lines import decoded, lines_of
from pipelines.sources.tar_samples import Member, Sample, index

# Of several the first, as CLIP_benchmark has it.
_IMAGES = tuple(dict.fromkeys(("webp", "png", "jpg", "jpeg", *(extension.removeprefix(".") for extension in EXTENSIONS))))
_CLASSES, _TEMPLATES, _TYPE = "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"
_LAYOUT = "CLIP_benchmark's layout: test/nshards.txt, test/0.tar, ..., classnames.txt (clip_benchmark_export_wds writes it)"


class WebdatasetData(NamedSettings):
    """CLIP_benchmark's webdataset layout: tars by split, with class numbers or captions."""

    name: Literal["webdataset"]
    path: Place = Field(description="folder with test/nshards.txt, test/0.tar, ..., classnames.txt")

    def read(self, key: str) -> Content:
        """A retrieval set, or a classification with `train` and `val` where they are there. Raises `UserError`.

        Class numbers are those of classnames.txt. With `classes`, they are turned into the class set's by their names.
        """
        files = files_in(self.path, key, _LAYOUT)
        kind = self._text(key, files, _TYPE).strip().lower()
        if kind == "multilabel":
            raise UserError(f"{key}: {self.path} is a multilabel set, by its {_TYPE}; images of several classes are not scored")
        if kind not in ("", "classification", "retrieval"):
            raise UserError(f"{key}: {_TYPE} of {self.path} says '{kind}'; it must be retrieval, or missing for a classification")
        test = _read_split(self.path, "test", files, key)
        if kind == "retrieval":
            return Content(retrieval=_retrieval(test))
        known = self.known(key)
        given = self._lines(key, files, _CLASSES)
        if known is None and not given:
            raise UserError(
                f"{key}: {self.path} has no {_CLASSES}; put it there, a class a line, or name a shipped set as classes"
            )
        places = self._places(key, known, given)
        templates = [line for line in self._lines(key, files, _TEMPLATES) if line]

        def side(split: str) -> LabelledImages | None:
            there = any(name.startswith(f"{split}/") for name in files)
            return _labelled(_read_split(self.path, split, files, key), places) if there else None

        words = self._checked(key, templates) or PLAIN_TEMPLATES
        scored = _labelled(test, places)
        return Content({"": self.classification(known, given, scored, side("train"), side("val"), words)})

    def _places(self, key: str, known: ClassSet | None, given: list[str]) -> np.ndarray:
        if known is None or not given:
            return np.arange(len(known.classes if known else given))
        return positions(given, known, key, f"{_CLASSES} of {self.path}")

    def _checked(self, key: str, templates: list[str]) -> list[str]:
        for template in templates:
            if "{c}" not in template and "{}" not in template:
                raise UserError(f"{key}: '{template}' in {_TEMPLATES} of {self.path} has no {{c}} for the name of the class")
        return templates

    def _text(self, key: str, files: dict[str, File], name: str) -> str:
        return read_text(files[name].path, key, _LAYOUT) if name in files else ""

    def _lines(self, key: str, files: dict[str, File], name: str) -> list[str]:
        lines = [line.strip() for line in lines_of(self._text(key, files, name).rstrip())]
        if name == _CLASSES and "" in lines:
            raise UserError(f"{key}: line {lines.index('') + 1} of {_CLASSES} in {self.path} is empty; every class needs a name")
        return lines


@dataclass(eq=False)
class _Members(FileImages):
    """Images that are members of tars, `names` as `test/0.tar/s0000001.png`."""

    tars: tuple[str, ...]
    tar_of: np.ndarray  # int [n]
    starts: np.ndarray  # int64 [n], first byte in the tar
    lengths: np.ndarray  # int64 [n]

    def location(self, index: int) -> Location:
        return Location(self.tars[self.tar_of[index]], int(self.starts[index]), int(self.lengths[index]))


@dataclass(frozen=True)
class _Split:
    """A split's images, and the bytes of the other member that says what is right."""

    images: _Members
    texts: list[dict[str, bytes]]  # .cls and .txt, where they are there


def _read_split(path: Place, split: str, files: dict[str, File], key: str) -> _Split:
    tars = _tars(path, split, files, key)
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    texts: list[dict[str, bytes]] = []
    for number, name in enumerate(tars):
        for image, others in _samples(path, name, files[name].path, key):
            names.append(f"{name}/{image.name}")
            places.append((number, image.start, image.length))
            texts.append(others)
    if not names:
        raise UserError(f"{key}: the tars in {storage.join(path, split)} hold no sample; put there: {_LAYOUT}")
    columns = np.asarray(places, dtype=np.int64).T
    paths = tuple(files[name].path for name in tars)
    return _Split(_Members(key, path, tuple(names), fingerprint(changes(tars, files)), paths, *columns), texts)


def _tars(path: Place, split: str, files: dict[str, File], key: str) -> list[str]:
    """The split's tars in order. Raises `UserError` unless they are as many as nshards.txt says."""
    name = f"{split}/nshards.txt"
    if name not in files:
        raise UserError(f"{key}: {storage.join(path, split)} has no nshards.txt; put there: {_LAYOUT}")
    text = read_text(files[name].path, key, _LAYOUT).strip()
    if not text.isdecimal():
        raise UserError(f"{key}: {files[name].path} says '{text}'; it must be the number of tars beside it")
    wanted = [f"{split}/{number}.tar" for number in range(int(text))]
    missing = [tar for tar in wanted if tar not in files]
    more = [tar for tar in files if tar.startswith(f"{split}/") and tar.endswith(".tar") and tar not in wanted]
    if missing or more:
        wrong = f"{missing[0]} is missing" if missing else f"there is also {more[0]}"
        raise UserError(f"{key}: {files[name].path} says {text} tars, and {wrong}; complete the copy, or correct the number")
    return wanted


def _samples(path: Place, name: str, tar: str, key: str) -> Iterator[tuple[Member, dict[str, bytes]]]:
    """The image of each sample of a tar, and its labels' and captions' bytes. Raises `UserError`."""
    where = f"{key}: {name} in {path}"
    try:
        with storage.local_copy(tar) as copy, copy.open("rb") as file:
            found = index(file)
            if found.damage:
                raise UserError(f"{where} is damaged: {found.damage}; copy it anew")
            for sample_name, sample in found.samples.items():
                image = _image(sample)
                if image is None or sample.again:
                    wrong = f"two members .{next(iter(sample.again))}" if sample.again else f"no {', '.join(_IMAGES)}"
                    raise UserError(
                        f"{where}: sample {sample_name} has {wrong}, only .{', .'.join(sample.members)}; write it anew"
                    )
                texts = {kind: _bytes(file, sample.members[kind]) for kind in ("cls", "txt") if kind in sample.members}
                yield image, texts | ({"npy": b""} if "npy" in sample.members else {})
    except (Missing, PermissionError, tarfile.TarError) as error:
        raise UserError(f"{where} cannot be read as a tar: {error}; copy it anew") from None


def _image(sample: Sample) -> Member | None:
    return next((sample.members[kind] for kind in _IMAGES if kind in sample.members), None)


def _bytes(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.start)
    return file.read(member.length)


def _labelled(split: _Split, places: np.ndarray) -> LabelledImages:
    labels = np.empty(len(split.texts), dtype=np.int64)
    for row, texts in enumerate(split.texts):
        where = f"{split.images.key}: {split.images.names[row]} in {split.images.folder}"
        if "cls" not in texts:
            why = (
                "a .npy of several classes; such sets are not scored"
                if "npy" in texts
                else "no .cls with the number of its class"
            )
            raise UserError(f"{where} has {why}" + ("" if "npy" in texts else f"; captions need a {_TYPE} that says retrieval"))
        text = texts["cls"].decode("utf-8", "replace").strip()
        if not text.isdecimal() or int(text) >= len(places):
            raise UserError(f"{where} is of class '{text}'; {len(places)} classes have the numbers 0 to {len(places) - 1}")
        labels[row] = places[int(text)]
    return LabelledImages(split.images, labels)


def _retrieval(split: _Split) -> Retrieval:
    captions: list[str] = []
    right: list[np.ndarray] = []
    for row, texts in enumerate(split.texts):
        where = f"{split.images.key}: {split.images.names[row]} in {split.images.folder}"
        try:
            own = [line.strip() for line in lines_of(decoded(texts.get("txt", b""))) if line.strip()]
        except ValueError as error:
            raise UserError(f"{where}: its .txt is not UTF-8: {error}; write it anew") from None
        if not own:
            raise UserError(f"{where} has no caption; write them into its .txt, one a line")
        right.append(np.arange(len(captions), len(captions) + len(own)))
        captions += own
    return Retrieval(split.images, captions, right)
