"""CLIP_benchmark's layout of evaluation sets: WebDataset tars by split, and text files with classes and templates.

path/test/nshards.txt, 0.tar, 1.tar, ... and likewise train and val, which are for probes and may be missing; path/classnames.txt
and zeroshot_classification_templates.txt, one class or template per line; path/dataset_type.txt, with `retrieval` where the tars
hold captions. A sample is an image and a class number (.cls) or captions, one per line (.txt).
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
from pydantic import Field

from evaluation.class_sets import ClassSet
from evaluation.data.base import Content, LabelledImages, Retrieval
from evaluation.data.class_names import PLAIN_TEMPLATES, ClassNameSettings, match_classes
from evaluation.data.files import FileImages, changes, files_in, fingerprint, read_text
from pipelines.dataset.image_formats import EXTENSIONS
from pipelines.io import storage
from pipelines.io.image_bytes import Location
from pipelines.io.storage import File, Missing
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from pipelines.program.text_lines import decoded, lines_of
from pipelines.sources.tar_samples import Member, Sample, index

# The first of several counts, as in CLIP_benchmark.
_IMAGES = tuple(dict.fromkeys(("webp", "png", "jpg", "jpeg", *(extension.removeprefix(".") for extension in EXTENSIONS))))
_CLASSES, _TEMPLATES, _TYPE = "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"
_LAYOUT = "CLIP_benchmark's layout: test/nshards.txt, test/0.tar, ..., classnames.txt (clip_benchmark_export_wds writes it)"


class WebdatasetData(ClassNameSettings):
    """CLIP_benchmark's webdataset layout: tars by split, with class numbers or captions."""

    name: Literal["webdataset"]
    path: Place = Field(description="folder with test/nshards.txt, test/0.tar, ..., classnames.txt")

    def read(self, key: str) -> Content:
        """A retrieval set, or a classification with `train` and `val` where they exist. Raises `UserError`.

        Class numbers are those of classnames.txt. With `classes`, they are mapped to the class set's by name.
        """
        files = files_in(self.path, key, _LAYOUT)
        kind = self._text(key, files, _TYPE).strip().lower()
        if kind not in ("", "classification", "retrieval"):
            problem = f"{_TYPE} of {self.path} says '{kind}', which is not supported"
            raise UserError(key, problem, "give a set whose type is retrieval or classification")
        test = _read_split(self.path, "test", files, key)
        if kind == "retrieval":
            return Content(retrieval=_retrieval(test))
        shipped = self.class_set(key)
        names = self._lines(key, files, _CLASSES)
        if shipped is None and not names:
            remedy = f"put it there, with one class per line, or name a shipped set with {key}.classes"
            raise UserError(key, f"{self.path} has no {_CLASSES}", remedy)
        order = self._order(key, shipped, names)
        templates = [line for line in self._lines(key, files, _TEMPLATES) if line]

        def optional(split: str) -> LabelledImages | None:
            exists = any(name.startswith(f"{split}/") for name in files)
            return _labelled(_read_split(self.path, split, files, key), order) if exists else None

        self._check(key, templates)
        parts = _labelled(test, order), optional("train"), optional("val")
        return Content({"": self.classification(shipped, names, *parts, templates or PLAIN_TEMPLATES)})

    def _order(self, key: str, shipped: ClassSet | None, names: list[str]) -> np.ndarray:
        """The class of each class number."""
        if shipped is None or not names:
            return np.arange(len(shipped.classes if shipped else names))
        return match_classes(names, shipped, key, f"{_CLASSES} of {self.path}")

    def _check(self, key: str, templates: list[str]) -> None:
        for template in templates:
            if "{c}" not in template and "{}" not in template:
                problem = f"'{template}' in {_TEMPLATES} of {self.path} has no place for the name of the class"
                raise UserError(key, problem, "write {c} there")

    def _text(self, key: str, files: dict[str, File], name: str) -> str:
        return read_text(files[name].path, key, _LAYOUT) if name in files else ""

    def _lines(self, key: str, files: dict[str, File], name: str) -> list[str]:
        lines = [line.strip() for line in lines_of(self._text(key, files, name).rstrip())]
        if name == _CLASSES and "" in lines:
            problem = f"line {lines.index('') + 1} of {_CLASSES} in {self.path} is empty"
            raise UserError(key, problem, "write the name of a class there")
        return lines


@dataclass(eq=False)
class _Members(FileImages):
    """Images that are members of tars, with `names` such as `test/0.tar/s0000001.png`."""

    tars: tuple[str, ...]
    tar_of: np.ndarray  # int [n]
    starts: np.ndarray  # int64 [n], first byte in the tar
    lengths: np.ndarray  # int64 [n]

    def location(self, index: int) -> Location:
        return Location(self.tars[self.tar_of[index]], int(self.starts[index]), int(self.lengths[index]))


@dataclass(frozen=True)
class _Split:
    """A split's images, and the bytes of their labels or captions."""

    images: _Members
    texts: list[dict[str, bytes]]  # by extension: cls, txt; npy (empty) marks a sample of several classes


