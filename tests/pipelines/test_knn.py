"""The search for neighbours: exact to the last tie however it is cut, and an index that finds nearly all of them."""

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipelines.features.knn import Approximate, nearest
from pipelines.program.settings import validate
from tests.patience import PATIENCE
from tests.refusals import refused
from training.config import FrozenEncoderSettings

ROWS, WIDTH = 6000, 64


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clusters(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Unit rows about a few hundred centres, as features of images lie."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(300, width))
    return unit(centres[random.integers(300, size=count)] + random.normal(size=(count, width)))


def plain(queries: np.ndarray, keys: np.ndarray, groups: np.ndarray, key_groups: np.ndarray) -> np.ndarray:
    products = queries.astype(np.float64) @ keys.astype(np.float64).T
    products[groups[:, None] == key_groups] = -np.inf
    return np.where(np.isinf(products.max(axis=1)), -1, products.argmax(axis=1))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def test_the_search_is_exact_on_any_device(device: str) -> None:
    rows, groups = clusters(1500, 48), np.arange(1500) // 3
    assert np.array_equal(nearest(rows[:400], rows, groups[:400], groups, device), plain(rows[:400], rows, groups[:400], groups))


@pytest.mark.parametrize("block", [1, 7, 64, 400])
def test_ties_and_near_ties_do_not_depend_on_who_asks_together(block: int, device: str) -> None:
    """Products in float32 come out differently by the shape of a block, and by device; here they must decide nothing."""
    random = np.random.default_rng(1)
    rows = unit(random.normal(size=(40, 384)))[random.integers(40, size=2000)]  # fifty copies of each
    rows[1000:] += random.normal(size=(1000, 384)).astype(np.float32) * 1e-8  # and nearly
    groups = np.arange(2000)
    whole = nearest(rows[:400], rows, groups[:400], groups)
    parts = [slice(start, min(start + block, 400)) for start in range(0, 400, block)]
    found = np.concatenate([nearest(rows[part], rows, groups[part], groups, device) for part in parts])
    assert np.array_equal(found, whole)
    exact = np.einsum("nf,nf->n", rows[:400].astype(np.float64), rows[whole].astype(np.float64))
    products = rows[:400].astype(np.float64) @ rows.astype(np.float64).T
    products[np.arange(400), np.arange(400)] = -np.inf
    np.testing.assert_allclose(exact, products.max(axis=1), rtol=0, atol=1e-14)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return clusters(ROWS, WIDTH)


@pytest.fixture(scope="module")
def groups() -> np.ndarray:
    """Images have up to four captions; one has two hundred, more than there are candidates."""
    groups = np.arange(ROWS) // 4
    groups[:200] = 0
    return groups


@pytest.fixture(scope="module")
def rows_of_group(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The large group's rows are nearest to one another, so that all candidates are of it."""
    rows = rows.copy()
    rows[:200] = unit(rows[:1] + np.random.default_rng(3).normal(size=(200, WIDTH)).astype(np.float32) * 1e-3)
    return rows


@pytest.fixture(scope="module")
def index(rows_of_group: np.ndarray, groups: np.ndarray) -> Approximate:
    pytest.importorskip("faiss")
    return Approximate(lambda places: rows_of_group[places], groups)


def test_it_finds_nearly_all_and_never_the_same_image(index: Approximate, rows_of_group: np.ndarray, groups: np.ndarray) -> None:
    found = index.nearest(rows_of_group, groups)
    exact = nearest(rows_of_group, rows_of_group, groups, groups)
    assert (found >= 0).all() and (groups[found] != groups).all()
    assert np.mean(found == exact) > 0.95
    assert np.array_equal(found[:200], exact[:200]), "where only its own image's rows were near, the search was exact"


def test_who_asks_together_and_another_index_of_the_same_rows_change_nothing(
    index: Approximate, rows_of_group: np.ndarray, groups: np.ndarray
) -> None:
    other = Approximate(lambda places: rows_of_group[places], groups)
    whole = index.nearest(rows_of_group[:700], groups[:700])
    parts = [other.nearest(rows_of_group[i : i + 70], groups[i : i + 70]) for i in range(0, 700, 70)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_rows_are_read_in_blocks(
    index: Approximate, rows_of_group: np.ndarray, groups: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As features beyond memory must be."""
    sizes = []

    def read(places: np.ndarray) -> np.ndarray:
        sizes.append(len(places))
        return rows_of_group[places]

    monkeypatch.setattr("pipelines.features.knn._BLOCK", 900)
    monkeypatch.setattr("pipelines.features.knn._SAMPLE", 10)
    other = Approximate(read, groups)
    found = other.nearest(rows_of_group[:300], groups[:300])
    # Training's sample, blocks, and the candidates of the 100 queries that have some.
    assert max(sizes) <= 32 * 100
    exact = nearest(rows_of_group[:300], rows_of_group, groups[:300], groups)
    assert np.array_equal(found[:200], exact[:200]), "block by block, too"


def test_nobody_else_is_nobody() -> None:
    pytest.importorskip("faiss")
    rows, groups = unit(np.eye(3) + 0.1), np.asarray([7, 7, 7])
    assert Approximate(lambda places: rows[places], groups).nearest(rows, groups).tolist() == [-1, -1, -1]
    assert Approximate(lambda places: rows[places], groups).nearest(rows[:1], np.asarray([8])).tolist() == [0]


def test_without_the_package_the_config_says_what_to_install() -> None:
    """In a process that cannot find it."""
    code = (
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'faiss' else real(name, *more)\n"
        "from pipelines.program.settings import validate; from training.config import FrozenEncoderSettings\n"
        "validate(FrozenEncoderSettings, {'search': 'approximate'}, 'c.yaml')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert all(part in ended.stderr for part in ("search: ", "faiss", "raylign[ann]", "frozen_encoders.search"))
    assert validate(FrozenEncoderSettings, {}, "c.yaml").search == "exact"
    with refused("search", "'quick'", "'exact' or 'approximate'"):
        validate(FrozenEncoderSettings, {"search": "quick"}, "c.yaml")
