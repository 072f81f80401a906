"""Folders of images by class, `test/dogs/rex.jpg`: ImageNet, its shifts, and other sets in this layout.

Folders train, val and test in `path` are its splits. The test split is `test`, or, as in ImageNet, `val` where `test` has no
class folders. Without splits, `path` itself has the folders of the classes, and all of it is the test split. A class is a folder
with images at any depth below it, or an empty one, in any split: where the test split has no image of it, `mean_per_class` leaves
it out and the result names it. Class folders are sorted as text, capitals first, or as numbers where all are numbers. With
`labels`, a file gives the class of each image, and folders have no meaning.
"""

import csv
import io
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from evaluation.class_sets import ClassSet
from evaluation.data.base import Content, LabelledImages
from evaluation.data.class_names import ClassNameSettings, match_classes, readable
from evaluation.data.files import FileImages, changes, files_in, fingerprint, read_text
from pipelines.dataset.image_formats import is_hidden, is_image
from pipelines.io import storage
from pipelines.io.storage import File
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from pipelines.program.text_lines import lines_of

_SPLITS = ("test", "val", "train")
_LAYOUT = "a folder of images for every class, or test/ and train/ with such folders"


class FolderData(ClassNameSettings):
    """Images in one folder per class, or with a file of labels."""

    name: Literal["folder"]
    path: Place = Field(description="folder with the classes' folders, or with test (or val) and train, which have them")
    labels: Place | None = Field(
        None,
        description="file with the class of each image below path: .csv has FILE,LABEL lines, any other one LABEL per line in the"
        " order of the sorted files; a label is a class's name, or its number from 0",
    )

    def read(self, key: str) -> Content:
        """A classification, with `train`, and `val` beside `test`, where they exist. Raises `UserError`."""
        files = files_in(self.path, key, _LAYOUT)
        shipped = self.class_set(key)
        if self.labels is not None:
            return self._by_file(key, shipped, files, self.labels)
        by_split = {split: images for split in _SPLITS if (images := _by_folder(files, f"{split}/"))}
        remedy = f"put there: {_LAYOUT}"
        if list(by_split) == ["train"]:
            raise UserError(key, f"{self.path} has no images in test or val, only in train", remedy)
        roots = {split: f"{split}/" for split in by_split} or {"test": ""}
        by_split = by_split or {"test": _by_folder(files, "")}
        folders = _sorted({folder for images in by_split.values() for folder in images} | self._empty(files, roots))
        if shipped is not None and shipped.folders is not None:
            folders = self._scored(key, shipped, folders)
        if not folders:
            raise UserError(key, f"{self.path} has no images in folders of classes", remedy)
        numbers = np.arange(len(folders)) if shipped is None else match_classes(folders, shipped, key, str(self.path))
        order = {folder: int(number) for folder, number in zip(folders, numbers, strict=True)}
        parts = {split: self._labelled(key, files, roots[split], images, order) for split, images in by_split.items()}
        test = parts.pop("test" if "test" in parts else "val")
        if len(test.labels) == 0:
            raise UserError(key, f"the test split in {self.path} has no images in folders of classes", remedy)
        names = [readable(folder) for folder in folders]
        return Content({"": self.classification(shipped, names, test, parts.get("train"), parts.get("val"))})

    def _empty(self, files: dict[str, File], roots: dict[str, str]) -> set[str]:
        """Empty class folders, which exist on a disk but not in an object store."""
        if not isinstance(self.path, Path):
            return set()
        with_files = {name[: name.find("/", len(root))] for root in roots.values() for name in files if name.startswith(root)}
        return {
            folder.name
            for root in roots.values()
            for folder in (self.path / root).iterdir()
            if folder.is_dir() and root + folder.name not in with_files and not is_hidden(f"{folder.name}/")
        }

    def _scored(self, key: str, shipped: ClassSet, folders: list[str]) -> list[str]:
        """The folders of the shipped set's classes. Other folders are ignored."""
        missing = [folder for folder in shipped.folders or () if folder not in folders]
        if missing:
            count = f"{len(missing)} of the {len(shipped.classes)} classes of {shipped.name} have none"
            raise UserError(key, f"{self.path} has no folder '{missing[0]}' ({count})", "complete the copy")
        return list(shipped.folders or ())

    def _labelled(
        self, key: str, files: dict[str, File], root: str, images: dict[str, list[str]], order: dict[str, int]
    ) -> LabelledImages:
        rows = [(name, order[folder]) for folder in _sorted(set(images)) if folder in order for name in images[folder]]
        labels = np.asarray([label for _, label in rows], dtype=np.int64)
        folder = storage.join(self.path, root.rstrip("/")) if root else self.path
        changed = changes((root + name for name, _ in rows), files)
        digest = fingerprint([*changed, labels.tolist()])
        return LabelledImages(FileImages(key, folder, tuple(name for name, _ in rows), digest), labels)

    def _by_file(self, key: str, shipped: ClassSet | None, files: dict[str, File], path: Place) -> Content:
        images = [name for name in files if is_image(name)]
        numbers, classes = _numbers(_read_labels(path, images, key, self.path), shipped, key, path)
        digest = fingerprint([*changes(images, files), numbers.tolist()])
        test = LabelledImages(FileImages(key, self.path, tuple(images), digest), numbers)
        return Content({"": self.classification(shipped, classes, test)})


