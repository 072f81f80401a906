"""torchvision's datasets: tiny folders of every layout, with the sets' own names, read by torchvision itself."""

import hashlib
import json
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets as theirs
from scipy.io import savemat

from evaluation.class_sets import class_set
from evaluation.data.torchvision import _SETS, TorchvisionData
from tests.conftest import write_files
from tests.evaluation.images import encoded, numbers, read, told
from tests.refusals import refused

Patch = pytest.MonkeyPatch
Right = list[tuple[int, int]]  # number of an image, and its class among ours


def names(name: str) -> list[str]:
    return [first for first, *_ in class_set(name).classes]


def jpeg(number: int) -> bytes:
    return encoded(number, "JPEG", quality=100)


def cifar(root: Path, patch: Patch, name: str) -> dict[str, Right]:
    """Batches of pickled rows; torchvision knows the real ones by their digests."""
    cls = theirs.CIFAR10 if name == "cifar10" else theirs.CIFAR100
    labels, key = ("labels", "label_names") if name == "cifar10" else ("fine_labels", "fine_label_names")
    classes = [c.replace(" ", "_") for c in names(name)]
    for attribute, files in (("train_list", cls.train_list), ("test_list", cls.test_list)):
        entries = []
        for n, (file, _) in enumerate(files):
            first = 10 * n + (attribute == "test_list") * 100
            rows = np.asarray([np.full(3072, first + k, dtype=np.uint8) for k in range(3)])
            content = pickle.dumps({"data": rows, labels: [(first + k) % len(classes) for k in range(3)]})
            write_files(root, {f"{cls.base_folder}/{file}": content})
            entries.append([file, hashlib.md5(content).hexdigest()])
        patch.setattr(cls, attribute, entries)
    meta = pickle.dumps({key: classes})
    write_files(root, {f"{cls.base_folder}/{cls.meta['filename']}": meta})
    patch.setattr(cls, "meta", cls.meta | {"md5": hashlib.md5(meta).hexdigest()})
    batches = len(cls.train_list)
    train = [(10 * n + k, (10 * n + k) % len(classes)) for n in range(batches) for k in range(3)]
    return {"test": [(100 + k, (100 + k) % len(classes)) for k in range(3)], "train": train}


def pets(root: Path, patch: Patch) -> dict[str, Right]:
    """Ids of classes are alphabetical whatever the case: cats and dogs mixed."""
    ours = names("pets")
    ids = {name: number for number, name in enumerate(sorted(ours, key=str.lower), 1)}
    files = {name: f"{name.replace(' ', '_')}_{7}" for name in ours}
    for split, add in (("test", 0), ("trainval", 100)):
        lines = [f"{file}{split} {ids[name]} 1 1" for name, file in files.items()]
        write_files(root, {f"oxford-iiit-pet/annotations/{split}.txt": "\n".join(lines)})
        images = {f"oxford-iiit-pet/images/{file}{split}.jpg": jpeg(add + ours.index(name)) for name, file in files.items()}
        write_files(root, images)
    return {"test": [(n, n) for n in range(37)], "train": [(100 + n, n) for n in range(37)]}


def food101(root: Path, patch: Patch) -> dict[str, Right]:
    folders = [name.replace(" ", "_") for name in names("food101")]
    for split, add in (("test", 0), ("train", 101)):
        # Not in the order of the classes.
        listed = {folder: [f"{folder}/{split}"] for folder in reversed(folders)}
        write_files(root, {f"food-101/meta/{split}.json": json.dumps(listed)})
        write_files(root, {f"food-101/images/{folder}/{split}.jpg": jpeg(add + n) for n, folder in enumerate(folders)})
    return {"test": [(n, n) for n in range(101)], "train": [(101 + n, n) for n in range(101)]}


def flowers(root: Path, patch: Patch) -> dict[str, Right]:
    base = root / "flowers-102"
    write_files(base, {f"jpg/image_{n:05d}.jpg": jpeg(n) for n in range(1, 8)})
    savemat(base / "setid.mat", {"trnid": [5, 7], "valid": [6, 3], "tstid": [1, 2, 4]})
    savemat(base / "imagelabels.mat", {"labels": [102, 1, 7, 8, 9, 10, 11]})
    digests = {
        key: (file, hashlib.md5((base / file).read_bytes()).hexdigest() if key != "image" else "")
        for key, (file, _) in theirs.Flowers102._file_dict.items()
    }
    patch.setattr(theirs.Flowers102, "_file_dict", digests)
    return {"test": [(1, 101), (2, 0), (4, 7)], "train": [(5, 8), (7, 10)], "validation": [(3, 6), (6, 9)]}


