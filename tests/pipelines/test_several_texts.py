"""Several captions of a sample, and label columns as texts and numbers, in a batch. A dataset written by hand."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.dataset.batch import Needs, columns
from pipelines.dataset.order import Order
from pipelines.dataset.prepared import FORMAT_VERSION, Prepared
from pipelines.dataset.stream import Item, Stream, Worker
from pipelines.dataset.tokenizer import TextTokenizer, train_tokenizer
from pipelines.dataset.views import Augment
from pipelines.features.pool import Pool
from pipelines.program.settings import validate
from tests.conftest import QUIET, png
from tests.refusals import refused
from training.config import TrainSettings
from training.data import check_labels, final_test_data, held_out_data
from training.dry_run import check_build
from training.plan import plan_of

CAPTIONS = [["a red cube"], ["a ball", "a blue ball"], ["one tree", "two trees", "three trees", "four trees"], ["a ball"]] * 4
SWAPPED = ["a cube red", None, "tree one", "ball a"] * 4
IDS = np.arange(16)
AUGMENT = Augment()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Sixteen pairs with one to four captions, a negative that some lack, and a weight."""
    folder = tmp_path_factory.mktemp("pairs")
    texts = [*dict.fromkeys(text for row in CAPTIONS for text in row)]
    rows = {
        "key": [str(i) for i in IDS],
        "group": [str(i) for i in IDS],
        "captions": CAPTIONS,
        "split": ["train"] * 12 + ["test"] * 4,
        "label_swapped": SWAPPED,
        "label_weight": [str(i / 8) for i in IDS],
        "label_kind": ["a", "b"] * 8,
        "image_id": IDS,
        "file": [f"{i}.png" for i in IDS],
        "start": np.zeros(16, dtype=np.int64),
        "length": np.full(16, -1),
        "column": [""] * 16,
        "text_id": [[texts.index(text) for text in row] for row in CAPTIONS],
    }
    pq.write_table(pa.table(rows), folder / "0.parquet")
    labels = {
        "swapped": {"a cube red": 4, "tree one": 4, "ball a": 4},
        "weight": {str(i / 8): 1 for i in IDS},
        "kind": {"a": 8, "b": 8},
    }
    manifest = {"format_version": FORMAT_VERSION, "name": "pairs", "fingerprint": "f", "num_samples": 16, "num_images": 16}
    manifest |= {
        "num_texts": len(texts),
        "shards": [{"file": "0.parquet", "rows": 16, "splits": {"train": 12, "test": 4}}],
        "labels": labels,
        "tables": False,
    }
    manifest |= {
        "image": {"background": "white", "size": 16},
        "split_shares": {"test": 0.25},
        "captions": {"shuffled": 0},
        "config": {"split_seed": 0},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for i in IDS:
        (folder / f"{i}.png").write_bytes(png(np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)))
    for name, count in (("images", 16), ("texts", len(texts))):
        (folder / name).mkdir()
        np.save(folder / name / "rows.npy", np.stack([np.arange(count), np.ones(count)], axis=1).astype(np.float16))
    return Prepared.open(folder)


def stream_of(
    pairs: Prepared, needs: Needs, text_locked: bool, augment: Augment | None = AUGMENT
) -> tuple[Stream, TextTokenizer]:
    tokenizer = train_tokenizer([text for row in CAPTIONS for text in row], 200, 8)
    wanted = columns(needs, True, text_locked)
    folders = [Path(str(pairs.path)) / name for name in ("images", "texts")]
    kinds = {"captions": needs.captions, "texts": needs.texts, "numbers": needs.numbers}
    return Stream(pairs, frozenset(wanted), 3, 8, augment, tokenizer, *folders, **kinds), tokenizer


def test_a_sample_shows_other_captions_of_its_own_in_an_order_of_the_epoch(pairs: Prepared) -> None:
    """All different, unless there are too few; the first is the one that a run with one caption would see."""
    stream, tokenizer = stream_of(pairs, Needs(ids=True, captions=3), False)
    one, _ = stream_of(pairs, Needs(ids=True), False)
    texts, orders = pairs.texts().to_pylist(), set()
    for epoch in range(6):
        batch, alone = stream.here(Item(IDS, epoch)), one.here(Item(IDS, epoch))
        assert batch["more_text"].shape == batch["more_mask"].shape == (16, 2, 8)
        assert all(batch[name].tolist() == alone[name].tolist() for name in ("text", "text_mask", "text_id", "image_id"))  # type: ignore[literal-required]
        for i in IDS:
            shown = [texts[t] for t in (int(batch["text_id"][i]), *batch["more_id"][i].tolist())]
            assert set(shown) <= set(CAPTIONS[i]) and len(set(shown)) == min(3, len(CAPTIONS[i]))
            assert batch["more_text"][i].tolist() == tokenizer(shown[1:])[0].tolist()
            if i == 2:
                orders.add(tuple(shown))
    assert len(orders) > 2
    plain, _ = stream_of(pairs, Needs(ids=True, captions=3), False, None)
    batch = plain.here(Item(IDS[:3], 0))
    shown = [
        [texts[t] for t in (int(first), *more)] for first, more in zip(batch["text_id"], batch["more_id"].tolist(), strict=True)
    ]
    assert shown == [["a red cube"] * 3, ["a ball", "a blue ball", "a ball"], ["one tree", "two trees", "three trees"]]


