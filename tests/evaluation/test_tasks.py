"""Tasks: from rows to results, held against plain loops; and which set takes part in what."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation import robustness
from evaluation.corruptions import corrupt
from evaluation.data.base import Classification, Content, LabelledImages, Retrieval, SugarCrepe
from evaluation.data.subsets import Corrupted, Cropped, Subset, shrunk
from evaluation.embeddings import Inputs, Rows
from evaluation.reporting.comparison import Comparison
from evaluation.results import Result
from evaluation.sugarcrepe import Item
from evaluation.tasks.corruption import Corruption
from evaluation.tasks.few_shot import FewShot
from evaluation.tasks.linear_probe import LinearProbe
from evaluation.tasks.retrieval import Retrieval as RetrievalTask
from evaluation.tasks.robustness import EffectiveRobustness
from evaluation.tasks.sugarcrepe import SugarCrepe as SugarCrepeTask
from evaluation.tasks.zero_shot import ZeroShot
from pipelines.program.errors import UserError
from tests.evaluation.lists import Plain, rows_of
from tests.pipelines.pixels import gradient


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def random_rows(seed: int, *shape: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def classified(labels: list[int], names: tuple[tuple[str, ...], ...], **more: object) -> Classification:
    part = LabelledImages(Plain(len(labels)), np.asarray(labels))
    return Classification(names, ("a {}", "one {c}"), "top1", part, **more)  # type: ignore[arg-type]


NAMES = (("cat",), ("dog", "hound"), ("bird",))


def answered(tmp_path: Path, task: ZeroShot, seed: int, scale: float | None = None) -> tuple[Rows, np.ndarray, np.ndarray]:
    images, texts = random_rows(seed, len(task.images.items), 6), random_rows(seed + 1, len(task.texts.items), 6)
    return rows_of(tmp_path, {task.images: images, task.texts: texts}, scale), images, texts


def best_class(images: np.ndarray, texts: np.ndarray, owner: list[int]) -> np.ndarray:
    """Class by class, prompt by prompt, as CLIP does it."""
    vectors = [unit(np.mean([unit(t) for t, c in zip(texts, owner, strict=True) if c == k], axis=0)) for k in sorted(set(owner))]
    return np.asarray([int(np.argmax([image @ v for v in vectors])) for image in images])


def test_zero_shot_counts_images_that_have_a_class(tmp_path: Path) -> None:
    labels = [0, 1, 2, -1, 1, 0, 2, 2, -1, 1]
    task = ZeroShot("pets", classified(labels, NAMES), "pets")
    assert task.texts.items == ("a cat", "one cat", "a dog", "a hound", "one dog", "one hound", "a bird", "one bird")
    assert (task.images.name, task.texts.name) == ("pets/test", "pets/prompts") and len(task.images.items) == 8
    rows, images, texts = answered(tmp_path, task, 0, scale=10.0)
    found = task.score(rows)
    right = np.asarray([label for label in labels if label >= 0])
    predicted = best_class(images, texts, [0, 0, 1, 1, 1, 1, 2, 2])
    assert found.main == "top1" and found.scores["top1"] == pytest.approx(100 * (predicted == right).mean())
    assert found.sample_sizes["top1"] == 8 and found.baselines["top1"]["chance"] == pytest.approx(100 / 3)
    one_template = best_class(images, texts[[0, 2, 3, 6]], [0, 1, 1, 2])
    assert found.details["sensitivity"]["scores"][0] == pytest.approx(100 * (one_template == right).mean())
    assert found.details["calibration"]["scale"] == 10 and found.details["calibration"]["accuracy"] == found.scores["top1"]
    assert "calibration" not in task.score(answered(tmp_path, task, 0)[0]).details, (
        "nothing is made up for a model without a scale"
    )


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    task = ZeroShot("pets", classified([0, 1, 1], NAMES), "pets")
    assert task.score(answered(tmp_path, task, 4)[0]).details["without_images"] == ["bird"]


def test_retrieval_with_several_captions_an_image(tmp_path: Path) -> None:
    """Every figure from the full matrix by hand; the intervals lie around the scores that they are of."""
    random = np.random.default_rng(3)
    counts = random.integers(1, 6, 40)
    texts_of_image = np.split(np.arange(counts.sum()), np.cumsum(counts)[:-1])
    owner = np.repeat(np.arange(40), counts)
    content = Retrieval(Plain(40), [f"caption {i}" for i in range(counts.sum())], texts_of_image)
    task = RetrievalTask("coco", content, "coco", (1, 5))
    images = random_rows(5, 40, 8)
    texts = unit(images[owner] + 0.5 * random_rows(6, len(owner), 8)).astype(np.float32)
    found = task.score(rows_of(tmp_path, {task.images: images, task.texts: texts}))
    cosines = images @ texts.T
    for k in (1, 5):
        there = [bool(set(np.argsort(-cosines[i])[:k]) & set(texts_of_image[i])) for i in range(40)]
        back = [owner[t] in np.argsort(-cosines[:, t])[:k] for t in range(len(owner))]
        wanted = {"image_to_text": 100 * np.mean(there), "text_to_image": 100 * np.mean(back)}
        wanted["mean"] = sum(wanted.values()) / 2
        for direction, value in wanted.items():
            name = f"{direction}_recall@{k}"
            assert found.scores[name] == pytest.approx(value)
            assert found.intervals[name][0] <= value <= found.intervals[name][1] and 0 < found.baselines[name]["chance"] < 60
    assert found.main == "mean_recall@1" and found.sample_sizes["text_to_image_recall@1"] == len(owner)
    gap = np.linalg.norm(images.mean(axis=0) - texts.mean(axis=0))
    assert found.details["geometry"]["modality_gap"] == pytest.approx(gap, abs=1e-6)
    pairs = [((images[i] - texts[t]) ** 2).sum() for i in range(40) for t in texts_of_image[i]]
    assert found.details["geometry"]["alignment"] == pytest.approx(np.mean(pairs), abs=1e-6)


def test_a_caption_that_many_images_share_is_told_beside_the_recalls(tmp_path: Path) -> None:
    """Whether equal captions are one text, as in prepared data, or several, as in files of other tools."""
    own = [f"caption {i}" for i in range(37)]
    alone = [np.asarray([i]) for i in range(40)]
    for texts, of_image in (
        ([*own, "no <title>"], [*alone[:37], *[np.asarray([37])] * 3]),
        ([*own, *["no <title>"] * 3], alone),
    ):
        task = RetrievalTask("set", Retrieval(Plain(40), texts, of_image), "set", (1,))
        rows = rows_of(tmp_path, {task.images: random_rows(5, 40, 8), task.texts: random_rows(6, len(texts), 8)})
        found = task.score(rows)
        assert len(found.details["warnings"]) == 1 and "3 of 40 rows" in found.details["warnings"][0]
        page = RetrievalTask.block(Comparison([Result("m", "set", task.info.name, **asdict(found))], [task.info]))
        assert "<b>Warning:</b> 3 of 40 rows" in page.content and "no &lt;title&gt;" in page.content
    distinct = RetrievalTask("set", Retrieval(Plain(40), [*own, "a", "b", "c"], alone), "set", (1,))
    rows = rows_of(tmp_path, {distinct.images: random_rows(5, 40, 8), distinct.texts: random_rows(6, 40, 8)})
    assert distinct.score(rows).details["warnings"] == []


def test_retrieval_shows_images_of_what_was_found(tmp_path: Path) -> None:
    content = Retrieval(Plain(3), ["zero", "one", "two", "again"], [np.asarray([0, 3]), np.asarray([1]), np.asarray([2])])
    task = RetrievalTask("set", content, "set", (1,))
    texts = np.asarray([[1, 0, 0], [0, 0.9, 0.1], [0, 1, 0], [1, 0.1, 0]])
    details = task.score(rows_of(tmp_path, {task.images: np.eye(3), task.texts: unit(texts)})).details
    assert set(details["thumbnails"]) == {"0", "1", "2"}
    assert all(uri.startswith("data:image/webp;base64,") for uri in details["thumbnails"].values())
    captions = {shown["caption"]: shown for shown in details["gallery"]["captions"]}
    assert captions["two"]["right"] == "2" and captions["two"]["found"][0] == {"image": "1", "hit": False}
    assert captions["again"]["right"] == "0" and captions["again"]["found"][0] == {"image": "0", "hit": True}
    first = details["gallery"]["images"][0]
    assert first["right"] == ["zero", "again"] and [f["hit"] for f in first["found"]][:2] == [True, True]


def test_sugarcrepe_reads_each_image_and_both_captions(tmp_path: Path) -> None:
    items = {
        "swap_obj": [Item("a.jpg", "cat on dog", "dog on cat"), Item("b.jpg", "red car", "blue car")],
        "add_att": [Item("a.jpg", "a cat", "a green cat")],
    }
    task = SugarCrepeTask(
        "crepe", SugarCrepe(Plain(2), items, {"swap_obj": np.asarray([0, 1]), "add_att": np.asarray([0])}), "crepe"
    )
    images, texts = task.inputs()
    assert texts.items == ("cat on dog", "dog on cat", "red car", "blue car", "a cat", "a green cat")
    rows = np.asarray([[0.6, 0.8], [0.6, 0.8], [0, 1], [1, 0], [1, 0], [0, 1]])  # a tie is wrong; right; right
    found = task.score(rows_of(tmp_path, {images: np.asarray([[1, 0], [0, 1]]), texts: rows}))
    assert found.scores["swap_obj"] == 50 and found.scores["add_att"] == 100
    assert found.scores["macro"] == 75 and found.scores["micro"] == pytest.approx(200 / 3)
    assert found.scores["order_only"] == 0 and found.sample_sizes["order_only"] == 1


def test_corrupted_images_are_a_function_of_the_image() -> None:
    """Whoever reads them, in whatever order; shrunk first, as a model would."""
    images = Corrupted(Plain(40), "noise", 3, seed=7, size=6)
    (image,) = Plain(40).read(np.asarray([33]))
    wanted = corrupt(shrunk(image, 6), "noise", 3, 7, 33)
    assert wanted.size == (round(41 * 6 / 8), 6)
    for found in (
        list(images.read(np.asarray([2, 33])))[1],
        next(Subset(images, np.asarray([5, 33])).read(np.asarray([1]))),
    ):
        assert np.array_equal(np.asarray(found), np.asarray(wanted))
    prints = {
        Corrupted(Plain(40), n, s, d, z).fingerprint for n, s, d, z in [("noise", 3, 7, 6), ("noise", 2, 7, 6), ("blur", 3, 7, 6)]
    }
    assert (
        len(prints | {Corrupted(Plain(40), "noise", 3, 8, 6).fingerprint, Corrupted(Plain(40), "noise", 3, 7, 7).fingerprint})
        == 5
    )
    assert shrunk(Image.new("RGB", (5, 9)), 6).size == (5, 9), "never enlarged"


def test_corruption_scores_the_same_images_corrupted(tmp_path: Path) -> None:
    plain = ZeroShot("pets", classified([0, 1, 2, 1, 0, -1, 2, 1], NAMES), "pets")
    task = Corruption(plain, ("blur", "jpeg"), (1, 5), images=5, seed=0, size=8)
    given, texts = {}, random_rows(1, len(plain.texts.items), 6)
    arrays = {one: random_rows(9 + n, len(one.items), 6) for n, one in enumerate(task.inputs()) if one.kind == "images"}
    given = arrays | {plain.texts: texts}
    found = task.score(rows_of(tmp_path, given))
    owner = [0, 0, 1, 1, 1, 1, 2, 2]
    one = next(w for w in arrays if w.name == "pets/test-jpeg-5")
    kept = one.items.indices
    labels = plain.test.labels[kept]
    assert len(kept) == 5 and found.scores["jpeg@5"] == pytest.approx(
        100 * (best_class(arrays[one], texts, owner) == labels).mean()
    )
    assert found.details["clean"] == pytest.approx(100 * (best_class(arrays[plain.images][kept], texts, owner) == labels).mean())
    assert list(found.scores) == ["blur@1", "blur@5", "jpeg@1", "jpeg@5", "mean"]
    assert found.scores["mean"] == pytest.approx(np.mean([v for k, v in found.scores.items() if k != "mean"]))
    assert {w.name for w in task.inputs()} >= {"pets/test", "pets/prompts", "pets/test-blur-1"}


LINE = robustness.fit([60, 70, 76, 80], [48, 58, 64, 69])


@pytest.mark.parametrize("by_number", [True, False])
def test_effective_robustness_on_the_classes_of_the_shift(tmp_path: Path, by_number: bool) -> None:
    """The reference has a class more, in another order; its images of the other two are classified among these two."""
    numbers: dict = {"imagenet": ((7,), (3,), (5,))} if by_number else {}
    names = (("hen",), ("cat",), ("dog",)) if not by_number else (("x",), ("y",), ("z",))
    reference = ZeroShot("imagenet", classified([0, 1, 2, 2, 1, 0, 2], names, **numbers), "imagenet")
    shift_numbers: dict = {"imagenet": ((5, 9), (3,))} if by_number else {}
    shift = ZeroShot("drawn", classified([0, 1, 1, 0], (("dog",), ("cat",)), **shift_numbers), "drawn")
    task = EffectiveRobustness(shift, reference, LINE, "shipped: x")
    rows, images, texts = answered(tmp_path, shift, 11)
    others = random_rows(20, 7, 6)
    rows = rows_of(tmp_path, {shift.images: images, shift.texts: texts, reference.images: others})
    found = task.score(rows)
    owner = [0, 0, 1, 1]
    kept, labels = [1, 2, 3, 4, 6], np.asarray([1, 0, 0, 1, 0])
    without = 100 * (best_class(others[kept], texts, owner) == labels).mean()
    under = 100 * (best_class(images, texts, owner) == [0, 1, 1, 0]).mean()
    assert (found.scores["reference"], found.scores["shift"]) == (pytest.approx(without), pytest.approx(under))
    assert found.sample_sizes == {"shift": 4, "reference": 5}
    assert found.scores["effective"] == pytest.approx(under - robustness.robustness(LINE, without, under).prediction)


def test_a_reference_of_other_classes_is_refused() -> None:
    reference = ZeroShot("cifar", classified([0, 1], (("car",), ("ship",))), "cifar")
    with pytest.raises(UserError, match=r"robustness.pets.reference: no image of cifar is of a class of pets"):
        EffectiveRobustness(ZeroShot("pets", classified([0], NAMES), "pets"), reference, LINE, "")


def probed(train: list[int], validation: list[int] | None = None) -> Classification:
    parts: dict = {"train": LabelledImages(Plain(len(train), first=1000), np.asarray(train))}
    if validation is not None:
        parts["validation"] = LabelledImages(Plain(len(validation), first=2000), np.asarray(validation))
    return classified([0, 1, 2, 1, 0, -1, 2, 1], NAMES, **parts)


def test_a_probe_is_fitted_on_features(tmp_path: Path) -> None:
    """Separable features are learnt whatever the embeddings are."""
    train, validation = [0, 1, 2, -1] * 12, [0, 1, 2] * 4
    task = LinearProbe("pets", probed(train, validation), "pets")
    assert {one.name: (one.kind, len(one.items)) for one in task.inputs()} == {
        "pets/train": ("features", 36),
        "pets/validation": ("features", 12),
        "pets/test": ("features", 7),
    }
    labels = {"pets/train": [0, 1, 2] * 12, "pets/validation": validation, "pets/test": [0, 1, 2, 1, 0, 2, 1]}
    given = {w: np.eye(3)[labels[w.name]] + 0.1 * random_rows(len(w.items), len(w.items), 3) for w in task.inputs()}
    found = task.score(rows_of(tmp_path, given))
    assert found.scores["top1"] == 100 and found.sample_sizes["top1"] == 7
    assert found.details["of"] == "features before the joint space" and found.details["width"] == 3
    assert found.details["c"] == pytest.approx(1 / found.details["l2"]) and found.details["train"] == 36
    assert task.score(rows_of(tmp_path, given, fallback=True)).details["of"] == "embeddings"


def test_a_probe_may_be_fitted_on_crops_too(tmp_path: Path) -> None:
    """Of training and validation images, each beside its own image; scores are of whole test images."""
    train, validation = [0, 1, 2, -1] * 12, [0, 1, 2] * 4
    task = LinearProbe("pets", probed(train, validation), "pets", views=2, seed=5)
    plain = LinearProbe("pets", probed(train, validation), "pets")
    crops = {f"pets/{part}-crop-{number}": part for part in ("train", "validation") for number in (0, 1)}
    assert {one.name for one in task.inputs()} == {one.name for one in plain.inputs()} | set(crops)
    assert len({one.fingerprint for one in task.inputs()}) == 7 and task.identity != plain.identity
    # Images alone say nothing of their class; their crops do, and so do test images.
    labels = {"train": [0, 1, 2] * 12, "validation": validation, "test": [0, 1, 2, 1, 0, 2, 1]}
    noise = {w: 0.1 * random_rows(i, len(w.items), 3) for i, w in enumerate(task.inputs())}
    of = {w: crops.get(w.name, w.name.removeprefix("pets/")) for w in noise}
    given = {w: rows + np.eye(3)[labels[of[w]]] * (w.name in crops or w.name == "pets/test") for w, rows in noise.items()}
    rows = rows_of(tmp_path, given)
    assert task.score(rows).scores["top1"] == 100 and task.score(rows).details["views"] == 2
    assert plain.score(rows).scores["top1"] < 90 and plain.score(rows).details["views"] == 0


def test_a_crop_is_a_part_of_its_image_drawn_anew_for_each_number() -> None:
    """On images whose colours are coordinates: where it lies, how large it is, and whether it is mirrored."""

    class Gradients(Plain):
        def read(self, indices: np.ndarray) -> Iterator[Image.Image]:
            return (gradient(128, 64) for _ in indices)

    def crops(number: int, seed: int, indices: list[int]) -> list[np.ndarray]:
        return [np.asarray(image).astype(float) for image in Cropped(Gradients(200), number, seed).read(np.asarray(indices))]

    found = crops(0, 7, list(range(200)))
    shares, mirrored = [], 0
    for view in found:
        side = len(view)
        assert view.shape == (side, side, 3)
        middle, inner = side // 2, slice(side // 4, -(side // 4))
        slope_x = np.polyfit(np.arange(side)[inner], view[middle, inner, 0], 1)[0]  # pixels of the image a pixel
        slope_y = np.polyfit(np.arange(side)[inner], view[inner, middle, 1], 1)[0]
        mirrored += slope_x < 0
        shares.append(side * side / (128 * 64))
        assert abs(slope_x) * slope_y == pytest.approx(1, rel=0.15), "as many pixels as the crop has"
    assert 0.07 < min(shares) < 0.15 and 0.7 < max(shares) < 1.02 and 70 < mirrored < 130
    assert all(np.array_equal(one, other) for one, other in zip(found[5:8], crops(0, 7, [5, 6, 7]), strict=True))
    for other in (crops(1, 7, [5]), crops(0, 8, [5]), [found[6]]):
        assert other[0].shape != found[5].shape or not np.array_equal(other[0], found[5])
    prints = {Cropped(Plain(3), number, seed).fingerprint for number in (0, 1) for seed in (0, 1)}
    assert len(prints | {Plain(3).fingerprint}) == 5


def test_a_class_without_a_training_image_is_left_out_and_named(tmp_path: Path) -> None:
    task = LinearProbe("pets", probed([0, 1] * 12, [0, 1, 2] * 4), "pets")
    labels = {"pets/train": [0, 1] * 12, "pets/validation": [0, 1] * 4, "pets/test": [0, 1, 1, 0, 1]}
    assert {one.name: len(one.items) for one in task.inputs()} == {name: len(theirs) for name, theirs in labels.items()}
    given = {w: np.eye(3)[labels[w.name]] + 0.1 * random_rows(len(w.items), len(w.items), 3) for w in task.inputs()}
    found = task.score(rows_of(tmp_path, given))
    assert found.details["without_training"] == ["bird"] and found.sample_sizes["top1"] == 5 and found.scores["top1"] == 100


def test_few_shots(tmp_path: Path) -> None:
    task = FewShot("pets", probed([0, 1, 2] * 5 + [0]), "pets", (1, 5, 6), (0, 1))
    labels = {"pets/train": [0, 1, 2] * 5 + [0], "pets/test": [0, 1, 2, 1, 0, 2, 1]}
    given = {w: np.eye(3)[labels[w.name]] + 0.1 * random_rows(len(w.items), len(w.items), 3) for w in task.inputs()}
    found = task.score(rows_of(tmp_path, given))
    assert list(found.scores) == ["top1@1", "top1@5", "top1@6"] and found.main == "top1@6"
    shots = found.details["shots"]
    assert [len(shown["scores"]) for shown in shots] == [2, 2, 2] and shots[2]["short"], "classes with fewer images are named"


def test_content_without_anything_is_content() -> None:
    assert Content().classifications == {} and Content().retrieval is None
    assert Inputs("texts", ("a  b\nc",), "x").describe(0) == "a b c"
