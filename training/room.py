"""What a run books at every start of its workers: their own CPUs and GPUs, and the CPUs of the tasks that read for them.

Ray Train books its workers alone. Where those take all CPUs that are left, as after a node was lost or beside another job,
reading tasks wait for ever, and nobody says so. Here both are booked in one placement group, all of it or nothing, so that
workers never run without what feeds them; and a start that has to wait says for what.
"""

import threading
from pathlib import Path
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.util.placement_group import placement_group

from pipelines.display import Display
from pipelines.settings import UserError
from training.config import ResourceSettings
from training.resources import Cluster, plan_resources

_AT_ONCE = 5.0  # seconds in which a group is placed where there is room
_FILE = "waiting"  # in a run's folder: what its start is waiting for


class Room(ControllerCallback):
    """Given to Ray Train as a callback: its controller then starts workers with `cpus` for reading tasks beside them."""

    def __init__(self, wanted: ResourceSettings, cpus: float, folder: Path):
        self.wanted, self.cpus, self.folder = wanted, cpus, folder

    def after_controller_start(self, train_run_context: Any) -> None:
        """In the controller's process, before the first group."""
        _Group.room = self
        TrainController.worker_group_cls = _Group

    def bundles(self) -> list[dict[str, float]]:
        """One CPU each: they may lie on different nodes."""
        whole, rest = int(self.cpus), self.cpus - int(self.cpus)
        return [{"CPU": 1.0}] * whole + ([{"CPU": rest}] if rest > 1e-6 else [])

    def words(self) -> str:
        """What a start is waiting for, and the ways out."""
        found, free = ray.cluster_resources(), ray.available_resources().get("CPU", 0)
        wanted = self.wanted
        total = wanted.num_workers * wanted.cpus_per_worker + self.cpus
        try:
            plan_resources(wanted, self.cpus > 0, Cluster(found.get("CPU", 0), found.get("GPU", 0), shared=True))
        except UserError as error:
            return f"waiting for a node: {error}"
        workers = f"{wanted.num_workers} worker{'s' if wanted.num_workers > 1 else ''} x {wanted.cpus_per_worker:g} CPU"
        gpu = " and 1 GPU" if wanted.use_gpu else ""
        reading = f" + {self.cpus:g} for reading and decoding" if self.cpus else ""
        return (
            f"waiting for {workers}{gpu}{reading} = {total:g} CPUs: of the cluster's {found.get('CPU', 0):g}, {free:g} are free; "
            "it starts when a node comes, or another job ends"
        )


class _Group(WorkerGroup):
    """Ray Train's group of workers, with bundles for reading tasks behind the workers' own."""

    room: Room

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> DefaultPlacementGroupHandle:
        workers = [worker_group_context.resources_per_worker] * worker_group_context.num_workers
        bundles, strategy = workers + self.room.bundles(), worker_group_context.placement_strategy
        return _Handle(placement_group(bundles, strategy=strategy), self.room)


class _Handle(DefaultPlacementGroupHandle):
    def __init__(self, group: Any, room: Room):
        super().__init__(group)
        self._room = room

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Whether it was placed in time. Where it is not at once, the run's folder says what it is waiting for."""
        note = self._room.folder / _FILE
        if not super().wait(min(_AT_ONCE, timeout_seconds)):
            note.write_text(self._room.words(), encoding="utf-8")
            if not super().wait(max(0.0, timeout_seconds - _AT_ONCE)):
                return False  # the next attempt waits for the same
        note.unlink(missing_ok=True)
        return True


def waiting(folder: Path) -> str:
    """What a run's start is waiting for; empty where it is not."""
    try:
        return (folder / _FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


class Watch:
    """Tells the display when the start of a run's workers waits, in a thread beside whoever blocks."""

    def __init__(self, folder: Path, display: Display):
        self._folder, self._display, self._stop = folder, display, threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        (self._folder / _FILE).unlink(missing_ok=True)  # of a run that was killed while it waited
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        (self._folder / _FILE).unlink(missing_ok=True)

    def _follow(self) -> None:
        told = ""
        while not self._stop.wait(0.5):
            now = waiting(self._folder)
            if now and now != told:
                self._display.line(now)
            told = now or told
