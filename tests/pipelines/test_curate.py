"""Examining pairs: who is left out and why, which bytes are kept as they are, and what is not even looked at."""

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pipelines.dataset.prepared import split_of
from pipelines.io.image_bytes import Location
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.curate import FILTERED, ROW_SCHEMA, Row, curate
from pipelines.program.settings import validate
from pipelines.sources.base import Pair, Rejected
from tests.refusals import refused

SPLITS = {"test": 0.5}


def settings_of(**keys: Any) -> PrepareSettings:
    source = {"name": "folder", "path": "/nowhere"}
    tree = {"source": source, "output": "/unused", "image": {"size": 32, "format": "jpeg"}, "splits": SPLITS}
    return PrepareSettings.model_validate(tree | keys)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def photo(seed: int) -> Image.Image:
    """Something with the spectrum of a photograph, 160 x 120: most of it lies in low frequencies."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(160), np.fft.fftfreq(120))) + 1 / 160
    random = np.random.default_rng(seed)
    channels = []
    for _ in range(3):
        waves = np.fft.ifft2(np.fft.fft2(random.normal(size=(120, 160))) / frequency**1.5).real
        channels.append(255 * (waves - waves.min()) / (waves.max() - waves.min()))
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def pair(image: bytes | None = None, *captions: str, key: str = "k", group: str = "g", file: str = "/nowhere/k.jpg") -> Pair:
    return Pair(key, f"from {key}", Location(file), list(captions) or ["a caption"], group, {}, image)


def one(found: Pair | Rejected, settings: PrepareSettings) -> Row:
    (row,) = curate([found], settings)
    assert set(row.columns) <= set(ROW_SCHEMA.names)
    return row


def reason(found: Pair | Rejected, **keys: Any) -> str | None:
    row = one(found, settings_of(**keys))
    if row.columns.get("reason") is not None:
        assert row.image is None and row.columns["origin"] and row.columns["detail"]
    return row.columns.get("reason")


# --- filters ---


@pytest.mark.parametrize(
    ("size", "least", "expected"), [((20, 40), 20, None), ((20, 40), 21, "too_small"), ((40, 20), 21, "too_small")]
)
def test_the_shorter_side_can_be_too_small(size: tuple[int, int], least: int, expected: str | None) -> None:
    assert reason(pair(encoded(noise(*size))), filters={"min_side": least}) == expected


@pytest.mark.parametrize("size", [(30, 60), (60, 30)])
def test_a_image_can_be_too_long(size: tuple[int, int]) -> None:
    found = pair(encoded(noise(*size)))
    assert reason(found, filters={"max_aspect": 2}) is None
    assert reason(found, filters={"max_aspect": 1.9}) == "aspect_ratio"


def test_sides_are_those_that_one_sees() -> None:
    """A camera held upright stores the image lying on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    row = one(pair(encoded(noise(60, 30), exif=exif)), settings_of(filters={"max_aspect": 1.9}))
    assert row.columns["detail"] == "30 x 60 pixels"


def test_every_caption_needs_its_words() -> None:
    image = encoded(noise(40, 40))
    assert reason(pair(image, "two words", "three short words"), filters={"min_words": 2}) is None
    assert reason(pair(image, "two  words ", "three short words"), filters={"min_words": 3}) == "too_few_words"
    # Words are counted in what is kept.
    assert reason(pair(image, "one - two"), filters={"min_words": 3}, captions={"clean": True}) == "too_few_words"


ENGLISH = "a black cat is sleeping on the sofa in the living room"
GERMAN = "eine schwarze Katze liegt auf dem Sofa im Wohnzimmer"
HEBREW = "\u05d7\u05ea\u05d5\u05dc \u05e9\u05d7\u05d5\u05e8 \u05d9\u05e9\u05df \u05e2\u05dc \u05d4\u05e1\u05e4\u05d4"


def test_captions_can_be_in_the_wrong_language() -> None:
    image = encoded(noise(40, 40))
    for captions, languages, expected in [
        ((ENGLISH,), ["en"], None),
        ((GERMAN,), ["en"], "language"),
        ((GERMAN,), ["en", "de"], None),
        ((HEBREW,), ["en", "de"], "language"),
        ((HEBREW,), ["he"], None),
        ((ENGLISH, GERMAN), ["en"], "language"),
    ]:
        assert reason(pair(image, *captions), filters={"languages": languages}) == expected, captions
    assert one(pair(image, GERMAN), settings_of(filters={"languages": ["en"]})).columns["detail"] == "de"


