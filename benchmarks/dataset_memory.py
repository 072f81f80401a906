"""Peak memory of a process that uses a large prepared dataset: a worker, a task of its stream, and a driver with all captions.

    python -m benchmarks.dataset_memory                    # 10 million rows, 2 GB in a temporary folder
    python -m benchmarks.dataset_memory --rows 2000000

The rows are synthetic: 5 in 4 captions, all different, of some 60 characters; no images. Each part runs in a process of its own,
which opens what it was sent and does what that process does in a run. A figure is the peak of the resident memory, less what was
resident once all modules were imported, and the seconds that the part took.
"""

import argparse
import gc
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.runs import machine  # torch comes with it, before anything is measured
from pipelines.dataset.order import Order
from pipelines.dataset.prepared import FORMAT_VERSION, MANIFEST, Prepared
from pipelines.dataset.stream import Item, Stream
from pipelines.dataset.tokenizer import train_tokenizer
from pipelines.dataset.views import Augment

SHARD = 2048  # rows
BATCH, STEPS = 4096, 3
WIDTH = 4  # of features
LIMIT = 13 << 29  # bytes that a part may have: 6.5 GiB


def write(folder: Path, rows: int) -> Prepared:
    """A dataset of so many rows, of which every fourth has two captions, and stored features of zeros."""
    (folder / "content").mkdir()
    shards, texts = [], 0
    for first in range(0, rows, SHARD):
        ids = np.arange(first, min(first + SHARD, rows))
        counts = 1 + (ids % 4 == 0)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        text_ids = texts + np.arange(offsets[-1])
        texts += len(text_ids)
        numbers, words = pa.array(text_ids).cast(pa.string()), " a photograph of something that nobody has seen before"
        captions = pc.binary_join_element_wise("number", numbers, words, " ")
        names = pc.binary_join_element_wise("row", pa.array(ids).cast(pa.string()), "-")
        columns = {
            "sample_id": pa.array(ids),
            "image_id": pa.array(ids),
            "text_id": pa.ListArray.from_arrays(pa.array(offsets), pa.array(text_ids)),
            "key": names,
            "group": names,
            "captions": pa.ListArray.from_arrays(pa.array(offsets), captions),
            "split": pa.array(np.where(ids % 10 == 0, "test", "train")),
        }
        file = f"content/{first // SHARD:05d}.parquet"
        pq.write_table(pa.table(columns), folder / file)
        held_out = int((ids % 10 == 0).sum())
        shards.append({"file": file, "rows": len(ids), "splits": {"test": held_out, "train": len(ids) - held_out}})
    manifest = {
        **{"format_version": FORMAT_VERSION, "name": "rows", "fingerprint": f"{rows:032d}", "config": {"split_seed": 0}},
        **{"num_samples": rows, "num_images": rows, "num_texts": texts, "split_shares": {"test": 0.1}},
        **{"labels": {}, "shards": shards, "tables": False, "captions": {"shuffled": 0}},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    for name, count in (("images", rows), ("texts", texts)):
        (folder / name).mkdir()
        np.lib.format.open_memmap(folder / name / "rows.npy", mode="w+", dtype=np.float16, shape=(count, WIDTH)).flush()
    return Prepared.open(folder)


def stream_of(folder: Path, columns: set[str]) -> tuple[Stream, Order]:
    """What a driver sends to its workers and tasks."""
    prepared = Prepared.open(folder)
    tokenizer = train_tokenizer(["number 0 a photograph of something that nobody has seen before"], 200, 16)
    features = folder / "images", folder / "texts"
    stream = Stream(prepared, frozenset(columns), 0, 8, Augment(), tokenizer, *features)
    return stream, Order(prepared, "train", None, 0, BATCH)


def worker(stream: Stream, order: Order) -> None:
    """Both towers locked: a worker looks features and ids up."""
    for step in range(STEPS):
        item = Item(order.batch(step), 0)
        assert len(stream.here(item)["text_id"]) == BATCH


def task(stream: Stream, order: Order) -> None:
    """Captions are read and tokenized for a worker."""
    for step in range(STEPS):
        assert stream.compute(Item(order.batch(step), 0))["text"].shape == (BATCH, 16)


def texts(stream: Stream, order: Order) -> None:
    """All captions in the order of their ids, to compute features of them."""
    found = stream.prepared.texts()
    assert len(found) == stream.prepared.num_texts and str(found[len(found) - 1]).startswith("number")


PARTS: dict[str, tuple[Callable[[Stream, Order], None], set[str]]] = {
    "worker, both towers locked": (worker, {"image_features", "text_features", "image_id", "text_id"}),
    "task that reads captions": (task, {"text", "text_mask", "image_id", "text_id"}),
    "driver, all captions": (texts, {"text"}),
}


def resident() -> float:
    """MiB of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def measured(sent: Path, part: str) -> None:
    """Do a part in this process, and print what it took."""
    sent_bytes = sent.read_bytes()
    gc.collect()
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    before, start = resident(), time.perf_counter()
    PARTS[part][0](*pickle.loads(sent_bytes))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"mib": peak - before, "seconds": seconds, "sent": len(sent_bytes) / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where the dataset is kept, and found the next time")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.part:
        measured(told.folder, told.part)
        return
    with tempfile.TemporaryDirectory() as aside:
        folder = told.folder or Path(aside)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).exists():
            write(folder, told.rows)
        print(f"{machine()}\n\n| process | peak memory, MiB | seconds | sent to it, KiB |\n|---|---|---|---|", flush=True)
        for part, (_, columns) in PARTS.items():
            sent = Path(aside) / "sent"
            sent.write_bytes(pickle.dumps(stream_of(folder, columns)))
            command = [sys.executable, "-m", "benchmarks.dataset_memory", "--folder", str(sent), "--part", part]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                why = "more than its 6.5 GiB" if "MemoryError" in done.stderr else done.stderr.strip().splitlines()[-1]
                print(f"| {part} | {why} | | {sent.stat().st_size / 1024:,.0f} |", flush=True)
                continue
            found = json.loads(done.stdout)
            print(f"| {part} | {found['mib']:,.0f} | {found['seconds']:.1f} | {found['sent']:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
