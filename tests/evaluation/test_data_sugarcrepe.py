"""SugarCrepe as a reader: items with their images, each once."""

import json
from pathlib import Path

import pytest

from evaluation.data.sugarcrepe import SugarCrepeData
from evaluation.sugarcrepe import SIZES
from tests.conftest import write_files
from tests.evaluation.images import encoded, numbers, read
from tests.refusals import refused

FILES = {"swap_obj": ["3.jpg", "1.jpg", "3.jpg"], "add_att": ["2.jpg", "1.jpg"]}
SUBSETS = {name: len(files) for name, files in FILES.items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, files in FILES.items():
        items = {
            str(7 * n): {"filename": file, "caption": f"{name} {n}", "negative_caption": f"not {n}"}
            for n, file in enumerate(files)
        }
        write_files(tmp_path, {f"{name}.json": json.dumps(items)})
    write_files(tmp_path, {f"val2017/{n}.jpg": encoded(n, "JPEG", quality=100) for n in range(1, 5)})
    return tmp_path


def test_every_item_has_its_image(root: Path) -> None:
    found = read(SugarCrepeData, path=root, subsets=SUBSETS).sugarcrepe
    assert found is not None and numbers(found.images) == [3, 1, 2]
    for name, files in FILES.items():
        assert [found.images.name(n) for n in found.image_of[name]] == files
        assert [item.caption for item in found.items[name]] == [f"{name} {n}" for n in range(len(files))]
    elsewhere = root.rename(root.with_name("moved"))
    again = read(SugarCrepeData, path=elsewhere, images=elsewhere / "val2017", subsets=SUBSETS).sugarcrepe
    assert again is not None and again.images.fingerprint == found.images.fingerprint


def test_all_seven_are_wanted_by_default(root: Path) -> None:
    with refused("data.toy.path", root / "replace_obj.json", remedy="seven json files"):
        read(SugarCrepeData, path=root)
    assert SugarCrepeData(name="sugarcrepe", path=root).subsets == SIZES


def test_what_is_missing_is_told(root: Path) -> None:
    with refused("data.toy.path", root / "swap_obj.json", 3, 245, remedy="https"):
        read(SugarCrepeData, path=root, subsets={"swap_obj": 245})
    (root / "val2017/1.jpg").unlink()
    with refused("data.toy.images", root / "val2017", "'1.jpg'", "1 of 3 images", remedy="val2017.zip"):
        read(SugarCrepeData, path=root, subsets=SUBSETS)
    with refused("data.toy.images", root / "none", remedy="val2017.zip"):
        read(SugarCrepeData, path=root, images=root / "none", subsets=SUBSETS)
