"""An epoch of a stream with a small object store, and what it took: a program for the memory test, run as a script."""

import json
import os
import sys
import threading
import time
from pathlib import Path

import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

import psutil  # isort: skip  comes with ray
import torch

from pipelines.cluster import configure_data
from pipelines.order import Order
from pipelines.prepared import Prepared
from pipelines.stream import Stream, Worker
from pipelines.views import Augment

STORE = 150 << 20  # bytes
SIZE = 96  # pixels
BATCH = 128
PAUSES = (8, 40, 72)  # batches before which the consumer waits until the store has filled as far as it may
STILL = 3.0  # seconds in which a full store does not grow


def used() -> dict[str, float]:
    """MiB: private memory of the five largest processes, the object store's content, and what was spilled in all."""
    private = []
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            if process.pid == os.getpid() or "ray::" in " ".join(process.cmdline()):
                memory = process.memory_info()
                private.append(memory.rss - memory.shared)
        except psutil.Error:
            continue
    stats = get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address)).store_stats
    return {
        "workers": sum(sorted(private)[-5:]) / 2**20,
        "store": stats.object_store_bytes_used / 2**20,
        "spilled": stats.spilled_bytes_total / 2**20,
    }


def wait_until_full() -> None:
    """However busy the machine is: peaks of two runs can be compared only where both had the time to reach them."""
    fullest, since = 0.0, time.monotonic()
    while time.monotonic() - since < STILL:
        time.sleep(0.1)
        store = used()["store"]
        if store > fullest:
            fullest, since = store, time.monotonic()


def main(path: str) -> None:
    os.environ["RAY_free_objects_period_milliseconds"] = "100"  # noqa: SIM112  Ray's name; else what is done with stays a second
    ray.init(address="local", num_cpus=2, object_store_memory=STORE, include_dashboard=False, log_to_driver=False)
    configure_data()
    prepared = Prepared.open(Path(path))
    order = Order(prepared.path, prepared.fingerprint, "train", None, seed=0, global_batch_size=BATCH)
    stream = Stream(prepared, frozenset({"image"}), image_size=SIZE, augment=Augment())
    peak: dict[str, float] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            for name, value in used().items():
                peak[name] = max(value, peak.get(name, 0))

    thread = threading.Thread(target=watch)
    thread.start()
    steps = order.steps_per_epoch
    rows = 0
    for step, batch in enumerate(stream.training(order, 0, steps, Worker(0, 1, torch.device("cpu"), 2))):
        rows += len(batch["image"])
        if step in PAUSES:
            wait_until_full()
    done.set()
    thread.join()
    print(json.dumps(peak | {"rows": rows, "decoded": rows * 3 * SIZE**2 / 2**20}))


if __name__ == "__main__":
    main(sys.argv[1])
