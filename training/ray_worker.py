"""What each Ray Train worker of a run does: the loop, with Ray Train's reports and checkpoints, requests to stop, notices that a
node will be taken away, and a pulse by which the driver sees where the worker is.
"""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch

from pipelines.dataset.stream import Worker
from pipelines.program.cluster import configure_data
from training import pulse
from training.held_out import keep_held_out
from training.loop import Save, never, train
from training.notices import Notice
from training.plan import Plan
from training.run_store import RunStore
from training.saver import Saver
from training.stopping import Asked


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """The function that each Ray Train worker runs: `train`, from the newest checkpoint on."""
    plan: Plan = config["plan"]
    store: RunStore | None = config["store"]
    place = config["folder"] if store is None else store.uri
    configure_data()
    worker = this_worker(config["data_cpus"])
    notice, saver = Notice(), Saver(config["folder"], store)

    def report(metrics: dict[str, Any], save: Save | None) -> None:
        pulse.at("report")
        if save is not None and worker.rank == 0:
            notice.before_last_report()
        saver.report(metrics, save if worker.rank == 0 else None)

    checkpoint = ray.train.get_checkpoint()
    if worker.rank == 0:
        saver.clear("" if checkpoint is None else Path(checkpoint.path).name)
    if checkpoint is not None and store is not None:
        checkpoint = ray.train.Checkpoint.from_directory(store.opened(Path(checkpoint.path).name))
    asking = Asked(place) if worker.rank == 0 else nullcontext(never)
    with pulse.Pulse(config["folder"], worker), asking as asked:
        stop, keep = notice.or_asked(asked), partial(keep_held_out, place)
        with saver:
            returned = train(plan, worker, report, checkpoint, stop, keep)
        return notice.after(returned)


def this_worker(data_cpus: float) -> Worker:
    """Rank, device and CPUs for reading of this process, according to Ray Train."""
    context = ray.train.get_context()
    size = context.get_world_size()
    return Worker(context.get_world_rank(), size, ray.train.torch.get_device(), data_cpus / size)
