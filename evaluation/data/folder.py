"""Folders of images by class, `test/dogs/rex.jpg`: ImageNet and its shifts, and whatever else is packed so.

Where `path` has folders train, val or test, they are the splits: the test is `test`, or, as ImageNet has it, `val` where no
`test` has class folders. Else `path` itself has the folders of the classes and is the test. A class is a folder with images at
any depth below it, or an empty one, in any split: where the test has no image of it, scores leave it out of `mean_per_class`
and name it. Class folders are sorted as text, capitals first, and as numbers where all are numbers. With `labels` a file says of
which class each image is, and folders mean nothing.
"""

import csv
import io
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from evaluation.class_sets import ClassSet
from evaluation.data.base import Content, LabelledImages
from evaluation.data.class_names import NamedSettings, positions, readable
from evaluation.data.files import FileImages, changes, files_in, fingerprint, read_text
from pipelines.dataset.image_formats import is_hidden, is_image
from pipelines.io import storage
from pipelines.io.storage import File
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from pipelines.program.text_lines import lines_of

_SPLITS = ("test", "val", "train")
_LAYOUT = "a folder of images for every class, or test/ and train/ with such folders"


class FolderData(NamedSettings):
    """Images in a folder for every class, or with a file of labels."""

    name: Literal["folder"]
    path: Place = Field(description="folder with the classes' folders, or with test (or val) and train, which have them")
    labels: Place | None = Field(
        None,
        description="file that says of which class each image below path is: .csv has FILE,LABEL lines, any other one LABEL a"
        " line in the order of the sorted files; a label is a class's name, or its number from 0",
    )

    def read(self, key: str) -> Content:
        """A classification, with `train`, and `val` beside `test`, where they are there. Raises `UserError`."""
        files = files_in(self.path, key, _LAYOUT)
        known = self.known(key)
        if self.labels is not None:
            return self._by_file(key, known, files, self.labels)
        found = {split: images for split in _SPLITS if (images := _by_folder(files, f"{split}/"))}
        if list(found) == ["train"]:
            raise UserError(f"{key}: {self.path} has no images in test or val, only in train; put there: {_LAYOUT}")
        roots = {split: f"{split}/" for split in found} or {"test": ""}
        found = found or {"test": _by_folder(files, "")}
        folders = _sorted({folder for images in found.values() for folder in images} | self._empty(files, roots))
        if known is not None and known.folders is not None:
            folders = self._scored(key, known, folders)
        if not folders:
            raise UserError(f"{key}: {self.path} has no images in folders of classes; put there: {_LAYOUT}")
        numbers = np.arange(len(folders)) if known is None else positions(folders, known, key, str(self.path))
        order = {folder: int(number) for folder, number in zip(folders, numbers, strict=True)}
        parts = {split: self._labelled(key, files, roots[split], images, order) for split, images in found.items()}
        test = parts.pop("test" if "test" in parts else "val")
        if len(test.labels) == 0:
            raise UserError(f"{key}: the test in {self.path} has no images in folders of classes; put there: {_LAYOUT}")
        given = [readable(folder) for folder in folders]
        return Content({"": self.classification(known, given, test, parts.get("train"), parts.get("val"))})

    def _empty(self, files: dict[str, File], roots: dict[str, str]) -> set[str]:
        """Folders with nothing in them, which are on a disk even so; an object store has no such folders."""
        if not isinstance(self.path, Path):
            return set()
        full = {name[: name.find("/", len(root))] for root in roots.values() for name in files if name.startswith(root)}
        return {
            place.name
            for root in roots.values()
            for place in (self.path / root).iterdir()
            if place.is_dir() and root + place.name not in full and not is_hidden(f"{place.name}/")
        }

    def _scored(self, key: str, known: ClassSet, folders: list[str]) -> list[str]:
        """The folders of the set's classes, among others."""
        missing = [folder for folder in known.folders or () if folder not in folders]
        if missing:
            raise UserError(
                f"{key}: {self.path} has no folder '{missing[0]}' ({len(missing)} of the {len(known.classes)} classes of "
                f"{known.name} have none); complete the copy"
            )
        return list(known.folders or ())

    def _labelled(
        self, key: str, files: dict[str, File], root: str, images: dict[str, list[str]], order: dict[str, int]
    ) -> LabelledImages:
        rows = [(name, order[folder]) for folder in _sorted(set(images)) if folder in order for name in images[folder]]
        labels = np.asarray([label for _, label in rows], dtype=np.int64)
        folder = storage.join(self.path, root.rstrip("/")) if root else self.path
        changed = changes((root + name for name, _ in rows), files)
        digest = fingerprint([*changed, labels.tolist()])
        return LabelledImages(FileImages(key, folder, tuple(name for name, _ in rows), digest), labels)

    def _by_file(self, key: str, known: ClassSet | None, files: dict[str, File], path: Place) -> Content:
        names = [name for name in files if is_image(name)]
        given = _read_labels(path, names, key, self.path)
        labels, classes = _numbers(given, known, key, path)
        digest = fingerprint([*changes(names, files), labels.tolist()])
        test = LabelledImages(FileImages(key, self.path, tuple(names), digest), labels)
        return Content({"": self.classification(known, classes, test)})


