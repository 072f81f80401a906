"""Embeddings from disk: what each file must hold is listed, and a wrong one is refused by name."""

from pathlib import Path

import numpy as np
import pytest

from evaluation.config import EvaluateSettings
from evaluation.embeddings import Inputs, Rows
from evaluation.model_settings import ModelSettings
from evaluation.precomputed import precomputed
from pipelines.program.settings import validate
from tests.evaluation.lists import Plain
from tests.refusals import refused

IMAGES, TEXTS = Inputs("images", Plain(3), "set/test"), Inputs("texts", ("a cat", "two\ndogs"), "set/captions")
FEATURES = Inputs("features", Plain(3), "set/test")


def read(tmp_path: Path, *inputs: Inputs) -> Rows:
    return precomputed("models.theirs", ModelSettings(embeddings=tmp_path / "rows"), inputs, tmp_path / "inputs")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows of three images and two texts."""
    path = tmp_path / "rows" / "set"
    path.mkdir(parents=True)
    np.save(path / "test.images.npy", np.asarray([[3, 4], [0, 2], [-1, 0]], dtype=np.float64))
    np.save(path / "captions.texts.npy", np.asarray([[1, 0], [0, 1]], dtype=np.float32))
    return path


def test_rows_are_read_and_their_order_is_listed(folder: Path, tmp_path: Path) -> None:
    rows = read(tmp_path, IMAGES, TEXTS)
    assert rows[IMAGES] == pytest.approx(np.asarray([[0.6, 0.8], [0, 1], [-1, 0]])) and rows[TEXTS].tolist() == [[1, 0], [0, 1]]
    assert (tmp_path / "inputs" / "set" / "test.images.txt").read_text() == "image 0\nimage 1\nimage 2\n"
    assert (tmp_path / "inputs" / "set" / "captions.texts.txt").read_text() == "a cat\ntwo dogs\n"


def test_other_rows_are_another_model(folder: Path, tmp_path: Path) -> None:
    before = read(tmp_path, IMAGES, TEXTS).fingerprint
    assert read(tmp_path, IMAGES, TEXTS).fingerprint == before
    np.save(folder / "captions.texts.npy", np.asarray([[1, 0], [0.1, 1]], dtype=np.float32))
    assert read(tmp_path, IMAGES, TEXTS).fingerprint != before


def test_features_are_their_own_or_else_the_embeddings(folder: Path, tmp_path: Path) -> None:
    rows = read(tmp_path, FEATURES)
    assert not rows.has_features(FEATURES) and rows[FEATURES].shape == (3, 2)
    np.save(folder / "test.features.npy", np.full((3, 5), 9.0))
    rows = read(tmp_path, FEATURES)
    assert rows.has_features(FEATURES) and np.array_equal(rows[FEATURES], np.full((3, 5), 9.0))


@pytest.mark.parametrize(
    ("rows", "named", "remedy"),
    [
        (None, [], "[3, width]"),
        (np.ones((2, 4)), ["float64 [2, 4]"], "[3, width]"),
        (np.ones(3), ["float64 [3]"], "[3, width]"),
        (np.ones((3, 4), dtype=np.int64), ["int64 [3, 4]"], "floats"),
        (np.asarray([[1, 1], [1, np.nan], [np.inf, 1]]), ["2 of 3 rows of set/test (images)", "image 1"], "embedder"),
    ],
)
def test_a_wrong_file_is_refused(folder: Path, tmp_path: Path, rows: np.ndarray | None, named: list[str], remedy: str) -> None:
    (folder / "test.images.npy").unlink()
    if rows is not None:
        np.save(folder / "test.images.npy", rows)
    with refused("models.theirs", *named, remedy=remedy) as caught:
        read(tmp_path, IMAGES, TEXTS)
    if "embedder" not in remedy:
        assert str(folder / "test.images.npy") in caught.value.problem
        assert str(tmp_path / "inputs" / "set" / "test.images.txt") in caught.value.remedy
    assert (tmp_path / "inputs" / "set" / "test.images.txt").exists(), "the list is there for whoever makes the file"


def test_a_file_that_is_no_array_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "test.images.npy").write_text("0.1 0.2")
    with refused("models.theirs", folder / "test.images.npy", remedy="numpy.save"):
        read(tmp_path, IMAGES)


def test_errors_name_the_key_that_names_the_model() -> None:
    one = {"data": "data/a", "output": "out"}
    assert validate(EvaluateSettings, one | {"embeddings": "rows"}, "x").key_of("rows") == "embeddings"
    models = validate(EvaluateSettings, one | {"models": {"a": {"embeddings": "rows"}, "b": {"checkpoint": "run"}}}, "x")
    assert [models.key_of(name) for name in "ab"] == ["models.a.embeddings", "models.b.embedder"]
