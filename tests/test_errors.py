"""A user's error keeps its parts wherever it goes."""

import pickle

import pytest

from pipelines.program.errors import UserError

ERROR = UserError("source.path", "no file of 'x'", "give a folder")


def test_it_reads_as_one_line() -> None:
    assert str(ERROR) == "source.path: no file of 'x'; give a folder"
    assert str(UserError("", "nothing", "wait")) == "nothing; wait" and str(UserError("a.b", "bad")) == "a.b: bad"


def test_its_parts_come_back_from_another_process() -> None:
    back = pickle.loads(pickle.dumps(ERROR))
    assert (back.key, back.problem, back.remedy) == (ERROR.key, ERROR.problem, ERROR.remedy)


@pytest.mark.parametrize(
    ("key", "prefix", "instead_of", "wanted"),
    [
        ("path", "source.sources[0]", "", "source.sources[0].path"),
        ("source.path", "source.sources[0]", "source", "source.sources[0].path"),
        ("source[1].path", "mix", "source", "mix[1].path"),
        ("sources.path", "mix", "source", "mix.sources.path"),
        ("", "data.path", "", "data.path"),
        ("data.path", "dataset", "data.path", "dataset"),
    ],
)
def test_under_a_key(key: str, prefix: str, instead_of: str, wanted: str) -> None:
    moved = UserError(key, "bad", "mend").under(prefix, instead_of)
    assert (moved.key, moved.problem, moved.remedy) == (wanted, "bad", "mend")