def cars(root: Path, patch: Patch) -> dict[str, Right]:
    base = root / "stanford_cars"
    fields = [("fname", "O"), ("class", "O")]
    for folder, file, rows in (
        ("cars_train", "devkit/cars_train_annos.mat", [("00001.jpg", 5), ("00002.jpg", 196)]),
        ("cars_test", "cars_test_annos_withlabels.mat", [("00001.jpg", 1), ("00002.jpg", 2), ("00003.jpg", 1)]),
    ):
        add = 0 if folder == "cars_test" else 100
        write_files(base, {f"{folder}/{name}": jpeg(add + int(name[:5])) for name, _ in rows} | {"devkit/README.txt": ""})
        savemat(base / file, {"annotations": np.asarray(rows, dtype=fields)})
    savemat(
        base / "devkit/cars_meta.mat", {"class_names": np.asarray([n.replace("C-V", "C/V") for n in names("cars")], dtype=object)}
    )
    return {"test": [(1, 0), (2, 1), (3, 0)], "train": [(101, 4), (102, 195)]}


CALTECH = {  # folders that are called otherwise
    "off-center face": "Faces", "centered face": "Faces_easy", "leopard": "Leopards", "motorbike": "Motorbikes",
    "airplane": "airplanes", "side of a car": "car_side", "body of a cougar cat": "cougar_body",
    "face of a cougar cat": "cougar_face", "head of a  crocodile": "crocodile_head", "head of a flamingo": "flamingo_head",
    "snoopy (cartoon beagle)": "snoopy", "yin and yang symbol": "yin_yang", "background": "BACKGROUND_Google",
}  # fmt: skip


def caltech101(root: Path, patch: Patch) -> dict[str, Right]:
    """Without its background, which nobody is asked to name."""
    base = "caltech101/101_ObjectCategories"
    for n, name in enumerate(names("caltech101")):
        write_files(root, {f"{base}/{CALTECH.get(name, name.replace(' ', '_'))}/image_0001.jpg": jpeg(n)})
    write_files(root, {f"{base}/ant/image_0002.jpg": jpeg(200)})
    return {"test": [*((n, n) for n in range(1, 9)), (200, 8), *((n, n) for n in range(9, 102))]}


def aircraft(root: Path, patch: Patch) -> dict[str, Right]:
    base = root / "fgvc-aircraft-2013b/data"
    write_files(base, {"variants.txt": "\n".join(names("aircraft"))})
    found: dict[str, Right] = {}
    for part, split, rows in (
        ("test", "test", [(1, 99), (2, 73)]),
        ("train", "train", [(3, 5)]),
        ("validation", "val", [(4, 0)]),
    ):
        lines = [f"{n:07d} {names('aircraft')[label]}" for n, label in rows]
        write_files(base, {f"images_variant_{split}.txt": "\n".join(lines), **{f"images/{n:07d}.jpg": jpeg(n) for n, _ in rows}})
        found[part] = rows
    return found


def dtd(root: Path, patch: Patch) -> dict[str, Right]:
    base = root / "dtd/dtd"
    found: dict[str, Right] = {}
    for part, split, add in (("test", "test", 0), ("train", "train", 50), ("validation", "val", 100)):
        files = {f"{name}/{name}_{split}.jpg": add + n for n, name in enumerate(names("dtd"))}
        write_files(
            base, {f"labels/{split}1.txt": "\n".join(reversed(files)), **{f"images/{f}": jpeg(n) for f, n in files.items()}}
        )
        found[part] = [(add + n, n) for n in range(47)]
    return found


def sun397(root: Path, patch: Patch) -> dict[str, Right]:
    """Folders of two levels, and another order of classes than ours."""
    ours = names("sun397")
    slash = {"bakery shop": "bakery/shop", "moat water": "moat/water"}
    folders = {name: f"{name[0]}/{slash.get(name, name.replace(' ', '_'))}" for name in ours}
    listed = [f"/{folder}" for folder in (*list(folders.values())[200:], *list(folders.values())[:200])]
    shown = {"bakery shop": 1, "abbey": 2, "youth hostel": 3}
    images = {f"{folders[name]}/sun_{'ab'[n % 2]}{n}.jpg": jpeg(n) for name, n in shown.items()}
    hidden = {f"{folders['abbey']}/._sun_a2.jpg": "attributes of macOS"}
    write_files(root / "SUN397", {"ClassName.txt": "\n".join(listed), **images, **hidden})
    return {"test": [(n, ours.index(name)) for name, n in sorted(shown.items())]}


def imagenet(root: Path, patch: Patch) -> dict[str, Right]:
    ids = [f"n{n:08d}" for n in range(1000)]
    torch.save(({wnid: (f"class {wnid}",) for wnid in ids}, []), root / "meta.bin")
    for split, add in (("val", 0), ("train", 100)):
        for wnid in ids:
            (root / split / wnid).mkdir(parents=True)
        # ImageFolder wants an image of every class.
        write_files(root, {f"{split}/{wnid}/x.JPEG": jpeg((n + add) % 256) for n, wnid in enumerate(ids)})
    write_files(root, {f"val/{ids[0]}/._x.JPEG": "attributes of macOS"})
    return {"test": [(n % 256, n) for n in range(1000)], "train": [((n + 100) % 256, n) for n in range(1000)]}


