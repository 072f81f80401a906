"""Against CLIP_benchmark, on the same embeddings: equal figures, and a table of its own that reads our results.

Its model here looks rows up. The rows are random, so no two scores tie; what it makes of ties, and where else it differs by
design, has tests of its own at the end.
"""

import csv
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import image_caption_selection, zeroshot_classification, zeroshot_retrieval
from sklearn import datasets
from sklearn.metrics import balanced_accuracy_score

from evaluation import classification, linear_probe, retrieval, sugarcrepe, zero_shot
from evaluation.metrics import TASKS
from evaluation.results import Result
from evaluation.suite import HeldOut, SuiteSettings, score
from tests.evaluation.lists import Plain

RAW = {"device": "cpu", "amp": False}  # it computes in half precision unless told not to


@pytest.fixture(autouse=True)
def arrays_of_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """It calls float() on arrays of one number, which NumPy has come to refuse. All else of it runs as published."""

    def number(value: Any) -> float:
        return float(value.item()) if isinstance(value, np.ndarray) else float(value)

    monkeypatch.setattr(zeroshot_classification, "float", number, raising=False)


class LookUp(torch.nn.Module):
    """An image is its number, [n, 1, 1, 1]; a text is a string that `tokenize` numbers."""

    def __init__(self, images: np.ndarray, texts: dict[str, np.ndarray]):
        super().__init__()
        self._images, self._texts = torch.from_numpy(images), torch.from_numpy(np.stack([*texts.values()]))
        self._numbers = {text: number for number, text in enumerate(texts)}
        self.asked: list[str] = []

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        self.asked += texts
        return torch.tensor([[self._numbers[text]] for text in texts])

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return self._images[images.flatten()]

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._texts[tokens.flatten()]


class Loader(list):
    """Batches, and the data set that some of its functions ask for the names of classes."""

    def __init__(self, images: np.ndarray, given: Any, size: int, classes: list[str] | None = None):
        numbers = torch.arange(len(images)).reshape(-1, 1, 1, 1)
        super().__init__((numbers[i : i + size], given[i : i + size]) for i in range(0, len(images), size))
        self.dataset = SimpleNamespace(classes=classes)


def rows(count: int, seed: int, near: np.ndarray | None = None, noise: float = 1.0) -> np.ndarray:
    """Of any length, float32 [count, 32]; each near a row of another kind, where there are some."""
    random = np.random.default_rng(seed)
    found = random.normal(size=(count, 32)) * noise + (0 if near is None else near)
    return (found * random.uniform(0.5, 2, (count, 1))).astype(np.float32)


def unit(given: np.ndarray) -> np.ndarray:
    return given / np.linalg.norm(given, axis=1, keepdims=True)


def equal(ours: float, theirs: float) -> bool:
    """Percent and a fraction, to 1e-6; a figure that is neither nothing nor all."""
    return abs(ours / 100 - theirs) < 1e-6 and 0.02 < theirs < 0.98


CLASSES = [f"thing {c}" for c in range(12)]
TEMPLATES = ["a photo of a {c}.", "{c}", "art of the {c}, or {c}"]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_zero_shot_classification() -> None:
    """Three templates, classes of very different sizes, and one, the last, without an image."""
    prompts = zero_shot.build_prompts(CLASSES, TEMPLATES)
    centres = rows(12, 0)
    texts = rows(36, 1, centres[prompts.class_of], 2.0)
    labels = np.random.default_rng(2).choice(11, 400, p=np.arange(1, 12) / 66)
    images = rows(400, 3, centres[labels], 2.0)
    model = LookUp(images, dict(zip(prompts.texts, texts, strict=True)))
    loader = Loader(images, torch.from_numpy(labels), 64, CLASSES)
    theirs = zeroshot_classification.evaluate(model, loader, model.tokenize, CLASSES, TEMPLATES, **RAW)
    assert model.asked == prompts.texts  # the same prompts in the same order
    for classes in (zero_shot.ensemble(prompts, texts), zero_shot.class_vectors(texts.reshape(12, 3, -1))):
        ours = zero_shot.classify(unit(images), classes, labels)
        assert equal(ours["top1"], theirs["acc1"]) and equal(ours["top5"], theirs["acc5"])
        assert equal(ours["mean_per_class"], theirs["mean_per_class_recall"])
    assert abs(ours["top1"] - ours["mean_per_class"]) > 1


