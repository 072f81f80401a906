"""Sets of icons in Iconify's format: which rows there are, what is drawn, and what the published splits and classes say."""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from evaluation.data.prepared import PreparedData
from pipelines.dataset.svg_render import render
from pipelines.prepare.check import check
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.curate import curate
from pipelines.prepare.prepare import prepare
from pipelines.program.display import Display
from pipelines.program.settings import validate
from pipelines.sources.base import Pair
from pipelines.sources.icon_names import Naming
from pipelines.sources.iconify import FACTS, IconifySource, svg_of
from tests.pipelines.rows import pairs, read, told
from tests.refusals import refused

QUIET = Display(quiet=True)
CORNER = '<path d="M1 1h6v3h-6z"/>'  # neither symmetric nor in the middle
SHAPES = {  # each another drawing
    name: f'<path fill="currentColor" d="M{2 + x} {2 + y}h{6 + 2 * x}v{9 - y}h-{3 + x}z"/>'
    for name, (x, y) in {"calendar": (0, 0), "star": (1, 2), "key": (2, 5), "lock": (3, 1), "moon": (4, 4)}.items()
}


def one_set(prefix: str, icons: dict[str, Any], spdx: str = "MIT", **more: Any) -> dict[str, Any]:
    info = {"name": f"Set {prefix}", "author": {"name": f"Author of {prefix}"}, "license": {"spdx": spdx}, "palette": False}
    document = {"prefix": prefix, "info": info | more.pop("info", {}), "width": 24, "height": 24, **more}
    return document | {"icons": {name: {"body": icon} if isinstance(icon, str) else icon for name, icon in icons.items()}}


def package(root: Path, *sets: dict[str, Any]) -> IconifySource:
    """The folder of a package with these sets, and its source."""
    for content in sets:
        file = root / "package" / "json" / f"{content['prefix']}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content), encoding="utf-8")
    return validate(IconifySource, {"name": "iconify", "path": str(root / "package")}, "test")


def drawn(icon: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(render(svg_of(icon), 64, 10**6))).getchannel("A")


@pytest.mark.parametrize("turns", [-1, 0, 1, 2, 3, 5])
@pytest.mark.parametrize("flips", [(), ("hFlip",), ("vFlip",), ("hFlip", "vFlip")])
def test_an_icon_is_flipped_and_then_turned_clockwise(flips: tuple[str, ...], turns: int) -> None:
    box = {"body": CORNER, "left": -2, "top": -1, "width": 16, "height": 8}
    expected = drawn(box)
    assert expected.getbbox() == (24, 16, 72, 40)  # 8 pixels for each unit, from (1 + 2, 1 + 1)
    for flip in flips:
        expected = expected.transpose({"hFlip": Image.Transpose.FLIP_LEFT_RIGHT, "vFlip": Image.Transpose.FLIP_TOP_BOTTOM}[flip])
    expected = expected.rotate(-90 * turns, expand=True)
    found = drawn(box | dict.fromkeys(flips, True) | {"rotate": turns})
    assert found.size == expected.size and found.getbbox() == expected.getbbox()


def test_sizes_are_the_icons_then_the_sets_and_then_sixteen(tmp_path: Path) -> None:
    icons = {"a": {"body": CORNER, "width": 48}, "b": CORNER}
    plain = {key: value for key, value in one_set("plain", icons).items() if key not in ("width", "height")}
    images = {pair.key: pair.image or b"" for pair in pairs(read(package(tmp_path, one_set("sized", icons), plain)))}
    boxes = {key: image.split(b'viewBox="')[1].split(b'"')[0] for key, image in images.items()}
    assert boxes == {"sized:a": b"0 0 48 24", "sized:b": b"0 0 24 24", "plain:a": b"0 0 48 16", "plain:b": b"0 0 16 16"}


