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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.cluster import blocks, telling
from pipelines.display import Display
from pipelines.prepared import Prepared
from pipelines.settings import digest
from pipelines.stream import Item, Stream

_BATCH = 64


@dataclass(frozen=True)
class Pool:
    """How many copies of an encoder; each books one CPU, and one GPU with `use_gpu`. None: one copy, in this process."""

    actors: int
    use_gpu: bool = False


def image_bank(
    prepared: Prepared, size: int, encoder: Callable, arguments: tuple, identity: Any, pool: Pool, display: Display
) -> Path:
    """Features of every sample's centre view of `size` pixels, rows by sample_id. `identity`: the encoder's, JSON values."""
    name = digest({"image": prepared.fingerprint, "size": size, "encoder": identity})

    def load(ids: np.ndarray) -> np.ndarray:
        return Stream(prepared, frozenset({"image"}), image_size=size).compute(Item(ids, 0))["image"]

    about = {"of": "pictures by sample_id", "size": size, "encoder": identity, "dataset": prepared.fingerprint}
    bank = _Bank(_folder(prepared) / name, prepared.num_samples, about)
    _compute([] if bank.exists else [bank], load, encoder, arguments, pool, display)
    return bank.path


def text_banks(
    prepared: Prepared,
    texts: Sequence[Sequence[str]],
    encoder: Callable,
    arguments: tuple,
    identity: Any,
    pool: Pool,
    display: Display,
) -> list[Path]:
    """A bank for each list of texts, rows in their order. What is missing is computed in one pass: actors start slowly."""
    names = [digest({"texts": list(part), "encoder": identity}) for part in texts]
    banks = [
        _Bank(
            _folder(prepared) / name,
            len(part),
            {"of": "texts in order", "encoder": identity, "texts": digest(list(part))},
        )
        for name, part in zip(names, texts, strict=True)
    ]
    first = {bank.path: i for i, bank in reversed(list(enumerate(banks)))}  # equal lists share a bank
    missing = [i for i, bank in enumerate(banks) if not bank.exists and bank.rows and first[bank.path] == i]
    strings = [text for i in missing for text in texts[i]]

    def load(ids: np.ndarray) -> np.ndarray:
        return np.asarray([strings[i] for i in ids], dtype=object)

    _compute([banks[i] for i in missing], load, encoder, arguments, pool, display)
    return [bank.path for bank in banks]


def _folder(prepared: Prepared) -> Path:
    return prepared.local_folder("a locked tower") / "banks"


@dataclass(frozen=True)
class _Bank:
    path: Path
    rows: int
    about: dict[str, Any]

    @property
    def exists(self) -> bool:
        return (self.path / "bank.json").exists()


def _compute(
    banks: list[_Bank],
    load: Callable[[np.ndarray], np.ndarray],
    encoder: Callable,
    arguments: tuple,
    pool: Pool,
    display: Display,
) -> None:
    """Fill banks that lie one after another in `load`'s rows: written aside, renamed when all is there."""
    if not banks:
        return
    rows = sum(bank.rows for bank in banks)
    starts = np.cumsum([0] + [bank.rows for bank in banks])
    aside = [bank.path.with_name(f"{bank.path.name}.partial-{os.getpid()}") for bank in banks]
    out: list[np.memmap] = []
    try:
        with display.task(f"features of {banks[0].about['of'].split()[0]}", rows) as task:
            done = 0
            for ids, features in _features(rows, load, encoder, arguments, pool):
                with np.errstate(over="ignore"):
                    features = features.astype(np.float16)
                if not np.isfinite(features).all():
                    raise ValueError(f"bank: rows {ids[0]} to {ids[-1]} hold a value that is not finite, or not in float16")
                for folder, bank in zip(aside if not out else (), banks, strict=False):
                    folder.mkdir(parents=True)
                    shape = (bank.rows, features.shape[1])
                    out.append(np.lib.format.open_memmap(folder / "rows.npy", mode="w+", dtype=np.float16, shape=shape))
                for bank_rows, start, end in zip(out, starts[:-1], starts[1:], strict=True):
                    inside = (ids >= start) & (ids < end)
                    bank_rows[ids[inside] - start] = features[inside]
                done += len(ids)
                task.update(done)
        if done != rows:
            raise ValueError(f"bank: {done} of {rows} rows were computed")
        for folder, bank, bank_rows in zip(aside, banks, out, strict=True):
            bank_rows.flush()
            about = bank.about | {"rows": bank.rows, "width": bank_rows.shape[1]}
            (folder / "bank.json").write_text(json.dumps(about, indent=1))
            try:
                folder.rename(bank.path)
            except OSError:  # another process was faster: two trials may miss the same bank
                if not bank.exists:
                    raise
    finally:
        for folder in aside:
            shutil.rmtree(folder, ignore_errors=True)


def _features(
    rows: int, load: Callable[[np.ndarray], np.ndarray], encoder: Callable, arguments: tuple, pool: Pool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row ids, features) in batches, from a pool of actors that each hold the encoder, or from this process."""
    if not pool.actors:
        encode = encoder(*arguments)
        for start in range(0, rows, _BATCH):
            ids = np.arange(start, min(start + _BATCH, rows))
            yield ids, np.asarray(encode(load(ids)), dtype=np.float32)
        return
    import ray.data

    class Encode:
        def __init__(self) -> None:
            self.encode = encoder(*arguments)

        @telling
        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            ids = np.arange(batch["start"][0], batch["end"][0])
            return {"id": ids, "features": np.asarray(self.encode(load(ids)), dtype=np.float32)}

    # Items, not `range`: reading them takes no CPU, so actors may have all of them without a deadlock.
    items = [{"start": start, "end": min(start + _BATCH, rows)} for start in range(0, rows, _BATCH)]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset = dataset.map_batches(
        Encode, batch_size=1, concurrency=min(pool.actors, len(items)), num_cpus=1, num_gpus=1 if pool.use_gpu else None
    )
    for batch in blocks(dataset):
        yield batch["id"], batch["features"]
