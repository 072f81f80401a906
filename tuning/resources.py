"""How many trials run at a time, decided before the first starts: Tune's trials and Train's workers do not know of each other.

A small trial (both towers locked, one worker) trains in its Tune actor, which reserves its CPUs. A large one starts its own
Ray Train run; its Tune actor only waits, on the head node and without a CPU, and its workers and reading tasks are counted here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.program.errors import UserError
from pipelines.program.ray_internals import HEAD_NODE
from training.config import TrainSettings
from training.resources import Cluster, plan_resources

# Tune refuses a trial that books nothing; a head node is not a spot node.
WAITING = {HEAD_NODE: 0.001}


@dataclass(frozen=True)
class Booking:
    """What one trial takes, in Ray's logical units."""

    inline: bool  # trains in its own actor
    workers: int
    cpus: float  # of all workers
    data_cpus: float  # of tasks that read and decode
    gpus: float

    def bundle(self) -> dict[str, float]:
        """What the trial's Tune actor reserves."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {}) if self.inline else WAITING

    def words(self) -> str:
        """A description such as: 2 workers x 1 CPU, 1 CPU for reading, 2 GPUs."""
        parts = [f"{self.workers} worker{'s' if self.workers > 1 else ''} x {self.cpus / self.workers:g} CPU"]
        parts += [f"{self.data_cpus:g} CPU for reading and decoding"] if self.data_cpus else []
        parts += [f"{self.gpus:g} GPU"] if self.gpus else []
        return " + ".join(parts)


def booking_of(settings: TrainSettings) -> Booking:
    """What a trial of this config takes."""
    wanted = settings.resources
    locked = settings.image_tower.mode == "locked" and settings.text_tower.mode == "locked"
    return Booking(
        inline=locked and wanted.num_workers == 1,
        workers=wanted.num_workers,
        cpus=wanted.num_workers * wanted.cpus_per_worker,
        data_cpus=0 if locked else wanted.data_cpus,
        gpus=wanted.num_workers if wanted.use_gpu else 0,
    )


def trials_at_a_time(trials: Sequence[TrainSettings], cluster: Cluster, wanted: int | None) -> int:
    """How many of the largest of these trials run at once.

    Raises `UserError` with the arithmetic if not even one fits, or fewer than `wanted`.
    """
    found = []
    for settings in trials:
        booking = booking_of(settings)
        try:
            plan_resources(settings.resources, bool(booking.data_cpus), cluster)
        except UserError as error:  # not one fits; its keys are those of a training config
            raise UserError(
                str(error)
                .replace("pass resources.", "pass overrides.resources.")
                .replace("or resources.", "or overrides.resources.")
            ) from None
        fits = int((cluster.cpus + 1e-9) / (booking.cpus + booking.data_cpus))
        fits = min(fits, int(cluster.gpus / booking.gpus)) if booking.gpus else fits
        if settings.resources.autoscale and wanted is not None:
            fits = wanted  # the number of nodes to come is unknown
        elif wanted is not None and wanted > fits:
            raise UserError(
                f"concurrency: {wanted} trials x ({booking.words()}) is more than the cluster's {cluster.cpus:g} CPUs and "
                f"{cluster.gpus:g} GPUs; {fits} fit: pass concurrency={fits}, or null, or on a cluster that grows "
                "overrides.resources.autoscale=true"
            )
        found.append(max(1, fits))
    return min([*found, *([wanted] if wanted is not None else [])])
