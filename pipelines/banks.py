"""Banks: a frozen encoder's features for every picture or caption, computed once in the cluster, mapped by workers.

    DATASET/banks/IDENTITY/rows.npy   float16 [rows, F]; pictures by sample_id, captions by text_id, other texts in order
    DATASET/banks/IDENTITY/bank.json  what it was computed from

The identity is a digest of the encoder, its weights and the content it saw: a bank of something else has another name.
The encoder is a class that an actor builds once: `encoder(*arguments)`, then `encoder(column) -> float32 [n, F]`.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.display import Display
from pipelines.images import decode, eval_view
from pipelines.prepared import Prepared
from pipelines.settings import digest

_BATCH = 64


def image_bank(
    prepared: Prepared, size: int, encoder: Callable, arguments: tuple, identity: Any, actors: int, display: Display
) -> Path:
    """Features of every sample's centre view of `size` pixels, rows by sample_id. `identity`: the encoder's, JSON values."""
    name = digest({"image": prepared.fingerprint, "size": size, "encoder": identity})

    def load(ids: np.ndarray) -> np.ndarray:
        return np.stack([eval_view(decode(data.as_py()), size) for data in prepared.rows(ids, ("image",))["image"]])

    about = {"of": "pictures by sample_id", "size": size, "encoder": identity, "dataset": prepared.fingerprint}
    return _bank(prepared.path / "banks" / name, prepared.num_samples, load, encoder, arguments, about, actors, display)


def text_bank(
    folder: Path, texts: Sequence[str], encoder: Callable, arguments: tuple, identity: Any, actors: int, display: Display
) -> Path:
    """Features of the given texts, rows in their order; `folder` is the prepared dataset's."""
    name = digest({"texts": list(texts), "encoder": identity})

    def load(ids: np.ndarray) -> np.ndarray:
        return np.asarray([texts[i] for i in ids], dtype=object)

    about = {"of": "texts in their order", "encoder": identity, "texts": digest(list(texts))}
    return _bank(folder / "banks" / name, len(texts), load, encoder, arguments, about, actors, display)


def _bank(
    path: Path,
    rows: int,
    load: Callable[[np.ndarray], np.ndarray],
    encoder: Callable,
    arguments: tuple,
    about: dict[str, Any],
    actors: int,
    display: Display,
) -> Path:
    """The bank at `path`, computed if it is not there: written aside and renamed."""
    if (path / "bank.json").exists():
        return path
    aside = path.with_name(f"{path.name}.partial-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        out, done = None, 0
        with display.task(f"features of {about['of'].split()[0]}", rows) as task:
            for ids, features in _features(rows, load, encoder, arguments, actors):
                if not np.isfinite(features).all():
                    raise ValueError(f"bank: the encoder gave a value that is not finite for row {ids[0]} or one after it")
                if out is None:
                    out = np.lib.format.open_memmap(
                        aside / "rows.npy", mode="w+", dtype=np.float16, shape=(rows, features.shape[1])
                    )
                out[ids] = features
                done += len(ids)
                task.update(done)
        if out is None or done != rows:
            raise ValueError(f"bank: {done} of {rows} rows were computed")
        out.flush()
        (aside / "bank.json").write_text(json.dumps(about | {"rows": rows, "width": out.shape[1]}, indent=1))
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return path


def _features(
    rows: int, load: Callable[[np.ndarray], np.ndarray], encoder: Callable, arguments: tuple, actors: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row ids, features) in batches, from a pool of actors that each hold the encoder."""
    import ray.data

    class Encode:
        def __init__(self) -> None:
            self.encode = encoder(*arguments)

        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"id": batch["id"], "features": np.asarray(self.encode(load(batch["id"])), dtype=np.float32)}

    blocks = max(1, min(-(-rows // _BATCH), 10_000))
    dataset = ray.data.range(rows, override_num_blocks=blocks)
    dataset = dataset.map_batches(Encode, batch_size=_BATCH, concurrency=min(actors, blocks), num_cpus=1)
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
        yield batch["id"], batch["features"]
