"""A caption is the same text whatever it is read from: all sources, and the readers of evaluation data."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forms import FORMS, Given
from pydantic import TypeAdapter

from evaluation.data.union import DataUnion
from pipelines.dataset.tokenizer import train_tokenizer
from pipelines.prepare.captions import CaptionSettings, usable
from pipelines.program.text_lines import lines_of
from pipelines.sources import SourceSettings
from pipelines.sources.base import Pair, Rejected, Source
from tests.pipelines.rows import image, read
from tests.refusals import refused

# What str.splitlines takes for an end of a line, and people do not: line and paragraph separators, next line, vertical tab, form
# feed, and the separators of files, groups and records.
INSIDE = ["\u2028", "\u2029", "\x85", "\v", "\f", "\x1c", "\x1d", "\x1e"]
TEXTS = [f"a cat{sign}asleep on the red mat" for sign in INSIDE]


def given() -> list[Given]:
    return [Given(f"{i:03d}.png", image(i), text) for i, text in enumerate(TEXTS)]


def source_of(tree: dict[str, Any]) -> Source:
    return TypeAdapter(SourceSettings).validate_python(tree)


@pytest.mark.parametrize("form", FORMS)
def test_every_source_keeps_it_whole(tmp_path: Path, form: str) -> None:
    found = read(source_of(FORMS[form](tmp_path / "x", given())))
    assert [row.captions for row in found if isinstance(row, Pair)] == [[text] for text in TEXTS]


@pytest.mark.parametrize("form", ["folder", "webdataset"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_at_line_ends(tmp_path: Path, form: str, end: str) -> None:
    pairs = [Given("000.png", image(0), end.join(TEXTS))]
    (row,) = read(source_of(FORMS[form](tmp_path / "x", pairs) | {"captions": "all_lines"}))
    assert isinstance(row, Pair) and row.captions == TEXTS


def test_names_of_classes(tmp_path: Path) -> None:
    names = {f"n{i}": text for i, text in enumerate(TEXTS)}
    for folder in names:
        (tmp_path / "x" / folder).mkdir(parents=True)
        (tmp_path / "x" / folder / "0.png").write_bytes(image(0))
    (tmp_path / "names.txt").write_text("".join(f"{folder} {name}\n" for folder, name in names.items()), encoding="utf-8")
    found = read(
        source_of({"name": "classes", "path": str(tmp_path / "x"), "templates": ["{}"], "names": str(tmp_path / "names.txt")})
    )
    assert [row.captions for row in found if isinstance(row, Pair)] == [[text] for text in TEXTS]


def evaluated(tree: dict[str, Any]) -> Any:
    return TypeAdapter(DataUnion).validate_python(tree).read("data.x")


LISTS: dict[str, Callable[[str, str], str]] = {
    "a.token": lambda name, text: f"{name}#0\t{text}\n",
    "results.csv": lambda name, text: f"{name}| 0| {text}\n",
    "test_karpathy.txt": lambda name, text: f"{name},{text}\n",
    "annotations.csv": lambda name, text: f'{name},"{json.dumps([text], ensure_ascii=False).replace(chr(34), chr(34) * 2)}"\n',
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_captions_to_be_scored(tmp_path: Path, kind: str) -> None:
    (tmp_path / "images").mkdir()
    for i in range(len(TEXTS)):
        (tmp_path / "images" / f"{i}.png").write_bytes(image(i))
    texts = [json.loads(json.dumps(text)) for text in TEXTS]
    if kind == "annotations.csv":  # JSON has no bare control characters
        texts = [text for text in texts if min(text) >= " "]
    lines = "".join(LISTS[kind](f"{i}.png", text) for i, text in enumerate(texts))
    header = "filename,raw\n" if kind == "annotations.csv" else ""
    (tmp_path / kind).write_text(header + lines, encoding="utf-8", newline="")
    content = evaluated({"name": "captions", "path": str(tmp_path / kind), "images": str(tmp_path / "images")})
    assert content.retrieval.texts == texts


def test_tars_and_labels_to_be_scored(tmp_path: Path, folder_of: Callable) -> None:
    root = folder_of({"test/nshards.txt": "1", "dataset_type.txt": "retrieval"})
    with tarfile.open(root / "test" / "0.tar", "w") as tar:
        (tmp_path / "s0.png").write_bytes(image(0))
        (tmp_path / "s0.txt").write_text("\n".join(TEXTS), encoding="utf-8", newline="")
        for name in ("s0.png", "s0.txt"):
            tar.add(tmp_path / name, name)
    assert evaluated({"name": "webdataset", "path": str(root)}).retrieval.texts == TEXTS
    (root / "dataset_type.txt").unlink()
    (root / "classnames.txt").write_text("\n".join(TEXTS), encoding="utf-8", newline="")
    with tarfile.open(root / "test" / "0.tar", "w") as tar:
        (tmp_path / "s0.cls").write_text("3")
        for name in ("s0.png", "s0.cls"):
            tar.add(tmp_path / name, name)
    (scored,) = evaluated({"name": "webdataset", "path": str(root)}).classifications.values()
    assert scored.classes == tuple((text,) for text in TEXTS)


@pytest.mark.parametrize("kind", ["labels.txt", "labels.csv"])
def test_labels_beside_images_to_be_scored(tmp_path: Path, kind: str) -> None:
    (tmp_path / "images").mkdir()
    for i in range(len(TEXTS)):
        (tmp_path / "images" / f"{i}.png").write_bytes(image(i))
    lines = [text if kind == "labels.txt" else f"{i}.png,{text}" for i, text in enumerate(TEXTS)]
    (tmp_path / kind).write_text("\n".join(lines), encoding="utf-8", newline="")
    content = evaluated({"name": "folder", "path": str(tmp_path / "images"), "labels": str(tmp_path / kind)})
    (scored,) = content.classifications.values()
    assert sorted(name for (name,) in scored.classes) == sorted(TEXTS)


def test_a_text_has_as_many_lines_as_line_ends() -> None:
    assert lines_of("") == [] and lines_of("a") == lines_of("a\n") == ["a"] and lines_of("a\n\nb\r\n") == ["a", "", "b"]


# --- what no caption may hold ---


@pytest.mark.parametrize("form", FORMS)
def test_a_nul_costs_its_row_in_every_source(tmp_path: Path, form: str) -> None:
    pairs = [Given("000.png", image(0), "a b\0c"), Given("001.png", image(1), "fine")]
    found = [
        usable(row, CaptionSettings()) for row in read(source_of(FORMS[form](tmp_path / "x", pairs))) if isinstance(row, Pair)
    ]
    assert [row.reason if isinstance(row, Rejected) else row.captions for row in found] == ["bad_row", ["fine"]]


def test_captions_are_limited_by_characters_too() -> None:
    def outcome(*captions: str, **keys: int) -> object:
        found = usable(Pair("k", "o", None, list(captions), "g"), CaptionSettings(**keys))  # type: ignore[arg-type]
        return (found.reason, found.detail) if isinstance(found, Rejected) else found.captions

    assert outcome("x" * 1_000_000) == ("caption_too_long", "1000000 characters")
    assert outcome("short", "x" * 10_001) == ("caption_too_long", "10001 characters")
    assert outcome("\u732b" * 10_000) == ["\u732b" * 10_000]
    assert outcome("abcd", reject_characters=3) == ("caption_too_long", "4 characters")


def test_a_word_that_no_vocabulary_can_hold_changes_none() -> None:
    """The trainer's time grows with the square of a word's length: with this one it would not end."""
    captions = [f"a {word} icon" for word in ("red", "green", "blue", "home", "arrow", "left", "cat", "dog")] * 20
    with_it = train_tokenizer([*captions, "x" * 1_000_000, f"a {'y' * 101} icon"], 400, 16)
    assert with_it.json == train_tokenizer([*captions, "", "a icon"], 400, 16).json
    assert with_it(["y" * 101])[0][0].tolist()[:3] == [2, 1, 3], "unknown, between the marks of begin and end"
    kept = train_tokenizer([*captions, "x" * 100], 400, 16)
    assert kept.json != with_it.json, "one of 100 letters is learnt from"


def test_utf_16_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image(0))
    rows = {
        "a.csv": "image,caption\na.png,x\n",
        "a.tsv": "image\tcaption\na.png\tx\n",
        "a.jsonl": '{"image": "a.png", "caption": "x"}\n',
    }
    rows["a.json"] = json.dumps([{"image": "a.png", "caption": "x"}])
    for name, text in rows.items():
        for code in ("utf-16", "utf-16-be"):
            (tmp_path / name).write_bytes(("\ufeff" if code.endswith("be") else "").encode(code) + text.encode(code))
            kind = "json" if "json" in name else "table"
            with refused("source.paths", name, "UTF-16"):
                source_of({"name": kind, "paths": str(tmp_path / name)}).units()
    (tmp_path / "a.txt").write_text("a cat", encoding="utf-16")
    (row,) = read(source_of({"name": "folder", "path": str(tmp_path)}))
    assert isinstance(row, Rejected) and row.reason == "unreadable_file" and "UTF-16" in row.detail
