"""The mix source: several sources one after another, with weights, and with keys that tell them apart."""

import gzip
import json
from pathlib import Path

import pytest

from pipelines.io.image_bytes import read_location
from pipelines.program.settings import validate
from pipelines.sources.base import Pair, Rejected
from pipelines.sources.mix import MixSource
from tests.refusals import refused


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A table, a JSON list of the same file names and captions, and a folder."""
    for name in ("red.png", "folder/red.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "folder" / "red.txt").write_text("in a folder")
    (tmp_path / "list.csv").write_text("image,caption,kind\nred.png,A Red one,colour\n,none,\n")
    (tmp_path / "list.json").write_text(json.dumps([{"image": "red.png", "caption": "a red one"}] * 300))
    return tmp_path


def mix(*sources: dict, **keys: object) -> MixSource:
    return validate(MixSource, {"name": "mix", "sources": sources, **keys}, "test")


def table(files: Path, **keys: object) -> dict:
    return {"name": "table", "paths": str(files / "list.csv"), "label": "kind", **keys}


def listed(files: Path, **keys: object) -> dict:
    return {"name": "json", "paths": str(files / "list.json"), **keys}


def folder(files: Path) -> dict:
    return {"name": "folder", "path": str(files / "folder")}


def test_sources_follow_one_another_with_their_weights(files: Path) -> None:
    source = mix(
        {"weight": 2.5, "source": table(files, dataset="tab")},
        {"source": listed(files, dataset="js")},
        {"weight": 0.1, "source": folder(files)},
    )
    units = source.units()
    assert [(unit.weight, unit.rows, unit.data[0]) for unit in units] == [(2.5, 2, 0), (1, 256, 1), (1, 44, 1), (0.1, 1, 2)]
    found = [row for unit in units for row in source.read(json.loads(json.dumps(unit.data)), False)]
    assert len(found) == 303 and len({row.key for row in found}) == 303
    first, second, third, last = found[0], found[1], found[2], found[-1]
    assert isinstance(first, Pair) and isinstance(third, Pair) and isinstance(last, Pair)
    assert (first.key, first.captions, first.group, first.labels) == (
        "tab/list:1",
        ["A Red one"],
        "a red one",
        {"kind": "colour"},
    )
    assert isinstance(second, Rejected) and (second.key, second.reason) == ("tab/list:2", "missing_image")
    assert (third.key, third.group, third.labels) == ("js/list:0", first.group, {})  # equal captions stay in one split
    assert (last.key, last.captions) == ("folder/red.png", ["in a folder"])
    assert [read_location(row.location) for row in (first, third, last)] == [b"red.png", b"red.png", b"folder/red.png"]


def test_a_source_in_a_mix_reads_as_it_does_alone(files: Path) -> None:
    source = mix({"source": folder(files)}, {"source": table(files)})
    alone = validate(MixSource, {"name": "mix", "sources": [{"source": table(files)}]}, "test").sources[0].source
    assert [unit.data[1] for unit in source.units() if unit.data[0] == 1] == [unit.data for unit in alone.units()]


def test_two_sources_of_one_title_are_told_apart_by_the_user(files: Path) -> None:
    same = mix({"source": folder(files)}, {"source": table(files)}, {"source": listed(files)})
    with refused("source.sources[2].source.dataset", "source.sources[1]", "'list'", remedy="dataset"):
        same.units()
    other = mix({"source": folder(files)}, {"source": table(files)}, {"source": listed(files, dataset="other")})
    assert other.title() == "folder+list+other" and len(other.units()) == 4


def test_title_licence_and_attribution_name_every_source(files: Path) -> None:
    parts = (
        {"source": {"name": "openmoji"}},
        {"source": table(files, data_licence="CC0", data_attribution="Ann")},
        {"source": folder(files)},
    )
    source = mix(*parts)
    assert source.title() == "openmoji+list+folder"
    assert source.licence() == "openmoji: CC BY-SA 4.0; list: CC0; folder: unknown"
    assert source.attribution().startswith("openmoji: All emojis designed by OpenMoji") and source.attribution().endswith(
        "; list: Ann"
    )
    own = mix(*parts, dataset="all", data_licence="mixed", data_attribution="see the list")
    assert (own.title(), own.licence(), own.attribution()) == ("all", "mixed", "see the list")


def test_an_inner_sources_error_names_its_key_in_the_mix(files: Path) -> None:
    source = mix({"source": folder(files)}, {"source": table(files, caption="text")})
    with refused("source.sources[1].source.caption", "'text'", "'image', 'caption', 'kind'"):
        source.units()
    with refused("source.sources[0].source.path", "nowhere", remedy="source.sources[0].source.path="):
        mix({"source": folder(files / "nowhere")}).units()
    tar = files / "x.tar.gz"
    tar.write_bytes(gzip.compress(b""))
    source = mix({"source": folder(files)}, {"source": {"name": "webdataset", "paths": str(tar)}})
    unit = source.units()[-1]
    with refused("source.sources[1].source.paths", tar, remedy="mode=copy"):
        list(source.read(unit.data, images=False))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ({"weight": 0}, "weight", 0),
        ({"weight": float("inf")}, "weight", "inf"),
        ({"weight": -1}, "weight", -1),
        ({"source": {"name": "mix", "sources": []}}, "source.name", "'mix'"),
        ({"source": {"name": "table"}}, "source.paths", "missing"),
        ({"source": {"name": "folder", "path": "x", "weight": 2}}, "source.weight", 2),
    ],
)
def test_mistakes_in_a_mix_are_named(files: Path, part: dict, key: str, value: object) -> None:
    with refused(f"sources.1.{key}", value):
        mix({"source": folder(files)}, {"source": table(files)} | part)
    with refused("sources"):
        mix()