def _read_split(path: Place, split: str, files: dict[str, File], key: str) -> _Split:
    tars = _tars(path, split, files, key)
    names: list[str] = []
    locations: list[tuple[int, int, int]] = []
    texts: list[dict[str, bytes]] = []
    for number, name in enumerate(tars):
        for image, others in _samples(path, name, files[name].path, key):
            names.append(f"{name}/{image.name}")
            locations.append((number, image.start, image.length))
            texts.append(others)
    if not names:
        raise UserError(key, f"the tars in {storage.join(path, split)} hold no sample", f"put there: {_LAYOUT}")
    columns = np.asarray(locations, dtype=np.int64).T
    paths = tuple(files[name].path for name in tars)
    return _Split(_Members(key, path, tuple(names), fingerprint(changes(tars, files)), paths, *columns), texts)


def _tars(path: Place, split: str, files: dict[str, File], key: str) -> list[str]:
    """The split's tars in order. Raises `UserError` unless their number is that of nshards.txt."""
    name = f"{split}/nshards.txt"
    if name not in files:
        raise UserError(key, f"{storage.join(path, split)} has no nshards.txt", f"put there: {_LAYOUT}")
    text = read_text(files[name].path, key, _LAYOUT).strip()
    if not text.isdecimal():
        raise UserError(key, f"{files[name].path} says '{text}'", "write the number of tars beside it there")
    tars = [f"{split}/{number}.tar" for number in range(int(text))]
    missing = [tar for tar in tars if tar not in files]
    extra = [tar for tar in files if tar.startswith(f"{split}/") and tar.endswith(".tar") and tar not in tars]
    if missing or extra:
        difference = f"{missing[0]} is missing" if missing else f"there is also {extra[0]}"
        raise UserError(key, f"{files[name].path} says {text} tars, and {difference}", "complete the copy, or correct the number")
    return tars


def _samples(path: Place, name: str, tar: str, key: str) -> Iterator[tuple[Member, dict[str, bytes]]]:
    """The image of each sample of a tar, and the bytes of its labels and captions. Raises `UserError`."""
    try:
        with storage.local_copy(tar) as copy, copy.open("rb") as file:
            content = index(file)
            if content.damage:
                raise UserError(key, f"{name} in {path} is damaged: {content.damage}", "copy it again")
            for sample_name, sample in content.samples.items():
                image = _image(sample)
                if image is None or sample.repeated:
                    wrong = f"two members .{next(iter(sample.repeated))}" if sample.repeated else f"no {', '.join(_IMAGES)}"
                    problem = f"sample {sample_name} of {name} in {path} has {wrong}, only .{', .'.join(sample.members)}"
                    raise UserError(key, problem, "write the tar again")
                texts = {kind: _bytes(file, sample.members[kind]) for kind in ("cls", "txt") if kind in sample.members}
                yield image, texts | ({"npy": b""} if "npy" in sample.members else {})
    except (Missing, PermissionError, tarfile.TarError) as error:
        raise UserError(key, f"{name} in {path} cannot be read as a tar: {error}", "copy it again") from None


def _image(sample: Sample) -> Member | None:
    return next((sample.members[kind] for kind in _IMAGES if kind in sample.members), None)


def _bytes(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.start)
    return file.read(member.length)


def _labelled(split: _Split, order: np.ndarray) -> LabelledImages:
    """Images and their classes. `order`: the class of each class number, int64 [C]."""
    images = split.images
    labels = np.empty(len(split.texts), dtype=np.int64)
    for row, texts in enumerate(split.texts):
        sample = f"{images.names[row]} in {images.folder}"
        if "npy" in texts and "cls" not in texts:
            problem = f"{sample} has a .npy of several classes, which is not supported"
            raise UserError(images.key, problem, "give a set with one class per image")
        if "cls" not in texts:
            remedy = f"add .cls with the number of its class; if the set has captions, write retrieval into {_TYPE}"
            raise UserError(images.key, f"{sample} has no .cls", remedy)
        text = texts["cls"].decode("utf-8", "replace").strip()
        if not text.isdecimal() or int(text) >= len(order):
            remedy = f"number the {len(order)} classes from 0 to {len(order) - 1}"
            raise UserError(images.key, f"{sample} is of class '{text}'", remedy)
        labels[row] = order[int(text)]
    return LabelledImages(images, labels)


def _retrieval(split: _Split) -> Retrieval:
    images = split.images
    captions: list[str] = []
    right: list[np.ndarray] = []
    for row, texts in enumerate(split.texts):
        sample = f"{images.names[row]} in {images.folder}"
        try:
            of_image = [line.strip() for line in lines_of(decoded(texts.get("txt", b""))) if line.strip()]
        except ValueError as error:
            raise UserError(images.key, f"the .txt of {sample} is not UTF-8: {error}", "save it as UTF-8") from None
        if not of_image:
            raise UserError(images.key, f"{sample} has no caption", "write its captions into its .txt, one per line")
        right.append(np.arange(len(captions), len(captions) + len(of_image)))
        captions += of_image
    return Retrieval(images, captions, right)
