"""Will it fit? Asked before anything starts: where the arithmetic does not work out, Ray waits in silence for ever."""

from dataclasses import dataclass

from pipelines.settings import UserError
from training.config import ResourceSettings


@dataclass(frozen=True)
class Cluster:
    """What a cluster has, in Ray's logical units."""

    cpus: float
    gpus: float


def plan_resources(wanted: ResourceSettings, uses_tasks: bool, cluster: Cluster) -> float:
    """CPUs that are left for reading and decoding. Raises `UserError` with the arithmetic where it does not fit.

    Args:
        uses_tasks: whether the run streams; with both towers locked it needs no CPU beside its workers.
    """
    workers = wanted.num_workers * wanted.cpus_per_worker
    data = wanted.data_cpus if uses_tasks else 0
    if wanted.autoscale:
        return max(wanted.data_cpus, cluster.cpus - workers)
    if workers + data > cluster.cpus:
        ways = ["resources.autoscale=true on a cluster that grows"]
        fewer = int((cluster.cpus - data) // wanted.cpus_per_worker)
        if fewer >= 1:
            ways.insert(0, f"resources.num_workers={fewer}")
        share = int((cluster.cpus - data) / wanted.num_workers * 100) / 100
        if share >= 0.1:
            ways.insert(0, f"resources.cpus_per_worker={share:g}")
        raise UserError(
            f"resources: {wanted.num_workers} workers x {wanted.cpus_per_worker:g} CPU"
            + (f" + {data:g} for reading and decoding" if data else "")
            + f" = {workers + data:g} CPUs, and the cluster has {cluster.cpus:g}; pass {' or '.join(ways)}"
        )
    if wanted.use_gpu and wanted.num_workers > cluster.gpus:
        raise UserError(
            f"resources: {wanted.num_workers} workers x 1 GPU = {wanted.num_workers} GPUs, and the cluster has {cluster.gpus:g}; "
            "pass resources.use_gpu=false, fewer resources.num_workers, or resources.autoscale=true on a cluster that grows"
        )
    return max(data, cluster.cpus - workers)