def _by_folder(files: dict[str, File], root: str) -> dict[str, list[str]]:
    """Images by class folder, with paths relative to the split's folder."""
    images: dict[str, list[str]] = {}
    for name in files:
        if name.startswith(root) and is_image(name) and "/" in name[len(root) :]:
            images.setdefault(name[len(root) :].partition("/")[0], []).append(name[len(root) :])
    return images


def _sorted(folders: set[str]) -> list[str]:
    numbers = all(folder.isdecimal() for folder in folders)
    return sorted(folders, key=lambda folder: (int(folder), folder) if numbers else (0, folder))


def _read_labels(path: Place, images: list[str], key: str, folder: Place) -> list[str]:
    """The label of each image. Raises `UserError` unless there is exactly one for each."""
    key = f"{key}.labels"
    text = read_text(path, key, "one label for each image")
    remedy = "give exactly one for each image"
    if not str(path).lower().endswith(".csv"):
        labels = [line.strip() for line in lines_of(text) if line.strip()]
        if len(labels) != len(images):
            raise UserError(key, f"{path} has {len(labels)} labels for {len(images)} images in {folder}", remedy)
        return labels
    rows = [[value.strip() for value in row] for row in csv.reader(io.StringIO(text, newline="")) if row]
    wrong = next((row for row in rows if len(row) != 2), None)
    if wrong is not None:
        raise UserError(key, f"{path} has the line '{','.join(wrong)}'", "write every line as FILE,LABEL")
    of_file = dict(rows[1:] if rows and rows[0][0] not in images else rows)  # a first line that names no image is a header
    unlabelled = [name for name in images if name not in of_file]
    unknown = [name for name in of_file if name not in set(images)]
    if unlabelled or unknown:
        example = f"'{unlabelled[0]}' has no label" if unlabelled else f"'{unknown[0]}' is no image there"
        raise UserError(key, f"{path} has {len(of_file)} labels for {len(images)} images in {folder}, and {example}", remedy)
    return [of_file[name] for name in images]


def _numbers(labels: list[str], shipped: ClassSet | None, key: str, path: Place) -> tuple[np.ndarray, list[str]]:
    """Class numbers of labels, and, without a class set, the names of the classes."""
    if shipped is None:
        classes = _sorted(set(labels))
        order = {name: position for position, name in enumerate(classes)}
        return np.asarray([order[label] for label in labels], dtype=np.int64), [readable(name) for name in classes]
    key, count = f"{key}.labels", len(shipped.classes)
    remedy = f"number the {count} classes from 0 to {count - 1} in the order of {shipped.name}: {shipped.order}"
    if all(label.isdecimal() for label in labels):
        numbers = np.asarray([int(label) for label in labels], dtype=np.int64)
        if len(numbers) and numbers.max() >= count:
            raise UserError(key, f"{path} has the label {numbers.max()}, and {shipped.name} has {count} classes", remedy)
        return numbers, []
    positions = {name: position for position, names in enumerate(shipped.classes) for name in names}
    unknown = [label for label in labels if label not in positions]
    if unknown:
        raise UserError(key, f"{path} has the label '{unknown[0]}', which is no class name of {shipped.name}", remedy)
    return np.asarray([positions[label] for label in labels], dtype=np.int64), []
