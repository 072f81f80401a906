"""Rows are embedded once: in the order asked for, kept by what they are of and by, refused where they are no rows."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from evaluation.embed import embed, forget
from evaluation.embeddings import Inputs, Rows
from evaluation.model_settings import ModelSettings
from pipelines.features.pool import Pool
from pipelines.program.display import Display
from tests.evaluation.lists import Plain
from tests.refusals import refused

QUIET = Display(quiet=True)
TEXTS = tuple(f"{'a' * (i % 7)} text {i}" for i in range(130))


def model(name: str, **arguments: object) -> ModelSettings:
    return ModelSettings(embedder=f"tests.evaluation.stranger:{name}", embedder_arguments=arguments)


def embedded(tmp_path: Path, inputs: list[Inputs], settings: ModelSettings) -> Rows:
    return embed("known", "models.known", settings, inputs, tmp_path / "cache", Pool(1), QUIET)


def seen(tmp_path: Path) -> Counter:
    """How often the embedder was shown what, since the last time."""
    found = Counter((tmp_path / "seen").read_text().split()) if (tmp_path / "seen").exists() else Counter()
    (tmp_path / "seen").write_text("")
    return found


INPUTS = [
    Inputs("images", Plain(150), "set/test"),
    Inputs("texts", TEXTS, "set/captions"),
    Inputs("features", Plain(70, first=9), "set/train"),
]


def test_rows_come_in_order_and_are_kept(ray_session: None, tmp_path: Path) -> None:
    settings = model("known", seen=str(tmp_path / "seen"))
    rows = embedded(tmp_path, INPUTS, settings)
    colours = np.asarray([[i % 256, i // 256, 100] for i in range(150)], dtype=np.float64)
    assert rows[INPUTS[0]] == pytest.approx(colours / np.linalg.norm(colours, axis=1, keepdims=True), abs=1e-6)
    counted = np.asarray([[len(text), text.count("a"), 1] for text in TEXTS])
    assert rows[INPUTS[1]] == pytest.approx(counted / np.linalg.norm(counted, axis=1, keepdims=True), abs=1e-6)
    features = [[8 + i % 50, 8, i, 0, 100, 7] for i in range(9, 79)]
    assert np.array_equal(rows[INPUTS[2]], features), "as they are, not of length one"
    assert rows.scale == 20 and rows.has_features(INPUTS[2])
    assert seen(tmp_path) == {"image": 150, "text": 130, "features": 70}

    again = embedded(tmp_path, [*INPUTS, Inputs("texts", TEXTS[:3], "other/captions")], settings)
    assert all(np.array_equal(again[one], rows[one]) for one in INPUTS)
    assert seen(tmp_path) == {"text": 3}, "only what is new"
    embedded(tmp_path, INPUTS[1:2], model("known", seen=str(tmp_path / "seen"), fingerprint="second"))
    assert seen(tmp_path) == {"text": 130}, "another model has no part in it"


def test_an_embedder_that_cannot_be_told_from_another_is_embedded_anew(ray_session: None, tmp_path: Path) -> None:
    rows = embedded(tmp_path, [INPUTS[1]], model("build", scale=1))
    again = embedded(tmp_path, [INPUTS[1]], model("build", scale=1))
    assert np.array_equal(rows[INPUTS[1]], again[INPUTS[1]]) and rows.fingerprint != again.fingerprint
    for one in (rows, again):
        forget(one, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_embeddings_stand_in_for_features(ray_session: None, tmp_path: Path) -> None:
    rows = embedded(tmp_path, [INPUTS[2]], model("build", scale=1))
    assert rows[INPUTS[2]].shape == (70, 3) and not rows.has_features(INPUTS[2])


def test_what_was_done_before_an_error_is_not_done_again(ray_session: None, tmp_path: Path) -> None:
    """Rows are put down in parts of 4,096."""
    texts = Inputs("texts", tuple(f"text {i}" for i in range(5000)), "set/captions")
    with refused("models.known", "1 of 64 rows of set/captions (texts)", "text 4500", remedy="embedder"):
        embedded(tmp_path, [texts], model("known", seen=str(tmp_path / "seen"), bad="text 4500"))
    assert seen(tmp_path)["text"] >= 4096
    rows = embedded(tmp_path, [texts], model("known", seen=str(tmp_path / "seen")))
    assert seen(tmp_path) == {"text": 5000 - 4096} and len(rows[texts]) == 5000


def test_an_embedder_with_wrong_shapes_is_found_out(ray_session: None, tmp_path: Path) -> None:
    with refused("models.known", "64 images of set/test", "shape [3]", remedy="[64, width]"):
        embedded(tmp_path, INPUTS[:1], model("flat", scale=1))


def test_rows_of_two_widths_are_not_in_one_space(tmp_path: Path) -> None:
    rows = Rows("given", None)
    for inputs, width in zip(INPUTS[:2], (3, 4), strict=True):
        np.save(tmp_path / f"{width}.npy", np.ones((len(inputs.items), width)))
        rows.add(inputs, tmp_path / f"{width}.npy")
    with refused("models.x", "set/test (images)", 3, "set/captions (texts)", 4, remedy="one space"):
        rows.check_widths(INPUTS[:2], "models.x")