def _by_folder(files: dict[str, File], root: str) -> dict[str, list[str]]:
    """Images of each class's folder, named from the split's folder on."""
    found: dict[str, list[str]] = {}
    for name in files:
        if name.startswith(root) and is_image(name) and "/" in name[len(root) :]:
            found.setdefault(name[len(root) :].partition("/")[0], []).append(name[len(root) :])
    return found


def _sorted(folders: set[str]) -> list[str]:
    numbers = all(folder.isdecimal() for folder in folders)
    return sorted(folders, key=lambda folder: (int(folder), folder) if numbers else (0, folder))


def _read_labels(path: Place, names: list[str], key: str, folder: Place) -> list[str]:
    """The label of each image. Raises `UserError` unless there is one for each."""
    text = read_text(path, f"{key}.labels", "a label an image")
    if not str(path).lower().endswith(".csv"):
        given = [line.strip() for line in lines_of(text) if line.strip()]
        if len(given) != len(names):
            raise UserError(
                f"{key}.labels: {path} has {len(given)} labels for {len(names)} images in {folder}; give one an image"
            )
        return given
    rows = [[value.strip() for value in row] for row in csv.reader(io.StringIO(text, newline="")) if row]
    if any(len(row) != 2 for row in rows):
        wrong = next(row for row in rows if len(row) != 2)
        raise UserError(f"{key}.labels: {path} has the line '{','.join(wrong)}'; every line must be FILE,LABEL")
    of_file = dict(rows[1:] if rows and rows[0][0] not in names else rows)  # a first line that names no image is a header
    without = [name for name in names if name not in of_file]
    unknown = [name for name in of_file if name not in set(names)]
    if without or unknown:
        what = f"'{without[0]}' has no label" if without else f"'{unknown[0]}' is no image there"
        raise UserError(
            f"{key}.labels: {path} has {len(of_file)} labels for {len(names)} images in {folder}, and {what}; give each one"
        )
    return [of_file[name] for name in names]


def _numbers(given: list[str], known: ClassSet | None, key: str, path: Place) -> tuple[np.ndarray, list[str]]:
    """Class numbers of labels, and, without a class set, what the classes are called."""
    if known is None:
        classes = _sorted(set(given))
        order = {name: position for position, name in enumerate(classes)}
        return np.asarray([order[label] for label in given], dtype=np.int64), [readable(name) for name in classes]
    count = len(known.classes)
    if all(label.isdecimal() for label in given):
        numbers = np.asarray([int(label) for label in given], dtype=np.int64)
        if len(numbers) and numbers.max() >= count:
            raise UserError(
                f"{key}.labels: {path} has the label {numbers.max()}; the {count} classes of {known.name} have the numbers 0 to "
                f"{count - 1}, in this order: {known.order}"
            )
        return numbers, []
    places = {name: position for position, names in enumerate(known.classes) for name in names}
    unknown = [label for label in given if label not in places]
    if unknown:
        raise UserError(f"{key}.labels: {path} has the label '{unknown[0]}', which {known.name} does not know; numbers always do")
    return np.asarray([places[label] for label in given], dtype=np.int64), []
