"""Where our time goes from a step's number to a batch on the worker: each piece of work alone, and Ray's account of a run."""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.ingest_peers import AUGMENT, Job, ours
from benchmarks.process_tree import Sampled
from pipelines.dataset.images import Opened, open_image
from pipelines.dataset.order import Order
from pipelines.dataset.stream import Item, Stream
from pipelines.dataset.views import train_view
from pipelines.io.image_bytes import read_locations
from pipelines.program import cluster
from pipelines.program.randomness import generator

_STEPS = 8
_WHOLE = "all of a task's work, in one go"


def profile(job: Job) -> list[str]:
    """Lines for the terminal."""
    torch.set_num_threads(1)
    cluster.start(cpus=job.cores)
    pieces = _pieces(job)
    whole = pieces.pop(_WHOLE)
    lines = [f"one core, a batch of {job.batch}, median of {_STEPS}; share of a task's work", ""]
    lines += [f"{name:48} {1000 * seconds:8.1f} ms {seconds / whole:7.1%}" for name, seconds in pieces.items()]
    lines += [f"{_WHOLE:48} {1000 * whole:8.1f} ms", "", "a run, as Ray Data saw it", ""]
    return lines + _run(job)


def _pieces(job: Job) -> dict[str, float]:
    """Median seconds of each piece of work of a batch, in this process."""
    import ray
    from ray.data.block import BlockAccessor
    from ray.data.util.torch_utils import arrow_batch_to_tensors

    prepared = job.corpus.prepared("indexed")
    columns = frozenset({"image", "text", "text_mask"})
    stream = Stream(prepared, columns, image_size=job.size, augment=AUGMENT, tokenizer=job.tokenizer)
    order = Order(prepared, "train", None, 0, job.batch)
    seconds: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        result = call(*arguments)
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result

    def captions(ids: np.ndarray) -> list[str]:
        return [found[0] for found in prepared.rows(ids, ("captions",))["captions"].to_pylist()]

    def make_generators(ids: np.ndarray) -> list[np.random.Generator]:
        return [generator("view", 0, 0, int(i), 0) for i in ids]

    def views(images: list[Opened], randoms: list[np.random.Generator]) -> list[np.ndarray]:
        return [train_view(image, job.size, AUGMENT, random) for image, random in zip(images, randoms, strict=True)]

    for step in range(_STEPS):
        ids = timed("look up the order", order.batch, step)
        places = timed("look up places", prepared.places, ids)
        encoded = timed("read bytes", lambda found: list(read_locations(found)), places)
        randoms = timed("make generators", make_generators, ids)
        opened = timed("read headers", lambda found: list(map(open_image, found)), encoded)
        timed("decode, crop, resize, mirror", views, opened, randoms)
        texts = timed("look up captions", captions, ids)
        timed("tokenize", job.tokenizer, texts)
        made = timed(_WHOLE, stream.compute, Item(ids, 0))
        block = timed("task: to a block", BlockAccessor.batch_to_block, made)
        put = timed("task: into the object store", ray.put, block)
        block = timed("worker: out of the object store", ray.get, put)
        timed("worker: to tensors", lambda found: arrow_batch_to_tensors(found, combine_chunks=True), block)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _run(job: Job) -> list[str]:
    """Ray Data's statistics of a run, which `Stream` keeps to itself."""
    import ray.data

    iterate = ray.data.Dataset.iter_torch_batches
    seen: list[ray.data.Dataset] = []

    def noted(self: "ray.data.Dataset", **options: Any) -> Any:
        seen.append(self)
        return iterate(self, **options)

    ray.data.Dataset.iter_torch_batches = noted
    try:
        with Sampled(os.getpid()) as tree:
            for step, (image, _) in enumerate(ours(job, "indexed")):
                image.numpy().reshape(-1).view(np.uint64).sum()
                if step == _STEPS - 1:  # all processes have been started
                    before, start = tree.cpu_so_far(), time.monotonic()
            seconds = time.monotonic() - start
    finally:
        ray.data.Dataset.iter_torch_batches = iterate
    images = (job.steps - _STEPS) * job.batch
    lines = [f"{images / seconds:,.0f} images/s from batch {_STEPS} to the end; CPU of processes by name"]
    for name, cpu in sorted(tree.cpu_by_name(before).items(), key=lambda item: -item[1]):
        if cpu > 0:
            lines.append(f"{name:48} {1000 * cpu / images:8.2f} ms an image")
    return [*lines, "", *seen[-1].stats().splitlines()]
