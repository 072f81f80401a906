"""Classification sets on disk in the layouts that torchvision reads; nothing is downloaded.

Class numbers are mapped to the shipped class set by torchvision's class names: it sorts Pets in another order, and leaves out
Caltech-101's background. Test splits are the official ones, with exceptions: ImageNet's is its validation split, and torchvision
has no splits of SUN397 and Caltech-101, so that all their images are the test split and probes have none (for the splits of
papers, sort the images into a `folder`). DTD uses the first of its ten partitions.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from pydantic import Field

from evaluation.class_sets import class_set
from evaluation.data.base import Classification, Content, LabelledImages
from evaluation.data.class_names import Templates, match_classes
from evaluation.data.files import FileImages, changes, files_in, fingerprint
from pipelines.dataset.image_formats import is_hidden
from pipelines.program.errors import UserError
from pipelines.program.path_keys import LocalPlace
from pipelines.program.settings_base import Settings


class _Part(NamedTuple):
    """A split: its folder below the root, and the arguments of torchvision's class."""

    folder: str
    arguments: dict[str, Any]


class _Set(NamedTuple):
    """A set, and the class of torchvision.datasets that reads it."""

    cls: str
    source: str  # what to put below the root, and from where
    test: _Part
    train: _Part | None = None
    validation: _Part | None = None


def _split(folder: str, split: str) -> _Part:
    return _Part(folder, {"split": split})


_CIFAR = "cifar-{}-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html, unpacked"
_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
_PET, _FOOD, _FLOWERS, _CARS = "oxford-iiit-pet", "food-101", "flowers-102", "stanford_cars"
_SETS = {
    "cifar10": _Set(
        "CIFAR10",
        _CIFAR.format(10),
        _Part("cifar-10-batches-py", {"train": False}),
        _Part("cifar-10-batches-py", {"train": True}),
    ),
    "cifar100": _Set(
        "CIFAR100",
        _CIFAR.format(100),
        _Part("cifar-100-python", {"train": False}),
        _Part("cifar-100-python", {"train": True}),
    ),
    "pets": _Set(
        "OxfordIIITPet",
        f"oxford-iiit-pet/images and oxford-iiit-pet/annotations, from images.tar.gz and annotations.tar.gz of {_VGG}/pets/",
        _split(_PET, "test"),
        _split(_PET, "trainval"),
    ),
    "food101": _Set(
        "Food101",
        "food-101.tar.gz of https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/, unpacked",
        _split(_FOOD, "test"),
        _split(_FOOD, "train"),
    ),
    "flowers": _Set(
        "Flowers102",
        f"flowers-102/jpg (from 102flowers.tgz), flowers-102/imagelabels.mat and flowers-102/setid.mat of {_VGG}/flowers/102/",
        _split(_FLOWERS, "test"),
        _split(_FLOWERS, "train"),
        _split(_FLOWERS, "val"),
    ),
    "cars": _Set(
        "StanfordCars",
        "stanford_cars with cars_test, cars_train, devkit and cars_test_annos_withlabels.mat of the Stanford Cars (its page, "
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html, no longer has them)",
        _split(f"{_CARS}/cars_test", "test"),
        _split(f"{_CARS}/cars_train", "train"),
    ),
    "caltech101": _Set(
        "Caltech101",
        "caltech101/101_ObjectCategories, from caltech-101.zip of https://data.caltech.edu/records/mzrjq-6wc02",
        _Part("caltech101/101_ObjectCategories", {}),
    ),
    "aircraft": _Set(
        "FGVCAircraft",
        f"fgvc-aircraft-2013b.tar.gz of {_VGG}/fgvc-aircraft/, unpacked",
        _split("fgvc-aircraft-2013b", "test"),
        _split("fgvc-aircraft-2013b", "train"),
        _split("fgvc-aircraft-2013b", "val"),
    ),
    "dtd": _Set(
        "DTD",
        f"dtd/dtd, from dtd-r1.0.1.tar.gz of {_VGG}/dtd/",
        _split("dtd/dtd", "test"),
        _split("dtd/dtd", "train"),
        _split("dtd/dtd", "val"),
    ),
    "sun397": _Set("SUN397", "SUN397.tar.gz of https://vision.princeton.edu/projects/2010/SUN/, unpacked", _Part("SUN397", {})),
    "imagenet": _Set(
        "ImageNet",
        "val (train for probes) with a folder a class, and ILSVRC2012_devkit_t12.tar.gz, of "
        "https://image-net.org/challenges/LSVRC/2012/; without the devkit, use name=folder with classes=imagenet",
        _split("val", "val"),
        _split("train", "train"),
    ),
}


