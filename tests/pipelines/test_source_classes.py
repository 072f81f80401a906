"""The classes source: folders are classes, templates make captions, and images of one class can land in every split."""

import json
from pathlib import Path

import pytest

from pipelines.io.image_bytes import read_location
from pipelines.program.settings import validate
from pipelines.sources.base import Pair, Rejected
from pipelines.sources.classes import ClassesSource
from tests.refusals import refused


def source_of(path: Path, **keys: object) -> ClassesSource:
    return validate(ClassesSource, {"name": "classes", "path": str(path), **keys}, "test")


def read(source: ClassesSource) -> list[Pair | Rejected]:
    """All rows, each unit as the real caller passes it: as JSON."""
    return [row for unit in source.units() for row in source.read(json.loads(json.dumps(unit.data)), images=False)]


def captions(source: ClassesSource) -> dict[str, list[str]]:
    return {row.key: row.captions for row in read(source) if isinstance(row, Pair)}


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    root = tmp_path / "Animals"
    for name in ("dog/rex.jpg", "dog/old/deep/Fido.JPEG", "polar_bear-cub/1.png", "dog/rex.txt", "empty/readme.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_a_folder_is_a_class_at_any_depth(animals: Path) -> None:
    source = source_of(animals)
    found = read(source)
    assert [(row.key, row.captions, row.labels, row.group) for row in found if isinstance(row, Pair)] == [
        ("dog/old/deep/Fido.JPEG", ["a photo of a dog."], {"class": "dog"}, "dog/old/deep/Fido.JPEG"),
        ("dog/rex.jpg", ["a photo of a dog."], {"class": "dog"}, "dog/rex.jpg"),
        ("polar_bear-cub/1.png", ["a photo of a polar bear cub."], {"class": "polar_bear-cub"}, "polar_bear-cub/1.png"),
    ]
    assert [read_location(row.location) for row in found if isinstance(row, Pair)] == [row.key.encode() for row in found[:3]]
    assert found[1].origin == str(animals / "dog" / "rex.jpg")
    assert [unit.rows for unit in source.units()] == [4] and source.title() == "animals"


def test_a_file_that_is_no_image_is_counted_unless_it_goes_with_one(animals: Path) -> None:
    """rex.txt goes with rex.jpg; a class of a format that is not read does not vanish."""
    (animals / "cat").mkdir()
    (animals / "cat" / "tom.heic").write_bytes(b"x")
    rejected = {row.key: row.reason for row in read(source_of(animals)) if isinstance(row, Rejected)}
    assert rejected == {"cat/tom.heic": "unknown_file", "empty/readme.md": "unknown_file"}
    # Endings of one's own are a choice: what they leave out was asked for.
    assert all(isinstance(row, Pair) for row in read(source_of(animals, extensions=[".jpg"])))


def test_every_template_is_a_caption(animals: Path) -> None:
    templates = ["a {}.", "{c}, or a drawing of {c}"]
    found = read(source_of(animals, templates=templates, label="species"))
    last = found[2]
    assert isinstance(last, Pair) and last.labels == {"species": "polar_bear-cub"}
    assert last.captions == ["a polar bear cub.", "polar bear cub, or a drawing of polar bear cub"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.json", '{"dog": "domestic-dog, Canis_familiaris", "polar_bear-cub": "cub", "cat": "cat"}'),
        ("synsets.txt", "\ufeffdog domestic-dog, Canis_familiaris\r\n\npolar_bear-cub\tcub  \nlonely\n"),
    ],
)
def test_classes_can_be_named_by_a_file(animals: Path, name: str, text: str) -> None:
    (animals / name).write_bytes(text.encode())
    found = captions(source_of(animals, names=animals / name, templates=["{}"]))
    assert found["dog/rex.jpg"] == ["domestic-dog, Canis_familiaris"] and found["polar_bear-cub/1.png"] == ["cub"]


def test_other_names_are_other_units(animals: Path) -> None:
    names = animals.parent / "names.txt"
    names.write_text("dog hound\npolar_bear-cub cub\n")
    before = source_of(animals, names=names).units()
    names.write_text("dog whelp\npolar_bear-cub cub\n")
    after = source_of(animals, names=names).units()
    assert before[0].data != after[0].data
    (animals / "dog" / "rex.jpg").write_bytes(b"another")
    assert source_of(animals, names=names).units()[0].data != after[0].data


@pytest.mark.parametrize(
    ("text", "named", "remedy"),
    [
        ("dog hound\n", "'polar_bear-cub'", "source.exclude=['polar_bear-cub/*']"),
        ("dog hound\npolar_bear-cub \n", "'polar_bear-cub'", "source.exclude=['polar_bear-cub/*']"),
        (b"dog caf\xe9", "names.txt", ""),
        (None, "names.txt", ""),
    ],
)
def test_a_file_of_names_that_does_not_serve_stops(animals: Path, text: str | bytes | None, named: str, remedy: str) -> None:
    names = animals.parent / "names.txt"
    if text is not None:
        names.write_bytes(text if isinstance(text, bytes) else text.encode())
    with refused("source.names", names, named, remedy=remedy):
        source_of(animals, names=names).units()
    names.with_suffix(".json").write_text('{"0": ["n01440764", "tench"]}')
    with refused("source.names", "names.json", remedy='{"folder": "name"}'):
        source_of(animals, names=names.with_suffix(".json")).units()


def test_a_image_outside_any_class_is_a_rejected_row(animals: Path) -> None:
    (animals / "stray.png").write_bytes(b"x")
    (row, _) = [row for row in read(source_of(animals)) if isinstance(row, Rejected)]
    assert (row.key, row.reason, row.origin) == ("stray.png", "no_class", str(animals / "stray.png"))


def test_paths_can_be_left_out_and_extensions_chosen(animals: Path) -> None:
    assert list(captions(source_of(animals, exclude=["dog/old/*"]))) == ["dog/rex.jpg", "polar_bear-cub/1.png"]
    assert list(captions(source_of(animals, extensions=[".txt"]))) == ["dog/rex.txt"]


@pytest.mark.parametrize("keys", [{"exclude": ["*"]}, {"extensions": [".bmp"]}, {"path": "/nowhere"}])
def test_no_image_at_all_stops_with_the_way_out(animals: Path, keys: dict) -> None:
    path = keys.get("path", animals)
    with refused("source.path", path, remedy="source.exclude"):
        source_of(path, **{k: v for k, v in keys.items() if k != "path"}).units()


@pytest.mark.parametrize("templates", [["a dog"], []])
def test_templates_need_a_place_for_the_name(animals: Path, templates: list[str]) -> None:
    with refused("templates"):
        source_of(animals, templates=templates)


def test_many_images_are_several_units(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    for i in range(300):
        (tmp_path / "c" / f"{i:03}.png").write_bytes(b"")
    source = source_of(tmp_path)
    assert [unit.rows for unit in source.units()] == [256, 44]
    assert [row.key for row in read(source)] == [f"c/{i:03}.png" for i in range(300)]