def test_with_locked_towers_they_are_rows_of_stored_features(pairs: Prepared) -> None:
    """The same captions, whether tasks read them or not; ids are there only if somebody asks."""
    words, _ = stream_of(pairs, Needs(ids=True, captions=3), False)
    rows, _ = stream_of(pairs, Needs(ids=True, captions=3, numbers=("weight",)), True)
    assert not rows.uses_tasks
    batch, read = rows.here(Item(IDS, 2)), words.here(Item(IDS, 2))
    assert batch["more_id"].tolist() == read["more_id"].tolist()
    assert batch["more_features"][:, :, 0].long().tolist() == batch["more_id"].tolist()
    assert batch["numbers"].tolist() == [[i / 8] for i in IDS]
    bare, _ = stream_of(pairs, Needs(captions=3), True)
    found = bare.here(Item(IDS, 2))
    assert set(found) == {"image_features", "text_features", "more_features"}
    assert found["more_features"].tolist() == batch["more_features"].tolist()


def test_labels_are_texts_and_numbers(pairs: Prepared) -> None:
    """A label that a sample lacks is said not to be there, and has the tokens of its caption."""
    stream, tokenizer = stream_of(pairs, Needs(texts=("swapped", "kind"), numbers=("weight",)), False)
    order = np.random.default_rng(0).permutation(IDS)
    batch = stream.here(Item(order, 1))
    assert batch["label_text"].shape == (16, 2, 8) and batch["numbers"].tolist() == [[i / 8] for i in order]
    for row, i in enumerate(order):
        there = SWAPPED[i] is not None
        assert batch["label_there"][row].tolist() == [there, True]
        expected = tokenizer([SWAPPED[i] or "", "ab"[i % 2]])[0]
        assert batch["label_text"][row, 1].tolist() == expected[1].tolist()
        assert batch["label_text"][row, 0].tolist() == (expected[0] if there else batch["text"][row]).tolist()


def run_of(pairs: Prepared, objective: dict) -> TrainSettings:
    tree = {"name": "r", "data": {"path": str(pairs.path)}, "text_tower": {"name": "bag", "width": 16}}
    tree |= {"image_tower": {"name": "conv", "image_size": 16, "channels": [8, 16]}}
    tree |= {"objective": objective, "epochs": 1, "global_batch_size": 8, "evaluation": {"test_split": None}}
    return validate(TrainSettings, tree, "c.yaml")


@pytest.mark.parametrize(
    ("objective", "named"),
    [
        ({"name": "negclip", "negatives": ["swapped", "wrong"]}, ["wrong", "swapped, weight, kind"]),
        ({"name": "weighted"}, []),
        ({"name": "weighted", "weight": "kind"}, ["kind", "'a'"]),
        ({"name": "weighted", "weight": "swapped"}, ["swapped", "a cube red"]),
        ({"name": "negclip", "negatives": ["swapped"]}, []),
    ],
)
def test_a_column_that_is_not_there_or_has_no_numbers_is_named(pairs: Prepared, objective: dict, named: list[str]) -> None:
    settings = run_of(pairs, objective)
    if not named:
        check_labels(settings, pairs)
        return
    with refused("objective", *named):
        check_labels(settings, pairs)


@pytest.mark.parametrize(
    "objective",
    [{"name": "negclip", "negatives": ["swapped", "kind"]}, {"name": "weighted"}, {"name": "captions", "captions": 3}],
)
def test_a_run_takes_a_step_with_them(pairs: Prepared, objective: dict) -> None:
    """From the plan to gradients, of images, captions and labels as they are stored."""
    plan = plan_of(run_of(pairs, objective), Pool(0), QUIET)
    check_build(plan)
    batch = plan.stream.here(Item(plan.order.batch(0), 0))
    assert {"more_text", "label_text", "numbers"} & set(batch) and batch["image"].shape == (8, 3, 16, 16)


def test_a_row_without_a_weight_is_counted(pairs: Prepared) -> None:
    manifest = pairs.manifest | {"labels": pairs.manifest["labels"] | {"weight": {"1": 13}}}
    with refused("objective", "3 rows", "weight"):
        check_labels(run_of(pairs, {"name": "weighted"}), Prepared(pairs.path, manifest))


def test_what_the_objective_reads_is_no_class(pairs: Prepared) -> None:
    """Unless the user asks for it."""
    for objective, labels in (
        ({"name": "negclip", "negatives": ["swapped"]}, ["weight", "kind"]),
        ({"name": "weighted"}, ["swapped", "kind"]),
    ):
        settings = run_of(pairs, objective)
        ((_, data),) = held_out_data(settings, pairs)
        assert list(data.classes) == labels
        asked = settings.model_copy(
            update={"evaluation": settings.evaluation.model_copy(update={"labels": ("swapped", "weight")})}
        )
        ((_, data),) = held_out_data(asked, pairs)
        assert list(data.classes) == ["swapped", "weight"]
        scored = settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update={"test_split": "test"})})
        test = final_test_data(scored, pairs)
        assert test is not None and list(test.classes) == labels


def test_through_ray_data_they_are_the_same(ray_session: None, pairs: Prepared) -> None:
    """Columns of three axes and of truth values, from tasks to two workers."""
    needs = Needs(ids=True, captions=3, texts=("swapped", "kind"), numbers=("weight",))
    stream, _ = stream_of(pairs, needs, False)
    order = Order(pairs, "train", None, seed=1, global_batch_size=6)
    whole = stream.here(Item(order.batch(1), 0))
    assert whole["label_there"].dtype == torch.bool and {"more_text", "label_text", "numbers"} < set(whole)
    for rank in range(2):
        (part,) = stream.training(order, 1, 2, Worker(rank, 2, torch.device("cpu"), 1))
        assert part.keys() == whole.keys()
        for name, column in part.items():
            assert torch.equal(column, whole[name][3 * rank : 3 * rank + 3]), name  # type: ignore[literal-required]
