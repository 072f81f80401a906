"""The suite: what must be embedded of a held-out split, and scores under the names that everything else reads."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from evaluation.config import EvaluateSettings
from evaluation.data.class_names import readable
from evaluation.data.prepared import PreparedData
from evaluation.metrics import mean_recalls, path_of
from evaluation.plan import plan, read_data
from evaluation.suite import HeldOut, SuiteSettings, held_out, metric_names, score
from evaluation.tasks.retrieval import Retrieval
from evaluation.zero_shot import build_prompts
from pipelines.dataset.prepared import Prepared
from tests.evaluation.lists import Plain
from tests.refusals import refused
from tests.training.test_report import prepare_by_hand

# Three images; the first has two captions, and the second caption of the first is also the third's.
TEXTS = ["a cat", "a pet", "a dog", "a pet"]


@pytest.fixture
def data() -> HeldOut:
    return HeldOut(
        dataset="toy",
        sample_ids=np.array([10, 4, 7]),
        image_ids=np.array([2, 1, 0]),
        text_ids=np.array([5, 6, 8, 6]),
        texts=TEXTS,
        image_of_text=np.array([0, 0, 1, 2]),
        classes={"kind": ["cat", "dog"]},
        targets={"kind": np.array([0, 1, 0])},
        prompts=["a photo of a cat", "cat", "a photo of a dog", "dog"],
        settings=SuiteSettings(recall_at=(1, 2), templates=("a photo of a {}", "{}")),
        images=Plain(3),
    )


def test_equal_captions_are_right_for_one_another(data: HeldOut) -> None:
    assert [r.tolist() for r in data.texts_of_image] == [[0, 1, 3], [2], [1, 3]]
    assert [r.tolist() for r in data.images_of_text] == [[0], [0, 2], [1], [0, 2]]


def test_equal_images_share_their_captions(data: HeldOut) -> None:
    """Images 0 and 1 are the same file: each may be found by the other's caption, and by whatever equals it."""
    twins = replace(data, image_ids=np.array([2, 2, 0]))
    assert [r.tolist() for r in twins.texts_of_image] == [[0, 1, 2, 3], [0, 1, 2, 3], [1, 3]]
    assert [r.tolist() for r in twins.images_of_text] == [[0, 1], [0, 1, 2], [0, 1], [0, 1, 2]]


def angles(*degrees: float) -> np.ndarray:
    return np.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def test_scores_have_paths_baselines_and_sizes(data: HeldOut) -> None:
    """On a half circle, so that near means similar: images at 0, 60, 120 degrees."""
    images, texts = angles(0, 60, 120), angles(50, 125, 65, 5)
    prompts = angles(10, 20, 60, 70)
    scores = score(data, images, texts, prompts)
    # Image 0 finds text 3 (5 degrees, a pet): right. Image 60 finds text 2 (65): right. Image 120 finds text 1: right.
    assert scores.metrics["retrieval/toy/image_to_text_recall@1"] == 100
    # Text 0 at 50 degrees finds image 60 first, its own at 0 degrees second; the others find theirs.
    assert scores.metrics["retrieval/toy/text_to_image_recall@1"] == 75
    assert scores.metrics["retrieval/toy/text_to_image_recall@2"] == 100
    # Classes at 15 and 65 degrees: images 0 and 60 are right, 120 (a cat) is nearer to dog.
    assert scores.metrics["zero_shot/toy_kind/top1"] == pytest.approx(200 / 3)
    assert scores.metrics["zero_shot/toy_kind/mean_per_class"] == pytest.approx(75)
    assert set(scores.metrics) == {
        *(f"retrieval/toy/{direction}_recall@{k}" for direction in ("image_to_text", "text_to_image") for k in (1, 2)),
        *(f"zero_shot/toy_kind/{measure}" for measure in ("top1", "top5", "mean_per_class")),
    }
    assert set(scores.baselines) == set(scores.sample_sizes) == set(scores.metrics)
    # Texts: 3, 1 and 2 of 4 are right for the images; images: 1, 2, 1 and 2 of 3 for the texts.
    assert scores.baselines["retrieval/toy/image_to_text_recall@1"]["chance"] == pytest.approx(100 * (3 / 4 + 1 / 4 + 2 / 4) / 3)
    assert scores.baselines["retrieval/toy/text_to_image_recall@1"]["chance"] == pytest.approx(100 * (1 + 2 + 1 + 2) / 12)
    assert scores.baselines["zero_shot/toy_kind/top1"] == pytest.approx({"chance": 50, "largest_class": 200 / 3})
    assert scores.sample_sizes["retrieval/toy/text_to_image_recall@1"] == 4
    assert scores.sample_sizes["retrieval/toy/image_to_text_recall@1"] == scores.sample_sizes["zero_shot/toy_kind/top1"] == 3
    assert scores.classes == {"kind": 2}
    rows = {row[0]: row[1:] for row in scores.rows()}
    assert rows["retrieval/toy/text_to_image_recall@1"] == ["75.0", "50.0", "", "4"]
    assert rows["zero_shot/toy_kind/top1"] == ["66.7", "50.0", "66.7", "3"]


