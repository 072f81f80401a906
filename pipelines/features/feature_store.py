"""Stored features: a frozen encoder's features of every image or caption, computed once in the cluster, and mapped into
memory by workers.

    DATASET/features/IDENTITY/rows.npy           float16 [rows, F]; images by sample_id, captions by text_id, other texts in order
    DATASET/features/IDENTITY/features.json      what the rows were computed from, and their digest
    DATASET/features/IDENTITY.parts/00012.npy    during computation: a complete part of the rows

The identity is a digest of the encoder, its weights and its input, so features of anything else have another name.
The encoder is a class that an actor builds once: `encoder(*arguments)`, then `encoder(column) -> [n, F]`.

Actors compute batches; this process stores each part as soon as it is complete, so a killed computation resumes with the missing
parts. A part consists of whole batches, so the rows that an encoder sees together, and hence every bit, do not depend on earlier
attempts. Two processes may compute the same features: they write equal files, and the later one finds them done.
"""

import hashlib
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.dataset.prepared import Prepared
from pipelines.dataset.sample_images import deadly_image
from pipelines.dataset.stream import Item, Stream
from pipelines.dataset.views import Augment
from pipelines.features.pool import Pool
from pipelines.features.rows_by_id import digest_of_rows, feature_copy, feature_folder, send_features
from pipelines.io import storage
from pipelines.io.http import is_web
from pipelines.io.retry import Missing, shown_place
from pipelines.program import interrupts
from pipelines.program.cluster import RETRIES, blocks, errors_as_blocks
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.settings import difference
from pipelines.program.settings_base import digest

_BATCH = 64  # rows that an encoder sees together
_PART = 64 * _BATCH
_EACH = 4  # batches that are worth an actor: it takes as long to start as a small encoder takes for a thousand rows
_FORMAT = 2  # incremented to change all names
_SUSPECTS = 64  # batches that are searched for the image that crashed an actor

Culprit = Callable[[int, np.ndarray], UserError | None]


