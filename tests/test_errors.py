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
def test_a_key_moves_under_another(key: str, prefix: str, instead_of: str, wanted: str) -> None:
    moved = UserError(key, "bad", "mend").under(prefix, instead_of)
    assert (moved.key, moved.problem, moved.remedy) == (wanted, "bad", "mend")


@pytest.mark.parametrize(
    ("remedy", "expected"),
    [
        ("pass source.path=FOLDER", "pass mix[0].source.path=FOLDER"),
        ("pass source.config=null, or source.split=all", "pass mix[0].source.config=null, or mix[0].source.split=all"),
        ("set source.root", "set mix[0].source.root"),
        ("prepare with mode=copy", "prepare with mode=copy"),  # of the whole config
        ("see data/source.path and my_source.path=x", "see data/source.path and my_source.path=x"),
        ("check the source", "check the source"),
    ],
)
def test_keys_of_a_remedy_move_with_the_key(remedy: str, expected: str) -> None:
    assert UserError("source.path", "bad", remedy).under("mix[0].source", instead_of="source").remedy == expected