def test_the_mean_of_both_directions(data: HeldOut) -> None:
    metrics = score(data, angles(0, 60, 120), angles(50, 125, 65, 5), angles(10, 20, 60, 70)).metrics
    means = {"retrieval/toy/mean_recall@1": 87.5, "retrieval/toy/mean_recall@2": 100.0}
    assert mean_recalls(metrics) == means | {"retrieval/toy/mean_recall": 93.75}  # of all four


def test_every_label_has_prompts_of_its_own(data: HeldOut) -> None:
    """Two labels, two and three classes, two templates each: ten prompts, in this order."""
    several = replace(
        data,
        classes={"kind": ["cat", "dog"], "size": ["large", "medium", "small"]},
        targets={"kind": np.array([0, 1, 0]), "size": np.array([2, 1, 0])},
        prompts=["p"] * 10,
    )
    texts = angles(50, 125, 65, 5)
    kind, size = angles(0, 0, 90, 90), angles(120, 120, 60, 60, 0, 0)
    metrics = score(several, angles(0, 60, 120), texts, np.concatenate([kind, size])).metrics
    assert metrics["zero_shot/toy_size/top1"] == 100
    # Images at 0, 60 and 120 degrees against cat at 0 and dog at 90: only the last, a cat, is wrong.
    assert metrics["zero_shot/toy_kind/top1"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(("images", "texts", "prompts"), [(2, 4, 4), (3, 3, 4), (3, 4, 5)])
def test_embeddings_of_another_number_are_refused(data: HeldOut, images: int, texts: int, prompts: int) -> None:
    with pytest.raises(ValueError, match=r"expected \[., 2\], got"):
        score(data, np.ones((images, 2)), np.ones((texts, 2)), np.ones((prompts, 2)))


def test_the_gallery_shows_what_the_ranks_count(data: HeldOut) -> None:
    images, texts, prompts = angles(0, 60, 120), angles(50, 125, 65, 5), angles(10, 20, 60, 70)
    (task,) = (task for task in data.tasks if isinstance(task, Retrieval))
    shown = task.gallery(data.rows(images, texts, prompts))
    assert [entry["caption"] for entry in shown["captions"]] == TEXTS
    assert [entry["right"] for entry in shown["captions"]] == ["0", "0", "1", "2"]
    assert [[(found["image"], found["hit"]) for found in entry["found"]][:2] for entry in shown["captions"]] == [
        [("1", False), ("0", True)],
        [("2", True), ("1", False)],
        [("1", True), ("2", False)],
        [("0", True), ("1", False)],
    ]
    assert [entry["place"] for entry in shown["captions"]] == [2, 1, 1, 1]
    assert [entry["image"] for entry in shown["images"]] == ["0", "1", "2"]
    assert [entry["right"] for entry in shown["images"]] == [["a cat", "a pet"], ["a dog"], ["a pet"]]
    assert [[found["caption"] for found in entry["found"]][:2] for entry in shown["images"]] == [
        ["a pet", "a cat"],
        ["a dog", "a cat"],
        ["a pet", "a dog"],
    ]
    assert [(entry["found"][0]["hit"], entry["place"]) for entry in shown["images"]] == [(True, 1)] * 3
    assert shown["alt"] == {"0": "a cat", "1": "a dog", "2": "a pet"} and list(task.thumbnails(shown)) == ["0", "1", "2"]
    metrics = score(data, images, texts, prompts).metrics
    first = np.mean([entry["found"][0]["hit"] for entry in shown["captions"]])
    assert metrics["retrieval/toy/text_to_image_recall@1"] == 100 * first


# --- of a prepared dataset ---


def test_training_and_evaluation_score_alike(tmp_path: Path) -> None:
    """A split that training scores between epochs, and the same as an entry of evaluation's data: one set of tasks."""
    captions = [[f"thing {i}", "a square"] if i % 3 else [f"thing {i // 2}"] for i in range(30)]
    prepared = prepare_by_hand(tmp_path / "data", captions)
    data, rng = held_out(prepared, SuiteSettings()), np.random.default_rng(0)
    arrays = [rng.normal(size=(len(of), 6)).astype(np.float32) for of in (data.sample_ids, data.texts, data.prompts)]
    trained, rows = score(data, *arrays), data.rows(*arrays)
    entry = {"name": "prepared", "path": prepared.path}
    settings = EvaluateSettings.model_validate({"embedder": "a:b", "data": {data.dataset: entry}, "output": "out"})
    found: dict[str, float] = {}
    for task in plan(settings, read_data(settings)):
        scored = task.score(rows)
        found |= {path_of(task.info.name, task.dataset, name): value for name, value in scored.scores.items()}
        assert scored.scores.keys() == scored.intervals.keys() == scored.baselines.keys() == scored.sample_sizes.keys()
    assert found == trained.metrics | mean_recalls(trained.metrics) and len(found) > 10


@pytest.mark.parametrize("seed", [None, 4])
def test_a_held_out_split_is_read_whole(stamps: Prepared, seed: int | None) -> None:
    settings = SuiteSettings(split="test", templates=("a photo of a {}", "{c}!"))
    data = held_out(stamps, settings, seed)
    assert np.array_equal(data.sample_ids, stamps.split_ids(seed)["test"]) and data.dataset == "stamps"
    table = stamps.table("captions", "label_kind")
    captions = [table["captions"][int(i)].as_py() for i in data.sample_ids]
    assert data.texts == [text for texts in captions for text in texts]
    assert [sum(data.image_of_text == i) for i in range(len(captions))] == [len(texts) for texts in captions]
    assert stamps.texts().to_numpy()[data.text_ids].tolist() == data.texts
    # Classes are all of the dataset's, so that scores of splits compare.
    assert data.classes == {"kind": ["animals", "food", "tools"]}
    assert [data.classes["kind"][t] for t in data.targets["kind"]] == [
        table["label_kind"][int(i)].as_py() for i in data.sample_ids
    ]
    names = ("animals", "food", "tools")
    assert data.prompts == [p for name in names for p in (f"a photo of a {name}", f"{name}!")]


def test_only_ties_keep_perfect_embeddings_from_perfect_scores(stamps: Prepared) -> None:
    """Images come in pairs that share their first caption, and here their row; a second caption belongs to one of the two.

    It ties with what is right for the other one: that image, and the second caption itself, miss.
    """
    data = held_out(stamps, SuiteSettings(labels=()))
    groups = stamps.table("group").take(data.sample_ids)["group"].to_pylist()
    names = sorted(set(groups))
    images = np.eye(len(names))[[names.index(g) for g in groups]]
    second = sum(text.startswith("image number") for text in data.texts)
    texts = images[data.image_of_text]
    metrics = score(data, images, texts, texts[:0]).metrics
    assert set(metrics) == {f"retrieval/stamps/{w}_recall@{k}" for w in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    assert 0 < second < len(images)
    assert metrics["retrieval/stamps/image_to_text_recall@1"] == pytest.approx(100 * (1 - second / len(images)))
    assert metrics["retrieval/stamps/text_to_image_recall@1"] == pytest.approx(100 * (1 - second / len(texts)))
    assert metrics["retrieval/stamps/image_to_text_recall@5"] == metrics["retrieval/stamps/text_to_image_recall@5"] == 100


@pytest.mark.parametrize(
    ("changed", "key", "value", "remedy"),
    [
        ({"split": "dev"}, "evaluation.split", "'dev'", "train, test, val"),
        ({"labels": ("colour",)}, "evaluation.labels", "'colour'", "kind"),
    ],
)
def test_what_the_dataset_does_not_have_is_named(stamps: Prepared, changed: dict, key: str, value: str, remedy: str) -> None:
    with refused(key, stamps.path, value, remedy=remedy):
        held_out(stamps, SuiteSettings(**changed))


def test_an_error_names_the_entry_once(tmp_path: Path) -> None:
    """What training calls `data` is an entry of evaluation's config, whose own keys stay as they are."""
    prepared = prepare_by_hand(tmp_path / "data", [["a"], ["b"]])
    for change, key, remedy in (
        ({"path": tmp_path / "x"}, "data.toy.path", "python -m pipelines"),
        ({"split": "dev"}, "data.toy.split", "train, test"),
        ({"labels": ["colour"]}, "data.toy.labels", "shape"),
        ({"labels": [], "retrieval": False}, "data.toy.retrieval", "data.toy.retrieval=true"),
    ):
        with refused(key, remedy=remedy):
            PreparedData(name="prepared", **({"path": prepared.path} | change)).read("data.toy")  # type: ignore[arg-type]


def test_an_empty_split_is_refused(stamps: Prepared) -> None:
    nobody = Prepared(stamps.path, stamps.manifest | {"split_shares": {"test": 1e-12}})
    with refused("evaluation.split", "'test'", nobody.path, remedy="splits.test"):
        held_out(nobody, SuiteSettings(), split_seed=1)


def test_a_template_needs_a_place_for_the_name() -> None:
    with pytest.raises(ValidationError, match=r"templates[\s\S]*a photo"):
        SuiteSettings(templates=("a photo",))
    found = build_prompts([readable("food-drink_cups")], ["a photo of a {}, {}", "{c}"])
    assert found.texts == ["a photo of a food drink cups, food drink cups", "food drink cups"]


def embedded(data: HeldOut) -> dict[str, float]:
    """All scores of random rows."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(len(of), 4)) for of in (data.sample_ids, data.texts, data.prompts)]
    metrics = score(data, *(array / np.linalg.norm(array, axis=1, keepdims=True) for array in rows)).metrics
    return metrics | mean_recalls(metrics)


@pytest.mark.parametrize(
    "settings",
    [
        SuiteSettings(),
        SuiteSettings(recall_at=(3,), templates=("{}",)),
        SuiteSettings(labels=()),
        SuiteSettings(recall_at=()),
    ],
    ids=["defaults", "one", "no-labels", "no-recalls"],
)
@pytest.mark.parametrize("retrieval", [True, False])
def test_the_names_of_all_metrics_are_known_before_any_is_computed(
    stamps: Prepared, tiny_dataset: Prepared, settings: SuiteSettings, retrieval: bool
) -> None:
    """A sweep is ranked by one of them, and refuses what is none of them."""
    for prepared in (stamps, tiny_dataset):
        data = held_out(prepared, settings, retrieval=retrieval)
        names = metric_names(data)
        assert len(set(names)) == len(names) and set(names) == set(embedded(data))


def test_without_retrieval_no_caption_is_read_and_none_is_scored(stamps: Prepared) -> None:
    """As for ImageNet, whose captions say no more than its classes."""
    whole, classes = held_out(stamps, SuiteSettings()), held_out(stamps, SuiteSettings(), retrieval=False)
    assert classes.texts == [] and classes.text_ids.shape == classes.image_of_text.shape == (0,)
    assert classes.text_ids.dtype == classes.image_of_text.dtype == np.int64
    assert np.array_equal(classes.sample_ids, whole.sample_ids) and classes.prompts == whole.prompts
    assert np.array_equal(classes.targets["kind"], whole.targets["kind"])
    assert set(embedded(classes)) == {f"zero_shot/stamps_kind/{measure}" for measure in ("top1", "top5", "mean_per_class")}


def test_a_validation_split_can_be_held_out(stamps: Prepared) -> None:
    data = held_out(stamps, SuiteSettings(split="validation"), 1, 0.4)
    assert np.array_equal(data.sample_ids, stamps.split_ids(1, 0.4)["validation"]) and len(data.texts) >= len(data.sample_ids)
    with refused("evaluation.split", "'validation'", remedy="train, test, val"):
        held_out(stamps, SuiteSettings(split="validation"), 1)