LAYOUTS: dict[str, Callable[[Path, Patch], dict[str, Right]]] = {
    "cifar10": lambda root, patch: cifar(root, patch, "cifar10"),
    "cifar100": lambda root, patch: cifar(root, patch, "cifar100"),
    **{f.__name__: f for f in (pets, food101, flowers, cars, caltech101, aircraft, dtd, sun397, imagenet)},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_image_has_its_class_of_the_shipped_set(tmp_path: Path, monkeypatch: Patch, name: str) -> None:
    right = LAYOUTS[name](tmp_path, monkeypatch)
    content = read(TorchvisionData, dataset=name, path=tmp_path)
    found, known = told(content)[""], class_set(name)
    assert (found.pop("classes"), found.pop("templates"), found.pop("metric")) == (known.classes, known.templates, known.metric)
    assert {part: sorted(rows) for part, rows in found.items()} == {part: sorted(rows) for part, rows in right.items()}
    test = content.classifications[""].test.images
    assert numbers(test, [len(test) - 1, 0]) == [numbers(test)[-1], numbers(test)[0]] and test.name(0)
    files = [test.name(n) for n in range(len(test))]  # food101's and dtd's lists are in another order, and SUN397's in any
    assert files == sorted(files)
    prints = [vars(content.classifications[""])[part].images.fingerprint for part in right]
    assert len(set(prints)) == len(right)
    assert read(TorchvisionData, dataset=name, path=tmp_path).classifications[""].test.images.fingerprint == prints[0]


def test_all_sets_are_tried_and_no_download_is_asked_for() -> None:
    assert set(LAYOUTS) == set(_SETS) == set(TorchvisionData.model_fields["dataset"].annotation.__args__)
    parts = [part for found in _SETS.values() for part in (found.test, found.train, found.validation) if part is not None]
    assert not any("download" in part.arguments for part in parts)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_missing_set_is_told_with_what_belongs_there(tmp_path: Path, name: str) -> None:
    with refused("data.toy.path", tmp_path, _SETS[name].test.folder, remedy=f"put into {tmp_path}: {_SETS[name].source}"):
        read(TorchvisionData, dataset=name, path=tmp_path)
    assert list(tmp_path.iterdir()) == []  # torchvision would make folders


def test_what_torchvision_finds_wanting_is_told(tmp_path: Path, monkeypatch: Patch) -> None:
    cifar(tmp_path, monkeypatch, "cifar10")
    (tmp_path / "cifar-10-batches-py/data_batch_3").write_bytes(b"no more")
    with refused("data.toy.path", "CIFAR10", tmp_path, "not found or corrupted", remedy="cifar-10-python.tar.gz") as caught:
        read(TorchvisionData, dataset="cifar10", path=tmp_path)
    assert "download=True" not in str(caught.value)


def test_names_that_do_not_fit_are_told(tmp_path: Path, monkeypatch: Patch) -> None:
    aircraft(tmp_path, monkeypatch)
    variants = tmp_path / "fgvc-aircraft-2013b/data/variants.txt"
    others = [f"kind {n}" if n == 50 else name for n, name in enumerate(names("aircraft"))]
    others[2], others[3] = others[3], others[2]
    variants.write_text("\n".join(others))
    source = f"torchvision's FGVCAircraft in {tmp_path}"
    with refused("data.toy", "'737-300'", f"class 2 of {source}", "class 3", "aircraft", remedy="order"):
        read(TorchvisionData, dataset="aircraft", path=tmp_path)
    variants.write_text("\n".join([*names("aircraft"), "UFO"]))
    with refused("data.toy", f"{source} has 101 classes", "aircraft", 100, remedy="order"):
        read(TorchvisionData, dataset="aircraft", path=tmp_path)


def test_a_listed_image_that_is_not_there_is_told(tmp_path: Path, monkeypatch: Patch) -> None:
    dtd(tmp_path, monkeypatch)
    (tmp_path / "dtd/dtd/images/banded/banded_test.jpg").unlink()
    missing = "'dtd/images/banded/banded_test.jpg' (1 of 47 images"
    with refused("data.toy.path", tmp_path / "dtd" / "dtd", missing, remedy=f"put into {tmp_path}"):
        read(TorchvisionData, dataset="dtd", path=tmp_path)


def test_a_test_without_training_images_is_enough(tmp_path: Path, monkeypatch: Patch) -> None:
    cars(tmp_path, monkeypatch)
    (tmp_path / "stanford_cars/cars_train").rename(tmp_path / "elsewhere")
    assert read(TorchvisionData, dataset="cars", path=tmp_path).classifications[""].train is None


def test_cifar_travels_without_its_pixels(tmp_path: Path, monkeypatch: Patch) -> None:
    cifar(tmp_path, monkeypatch, "cifar10")
    found: Any = read(TorchvisionData, dataset="cifar10", path=tmp_path).classifications[""].test.images
    list(found.read(np.asarray([0])))
    assert len(pickletools.optimize(pickle.dumps(found))) < 1000