class TorchvisionData(Settings):
    """One of torchvision's datasets, on disk."""

    name: Literal["torchvision"]
    dataset: Literal[
        "cifar10", "cifar100", "pets", "food101", "flowers", "cars", "caltech101", "aircraft", "dtd", "sun397", "imagenet"
    ] = Field(description="the set, by the name of its shipped class set")
    path: LocalPlace = Field(description="torchvision's root: the folder that contains the set's folder")
    templates: Templates | None = Field(
        None, description="prompts of a class; {} or {c} is its name; null: those of the class set"
    )

    def read(self, key: str) -> Content:
        """A classification with the shipped names, and with the splits for probes that are on disk. Raises `UserError`."""
        layout, shipped = _SETS[self.dataset], class_set(self.dataset)

        def optional(part: _Part | None) -> LabelledImages | None:
            return self._labelled(key, layout, part) if part is not None and (self.path / part.folder).is_dir() else None

        test = self._labelled(key, layout, layout.test)
        templates, others = self.templates or shipped.templates, (optional(layout.train), optional(layout.validation))
        return Content({"": Classification(shipped.classes, templates, shipped.metric, test, *others, shipped.imagenet)})

    def _labelled(self, key: str, layout: _Set, part: _Part) -> LabelledImages:
        folder, remedy = self.path / part.folder, f"put into {self.path}: {layout.source}"
        if not folder.is_dir():
            raise UserError(f"{key}.path", f"{self.path} has no {part.folder}", remedy)
        try:
            dataset = _load(layout.cls, self.path, **part.arguments)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            # torchvision recommends a download, which evaluation never does.
            reason = str(error).partition(" You can use download=True")[0]
            raise UserError(f"{key}.path", f"torchvision cannot read {layout.cls} in {self.path}: {reason}", remedy) from None
        source = f"torchvision's {layout.cls} in {self.path}"
        order = match_classes(_names(dataset), class_set(self.dataset), key, source)
        root = self.path / part.folder.partition("/")[0]
        files = files_in(root, key, layout.source)
        if layout.cls.startswith("CIFAR"):
            numbers = np.asarray(dataset.targets, dtype=np.int64)
            digest = fingerprint([*changes(files, files), part.arguments])
            return LabelledImages(_Cifar(layout.cls, self.path, part.arguments["train"], len(numbers), digest), order[numbers])
        listed = sorted((str(Path(file).relative_to(root)), label) for file, label in _rows(dataset))
        rows = [(name, label) for name, label in listed if not is_hidden(name)]  # SUN397 is a search, which finds hidden files
        names = [name for name, _ in rows]
        missing = [name for name in names if name not in files]
        if missing:
            problem = f"{folder} lacks '{missing[0]}' ({len(missing)} of {len(names)} images are missing)"
            raise UserError(f"{key}.path", problem, remedy)
        labels = order[np.asarray([label for _, label in rows], dtype=np.int64)]
        digest = fingerprint([*changes(names, files), labels.tolist()])
        return LabelledImages(FileImages(key, root, tuple(names), digest), labels)


def _names(dataset: Any) -> list[str]:
    """torchvision's class names, in the order of the numbers that `_rows` returns."""
    if hasattr(dataset, "categories"):
        return [
            "BACKGROUND_Google",
            *dataset.categories,
        ]  # background first, as others number them
    return [str(name) for name in getattr(dataset, "wnids", dataset.classes)]


def _rows(dataset: Any) -> list[tuple[str, int]]:
    """File and class number of every image, for which torchvision's classes have several attributes."""
    if hasattr(dataset, "categories"):
        folder = Path(dataset.root) / "101_ObjectCategories"
        rows = zip(dataset.index, dataset.y, strict=True)
        return [(str(folder / dataset.categories[c] / f"image_{number:04d}.jpg"), c + 1) for number, c in rows]
    for name in ("_samples", "samples"):
        if hasattr(dataset, name):
            return [(str(file), int(label)) for file, label in getattr(dataset, name)]
    files = dataset._images if hasattr(dataset, "_images") else dataset._image_files
    return [(str(file), int(label)) for file, label in zip(files, dataset._labels, strict=True)]


def _load(cls: str, path: Path, **arguments: Any) -> Any:
    # Imported here because evaluation works without torch.
    import torchvision.datasets  # type: ignore[import-untyped]

    return getattr(torchvision.datasets, cls)(root=str(path), **arguments)


_pixels = functools.lru_cache(maxsize=2)(_load)


@dataclass(eq=False)
class _Cifar:
    """Images of CIFAR, whose files hold thousands each: the process that uses them reads and keeps them."""

    cls: str
    path: Path
    train: bool
    count: int
    fingerprint: str

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{'train' if self.train else 'test'} {index}"

    def read(self, indices: np.ndarray) -> Iterator[Image.Image]:
        data = _pixels(self.cls, self.path, train=self.train).data
        for index in indices:
            yield Image.fromarray(data[index])