def test_every_icon_and_alias_is_a_pair_or_a_row_with_its_reason(tmp_path: Path) -> None:
    moving = '<path d="M1 1h6"><animate attributeName="d" values="M1 1h6;M1 1h9"/></path>'
    turning = '<g><animateTransform attributeName="transform" type="rotate" values="0;360"/></g>'
    icons = {
        "arrow-left": SHAPES["key"],
        "gone": {"body": CORNER, "hidden": True},
        "spinner": moving,
        "wheel": turning,
        "dataset": "<g><path d='M1 1h6'/></g>",
        "empty": {"width": 24},
        "flat": {"body": CORNER, "height": 0},
        "wide": {"body": CORNER, "width": "24px"},
        "odd": 7,
    }
    aliases = {
        "back": {"parent": "arrow-left"},
        "arrow-right": {"parent": "arrow-left", "hFlip": True},
        "arrow-left-again": {"parent": "arrow-right", "hFlip": True},
        "arrow-up": {"parent": "arrow-right", "rotate": 3},
        "arrow-down": {"parent": "arrow-up", "rotate": 2},
        "old": {"parent": "gone", "vFlip": True},
        "lost": {"parent": "nowhere"},
        "ring": {"parent": "round"},
        "round": {"parent": "ring"},
        "arrow-left": {"parent": "gone"},  # there is an icon of this name
    }
    free, closed = one_set("free", icons, aliases=aliases), one_set("closed", {"a": CORNER}, "CC-BY-SA-4.0")
    untold = one_set("untold", {"a": CORNER}, info={"license": {"title": "Own terms"}})
    found = read(package(tmp_path, free, closed, untold))
    reasons = {
        "free:gone": "hidden",
        "free:spinner": "animated",
        "free:wheel": "animated",
        **dict.fromkeys(("free:empty", "free:flat", "free:wide", "free:odd"), "bad_row"),
        "free:back": "alias",
        "free:arrow-left-again": "alias",  # two flips are none
        "free:old": "hidden",
        **dict.fromkeys(("free:lost", "free:ring", "free:round"), "bad_row"),
        "closed:a": "licence",
        "untold:a": "licence",
    }
    kept = {name: [name.partition(":")[2].replace("-", " ")] for name in ("free:arrow-left", "free:dataset")}
    kept |= {"free:arrow-right": ["arrow right"], "free:arrow-up": ["arrow up"], "free:arrow-down": ["arrow down"]}
    assert dict(told(found)) == reasons | kept and len(found) == len(reasons | kept)
    images = {pair.key: drawn_of(pair) for pair in found if isinstance(pair, Pair)}
    left = images["free:arrow-left"]
    assert np.array_equal(images["free:arrow-right"], left[:, ::-1])
    assert np.array_equal(images["free:arrow-up"], np.rot90(left[:, ::-1]))  # three turns clockwise are one against it
    assert np.array_equal(images["free:arrow-down"], images["free:arrow-up"][::-1, ::-1])


def drawn_of(pair: Pair) -> np.ndarray:
    assert pair.image is not None
    return np.asarray(Image.open(io.BytesIO(render(pair.image, 64, 10**6))).getchannel("A")) > 127


def test_licences_are_a_list_of_the_config_and_all_that_is_shown_is_of_the_sets_that_are_read(tmp_path: Path) -> None:
    sets = (one_set("free", {"a": CORNER}), one_set("alike", {"a": CORNER}, "CC-BY-SA-4.0"), one_set("bare", {}))
    source = package(tmp_path, *sets)
    assert source.licence() == "MIT" and source.attribution().endswith(": Set free by Author of free (MIT)")
    both = source.model_copy(update={"licences": ("MIT", "CC-BY-SA-4.0")})
    assert len(pairs(read(both))) == 2 and both.licence() == "CC-BY-SA-4.0, MIT"
    assert "Icons of 2 sets" in both.attribution() and "Set alike by Author of alike (CC-BY-SA-4.0)" in both.attribution()
    only = source.model_copy(update={"sets": ("free",)})
    assert told(read(only)) == [("free:a", ["a"])]
    with refused("source.sets", "fre", remedy="choose from alike, bare, free"):
        source.model_copy(update={"sets": ("fre",)}).units()


def test_a_damaged_set_is_one_row_and_stops_nothing(tmp_path: Path) -> None:
    source = package(tmp_path, one_set("good", {"a": CORNER}), {"prefix": "list", "icons": []}, {"prefix": "z", "icons": {}})
    (tmp_path / "package" / "json" / "cut.json").write_text('{"prefix": "cut", "icons": {"a": ')
    (tmp_path / "package" / "json" / "deep.json").write_text("[" * 100_000)
    expected = {"cut.json": "unreadable_file", "deep.json": "unreadable_file", "list.json": "unreadable_file", "good:a": ["a"]}
    assert dict(told(read(source))) == expected


@pytest.mark.parametrize("name", ["nowhere", "json.tgz"])
def test_what_is_no_package_is_refused_with_the_way_to_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "json.tgz").write_bytes(b"\x1f\x8b")
    with refused("source.path", tmp_path / name, remedy="make icons"):
        validate(IconifySource, {"name": "iconify", "path": str(tmp_path / name)}, "test").units()


