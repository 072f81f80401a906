"""Every odd or broken image and caption of the corpus becomes what it must, and nothing is said about it."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.dataset.images import REASONS, BadImage, decode
from pipelines.io.image_bytes import Location
from pipelines.prepare.captions import CaptionSettings, usable
from pipelines.sources.base import Pair, Rejected
from tests.pipelines.corpus import CASES, Case

_DECODE_ALL = """
from pipelines.dataset.images import BadImage, decode
from tests.pipelines.corpus import CASES
for case in CASES:
    try:
        decode(case.image)
    except BadImage:
        pass
"""


def outcome(case: Case) -> str | None:
    """The reason code, as preparing finds it: the caption is looked at first, then the image."""
    found = usable(Pair(case.name, case.name, Location(case.name), [case.caption], case.name), CaptionSettings())
    if isinstance(found, Rejected):
        return found.reason
    assert found.captions == [case.caption]  # to the letter: nothing is trimmed, and "null" is a word
    try:
        image = decode(case.image)
    except BadImage as bad:
        assert bad.detail
        return bad.reason
    assert image.mode == "RGB"
    if case.check is not None:
        case.check(image)
    return None


@pytest.mark.filterwarnings(
    "ignore"
)  # pytest undoes the filter that `pipelines.dataset.images` sets, which has its own test below
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_kept_or_has_its_reason(case: Case) -> None:
    assert outcome(case) == case.reason


def test_the_corpus_is_large_and_has_every_reason() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 45
    assert {case.reason for case in CASES} == {None, "bad_row", "empty_caption", "caption_too_long", *REASONS}
    assert all((case.check is None) == (case.reason is not None) for case in CASES)


def test_nothing_is_printed_about_any_case() -> None:
    """Not by Python, and not by a decoder's C code: with millions of files it would be a flood."""
    command = [sys.executable, "-W", "always", "-W", "ignore::DeprecationWarning", "-c", _DECODE_ALL]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert (done.stdout, done.stderr) == ("", "")