@pytest.mark.parametrize("counts", [[5] * 60, [1 + i % 5 for i in range(90)]], ids=["five", "one to five"])
def test_retrieval_with_several_captions_an_image(counts: list[int]) -> None:
    owners = np.repeat(np.arange(len(counts)), counts)
    images = rows(len(counts), 0)
    texts = rows(len(owners), 1, images[owners], 2.5)
    names = [f"caption {i}" for i in range(len(owners))]
    right = np.split(np.arange(len(owners)), np.cumsum(counts)[:-1])
    model = LookUp(images, dict(zip(names, texts, strict=True)))
    loader = Loader(images, [[names[t] for t in of] for of in right], 16)
    theirs = zeroshot_retrieval.evaluate(model, loader, model.tokenize, recall_k_list=[1, 5, 10], **RAW)
    by_image, by_text = retrieval.both_ranks(unit(images), unit(texts), right)
    for k in (1, 5, 10):
        assert equal(retrieval.recalls(by_image, [k])[k], theirs[f"text_retrieval_recall@{k}"])
        assert equal(retrieval.recalls(by_text, [k])[k], theirs[f"image_retrieval_recall@{k}"])

    # The scores of a held-out split are the same.
    ids = np.arange(len(images))
    data = HeldOut("set", ids, ids, np.arange(len(names)), names, owners, {}, {}, [], SuiteSettings(), Plain(len(images)))
    found = score(data, unit(images), unit(texts), np.empty((0, 32), np.float32)).metrics
    assert equal(found["retrieval/set/image_to_text_recall@5"], theirs["text_retrieval_recall@5"])
    assert equal(found["retrieval/set/text_to_image_recall@5"], theirs["image_retrieval_recall@5"])


def test_sugarcrepe() -> None:
    """Subset by subset, which are data sets of its own there, and all of them pooled."""
    right: dict[str, np.ndarray] = {}
    pooled = []
    for seed, (name, count) in enumerate({"replace_obj": 70, "swap_att": 41, "add_obj": 23}.items()):
        images = rows(count, seed)
        captions, negatives = rows(count, seed + 10, images, 3.0), rows(count, seed + 20, images, 4.0)
        texts = {f"+ {i}": row for i, row in enumerate(captions)} | {f"- {i}": row for i, row in enumerate(negatives)}
        model = LookUp(images, texts)
        loader = Loader(images, [[f"+ {i}", f"- {i}"] for i in range(count)], 16)
        theirs = image_caption_selection.evaluate(model, loader, model.tokenize, **RAW)
        right[name] = sugarcrepe.correct(unit(images), unit(captions), unit(negatives))
        scores, _ = sugarcrepe.scores({name: right[name]}, {name: np.zeros(count, dtype=bool)})
        assert equal(scores[name], theirs["acc"]) and theirs["acc"] == theirs["text_acc"] and theirs["image_acc"] == 1
        pooled += [theirs["acc"]] * count
    scores, _ = sugarcrepe.scores(right, {name: np.zeros(len(hits), dtype=bool) for name, hits in right.items()})
    assert equal(scores["micro"], float(np.mean(pooled)))


