"""The shipped class names: published sizes, the same facts in other packages, and the papers' metric and average."""

import importlib.util
import runpy
from pathlib import Path

import pytest

from evaluation.class_sets import ELEVEN, FOLDER, average_of_eleven, class_set, known_sets
from tests.refusals import refused

# Classes and CLIP's templates of each set (its paper's table 9; the shifts have ImageNet's templates).
SIZES = {
    **{"food101": (101, 1), "cifar10": (10, 18), "cifar100": (100, 18), "sun397": (397, 2), "cars": (196, 8)},
    **{"aircraft": (100, 2), "dtd": (47, 8), "pets": (37, 1), "caltech101": (102, 34), "flowers": (102, 1)},
    **{"imagenet": (1000, 80), "imagenet-v2": (1000, 80), "imagenet-sketch": (1000, 80)},
    **{"imagenet-r": (200, 80), "imagenet-a": (200, 80), "objectnet": (113, 80)},
}


def beside(package: str) -> Path:
    """Folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def test_every_set_has_its_published_size() -> None:
    found = {name: class_set(name) for name in known_sets()}
    assert {name: (len(s.classes), len(s.templates)) for name, s in found.items()} == SIZES
    for name, s in found.items():
        assert s.title and s.source and s.licence and s.order, name
        assert all("{}" in template for template in s.templates), name
        assert all(entry and all(n == n.strip() and n for n in entry) for entry in s.classes), name


def test_the_papers_report_four_sets_by_mean_per_class() -> None:
    per_class = {name for name in known_sets() if class_set(name).metric == "mean_per_class"}
    assert per_class == {"pets", "caltech101", "flowers", "aircraft"}
    assert {class_set(name).metric for name in set(known_sets()) - per_class} == {"top1"}


@pytest.mark.parametrize("name", sorted(SIZES))
def test_no_two_classes_share_a_name(name: str) -> None:
    """But for two pairs of ImageNet's, which CLIP's list has."""
    names = [n for entry in class_set(name).classes for n in entry]
    twice = {n for n in names if names.count(n) > 1}
    assert twice <= ({"missile", "sunglasses"} if name.startswith("imagenet") else set())


def test_imagenet_is_what_open_clip_ships() -> None:
    shipped = runpy.run_path(str(beside("open_clip") / "zero_shot_metadata.py"))
    ours = class_set("imagenet")
    assert [entry[0] for entry in ours.classes] == list(shipped["IMAGENET_CLASSNAMES"])
    theirs = [template("quokka") for template in shipped["OPENAI_IMAGENET_TEMPLATES"]]
    assert [template.replace("{}", "quokka") for template in ours.templates] == theirs


@pytest.mark.parametrize("letter", ["r", "a"])
def test_positions_of_imagenets_subsets_are_what_timm_ships(letter: str) -> None:
    theirs = (beside("timm") / "data" / "_info" / f"imagenet_{letter}_indices.txt").read_text().split()
    ours = class_set(f"imagenet-{letter}")
    assert ours.imagenet == tuple((int(i),) for i in theirs)
    names = class_set("imagenet").classes
    assert ours.classes == tuple(names[int(i)] for i in theirs)


def test_flowers_are_numbered_as_torchvision_numbers_them() -> None:
    """Three have other names there: globe-flower, pink-yellow dahlia?, ball moss."""
    from torchvision.datasets import Flowers102

    differ = [ours[0] for ours, theirs in zip(class_set("flowers").classes, Flowers102.classes, strict=True) if ours[0] != theirs]
    assert differ == ["globe flower", "pink and yellow dahlia", "air plant"]


def test_objectnets_classes_cover_imagenet_classes_once_and_lie_in_sorted_folders() -> None:
    found = class_set("objectnet")
    assert found.imagenet is not None and found.folders is not None
    positions = [p for entry in found.imagenet for p in entry]
    assert len(positions) == len(set(positions)) == 125 and set(positions) < set(range(1000))
    assert list(found.folders) == sorted(found.folders) and len(found.folders) == len(found.classes)
    imagenet = class_set("imagenet").classes
    as_imagenet = {n[0]: [imagenet[p][0] for p in ps] for n, ps in zip(found.classes, found.imagenet, strict=True)}
    assert as_imagenet["chair"] == ["barber chair", "folding chair", "rocking chair"]
    assert as_imagenet["alarm clock"] == ["analog clock", "digital clock"]
    assert dict(zip(found.folders, found.classes, strict=True))["butchers_knife"] == ("butcher's knife",)


def test_shifts_of_all_of_imagenet_have_its_classes_and_ordinary_sets_have_no_positions() -> None:
    v2 = class_set("imagenet-v2")
    assert v2.classes == class_set("imagenet").classes and v2.imagenet == tuple((i,) for i in range(1000))
    assert class_set("pets").imagenet is None


def test_the_average_is_of_all_eleven_or_none() -> None:
    """CLIP's row of MCD's table 1, printed there with the average 27.5."""
    row = [19.4, 62.3, 33.6, 40.2, 33.7, 6.3, 2.1, 55.4, 1.4, 16.9, 31.3]
    values = dict(zip(ELEVEN, row, strict=True)) | {"imagenet-r": 90.0}
    assert average_of_eleven(values) == pytest.approx(27.5, abs=0.05)
    del values["dtd"]
    assert average_of_eleven(values) is None


def test_an_unknown_set_is_named_with_the_way_out() -> None:
    with refused("classes", "'cifar'", remedy="'cifar10'"):
        class_set("cifar")
    with refused("classes", "'../x'", remedy=", ".join(known_sets())):
        class_set("../x")


def test_files_are_plain_ascii() -> None:
    assert all(path.read_bytes().isascii() for path in FOLDER.iterdir())
