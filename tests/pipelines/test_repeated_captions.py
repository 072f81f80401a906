"""Captions that repeat and splits that stay empty are told: when checking, when preparing, and to whoever asks the manifest."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.dataset.prepared import Prepared
from pipelines.prepare import check as checking
from pipelines.prepare import prepare
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.repeated_captions import Repeats, warnings_of
from pipelines.prepare.shards import Part, read_part
from pipelines.program import cluster
from pipelines.program.display import Display
from pipelines.program.wilson import wilson

DISTINCT = [f"thing number {i}" for i in range(40)]
SAME = ["a photo"] * 40
BOILERPLATE = ["Image may contain: text"] * 8 + DISTINCT[8:]


@pytest.fixture
def settings_of(tmp_path: Path) -> Callable[..., PrepareSettings]:
    """A csv of these texts, each beside an image; every image but the broken ones is the same file."""

    def make(texts: list[str], broken: tuple[int, ...] = (), **keys: Any) -> PrepareSettings:
        Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
        (tmp_path / "broken.png").write_bytes(b"no image")
        rows = [f"{'broken' if i in broken else 'a'}.png,{caption}\n" for i, caption in enumerate(texts)]
        (tmp_path / "list.csv").write_text("image,caption\n" + "".join(rows))
        source = {"name": "table", "paths": str(tmp_path / "list.csv")}
        tree = {"source": source, "output": str(tmp_path / "out"), "splits": {"test": 0.2}, "image": {"size": 16}}
        return PrepareSettings.model_validate(tree | keys)

    return make


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units are scanned and parts read in this process: what is told of them is the same."""

    def read(parts: list[Part], content: Any, settings: PrepareSettings) -> Iterator[tuple[int, Counter[str]]]:
        for part in parts:
            counts = Counter(read_part(part, content, settings))
            yield counts.pop(""), counts

    def scan(units: list[Any], settings: PrepareSettings) -> Iterator[dict[str, Any]]:
        yield from (checking.scan_unit(unit.data, checking._IMAGES, settings) for unit in units)

    monkeypatch.setattr(cluster, "start", lambda *_: None)
    monkeypatch.setattr(prepare, "read_parts", read)
    monkeypatch.setattr(checking, "_scan", scan)


@pytest.mark.parametrize(
    ("captions", "told"),
    [
        (DISTINCT, []),
        (SAME, [("40 rows", "'a photo'"), ("split test", "40 rows", "source.group")]),
        (BOILERPLATE, [("8 of 40 rows (20%)", "'Image may contain: text'")]),
    ],
    ids=["distinct", "same", "boilerplate"],
)
def test_checking_and_preparing_tell_what_repeats(
    settings_of: Callable[..., PrepareSettings], capsys: pytest.CaptureFixture, captions: list[str], told: list[tuple[str, ...]]
) -> None:
    settings = settings_of(captions)
    checking.check(settings, Display())
    said = capsys.readouterr().out
    assert warns_of(said, told)
    assert any(line.endswith(f" {len(set(captions)):,} of 40 rows") for line in said.splitlines() if "captions" in line)
    prepared = prepare.prepare(settings, Display())
    assert warns_of(capsys.readouterr().out, told)
    prepare.prepare(settings, Display())  # done before
    assert warns_of(capsys.readouterr().out, told)
    assert warnings_of(Prepared.open(settings.output).manifest) == warnings_of(prepared.manifest)
    # Preparing makes splits of the sizes that checking printed.
    sizes = ", ".join(f"{name} {count}" for name, count in prepared.manifest["splits"].items())
    assert any(line.endswith(sizes) for line in said.splitlines() if "splits" in line)


def warns_of(text: str, told: list[tuple[str, ...]]) -> bool:
    """Whether there is one warning for each of these, in order, which names each of its parts."""
    lines = [line for line in text.splitlines() if line.startswith("warning: ")]
    return len(lines) == len(told) and all(part in line for line, parts in zip(lines, told, strict=True) for part in parts)


def test_data_for_evaluation_only_do_not_warn_of_what_was_asked_for(
    settings_of: Callable[..., PrepareSettings], capsys: pytest.CaptureFixture
) -> None:
    for splits in ({"test": 1.0}, {"test": 0.3, "val": 0.7}):
        settings = settings_of(DISTINCT, splits=splits, overwrite=True)
        checking.check(settings, Display())
        assert prepare.prepare(settings, Display()).manifest["splits"]["train"] == 0
        assert "warning: " not in capsys.readouterr().out


def test_the_facts_are_those_of_counting(settings_of: Callable[..., PrepareSettings]) -> None:
    captions = np.random.default_rng(0).choice(["one", "two", "three", "four"], 60, p=[0.5, 0.3, 0.15, 0.05]).tolist()
    counts = Counter(captions)
    caption, rows = counts.most_common(1)[0]
    for keys in ({}, {"captions": {"shuffled": 0.5}}, {"shard_rows": 7}):
        manifest = prepare.prepare(settings_of(captions, overwrite=True, **keys), Display(quiet=True)).manifest
        assert Repeats(**manifest["repeats"]) == Repeats(60, len(counts), len(counts), caption, rows, rows)


def test_a_dataset_of_an_earlier_version_warns_of_nothing() -> None:
    assert warnings_of({"splits": {"train": 3, "test": 0}}) == []


def test_pairs_are_shown(settings_of: Callable[..., PrepareSettings], capsys: pytest.CaptureFixture) -> None:
    checking.check(settings_of(DISTINCT), Display())
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("for example ")]
    assert "a.png: 'thing number 0'" in shown[0] and "a.png: 'thing number 39'" in shown[-1]


def test_units_count_by_their_size(
    settings_of: Callable[..., PrepareSettings], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """256 rows and 44: the 11 broken ones are a quarter of the small unit, and 3.7 % of all."""
    settings = settings_of([f"thing {i}" for i in range(300)], broken=tuple(range(256, 300, 4)), max_rejected_rate=0.1)
    assert [unit.rows for unit in settings.source.units()] == [256, 44]
    monkeypatch.setattr(checking, "_IMAGES", 22)
    assert checking.check(settings, Display())
    said = capsys.readouterr().out
    (row,) = [line.split() for line in said.splitlines() if line.startswith("undecodable")]
    hits = int(row[2])
    share = 44 / 300 * hits / 22
    # Wilson's interval of as many draws as would have this variance, of which sampling without replacement leaves a part.
    spread = (256 / 300) ** 2 / 22 * (1 - 22 / 256) + (44 / 300) ** 2 / 22 * (1 - 22 / 44)
    low, high = wilson(share / spread, 1 / spread)
    assert row[3:6] == [f"{low:.2%}", "to", f"{high:.2%}"] and low < 11 / 300 < high
    assert f"unusable: about {share:.1%} of the rows" in said


def test_what_was_looked_at_whole_needs_no_interval(
    settings_of: Callable[..., PrepareSettings], capsys: pytest.CaptureFixture
) -> None:
    settings = settings_of([f"thing {i}" for i in range(300)], broken=tuple(range(256, 300, 4)))
    checking.check(settings, Display())
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("undecodable")]
    assert row[2:4] == ["11", f"{11 / 300:.2%}"]
