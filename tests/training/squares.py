"""Runs on a few coloured squares in this process, with real locked towers, tiny and untrained. No Ray."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipelines.dataset.prepared import FORMAT_VERSION, Prepared
from pipelines.dataset.tokenizer import train_tokenizer
from pipelines.features.pool import Pool
from pipelines.program.display import Display
from pipelines.program.settings import apply_overrides, validate
from tests.conftest import png
from training.config import TrainSettings
from training.plan import Plan, plan_of

TRAIN, TEST, BATCH, EPOCHS = 24, 10, 8, 4
STEPS = TRAIN // BATCH * EPOCHS  # 12
BEST = "retrieval/squares/image_to_text_recall@1"
Poison = Callable[..., None]  # of the fixture `poison`


def square(colour: np.ndarray) -> np.ndarray:
    """Pixels of one colour."""
    return np.tile(colour, (8, 8, 1))


def prepared_by_hand(
    folder: Path,
    name: str,
    first: int = 0,
    draw: Callable[[np.ndarray], np.ndarray] = square,
    say: Callable[[int], str] = "a square of colour {}".format,
) -> Prepared:
    """24 training and 10 test images, each with its own colour and caption.

    Args:
        draw: from a colour to pixels.
        say: from a number to a caption.
    """
    folder.mkdir()
    rows = []
    for i in range(TRAIN + TEST):
        colour = np.random.default_rng(first + i).integers(0, 256, 3, dtype=np.uint8)
        row = {"sample_id": i, "image_id": i, "text_id": [i], "key": f"k{i}", "group": f"g{i}"}
        row |= {"split": "train" if i < TRAIN else "test", "captions": [say(first + i)]}
        (folder / f"{i}.png").write_bytes(png(draw(colour)))
        row |= {"file": f"{i}.png", "start": 0, "length": -1, "column": ""}
        rows.append(row | {"label_hue": ("red", "green", "blue")[int(colour.argmax())]})
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    labels = [row["label_hue"] for row in rows]
    manifest = {
        **{"format_version": FORMAT_VERSION, "name": name, "fingerprint": f"{first:032d}", "config": {"split_seed": 0}},
        **{"num_samples": len(rows), "num_images": len(rows), "num_texts": len(rows), "split_shares": {"test": 0.3}},
        **{"labels": {"hue": {hue: labels.count(hue) for hue in sorted(set(labels))}}},
        **{"shards": [{"file": "a.parquet", "rows": len(rows), "splits": {"train": TRAIN, "test": TEST}}]},
        **{"image": {"size": 8, "format": "png", "background": "white"}, "tables": False, "captions": {"shuffled": 0}},
        **{"counts": {"listed": 34, "found": 34, "read": 34, "kept": 34, "rejected": {}}, "licence": "CC0", "attribution": "us"},
        **{"created": "2026-01-02T03:04:05Z"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Prepared.open(folder)


def write_root(root: Path) -> None:
    """Three datasets, two of which have one name, and weights of two towers."""
    import timm
    from transformers import DistilBertConfig, DistilBertModel

    squares = prepared_by_hand(root / "squares", "squares")
    prepared_by_hand(root / "others", "others", 100)
    prepared_by_hand(root / "again", "squares", 200)
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), root / "image.pth")
    tokenizer = train_tokenizer(squares.texts().to_pylist(), 100, 8)
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 8}
    config = DistilBertConfig(**sizes, vocab_size=tokenizer.vocabulary_size)
    DistilBertModel(config).save_pretrained(root / "text")
    (root / "text" / "tokenizer.json").write_text(tokenizer.json, encoding="utf-8")


def tree_of(root: Path) -> dict[str, Any]:
    """The config of a run."""
    return {
        "name": "run",
        "data": {"path": str(root / "squares")},
        "image_tower": {
            **{"name": "timm", "model": "test_resnet", "weights": str(root / "image.pth")},
            **{"image_size": 32, "mode": "locked"},
        },
        "text_tower": {"name": "huggingface", "weights": str(root / "text"), "max_tokens": 8, "mode": "locked"},
        "image_head": {"name": "mlp", "hidden": 16, "dropout": 0.2},
        "embed_dim": 8,
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "epochs": EPOCHS,
        "global_batch_size": BATCH,
        "log_every": 1,
        "evaluation": {"every_epochs": 2, "recall_at": [1, 2], "templates": ["a {}"]},
        "checkpoint": {"every_steps": 2, "best": BEST},
        "tensorboard": False,
    }


def planner(root: Path) -> Callable[..., Plan]:
    """A function from overrides (`__` is a dot) to a plan. Features are computed once, in this process."""
    tree = tree_of(root)

    def make(**overrides: Any) -> Plan:
        given = {key.replace("__", "."): value for key, value in overrides.items()}
        settings = validate(TrainSettings, apply_overrides(tree, given, TrainSettings), "run")
        return plan_of(settings, Pool(0), Display(quiet=True))

    return make
