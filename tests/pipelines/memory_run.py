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

from pipelines.dataset.order import Order
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.stream import Stream, Worker
from pipelines.dataset.views import Augment
from pipelines.program import cluster

STORE = 150 << 20  # bytes
SIZE = 96  # pixels
BATCH = 128
PAUSE = 40  # the batch before which the consumer waits until nobody works any more, for the store is as full as it may be
STILL = 3.0  # seconds in which nobody works
TASK = "ray::MapBatches"


def tasks() -> set[int]:
    """Processes that are at a task of the stream."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(TASK):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def own(pid: int) -> float:
    """MiB that are a process's own: neither files nor the object store, which all processes share."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has ended
        return 0.0
    return int(status.split("RssAnon:")[1].split()[0]) / 1024 if "RssAnon:" in status else 0.0


def wait_until_full() -> None:
    since = time.monotonic()
    while time.monotonic() - since < STILL:
        time.sleep(0.1)
        if tasks():
            since = time.monotonic()


def main(path: str) -> None:
    os.environ["RAY_free_objects_period_milliseconds"] = "100"  # noqa: SIM112  Ray's name; else what is done with stays a second
    limits = {"num_cpus": 2, "object_store_memory": STORE}
    cluster._init({"address": "local", "include_dashboard": False, "log_to_driver": False} | limits)
    cluster.configure_data()
    prepared = Prepared.open(Path(path))
    order = Order(prepared, "train", None, seed=0, global_batch_size=BATCH)
    stream = Stream(prepared, frozenset({"image"}), image_size=SIZE, augment=Augment())
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    peak = {"consumer": 0.0, "task": 0.0, "store": 0.0, "spilled": 0.0}
    workers: set[int] = set()  # processes that were seen at a task
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            workers.update(tasks())
            stats = get_memory_info_reply(state).store_stats
            now = {"consumer": own(os.getpid()), "task": max(map(own, workers), default=0.0)}
            now |= {"store": stats.object_store_bytes_used / 2**20, "spilled": stats.spilled_bytes_total / 2**20}
            for name, value in now.items():
                peak[name] = max(value, peak[name])

    thread = threading.Thread(target=watch)
    thread.start()
    rows = 0
    for step, batch in enumerate(stream.training(order, 0, order.steps_per_epoch, Worker(0, 1, torch.device("cpu"), 2))):
        rows += len(batch["image"])
        if step == PAUSE:
            wait_until_full()
    done.set()
    thread.join()
    print(json.dumps(peak | {"rows": rows, "decoded": rows * 3 * SIZE**2 / 2**20, "capacity": STORE / 2**20}))


if __name__ == "__main__":
    main(sys.argv[1])
