"""Stored features: those of a frozen encoder, row by row what it gives directly, and nothing half-done or wrong is kept."""

import gc
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from pipelines.dataset.images import decode
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.views import eval_view
from pipelines.features import feature_store
from pipelines.features.feature_store import _PART, digest_of_texts, stored_image_features, stored_text_features
from pipelines.features.pool import Pool
from pipelines.program.display import Display
from pipelines.program.settings_base import digest
from tests.patience import wait_until
from tests.refusals import refused

QUIET = Display(quiet=True)
TEXTS = [[f"caption {i}" * (i % 5 + 1) for i in range(70)], ["a photo of a cat", "a photo of a dog"], ["one more"]]


@pytest.fixture(scope="module", autouse=True)
def an_actor_for_each_batch() -> Iterator[None]:
    """As with many batches: rows come from several actors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_store, "_EACH", 1)
        yield


@pytest.fixture(scope="module")
def images() -> Callable:
    class Colours:
        """Mean and spread of each channel, scaled by an argument."""

        def __init__(self, scale: float):
            self._scale = scale

        def __call__(self, images: np.ndarray) -> np.ndarray:
            flat = images.reshape(len(images), 3, -1).astype(np.float32) * self._scale
            return np.concatenate([flat.mean(axis=2), flat.std(axis=2)], axis=1)

    return Colours


@pytest.fixture(scope="module")
def words() -> Callable:
    class Lengths:
        """Length and number of vowels of a text; every text that it sees is noted in a file."""

        def __init__(self, log: Path):
            self._log = log

        def __call__(self, texts: np.ndarray) -> np.ndarray:
            with self._log.open("a") as file:
                file.writelines(f"{text}\n" for text in texts)
            return np.asarray([[len(t), sum(t.count(v) for v in "aeiou")] for t in texts], dtype=np.float32)

    return Lengths


def folders(prepared: Prepared) -> set[str]:
    path = prepared.path / "features"
    return {p.name for p in path.iterdir()} if path.exists() else set()


@pytest.fixture(scope="module")
def colours(tiny_dataset: Prepared, images: Callable) -> Path:
    """Features of 96 images, in two batches over two actors."""
    return stored_image_features(tiny_dataset, 24, images, (0.5,), {"weights": "abc"}, Pool(2), QUIET)


def test_rows_are_what_the_encoder_gives_for_each_centre_view(tiny_dataset: Prepared, colours: Path) -> None:
    rows = np.load(colours / "rows.npy")
    assert rows.dtype == np.float16 and rows.shape == (96, 6)
    views = [eval_view(decode(data), 24).astype(np.float64) * 0.5 for data in tiny_dataset.images(np.arange(96))]
    direct = np.stack([np.concatenate([v.mean(axis=(1, 2)), v.std(axis=(1, 2))]) for v in views])
    assert np.abs(rows - direct).max() < 0.1  # float16 steps by 0.0625 near 100
    assert colours.parent == tiny_dataset.path / "features" and (colours / "features.json").exists()


@pytest.fixture(scope="module")
def crashing() -> Callable:
    class Crashes:
        def __call__(self, images: np.ndarray) -> np.ndarray:
            raise ZeroDivisionError("asked to compute")

    return Crashes


def test_what_is_there_is_not_computed_again(tiny_dataset: Prepared, colours: Path, crashing: Callable) -> None:
    assert stored_image_features(tiny_dataset, 24, crashing, (), {"weights": "abc"}, Pool(1), QUIET) == colours


@pytest.mark.parametrize(("size", "weights"), [(24, "abd"), (16, "abc")])
def test_other_weights_or_pixels_are_other_features_and_a_crash_leaves_nothing(
    tiny_dataset: Prepared, colours: Path, crashing: Callable, size: int, weights: str
) -> None:
    before = folders(tiny_dataset)
    logging.disable()  # pytest keeps what is logged, and with it the frames of Ray's threads
    try:
        with pytest.raises(Exception, match="asked to compute") as caught:
            stored_image_features(tiny_dataset, size, crashing, (), {"weights": weights}, Pool(2), QUIET)
    finally:
        logging.disable(logging.NOTSET)
    assert folders(tiny_dataset) == before
    wait_until(lambda: gc.collect() >= 0 and ray.available_resources().get("CPU") == 2)  # though the error lives on
    assert caught.value is not None


def test_texts_are_embedded_in_one_pass_and_only_what_is_missing(stamps: Prepared, words: Callable, tmp_path: Path) -> None:
    log = tmp_path / "seen"

    def stored(parts: list[list[str]]) -> list[Path]:
        return stored_text_features(stamps, parts, words, (log,), {"weights": str(tmp_path)}, Pool(1), QUIET)

    paths = stored(TEXTS[:2])
    assert sorted(log.read_text().splitlines()) == sorted(TEXTS[0] + TEXTS[1])
    for path, part in zip(paths, TEXTS, strict=False):
        direct = [[len(t), sum(t.count(v) for v in "aeiou")] for t in part]
        assert np.array_equal(np.load(path / "rows.npy"), np.asarray(direct, dtype=np.float16))
    log.unlink()
    assert stored([TEXTS[1], TEXTS[2], TEXTS[0]])[::2] == [paths[1], paths[0]]
    assert log.read_text().splitlines() == TEXTS[2]
    log.unlink()
    assert stored(TEXTS)[:2] == paths and not log.exists()


def test_equal_lists_share_a_folder(stamps: Prepared, words: Callable, tmp_path: Path) -> None:
    one, two = stored_text_features(
        stamps, [["x", "y"], ["x", "y"]], words, (tmp_path / "log",), {"id": str(tmp_path)}, Pool(1), QUIET
    )
    assert one == two and np.load(one / "rows.npy").shape == (2, 2)


@pytest.mark.parametrize("value", [np.nan, 1e5], ids=["nan", "beyond-float16"])
def test_values_that_cannot_be_kept_are_refused_and_leave_nothing(stamps: Prepared, value: float) -> None:
    """1e5 is finite in float32 and would be infinite in the file."""

    class Odd:
        def __call__(self, images: np.ndarray) -> np.ndarray:
            rows = np.zeros((len(images), 2), dtype=np.float32)
            rows[-1, 1] = value
            return rows

    before = folders(stamps)
    with pytest.raises(ValueError, match=r"not finite|float16"):
        stored_image_features(stamps, 12, Odd, (), {"odd": str(value)}, Pool(1), QUIET)
    assert folders(stamps) == before


def test_a_pool_of_nobody_computes_the_same_in_this_process(
    tiny_dataset: Prepared, colours: Path, images: Callable, words: Callable, stamps: Prepared, tmp_path: Path
) -> None:
    """The same name, the same rows to the last bit, and no actor: stored features do not tell who computed them."""
    (tmp_path / "own").mkdir()
    for content in tiny_dataset.path.glob("content-*"):
        (tmp_path / "own" / content.name).symlink_to(content)
    moved = replace(tiny_dataset, path=tmp_path / "own")
    alone = stored_image_features(moved, 24, images, (0.5,), {"weights": "abc"}, Pool(0), QUIET)
    assert alone.name == colours.name and alone.parent == tmp_path / "own" / "features"
    assert np.array_equal(np.load(alone / "rows.npy"), np.load(colours / "rows.npy"))
    assert (alone / "features.json").read_text() == (colours / "features.json").read_text()
    log = tmp_path / "seen"
    with_actors, without = (
        stored_text_features(stamps, TEXTS, words, (log,), {"pool": f"{tmp_path}{actors}"}, Pool(actors), QUIET)
        for actors in (2, 0)
    )
    for one, other in zip(with_actors, without, strict=True):
        assert one != other and np.array_equal(np.load(one / "rows.npy"), np.load(other / "rows.npy"))


def test_two_that_write_the_same_features_at_once_end_with_one_whole_folder(stamps: Prepared, tmp_path: Path) -> None:
    """Two trials may miss the same features. Here the second begins and ends while the first is under way."""
    identity, calls = {"race": str(tmp_path)}, []

    def computed() -> Path:
        return stored_image_features(stamps, 12, Counts, (), identity, Pool(0), Display(quiet=True))

    class Counts:
        def __call__(self, images: np.ndarray) -> np.ndarray:
            calls.append(len(images))
            if len(calls) == 1:
                calls.append(computed())
            return images.reshape(len(images), -1)[:, :3].astype(np.float32)

    before = folders(stamps)
    path = computed()
    assert calls == [40, 40, path] and folders(stamps) == before | {path.name}
    assert np.load(path / "rows.npy").shape == (40, 3)
    assert computed() == path and len(calls) == 3


def test_a_folder_without_stored_features_is_refused_before_anything_is_computed(
    stamps: Prepared, images: Callable, crashing: Callable, tmp_path: Path
) -> None:
    """Something else lies where it belongs: training on it would read nonsense."""
    where = stored_image_features(stamps, 12, images, (1.0,), {"blocked": str(tmp_path)}, Pool(0), QUIET)
    (where / "features.json").unlink()
    before = folders(stamps)
    with refused(str(where), "features.json", remedy="delete"):
        stored_image_features(stamps, 12, crashing, (), {"blocked": str(tmp_path)}, Pool(0), QUIET)
    assert folders(stamps) == before
    shutil.rmtree(where)
    assert stored_image_features(stamps, 12, images, (1.0,), {"blocked": str(tmp_path)}, Pool(0), QUIET) == where


@pytest.fixture
def features(stamps: Prepared, images: Callable, tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """A function that opens stored features, which are there and have no part in other tests."""

    def open_it() -> Path:
        return stored_image_features(stamps, 12, images, (1.0,), {"weights": str(tmp_path)}, Pool(0), QUIET)

    path = open_it()
    yield open_it
    shutil.rmtree(path)


def check_refused(features: Callable[[], Path], path: Path, *named: object) -> None:
    with refused(str(path), *named, remedy="delete") as caught:
        features()
    assert "python -m pipelines" in caught.value.remedy


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_missing_row_is_refused_by_name(features: Callable[[], Path], value: float) -> None:
    path = features()
    rows = np.load(path / "rows.npy", mmap_mode="r+")
    rows[[17, 30]] = value
    rows.flush()
    check_refused(features, path, "rows.npy", "row 17", 2, "images by sample_id")


def test_fewer_rows_half_a_file_and_changed_rows_are_refused(features: Callable[[], Path]) -> None:
    file = features() / "rows.npy"
    rows, whole = np.load(file), file.read_bytes()
    np.save(file, rows[:-1])
    check_refused(features, file.parent, "rows.npy", "float16 [39, 6]", "float16 [40, 6]")
    file.write_bytes(whole[:-100])
    check_refused(features, file.parent, "rows.npy")
    np.save(file, rows[::-1])
    check_refused(features, file.parent, "rows.npy")
    np.save(file, rows)
    assert features() == file.parent


def test_features_of_another_encoder_or_of_other_data_are_refused_by_name(
    features: Callable[[], Path], stamps: Prepared, tiny_dataset: Prepared, images: Callable, words: Callable, tmp_path: Path
) -> None:
    """If the files of one folder are put in the place of another's, the error names both."""
    path = features()

    def check_put(other: Path, *named: str) -> None:
        shutil.rmtree(path)
        shutil.copytree(other, path)
        check_refused(features, path, *named)

    other = stored_image_features(stamps, 12, images, (1.0,), {"weights": "other weights"}, Pool(0), QUIET)
    check_put(other, "encoder.weights", "'other weights'", f"'{tmp_path}'")
    other = stored_image_features(tiny_dataset, 12, images, (1.0,), {"weights": str(tmp_path)}, Pool(0), QUIET)
    check_put(other, "dataset", tiny_dataset.fingerprint, stamps.fingerprint)
    (texts,) = stored_text_features(stamps, [TEXTS[1]], words, (tmp_path / "log",), {"weights": str(tmp_path)}, Pool(0), QUIET)
    check_put(texts, "texts in order", "images by sample_id")
    (others,) = stored_text_features(stamps, [TEXTS[2]], words, (tmp_path / "log",), {"weights": str(tmp_path)}, Pool(0), QUIET)
    shutil.copy(others / "rows.npy", texts / "rows.npy")
    with refused(str(texts), "float16 [1, 2]", "float16 [2, 2]", remedy="delete"):
        stored_text_features(stamps, [TEXTS[1]], words, (tmp_path / "log",), {"weights": str(tmp_path)}, Pool(0), QUIET)
    shutil.rmtree(texts)


@pytest.mark.parametrize("count", [0, 1, _PART, 2 * _PART + 1])
def test_texts_have_the_digest_of_their_list(count: int) -> None:
    """Folders are named by it: with another one, all features would be computed again."""
    texts = [f'{i} "quoted", \\ \n caf\u00e9 \U0001f431' for i in range(count)]
    chunks = [texts[: count // 3], texts[count // 3 :]]
    assert digest_of_texts(pa.chunked_array(chunks, pa.large_string())) == digest(texts)
