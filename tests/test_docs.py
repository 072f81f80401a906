"""The tables of the docs that can be computed are those that `make tables` writes. Their words are read by people only."""

import re
from pathlib import Path

import pytest

from benchmarks.docs import MEASURED, MEMBERS, PAGE, filled

ROOT = Path(__file__).parent.parent
WRITTEN, COSTS = ((ROOT / page).read_text(encoding="utf-8") for page in (PAGE, MEASURED))


def test_every_objective_has_its_keys_defaults_and_measured_costs() -> None:
    assert filled(WRITTEN, COSTS) == WRITTEN, "run make tables"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("| `max_scale` | 100 |", "| `max_scale` | 50 |"),
        ("| `bias` | -10 |", "| `bais`, `bias` | 3, -10 |"),
        ("step x 1.02, loss x 0.74,", "step x 1.20, loss x 0.74,"),
    ],
    ids=["default", "unknown", "cost"],
)
def test_what_differs_is_written_as_it_is(before: str, after: str) -> None:
    assert WRITTEN.count(before) == 1
    assert filled(WRITTEN.replace(before, after), COSTS) == WRITTEN


def test_a_key_without_a_row_gets_one() -> None:
    row = "| `bias` | -10 | initial value of the learned bias |\n"
    assert WRITTEN.count(row) == 1 and "| `bias` | -10 |" in filled(WRITTEN.replace(row, ""), COSTS)


def test_the_words_stay() -> None:
    reworded = re.sub(r"\*Use it\*|\*State:\*", "Words", WRITTEN)
    assert filled(reworded, COSTS) == reworded != WRITTEN


def test_an_objective_without_a_section_is_named() -> None:
    with pytest.raises(ValueError, match="has no section for clip;"):
        filled(WRITTEN.replace("## clip\n", "## plain\n"), COSTS)


def test_the_page_knows_no_objective_that_does_not_exist() -> None:
    sections = re.findall(r"^## ([\w-]+)$", WRITTEN, flags=re.MULTILINE)
    assert {name for name in sections if name.islower()} == set(MEMBERS)
