"""How many trials run at a time, decided before the first starts: Ray Tune and Ray Train do not know of each other's bookings.

A small trial (both towers locked, one worker) trains in its Tune actor, which reserves its CPUs. A large one starts its own
Ray Train run: its Tune actor only waits, on the head node and without a CPU, and its workers and reading tasks are counted here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.program.errors import UserError
from pipelines.program.nodes import Bundle
from pipelines.program.ray_internals import HEAD_NODE
from training.config import TrainSettings
from training.resources import Cluster, plan_resources, waits_to_grow

# Tune rejects a trial that reserves nothing. A head node is never a spot node.
WAITING = {HEAD_NODE: 0.001}


@dataclass(frozen=True)
class Booking:
    """The resources of one trial, in Ray's logical units."""

    inline: bool  # trains in its own actor
    workers: int
    cpus: float  # of all workers
    data_cpus: float  # of tasks that read and decode
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)  # of the workers' nodes

    def actor(self) -> Bundle:
        """What the trial's Tune actor reserves."""
        if not self.inline:
            return Bundle(WAITING)
        return Bundle({"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {}), self.labels)

    def words(self) -> str:
        """A description such as: 2 workers x 1 CPU, 1 CPU for reading, 2 GPUs."""
        parts = [f"{self.workers} worker{'s' if self.workers > 1 else ''} x {self.cpus / self.workers:g} CPU"]
        parts += [f"{self.data_cpus:g} CPU for reading and decoding"] if self.data_cpus else []
        parts += [f"{self.gpus:g} GPU"] if self.gpus else []
        return " + ".join(parts)


def booking_of(settings: TrainSettings) -> Booking:
    """The resources of a trial of this config. Raises `UserError` for a range of workers."""
    resources, workers = settings.resources, settings.resources.num_workers
    if not isinstance(workers, int):  # each trial would take what the next one needs to start
        key, problem = "overrides.resources.num_workers", f"{list(workers)} is a range, and a sweep's trials book a number"
        raise UserError(key, problem, f"pass {key}={workers[0]}")
    locked = settings.image_tower.mode == "locked" and settings.text_tower.mode == "locked"
    return Booking(
        inline=locked and workers == 1,
        workers=workers,
        cpus=workers * resources.cpus_per_worker,
        data_cpus=0 if locked else resources.data_cpus,
        gpus=workers if resources.use_gpu else 0,
        labels=resources.worker_labels,
    )


def trials_at_a_time(trials: Sequence[TrainSettings], cluster: Cluster, wanted: int | None) -> int:
    """How many of the largest of these trials run at once.

    Raises `UserError` with the arithmetic if not even one fits, or fewer than `wanted`.
    """
    limits = [] if wanted is None else [wanted]
    for settings in trials:
        booking = booking_of(settings)
        plan_resources(settings.resources, bool(booking.data_cpus), cluster, key="overrides.resources")
        fits = int((cluster.cpus + 1e-9) / (booking.cpus + booking.data_cpus))
        fits = min(fits, int(cluster.gpus / booking.gpus)) if booking.gpus else fits
        if waits_to_grow(settings.resources, cluster) and wanted is not None:
            fits = wanted  # the number of nodes to come is unknown
        elif wanted is not None and wanted > fits:
            raise UserError(
                "concurrency",
                f"{wanted} trials x ({booking.words()}) is more than the cluster's {cluster.cpus:g} CPUs and "
                f"{cluster.gpus:g} GPUs; {fits} fit",
                f"pass concurrency={fits} or concurrency=null, or overrides.resources.autoscale=true on a cluster that grows",
            )
        limits.append(max(1, fits))
    return min(limits)