def test_a_filter_is_no_sign_of_broken_data() -> None:
    """Their reasons do not count against max_rejected_rate; all others do."""
    assert {"too_small", "aspect_ratio", "too_few_words", "language"} <= FILTERED
    assert not FILTERED & {"undecodable", "truncated", "missing_image", "empty_caption", "caption_too_long", "duplicate_key"}


def test_without_filters_everything_odd_is_kept() -> None:
    assert reason(pair(encoded(noise(1, 200)), "x")) is None
    assert reason(pair(encoded(noise(40, 40)), HEBREW)) is None


@pytest.mark.parametrize(
    ("package", "change"), [("py3langid", {"filters": {"languages": ["en"]}}), ("imagehash", {"deduplicate": {"near": 3}})]
)
def test_a_package_that_is_not_installed_is_named(package: str, change: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.prepare.config.find_spec", lambda name: None)
    ((section, keys),) = change.items()
    with refused(f"{section}.{next(iter(keys))}", package, remedy="raylign[curation]"):
        validate(PrepareSettings, {"source": {"name": "folder", "path": "in"}, "output": "out"} | change, "c.yaml")


# --- images ---


@pytest.mark.parametrize("size", [(32, 40), (40, 32), (5, 7)])
def test_a_jpeg_that_needs_no_resizing_is_kept_byte_for_byte(size: tuple[int, int]) -> None:
    data = encoded(noise(*size), quality=30, comment=b"as it was")
    assert one(pair(data), settings_of()).image == data


def with_orientation(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3
    return encoded(image, exif=exif)


@pytest.mark.parametrize(
    "data",
    [
        encoded(noise(33, 40)),
        encoded(noise(32, 32), "PNG"),
        encoded(noise(32, 32).convert("L")),
        encoded(noise(32, 32).convert("CMYK")),
        with_orientation(noise(32, 32)),
    ],
    ids=["larger", "png", "grey", "cmyk", "on-its-head"],
)
def test_others_are_encoded_as_asked_for(data: bytes) -> None:
    """Whoever reads the shards finds upright RGB images of one format, and no surprises."""
    kept = one(pair(data), settings_of(image={"size": 32, "format": "jpeg", "quality": 95})).image
    assert kept is not None and kept != data
    image = Image.open(io.BytesIO(kept))
    assert (image.format, image.mode, min(image.size)) == ("JPEG", "RGB", 32)
    assert image.getexif().get(0x0112, 1) == 1


def test_a_large_jpeg_shrinks_to_the_size_that_is_kept() -> None:
    image = photo(0).resize((1600, 1200))
    kept = one(pair(encoded(image)), settings_of(image={"size": 60, "format": "png"})).image
    assert kept is not None
    small = Image.open(io.BytesIO(kept))
    assert small.size == (80, 60)
    direct = np.asarray(image.resize((80, 60), Image.Resampling.BICUBIC), dtype=float)
    assert np.abs(np.asarray(small, dtype=float) - direct).mean() < 2


@pytest.mark.parametrize("mode", ["copy", "index"])
def test_a_truncated_jpeg_is_found_even_where_nothing_is_resized(mode: str) -> None:
    data = encoded(noise(32, 32))
    assert reason(pair(data[: len(data) // 2]), mode=mode, verify="all") == "truncated"


def test_a_image_that_is_not_there_is_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "there.jpg").write_bytes(encoded(noise(32, 32)))
    rows = list(curate([pair(key=name, file=str(tmp_path / f"{name}.jpg")) for name in ("gone", "there")], settings_of()))
    assert [row.columns.get("reason") for row in rows] == ["missing_image", None]
    assert rows[0].columns["detail"] == "No such file or directory" and rows[0].columns["origin"] == "from gone"
    assert rows[1].image == (tmp_path / "there.jpg").read_bytes()


def test_images_stay_with_their_pairs_however_they_come(tmp_path: Path) -> None:
    """From the source, from files, none because a row is rejected; over more rows than are fetched together."""

    def rows() -> Iterator[Pair | Rejected]:
        for i in range(1300):
            data = encoded(Image.new("RGB", (8, 8), (i % 256, i // 256, 0)), "PNG")
            if i % 5 == 0:
                yield Rejected(f"{i}", "from", "bad_row", "why")
            elif i % 7 == 0:
                yield pair(b"no image", key=f"{i}")
            elif i % 3 == 0:
                yield pair(data, key=f"{i}")
            else:
                (tmp_path / f"{i}.png").write_bytes(data)
                yield pair(key=f"{i}", file=str(tmp_path / f"{i}.png"))

    found = list(curate(rows(), settings_of(image={"size": 32, "format": "png"})))
    assert [row.columns["key"] for row in found] == [f"{i}" for i in range(1300)]
    for i, row in enumerate(found):
        expected = "bad_row" if i % 5 == 0 else "undecodable" if i % 7 == 0 else None
        assert row.columns.get("reason") == expected
        if expected is None:
            assert row.image is not None
            assert Image.open(io.BytesIO(row.image)).getpixel((0, 0)) == (i % 256, i // 256, 0)


def test_digests_are_equal_for_equal_content_alone() -> None:
    settings = settings_of()
    base = one(pair(encoded(noise(40, 40)), "x", "y"), settings).columns
    again = one(pair(encoded(noise(40, 40)), "x", "y", file="/elsewhere.jpg"), settings).columns
    other = one(pair(encoded(noise(40, 40, 1)), "x", "z"), settings).columns
    names = ("key_digest", "image_digest", "content_digest", "text_digest")
    assert [base[name] for name in names] == [again[name] for name in names]
    assert base["image_digest"] != other["image_digest"] and base["content_digest"] != other["content_digest"]
    assert base["text_digest"][0] == other["text_digest"][0] and base["text_digest"][1] != other["text_digest"][1]


# --- mode index ---

Reads = Callable[[Mapping[str, Any]], tuple[dict[str, bool], dict[str, str | None]]]


@pytest.fixture
def reads(tmp_path: Path) -> Reads:
    """Which of two hundred groups' images were read, all of which are broken, and the split of each."""
    splits = {f"group {i}": split_of(f"group {i}", SPLITS, 0) for i in range(200)}
    (tmp_path / "broken.jpg").write_bytes(b"no image")

    def look(keys: Mapping[str, Any]) -> tuple[dict[str, bool], dict[str, str | None]]:
        pairs = [pair(key=group, group=group, file=str(tmp_path / "broken.jpg")) for group in splits]
        rows = list(curate(pairs, settings_of(mode="index", **keys)))
        assert all(row.image is None for row in rows)
        return {row.columns["key"]: row.columns.get("reason") == "undecodable" for row in rows}, splits

    return look


def test_an_index_looks_at_the_held_out_images_alone(reads: Reads) -> None:
    found, splits = reads({})
    assert found == {group: split == "test" for group, split in splits.items()} and 50 < sum(found.values()) < 150


@pytest.mark.parametrize(
    "keys",
    [
        {"verify": "all"},
        {"filters": {"min_side": 1}},
        {"filters": {"max_aspect": 100}},
        {"deduplicate": {"exact": "pair"}},
        {"deduplicate": {"near": 0}},
    ],
    ids=str,
)
def test_an_index_looks_at_all_images_where_it_has_to(reads: Reads, keys: dict) -> None:
    assert all(reads(keys)[0].values())


def test_filters_of_captions_need_no_image(reads: Reads) -> None:
    assert reads({"filters": {"min_words": 1}})[0] == reads({})[0]


def test_an_index_notes_where_images_are() -> None:
    row = one(Pair("k", "o", Location("/a/b.tar", 512, 99, ""), ["x"], "g", {}, b"bytes"), settings_of(mode="index", splits={}))
    assert [row.columns[name] for name in ("file", "start", "length", "column")] == ["/a/b.tar", 512, 99, ""]


def test_perceptual_hashes_are_of_the_same_pixels_whatever_the_way() -> None:
    """A large JPEG is decoded smaller, and a hash of the whole one would differ by some bits."""
    data = encoded(noise(1600, 1200), quality=60)
    settings = [settings_of(mode=mode, deduplicate={"near": 0}, splits={}) for mode in ("copy", "index")]
    assert len({one(pair(data), each).columns["near_hash"] for each in settings}) == 1


# --- near duplicates ---


def distance(one: int, two: int) -> int:
    return bin(one ^ two).count("1")


def hash_of(data: bytes) -> int:
    found = one(pair(data), settings_of(deduplicate={"near": 6})).columns["near_hash"]
    assert 0 <= found < 2**64
    return found


def test_a_copy_of_an_image_is_near_it_and_another_image_is_not() -> None:
    images = [photo(seed) for seed in range(12)]
    originals = [hash_of(encoded(image)) for image in images]
    for image, original in zip(images, originals, strict=True):
        for copy in (
            encoded(image, quality=30),
            encoded(image.resize((320, 240))),
            encoded(image.resize((80, 60)), "PNG"),
            encoded(ImageEnhance.Brightness(image).enhance(0.9)),
        ):
            assert distance(original, hash_of(copy)) <= 6
    others = [distance(a, b) for i, a in enumerate(originals) for b in originals[:i]]
    assert min(others) > 6 and 28 < np.mean(others) < 36


def test_hashes_are_made_where_somebody_asked_for_them() -> None:
    assert one(pair(encoded(photo(0))), settings_of()).columns["near_hash"] is None
