"""Embed a held-out split through Ray Data: a pool of actors, each holding the embedder once."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from evaluation.config import EvaluateSettings
from evaluation.embedder import load_embedder
from evaluation.suite import HeldOut
from pipelines.cluster import blocks, telling
from pipelines.display import Display
from pipelines.prepared import Prepared
from pipelines.stream import whole_pictures


class _Embed:
    """An actor. An item is a piece of one kind of work: pictures by sample id, or texts by position."""

    def __init__(self, settings: EvaluateSettings, prepared: Prepared, texts: list[str]):
        self._embedder = load_embedder(settings.embedder, settings.arguments())
        self._prepared, self._texts = prepared, texts

    @telling
    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        ids = batch["ids"][0]
        if batch["kind"][0] == "images":
            rows = self._embedder.embed_images(list(whole_pictures(self._prepared, ids)))
        else:
            rows = self._embedder.embed_texts([self._texts[i] for i in ids])
        rows = np.asarray(rows, dtype=np.float32)
        if rows.ndim != 2 or len(rows) != len(ids):
            raise ValueError(f"embedder: {len(ids)} {batch['kind'][0]} gave an array of shape {list(rows.shape)}")
        return {"kind": np.repeat(batch["kind"], len(ids)), "rows": rows}


def embed(
    settings: EvaluateSettings, prepared: Prepared, data: HeldOut, display: Display
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures, captions and prompts, each float32 [n, D]."""
    import ray.data

    strings = [*data.texts, *data.prompts]
    items = [*_pieces("images", data.sample_ids, settings.batch_size)]
    items += _pieces("texts", np.arange(len(strings)), settings.batch_size)
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Embed,
        fn_constructor_args=(settings, prepared, strings),
        batch_size=1,
        concurrency=min(settings.actors, len(items)),
        num_cpus=1,
        num_gpus=1 if settings.use_gpu else None,
    )
    found: dict[str, list[np.ndarray]] = {"images": [], "texts": []}
    with display.task("embed", len(data.sample_ids) + len(strings)) as task:
        done = 0
        for batch in blocks(dataset):
            found[str(batch["kind"][0])].append(batch["rows"])
            done += len(batch["rows"])
            task.update(done)
    images, texts = np.concatenate(found["images"]), np.concatenate(found["texts"])
    return images, texts[: len(data.texts)], texts[len(data.texts) :]


def _pieces(kind: str, ids: np.ndarray, size: int) -> Iterator[dict[str, Any]]:
    for start in range(0, len(ids), size):
        yield {"kind": kind, "ids": ids[start : start + size]}