@dataclass(frozen=True)
class StoredFeatures:
    """Features of one encoder that exist or will be computed. `about`: everything that determines the rows, as JSON values."""

    folder: Path | str
    rows: int
    about: dict[str, Any]
    dtype: type[np.generic] = np.float16

    @property
    def path(self) -> Path:
        """The folder on this machine, named by the identity."""
        return self.place if isinstance(self.place, Path) else feature_folder(self.place)

    @property
    def place(self) -> Path | str:
        """The same, or its URI in a store."""
        return storage.join(self.folder, digest(self.about | {"format": _FORMAT}))

    @property
    def exists(self) -> bool:
        """Whether they were computed; of those in a store, a copy is made."""
        if isinstance(self.place, Path):
            return (self.path / "features.json").exists()
        try:
            return feature_copy(self.place).exists()
        except Missing:
            return False

    def check(self) -> None:
        """Raises `UserError` if the folder holds features of another encoder or other data, or if rows are missing."""
        stored = json.loads((self.path / "features.json").read_text(encoding="utf-8"))
        about = {name: value for name, value in stored.items() if name not in ("rows", "width", "digest")}
        changed = difference(about, self.about)
        if changed:
            raise self._refusal(f"it holds {_summary(about)} ({', '.join(changed[:3])})")
        try:
            rows = np.load(self.path / "rows.npy", mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise self._refusal(f"rows.npy cannot be read: {error}") from None
        shape = (self.rows, stored.get("width"))
        if rows.shape != shape or rows.dtype != self.dtype:
            raise self._refusal(f"rows.npy is {rows.dtype} {[*rows.shape]}, not {np.dtype(self.dtype)} {[*shape]}")
        if digest_of_rows(self.path) != stored.get("digest"):
            missing = _missing(rows)
            what = f"row {missing[0]} is missing ({len(missing)} in all)" if len(missing) else "some were changed"
            raise self._refusal(f"rows.npy does not hold what was computed: {what}")

    def _refusal(self, why: str) -> UserError:
        remedy = "delete the folder; the same command computes it again, as does python -m pipelines with a config for features"
        return UserError(shown_place(self.place), f"the folder should hold {_summary(self.about)}, but {why}", remedy)


def _summary(about: dict[str, Any]) -> str:
    """A clause that describes the content of stored features."""
    encoder, of = about.get("encoder"), f"{about.get('of')}"
    if isinstance(encoder, dict) and encoder:
        of += f" by {encoder.get('model') or encoder.get('weights') or digest(encoder)[:12]}"
    data = [f", {key} {str(about[key])[:12]}" for key in ("dataset", "texts") if key in about]
    return of + "".join(data)


def _missing(rows: np.ndarray) -> np.ndarray:
    """Rows that look as if they were never written: all zeros, or not finite."""
    blocks = [(start, rows[start : start + _PART]) for start in range(0, len(rows), _PART)]
    return np.concatenate([start + np.flatnonzero(~(np.isfinite(b) & (b != 0)).any(axis=1)) for start, b in blocks])


def stored_image_features(
    prepared: Prepared, size: int, encoder: Callable, arguments: tuple, identity: Any, pool: Pool, display: Display
) -> Path | str:
    """Features of every sample's centre crop of `size` pixels, rows by sample_id. `identity`: the encoder's, as JSON values.

    Raises `UserError` if the folder holds something else, or is damaged.
    """
    return stored_view_features(prepared, size, encoder, arguments, identity, None, pool, display)[0]


def stored_view_features(
    prepared: Prepared,
    size: int,
    encoder: Callable,
    arguments: tuple,
    identity: Any,
    views: tuple[Augment, int] | None,
    pool: Pool,
    display: Display,
) -> list[Path | str]:
    """The same of each of several random views, those that a stream repeats (`Stream.repeated`). None: of the centre crop."""
    augment, count = views or (None, 1)
    repeated = None if views is None else count

    def load(number: int, ids: np.ndarray) -> np.ndarray:
        stream = Stream(prepared, frozenset({"image"}), image_size=size, augment=augment, repeated=repeated)
        return stream.compute(Item(ids, number))["image"]

    about = {"of": "images by sample_id", "size": size, "encoder": identity, "dataset": prepared.fingerprint}
    kinds: list[dict[str, Any]] = [{}]
    if augment is not None:
        kinds = [{"view": number, "augment": augment.model_dump(mode="json")} for number in range(count)]
    stored = [StoredFeatures(folder_of(prepared), prepared.num_samples, about | kind) for kind in kinds]
    compute(stored, load, encoder, arguments, pool, display, culprit=lambda _, ids: deadly_image(prepared, ids))
    return [features.place for features in stored]


def stored_text_features(
    prepared: Prepared,
    texts: Sequence[Sequence[str] | pa.ChunkedArray],
    encoder: Callable,
    arguments: tuple,
    identity: Any,
    pool: Pool,
    display: Display,
) -> list[Path | str]:
    """Features of each list of texts, rows in their order. Missing ones are computed in one pass, as actors start slowly.

    Texts are sent to actors as Arrow strings: millions of Python strings would take five times the memory in each.

    Raises `UserError` if the folder holds something else, or is damaged.
    """
    parts = [part if isinstance(part, pa.ChunkedArray) else pa.chunked_array([part], pa.large_string()) for part in texts]
    folder = folder_of(prepared)
    features = [
        StoredFeatures(folder, len(part), {"of": "texts in order", "encoder": identity, "texts": digest_of_texts(part)})
        for part in parts
    ]
    missing = [part if not stored.exists else None for stored, part in zip(features, parts, strict=True)]  # to be sent

    def load(number: int, ids: np.ndarray) -> np.ndarray:
        part = missing[number]
        assert part is not None
        return part.slice(int(ids[0]), len(ids)).to_numpy()  # `ids` are consecutive

    compute(features, load, encoder, arguments, pool, display)
    return [stored.place for stored in features]


def digest_of_texts(texts: pa.ChunkedArray) -> str:
    """`settings.digest` of the texts as a list, without building the list."""
    hasher = hashlib.blake2b(b"[", digest_size=16)
    for start in range(0, len(texts), _PART):
        part = json.dumps(texts.slice(start, _PART).to_pylist(), ensure_ascii=False, separators=(",", ":"))
        hasher.update(("," * (start > 0) + part[1:-1]).encode())
    hasher.update(b"]")
    return hasher.hexdigest()


def folder_of(prepared: Prepared) -> Path | str:
    """The folder of a dataset's features, in a store if the dataset is. Raises `UserError` if nothing can be written there."""
    if is_web(prepared.path):
        problem = f"stored features need the dataset in a place that can be written to, not in {shown_place(prepared.path)}"
        raise UserError("data.path", problem, "copy it to a folder or an object store, and give that")
    return storage.join(prepared.path, "features")


def compute(
    features: Sequence[StoredFeatures],
    load: Callable[[int, np.ndarray], Any],
    encoder: Callable,
    arguments: tuple,
    pool: Pool,
    display: Display,
    title: str | None = None,
    culprit: Culprit | None = None,
) -> None:
    """Compute missing parts of one encoder's features, and check those that exist.

    Args:
        load: from an index in `features` and row ids [n] to the encoder's input.
        culprit: from the same to an error about the image that crashed a process; None if none did.
        title: of the progress line; by default from the content of the first.
    """
    first = {stored.path: number for number, stored in reversed(list(enumerate(features)))}  # equal lists have the same folder
    todo = {n: features[n] for n in sorted(first.values()) if features[n].rows and not features[n].exists}
    for stored in features:
        if stored.exists:
            stored.check()
    for stored in todo.values():
        if stored.path.exists():
            raise UserError(str(stored.path), "has no features.json, so it holds no stored features", "delete the folder")
    parts = [_Part(number, stored, start) for number, stored in todo.items() for start in range(0, stored.rows, _PART)]
    missing = [part for part in parts if not part.done]
    title = title or (f"features of the {features[0].about['of'].split()[0]}" if features else "")
    if len(missing) < len(parts):
        display.line(f"{title}: resuming, {len(parts) - len(missing)} of {len(parts)} parts are done")
    if missing:
        with interrupts.keeping(lambda: f"{title}: {sum(part.done for part in parts)} of {len(parts)} parts are kept"):
            _fill(missing, load, encoder, arguments, pool, title, display, culprit)
    for stored in todo.values():
        _assemble(stored)
        if isinstance(stored.place, str):
            send_features(stored.path, stored.place)


@dataclass(frozen=True)
class _Part:
    """Rows [start, end) of `features`."""

    number: int
    features: StoredFeatures
    start: int

    @property
    def end(self) -> int:
        return min(self.start + _PART, self.features.rows)

    @property
    def path(self) -> Path:
        return self.features.path.with_name(f"{self.features.path.name}.parts") / f"{self.start // _PART:05d}.npy"

    @property
    def done(self) -> bool:
        try:
            return len(np.load(self.path, mmap_mode="r")) == self.end - self.start
        except (OSError, ValueError, EOFError):  # missing, or truncated by a crash of the machine
            return False


def _fill(
    parts: Sequence[_Part],
    load: Callable[[int, np.ndarray], Any],
    encoder: Callable,
    arguments: tuple,
    pool: Pool,
    title: str,
    display: Display,
    culprit: Culprit | None,
) -> None:
    """Compute parts and store each as soon as its last batch has arrived; batches arrive in order."""
    batches = [(part, at, min(at + _BATCH, part.end)) for part in parts for at in range(part.start, part.end, _BATCH)]
    results = _computed([(part.number, start, end) for part, start, end in batches], load, encoder, arguments, pool, culprit)
    total = sum({part.number: part.features.rows for part in parts}.values())
    done = total - sum(part.end - part.start for part in parts)
    with display.task(title, total) as task:
        waiting: list[np.ndarray] = []
        for (part, start, end), rows in zip(batches, results, strict=True):
            waiting.append(_checked(rows, part.features.dtype, start, end))
            done += end - start
            task.update(done)
            if end == part.end:
                _write(part, np.concatenate(waiting))
                waiting = []


def _checked(rows: np.ndarray, dtype: type[np.generic], start: int, end: int) -> np.ndarray:
    """Rows [start, end) as they are stored. Raises `ValueError` for another number of rows, or values that are not finite."""
    if len(rows) != end - start:
        raise ValueError(f"stored features: the encoder gave {len(rows)} rows for {start} to {end - 1}")
    with np.errstate(over="ignore"):
        rows = rows.astype(dtype)
    if not np.isfinite(rows).all():
        raise ValueError(f"stored features: rows {start} to {end - 1} have a value that is not finite in {rows.dtype}")
    return rows


def _write(part: _Part, rows: np.ndarray) -> None:
    try:
        with storage.written(part.path) as path, path.open("wb") as file:
            np.save(file, rows)
    except OSError:
        if not part.features.exists:  # otherwise another process was faster, and has deleted the parts
            raise


def _assemble(stored: StoredFeatures) -> None:
    """Join the parts into one file, rename the complete folder into place, and delete the parts."""
    aside = stored.path.with_name(f"{stored.path.name}.partial-{platform.node()}-{os.getpid()}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        parts = [np.load(_Part(0, stored, start).path, mmap_mode="r") for start in range(0, stored.rows, _PART)]
        width = parts[0].shape[1]
        shape = (stored.rows, width)
        rows = np.lib.format.open_memmap(aside / "rows.npy", mode="w+", dtype=stored.dtype, shape=shape)
        for number, part in enumerate(parts):
            rows[number * _PART : number * _PART + len(part)] = part
        rows.flush()
        about = stored.about | {"rows": stored.rows, "width": width, "digest": digest_of_rows(aside)}
        (aside / "features.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        aside.rename(stored.path)
    except OSError:
        if not (stored.path / "features.json").exists():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for left in stored.path.parent.glob(f"{stored.path.name}.*"):
        shutil.rmtree(left, ignore_errors=True)


def _computed(
    batches: Sequence[tuple[int, int, int]],
    load: Callable[[int, np.ndarray], Any],
    encoder: Callable,
    arguments: tuple,
    pool: Pool,
    culprit: Culprit | None,
) -> Iterator[np.ndarray]:
    """Rows of each (number, start, end) in order, computed by a pool of actors or in this process."""
    if not pool.actors:
        encode = encoder(*arguments)
        for number, start, end in batches:
            yield np.asarray(encode(load(number, np.arange(start, end))))
        return
    import ray.data

    class Encode:
        def __init__(self) -> None:
            self.encode = encoder(*arguments)

        @errors_as_blocks
        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            number, start, end = (int(batch[name][0]) for name in ("number", "start", "end"))
            return {"rows": np.asarray(self.encode(load(number, np.arange(start, end))))}

    # Items, not `range`: reading them takes no CPU, so actors may use all CPUs without a deadlock.
    items = [{"number": number, "start": start, "end": end} for number, start, end in batches]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset = dataset.map_batches(
        Encode,
        batch_size=1,
        concurrency=min(pool.actors, math.ceil(len(items) / _EACH)),
        num_cpus=pool.threads,
        num_gpus=1 if pool.use_gpu else None,
        label_selector=dict(pool.labels) or None,
        max_restarts=RETRIES,
        max_task_retries=RETRIES,
    )
    received = 0

    def culprit_of_rest() -> UserError | None:
        left = ((number, np.arange(start, end)) for number, start, end in batches[received : received + _SUSPECTS])
        return next(filter(None, (culprit(number, ids) for number, ids in left)), None) if culprit else None

    for batch in blocks(dataset, culprit_of_rest, pool.each):
        received += 1
        yield batch["rows"]