def test_scores_of_a_linear_probe() -> None:
    """Its fit is another one, by AdamW and only on a GPU; what it reports of the logits of one fit is the same."""
    features, labels = datasets.load_digits(return_X_y=True)
    features = features / 16 + np.random.default_rng(0).normal(size=features.shape) / 2
    model, _ = linear_probe.fit(linear_probe.Labelled(features[:200], labels[:200]), 10.0)
    logits, right = model.decision_function(features[200:]), labels[200:]
    ours = classification.measures(classification.judge(logits, right))
    top1, top5 = zeroshot_classification.accuracy(torch.from_numpy(logits), torch.from_numpy(right), topk=(1, 5))
    assert equal(ours["top1"], top1) and equal(ours["top5"], top5)
    assert equal(ours["mean_per_class"], balanced_accuracy_score(right, logits.argmax(axis=1)))


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `clip_benchmark build` runs. Captioning alone needs packages that are not here."""
    monkeypatch.setitem(sys.modules, "clip_benchmark.metrics.captioning", ModuleType("captioning"))
    from clip_benchmark.cli import main_build

    return main_build


def test_its_table_reads_our_results(build: Any, tmp_path: Path) -> None:
    classes = {"top1": 61.5, "top5": 90.25, "mean_per_class": 58.0}
    results = [
        Result("b32", "pets", "zeroshot_classification", "top1", classes, about={"pretrained": "laion2b"}),
        Result("b32", "pets", "linear_probe", "top1", {"top1": 80.0, "top5": 99.0, "mean_per_class": 79.0}),
        Result("b32", "coco", "zeroshot_retrieval", "x", {"image_to_text_recall@5": 75.0, "text_to_image_recall@5": 62.5}),
        Result("b32", "crepe", "image_caption_selection", "macro", {"macro": 77.0, "micro": 76.5, "swap_obj": 60.0}),
    ]
    files = [result.write(tmp_path, TASKS[result.task]) for result in results]
    build(SimpleNamespace(files=[str(file) for file in files], output=str(tmp_path / "benchmark.csv")))
    with (tmp_path / "benchmark.csv").open(newline="") as file:
        table = {row["task"]: row for row in csv.DictReader(file)}
    assert len(table) == 4 and {(row["model"], row["language"]) for row in table.values()} == {("b32", "en")}
    first = table["zeroshot_classification"]
    assert (first["dataset"], first["pretrained"], first["model_fullname"]) == ("pets", "laion2b", "b32 laion2b")
    expected = {
        "zeroshot_classification": {"acc1": 0.615, "acc5": 0.9025, "mean_per_class_recall": 0.58},
        "linear_probe": {"lp_acc1": 0.8, "lp_acc5": 0.99, "lp_mean_per_class_recall": 0.79},
        "zeroshot_retrieval": {"text_retrieval_recall@5": 0.75, "image_retrieval_recall@5": 0.625},
        "image_caption_selection": {"acc": 0.765, "macro": 0.77, "swap_obj": 0.6},
    }
    for task, scores in expected.items():
        assert {name: float(table[task][name]) for name in scores} == pytest.approx(scores), task
        others = {name for other in expected for name in expected[other]} - scores.keys()
        assert all(table[task][name] == "" for name in others), task
    assert json.loads(files[0].read_text())["scores"] == classes  # ours stand beside them in percent


def test_a_tie_is_right_there_and_wrong_here() -> None:
    """A model with one row for everything: there the first caption wins, which is the right one; by the official rule none."""
    images = np.ones((6, 32), np.float32)
    model = LookUp(images, {"+": images[0], "-": images[0]})
    theirs = image_caption_selection.evaluate(model, Loader(images, [["+", "-"]] * 6, 4), model.tokenize, **RAW)
    assert theirs["acc"] == 1
    assert not sugarcrepe.correct(unit(images), unit(images), unit(images)).any()


def test_with_fewer_than_five_classes_it_has_no_top_five() -> None:
    prompts = zero_shot.build_prompts(CLASSES[:3], ["{c}"])
    texts, images, labels = rows(3, 0), rows(30, 1), np.arange(30) % 3
    model = LookUp(images, dict(zip(prompts.texts, texts, strict=True)))
    loader = Loader(images, torch.from_numpy(labels), 8, CLASSES[:3])
    theirs = zeroshot_classification.evaluate(model, loader, model.tokenize, CLASSES[:3], ["{c}"], **RAW)
    ours = zero_shot.classify(unit(images), zero_shot.ensemble(prompts, texts), labels)
    assert np.isnan(theirs["acc5"]) and ours["top5"] == 100 and equal(ours["top1"], theirs["acc1"])
