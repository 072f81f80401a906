"""The same pairs through every source and both ways are the same training batches; a corpus of odd input through all of them has
the outcomes that it should, and nothing is ever lost on the way.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from corpus import CASES, Case
from forms import FORMS, Given
from PIL import Image

from pipelines.dataset.batch import Batch
from pipelines.dataset.order import Order
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.sample_images import whole_images
from pipelines.dataset.stream import Stream, Worker
from pipelines.dataset.tokenizer import TextTokenizer, train_tokenizer
from pipelines.dataset.views import Augment
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.prepare import prepare
from pipelines.program.display import Display

QUIET = Display(quiet=True)
PAIRS, BATCH = 70, 16


def prepared(root: Path, form: str, mode: str, pairs: list[Given], **keys: Any) -> Prepared:
    tree = {
        "source": FORMS[form](root / form, pairs) | {"dataset": "same"},
        "output": root / "out",
        "mode": mode,
        "image": {"size": 64, "format": "png"},
        "splits": {"test": 0.2},
        "shard_rows": 20,
    }
    return prepare(PrepareSettings.model_validate(tree | keys), QUIET)


@pytest.fixture(scope="module")
def pairs(png_of: Any) -> list[Given]:
    """Images of different sizes and captions that tables like to change."""
    odd = ["NA", "null", "None", "nan", "1e5", "true", "007", "caf\u00e9, \u732b", "it's 5 o'clock", "comma, comma"]
    made = []
    for i in range(PAIRS):
        pixels = np.random.default_rng(i).integers(0, 256, (40 + i % 7, 64 - i % 5, 3), dtype=np.uint8)
        made.append(Given(f"{i:03d}.png", png_of(pixels), odd[i] if i < len(odd) else f"thing number {i}"))
    return made


@pytest.fixture(scope="module")
def tokenizer(pairs: list[Given]) -> TextTokenizer:
    return train_tokenizer([pair.caption for pair in pairs], 200, 10)


def batches_of(data: Prepared, tokenizer: TextTokenizer) -> list[Batch]:
    """An epoch and a half."""
    wanted = frozenset({"image", "text", "text_mask", "sample_id", "image_id", "text_id"})
    stream = Stream(data, wanted, seed=1, image_size=24, augment=Augment(), tokenizer=tokenizer)
    order = Order(data, "train", None, seed=1, global_batch_size=BATCH)
    return list(stream.training(order, 0, order.steps_per_epoch * 3 // 2, Worker(0, 1, torch.device("cpu"), 1)))


@pytest.fixture(scope="module")
def reference(
    ray_session: None, pairs: list[Given], tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> list[Batch]:
    data = prepared(tmp_path_factory.mktemp("reference"), "folder", "copy", pairs)
    assert data.texts().to_pylist() == [pair.caption for pair in pairs]
    return batches_of(data, tokenizer)


@pytest.mark.parametrize("mode", ["copy", "index"])
@pytest.mark.parametrize("form", FORMS)
def test_the_same_pairs_are_the_same_batches(
    tmp_path: Path, form: str, mode: str, pairs: list[Given], tokenizer: TextTokenizer, reference: list[Batch]
) -> None:
    data = prepared(tmp_path, form, mode, pairs)
    assert data.texts().to_pylist() == [pair.caption for pair in pairs]
    assert data.manifest["counts"] == {"listed": PAIRS, "found": PAIRS, "read": PAIRS, "kept": PAIRS, "rejected": {}}
    found = batches_of(data, tokenizer)
    assert len(found) == len(reference) > 3
    for ours, theirs in zip(found, reference, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), name  # type: ignore[literal-required]


def test_classes_give_them_too(tmp_path: Path, tokenizer: TextTokenizer, pairs: list[Given], ray_session: None) -> None:
    """A class an image: without held-out split, since there each image is a group of its own."""
    for pair in pairs[20:]:
        folder = tmp_path / "classes" / pair.caption.replace(" ", "_")
        folder.mkdir(parents=True)
        (folder / pair.name).write_bytes(pair.image)
    tree = {"output": tmp_path / "out", "image": {"size": 64, "format": "png"}, "splits": {"test": 1e-9}}
    source = {"name": "classes", "path": str(tmp_path / "classes"), "templates": ["{}"]}
    data = prepare(PrepareSettings.model_validate(tree | {"source": source}), QUIET)
    (tmp_path / "other").mkdir()
    other = prepared(tmp_path / "other", "csv_file", "copy", pairs[20:], splits={"test": 1e-9})
    for ours, theirs in zip(batches_of(data, tokenizer), batches_of(other, tokenizer), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)  # type: ignore[literal-required]


# --- the corpus ---

# What a form cannot hold: lines are ends of rows there, and folders name images by their extension.
ONE_LINE = [case for case in CASES if not set(case.caption) & set("\n\r\t\0") and case.caption == case.caption.strip()]
ANY = list(CASES)
CORPUS = {
    "webdataset_json": ANY,
    "parquet_bytes": ANY,
    "parquet_structs": ANY,
    "save_to_disk": ANY,
    "snapshot": ANY,
    "jsonl": ANY,
    "albef": ANY,
    "coco": ANY,
    "karpathy": ANY,
    "image_folder": ANY,
    "mix": ONE_LINE,
    "folder": ONE_LINE,
    "webdataset": ONE_LINE,
    "csv_file": ONE_LINE,
    "tsv_without_header": ONE_LINE,
    "parquet_paths": ANY,
}


@pytest.mark.parametrize("mode", ["copy", "index"])
@pytest.mark.parametrize("form", CORPUS)
def test_every_odd_row_has_its_outcome(ray_session: None, tmp_path: Path, form: str, mode: str) -> None:
    cases = {f"{i:03d}.png": case for i, case in enumerate(CORPUS[form])}
    assert len(cases) >= 40
    given = [Given(name, case.image, case.caption) for name, case in cases.items()]
    data = prepared(tmp_path, form, mode, given, verify="all", max_rejected_rate=1.0)
    rejected = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    counts = data.manifest["counts"]
    assert counts["read"] == counts["kept"] + len(rejected) == len(cases) == counts["listed"]
    assert counts["rejected"] == dict(Counter(row["reason"] for row in rejected))
    kept = data.table("captions")["captions"].to_pylist()
    wanted = [case for case in cases.values() if case.reason is None]
    assert [texts[0] for texts in kept] == [case.caption for case in wanted]
    assert Counter(row["reason"] for row in rejected) == Counter(case.reason for case in cases.values() if case.reason)
    check_images(data, wanted)


def check_images(data: Prepared, cases: list[Case]) -> None:
    images: list[Image.Image] = list(whole_images(data, np.arange(data.num_samples)))
    assert len(images) == len(cases)
    assert all(image.mode == "RGB" for image in images)
