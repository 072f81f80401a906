"""Work apart: whatever an item does to its process, it is named, and the others are there."""

import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.dataset.images import BadImage, decode
from pipelines.io import child_process
from pipelines.io.child_process import Fatal, Limits
from pipelines.prepare.check import scan_unit
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.shards import Part, cut, list_units, read_part
from pipelines.program.errors import UserError
from tests.pipelines.deadly import Deadly, killed_once, numbers, process, raising
from tests.pipelines.test_svg_render import svg_of

SMALL = Limits(seconds=1, memory=1 << 30)
GREEN = '<rect width="40" height="40" fill="lime"/>'
# A tile of a million pixels a side: the renderer asks for terabytes, gets none, and ends its process.
MEMORY = (
    '<pattern id="p" width="1000000" height="1000000" patternUnits="userSpaceOnUse"><rect width="1" height="1"/></pattern>'
    '<rect width="40" height="40" fill="url(#p)"/>'
)
# Noise of two hundred octaves: minutes.
TIME = (
    '<filter id="f" x="-500%" y="-500%" width="2000%" height="2000%"><feTurbulence baseFrequency="0.01" numOctaves="200"/>'
    '<feMorphology radius="20"/></filter><rect width="40" height="40" filter="url(#f)"/>'
)


# --- items of any kind ---


def test_each_item_that_ends_the_process_is_named_and_the_others_are_there() -> None:
    ends = {0: "crash", 3: "loop", 4: "exit"}
    found = list(child_process.each(partial(numbers, ends, 6), Limits(seconds=0.3)))
    assert [item[0] if isinstance(item, tuple) else item.about for item in found] == ["item 0", 1, 2, "item 3", "item 4", 5]
    whys = {item.about: item.why for item in found if isinstance(item, Fatal)}
    assert "SIGSEGV" in whys["item 0"] and "0.3 s of CPU time" in whys["item 3"] and "exit code 3" in whys["item 4"]
    assert [item.costly for item in found if isinstance(item, Fatal)] == [False, True, False]


def test_one_child_does_work_after_work() -> None:
    first, second = (list(child_process.each(partial(numbers, {}, 3))) for _ in range(2))
    assert [number for number, _ in first] == [number for number, _ in second] == [0, 1, 2]
    alone = [child_process.one(process) for _ in range(2)]
    assert {pid for _, pid in first + second} == {*alone} and len({*alone, os.getpid()}) == 2


def test_a_child_that_somebody_kills_is_no_items_fault(tmp_path: Path) -> None:
    """As the kernel does where memory runs out."""
    assert list(child_process.each(partial(killed_once, tmp_path / "marker"))) == [0, 1, 2]


@pytest.mark.parametrize("error", [UserError("source.path", "no", "yes"), ConnectionResetError("gone"), ZeroDivisionError("0")])
def test_what_the_work_raises_is_raised(error: Exception) -> None:
    found = []
    with pytest.raises(type(error), match=str(error)):
        for item in child_process.each(partial(raising, error)):
            found.append(item)
    assert found == [1]


def test_who_leaves_early_leaves_no_child_at_work() -> None:
    items = child_process.each(partial(numbers, {1: "loop"}, 3), Limits(seconds=60))
    _, pid = next(items)
    items.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# --- preparing ---


@pytest.fixture
def poisoned(folder_of: Callable, png_of: Callable) -> Path:
    """Four files that can be drawn, and between them two that cannot."""
    image = png_of(np.full((8, 8, 3), 200, np.uint8))
    files = {"a.png": image, "b.svg": svg_of(MEMORY), "c.svg": svg_of(GREEN), "d.svg": svg_of(TIME), "e.png": image}
    return folder_of(files | {f"{name}.txt": f"thing {name}" for name in "abcde"})


def settings_of(folder: Any, output: Path, **keys: Any) -> PrepareSettings:
    tree = {"source": {"name": "folder", "path": folder}, "output": output, "image": {"size": 256, "format": "png"}}
    return PrepareSettings.model_validate(tree | keys)


def test_a_poisoned_image_is_rejected_by_name_and_the_rest_goes_on(poisoned: Path, tmp_path: Path) -> None:
    settings = settings_of(poisoned, tmp_path / "out")
    (part,) = cut(list_units(settings), 100)
    counts = read_part(part, tmp_path / "content", settings, SMALL)
    assert counts == {"": 5, "decompression_bomb": 2}
    rows = pq.read_table(tmp_path / "content" / "00000.found.parquet").to_pylist()
    assert [row["key"] for row in rows] == ["a.png", "b.svg", "c.svg", "d.svg", "e.png"]
    assert [row["reason"] for row in rows] == [None, "decompression_bomb", None, "decompression_bomb", None]
    assert "memory allocation" in rows[1]["detail"] and "1 s of CPU time" in rows[3]["detail"]
    assert rows[3]["origin"] == str(poisoned / "d.svg")


def test_the_check_finds_the_same(poisoned: Path, tmp_path: Path) -> None:
    settings = settings_of(poisoned, tmp_path / "out", source={"name": "folder", "path": poisoned, "exclude": ["d.*"]})
    (unit,) = list_units(settings)
    found = scan_unit(unit.data, 100, settings)
    assert found["sampled"] == 4 and found["sample_reasons"] == {"decompression_bomb": 1}
    assert found["formats"] == {"PNG": 2, "SVG": 1} and found["rows"] == 4
    assert found["examples"]["decompression_bomb"] == str(poisoned / "b.svg")


def test_a_unit_that_cannot_be_read_without_harm_costs_itself_only(folder_of: Callable, png_of: Callable, tmp_path: Path) -> None:
    """A reader that crashes is met before there is a row: what comes before is kept, and the other units are."""
    image = png_of(np.full((8, 8, 3), 200, np.uint8))
    names = ["a", "b", *(f"c{i:02d}" for i in range(20))]
    root = folder_of({f"{name}.png": image for name in names} | {f"{name}.txt": name for name in names})
    settings = settings_of(root, tmp_path / "out")
    settings = settings.model_copy(update={"source": Deadly(name="folder", path=root)})
    part = Part(0, tuple(unit.data for unit in list_units(settings)), 22, 0, 1.0, (None, None))
    counts = read_part(part, tmp_path / "content", settings)
    assert counts == {"": 1 + 1 + 6, "unreadable_file": 1}
    rows = pq.read_table(tmp_path / "content" / "00000.found.parquet").to_pylist()
    assert [row["key"] for row in rows] == ["a.png", "a.png", *(f"c{i}.png" for i in range(14, 20))]
    assert "SIGSEGV" in rows[1]["detail"] and Counter(row["reason"] for row in rows)[None] == 7


def test_memory_is_limited_even_where_the_machine_has_it() -> None:
    """A tile of 10,000 pixels a side takes 400 MB."""
    drawing = svg_of(MEMORY.replace("1000000", "10000"))
    found = child_process.one(partial(decode, drawing, svg_size=256), Limits(memory=128 << 20))
    assert isinstance(found, Fatal) and found.reason == "decompression_bomb" and "which may have 0.125 GiB" in found.why


# --- elsewhere ---


def test_a_drawing_harms_nobody_who_decodes_it() -> None:
    """Training from originals, evaluation and stored features decode in processes of their own."""
    with pytest.raises(BadImage) as caught:
        decode(svg_of(MEMORY), svg_size=16)
    assert caught.value.reason == "decompression_bomb" and "memory allocation" in caught.value.detail
    assert decode(svg_of(GREEN), svg_size=16).getpixel((8, 8)) == (0, 255, 0)
