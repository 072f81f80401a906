"""Stored features of a dataset in a store: computed once, read on every node from a copy that was checked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.dataset.prepared import Prepared
from pipelines.features.feature_store import stored_image_features
from pipelines.features.pool import Pool
from pipelines.features.rows_by_id import feature_rows
from pipelines.program.display import Display
from tests.object_store import Store, object_store
from tests.refusals import refused
from tests.training.squares import prepared_by_hand


class Encoder:
    """Of each image its colours."""

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(len(pixels), -1)[:, :12] / 255 + 1


class Absent:
    def __init__(self) -> None:
        raise AssertionError("nothing was left to compute")


def features_of(prepared: Prepared, encoder: Any = Encoder) -> Path | str:
    return stored_image_features(prepared, 16, encoder, (), {"model": "colours"}, Pool(0), Display(quiet=True))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with object_store() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store


def test_features_in_a_store(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = prepared_by_hand(tmp_path / "squares", "squares")
    for file in (path for path in (tmp_path / "squares").rglob("*") if path.is_file()):
        store.put(f"squares/{file.relative_to(tmp_path / 'squares')}", file.read_bytes())
    there = Prepared.open(store.uri("squares"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    with store.faulty(errors=0.1, resets=0.1, stalls=0.0):
        place = features_of(there)
    assert isinstance(place, str) and place.startswith(store.uri("squares", "features"))
    rows = feature_rows(features_of(disk))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    assert features_of(there, Absent) == place
    store.forget()
    for _ in range(2):
        assert np.array_equal(feature_rows(place), rows)
    assert not any(request.key.endswith("rows.npy") for request in store.requests()), "it is on this node"
    name = place.removeprefix(store.uri("")) + "/rows.npy"
    data = bytearray(store.get(name) or b"")
    data[-1] ^= 1
    store.put(name, bytes(data))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
    with refused(place, "rows.npy", remedy="delete"):
        features_of(there)