def test_icons_cannot_stay_where_they_are(tmp_path: Path) -> None:
    source = package(tmp_path, one_set("free", {"a": CORNER}))
    with refused("source.path", remedy="mode=copy"):
        list(source.read(source.units()[0].data, images=False))


def test_a_body_brings_nothing_from_elsewhere(tmp_path: Path) -> None:
    """Neither a file, nor an address, nor a script, nor an element outside its drawing."""
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    bodies = {
        "file": f'{CORNER}<image href="{tmp_path}/red.png" width="9" height="9"/>',
        "xlink": f'{CORNER}<image xlink:href="file://{tmp_path}/red.png" width="9" height="9"/>',
        "address": f'{CORNER}<image href="https://example.org/red.png" width="9" height="9"/>',
        "entity": f"{CORNER}&secret;",
        "closing": f"{CORNER}</svg><svg>",
        "broken": "<path d='M1 1h6'",
        "script": f"{CORNER}<script>fetch('https://example.org')</script>",
        "use": f'{CORNER}<use href="https://example.org/a.svg#b"/><use href="{tmp_path}/a.svg#b"/>',
        "plain": CORNER,
    }
    settings = PrepareSettings.model_validate(
        {
            "source": package(tmp_path, one_set("free", bodies)).model_dump(),
            "output": tmp_path / "out",
            "image": {"format": "png"},
        }
    )
    rows = {row.columns["key"].partition(":")[2]: row for row in curate(read(settings.source), settings)}
    rejected = {name for name, row in rows.items() if row.columns.get("reason") == "svg"}
    assert rejected == {"file", "xlink", "address", "entity", "closing", "broken"}
    assert rows["script"].image == rows["use"].image == rows["plain"].image is not None


@pytest.mark.parametrize(
    ("name", "drawing", "style"),
    [
        ("arrow-left-circle-filled", "arrow-left-circle", "filled"),
        ("arrow-left-circle-fill-24", "arrow-left-circle", "filled"),
        ("home-outlined", "home", "outline"),
        ("home-2", "home", ""),
        ("traffic-light", "traffic-light", ""),
        ("filled", "filled", ""),
        ("24", "24", ""),
        ("waving-hand-medium-dark-skin-tone", "waving-hand", ""),
        ("man-light-skin-tone-blond-hair", "man-blond-hair", ""),
    ],
)
def test_words_of_style_size_and_number_are_not_the_drawing(name: str, drawing: str, style: str) -> None:
    found = Naming([name, *(f"thing-{n}" for n in "abcdefghijklm")], {}, {}).read(name)
    assert (found.words, found.drawing, found.style) == (name.replace("-", " "), drawing, style)


def test_a_word_that_may_be_a_thing_is_a_style_where_many_names_end_in_it() -> None:
    names = ["chart-line", "home-line", "star-line", "home-bold"]
    few = Naming([*names, *(f"thing-{n}" for n in range(40))], {}, {})
    many = Naming(names, {}, {})
    assert (few.read("home-line").drawing, few.read("home-line").style) == ("home-line", "")
    assert (many.read("home-line").drawing, many.read("home-line").style) == ("home", "line")


def test_a_sets_own_prefixes_and_suffixes_decide() -> None:
    suffixed = Naming(["home"], {}, {"": "Outline 24x24", "solid": "Solid 24x24", "20-solid": "Solid 20x20"})
    found = {name: suffixed.read(name) for name in ("home", "home-solid", "home-20-solid", "home-filled")}
    assert {name: (parts.drawing, parts.style) for name, parts in found.items()} == {
        "home": ("home", "outline"),
        "home-solid": ("home", "solid"),
        "home-20-solid": ("home", "solid"),
        "home-filled": ("home-filled", "outline"),  # not one of the set's styles
    }
    longest = Naming(["home"], {}, {"duotone": "Duotone", "bold-duotone": "Bold Duotone"}).read("home-bold-duotone")
    assert (longest.drawing, longest.style) == ("home", "bold duotone")
    prefixed = Naming(["home"], {"baseline": "Baseline", "twotone": "Two-Tone"}, {})
    assert [prefixed.read(name).style for name in ("baseline-home", "twotone-home", "home")] == ["baseline", "two tone", ""]
    assert {prefixed.read(name).drawing for name in ("baseline-home", "twotone-home", "home")} == {"home"}


def lines(name: str) -> list[str]:
    return (FACTS / name).read_text(encoding="utf-8").splitlines()


def members(name: str) -> dict[str, list[str]]:
    return {title: names.split() for title, _, names in (line.partition(":") for line in lines(name))}


def test_the_published_splits_share_neither_icons_nor_sets_nor_families() -> None:
    shift = [name for names in members("shift.txt").values() for name in names]
    test, validation = set(lines("test.txt")), set(lines("validation.txt"))
    assert len(shift) == len(set(shift)) >= 15
    assert len(test) > 10_000 and len(validation) > 5_000 and not test & validation
    assert {name.partition(":")[0] for name in test | validation}.isdisjoint(shift)
    families = members("families.txt")
    of_families = Counter(name for names in families.values() for name in names)
    assert max(of_families.values()) == 1
    for name, names in families.items():
        assert set(names) <= set(shift) or not set(names) & set(shift), f"{name} is held out in part"


def test_a_name_is_of_one_class_and_there_are_five_hundred() -> None:
    classes = [line.split() for line in lines("concepts.txt")]
    names = Counter(name for names in classes for name in names)
    assert len(classes) >= 500 and max(names.values()) == 1
    assert [names[0] for names in classes] == sorted(names[0] for names in classes)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> PrepareSettings:
    """Icons of each split. The same drawing is in a training and a held-out set, another one twice in a training set."""
    root = tmp_path_factory.mktemp("icons")
    listed = [next(name for name in lines(f"{split}.txt") if name.startswith("tabler:")) for split in ("test", "validation")]
    held_out = {name.partition(":")[2]: SHAPES[shape] for name, shape in zip(listed, ("key", "lock"), strict=True)}
    more = {f"thing-{i}": f'<circle cx="{3 + i}" cy="{4 + i}" r="{2 + i / 4}"/>' for i in range(12)}
    seen = one_set(
        "tabler", {"calendar": SHAPES["calendar"], "calendar-filled": CORNER, "evening": SHAPES["moon"], **held_out, **more}
    )
    own = one_set("mine", {"appointment": SHAPES["star"], "night": SHAPES["moon"], "home-filled": "<path d='M9 9h9v9z'/>"})
    away = one_set("twemoji", {"star": SHAPES["star"], "calendar": "<path d='M4 4h9v1z'/>"}, "CC-BY-4.0", info={"palette": True})
    closed = one_set("closed", {"a": CORNER, "b": "<g"}, "CC-BY-NC-4.0")
    tree = {"source": package(root, seen, own, away, closed).model_dump(), "output": root / "out", "splits": "source"}
    more_keys = {"image": {"size": 64, "format": "png"}, "deduplicate": {"exact": "image"}, "max_rejected_rate": 0}
    return PrepareSettings.model_validate(tree | more_keys)


def test_icons_are_prepared_in_their_published_splits_with_classes_and_credit(
    settings: PrepareSettings, ray_session: None, capsys: pytest.CaptureFixture
) -> None:
    assert check(settings, Display())  # what was not asked for is no fault
    assert "unusable: about 0.0%" in capsys.readouterr().out
    prepared = prepare(settings, QUIET)
    manifest = prepared.manifest
    assert manifest["counts"]["rejected"] == {"licence": 2, "duplicate_image": 2}
    assert manifest["splits"] == {"train": 16, "shift": 2, "test": 1, "validation": 1}
    left_out = {row["key"]: row["reason"] for row in pq.read_table(settings.output / "rejected.parquet").to_pylist()}  # type: ignore[operator]
    assert left_out["mine:appointment"] == "duplicate_image"  # twemoji:star is held out
    assert "Set twemoji by Author of twemoji (CC-BY-4.0)" in manifest["attribution"] and "closed" not in manifest["attribution"]
    assert manifest["licence"] == "CC-BY-4.0, MIT"
    row = {
        row["key"]: row
        for row in prepared.table(*("key", "captions", "label_concept", "label_palette", "label_style", "group")).to_pylist()
    }
    assert row["tabler:calendar-filled"]["captions"] == ["calendar filled"]
    assert row["tabler:calendar-filled"]["label_concept"] == row["twemoji:calendar"]["label_concept"] == "calendar"
    assert row["tabler:calendar-filled"]["group"] == row["tabler:calendar"]["group"] != row["twemoji:calendar"]["group"]
    assert [row[key]["label_palette"] for key in ("mine:home-filled", "twemoji:star")] == ["one colour", "colour"]
    assert (row["mine:home-filled"]["label_style"], row["mine:home-filled"]["label_concept"]) == ("filled", "home")
    content = PreparedData(name="prepared", path=settings.output, split="shift", labels=("concept",)).read("data.icons")
    classification = content.classifications["concept"]
    names = [name for (name,) in classification.classes]
    assert [names[label] for label in classification.test.labels] == ["star", "calendar"]
    assert classification.train is not None and "home" in names
