"""Checks before anything starts whether a run fits into the cluster: if it does not, Ray waits for ever without a message."""

import math
import os
from dataclasses import dataclass

from pipelines.dataset.shares import shares
from pipelines.program.cluster import own_machine
from pipelines.program.errors import UserError
from training.config import ResourceSettings


@dataclass(frozen=True)
class Cluster:
    """The resources of a cluster, in Ray's logical units."""

    cpus: float
    gpus: float
    shared: bool = False  # with other jobs: a run then reserves what it requested, and no more


def expected_cluster() -> Cluster | None:
    """The cluster that this process will start; None if it will join one, or is part of one already."""
    size = own_machine()
    return None if size is None else Cluster(*size)


def current_cluster() -> Cluster:
    """The cluster that this process is part of."""
    import ray

    total = ray.cluster_resources()
    return Cluster(total.get("CPU", 0), total.get("GPU", 0), "RAY_ADDRESS" in os.environ)


def plan_resources(wanted: ResourceSettings, uses_tasks: bool, cluster: Cluster, key: str = "resources") -> float:
    """The CPUs that a run reserves for reading and decoding: `data_cpus`, or in its own local Ray all that workers leave.

    Of a range of workers, the smallest number has to fit. Raises a `UserError` with the arithmetic if the run does not fit.

    Args:
        uses_tasks: whether the run streams data; with both towers locked it needs no CPUs besides its workers'.
        key: of these settings, for errors.
    """
    cpus_each = round(wanted.cpus_per_worker, 4)  # Ray's rounding
    least, most = wanted.least_workers, wanted.most_workers
    data = wanted.data_cpus if uses_tasks else 0
    fit = int((cluster.cpus - data + 1e-6) // cpus_each)
    if wanted.use_gpu:
        fit = min(fit, int(cluster.gpus))
    workers = least * cpus_each
    rest = math.floor((cluster.cpus - max(least, min(fit, most)) * cpus_each + 1e-6) * 100) / 100
    reserved = data if cluster.shared or not uses_tasks else max(data, rest)
    if wanted.autoscale:
        return reserved

    def number(count: int) -> str:
        return f"{key}.num_workers={count if least == most else [count, most]}"

    at_least = "" if least == most else "at least "
    if workers + data > cluster.cpus:
        ways = [f"{key}.autoscale=true on a cluster that grows"]
        fewer = int((cluster.cpus - data) // wanted.cpus_per_worker)
        if fewer >= 1:
            ways.insert(0, number(fewer))
        share = int((cluster.cpus - data) / least * 100) / 100
        if share >= 0.1:
            ways.insert(0, f"{key}.cpus_per_worker={share:g}")
        reading = f" + {data:g} for reading and decoding" if data else ""
        raise UserError(
            key,
            f"{at_least}{least} workers x {wanted.cpus_per_worker:g} CPU{reading} = {workers + data:g} CPUs, "
            f"and the cluster has {cluster.cpus:g}",
            f"pass {' or '.join(ways)}",
        )
    if wanted.use_gpu and least > cluster.gpus:
        raise UserError(
            key,
            f"{at_least}{least} workers x 1 GPU = {least} GPUs, and the cluster has {cluster.gpus:g}",
            f"pass {key}.use_gpu=false, fewer {key}.num_workers, or {key}.autoscale=true on a cluster that grows",
        )
    return reserved


def range_in_words(wanted: ResourceSettings, rows: int) -> str:
    """What a range of workers means for a run with global batches of `rows`; empty if the number is fixed."""
    if wanted.least_workers == wanted.most_workers:
        return ""

    def pairs(count: int) -> str:
        sizes = sorted({len(share) for share in shares(rows, count)})
        return f"{' or '.join(map(str, sizes))} pairs{' each' if count > 1 else ''} on {count}"

    return (
        f"{wanted.least_workers} to {wanted.most_workers} workers, as many as the cluster has room for; any number takes the "
        f"same batches of {rows} in the same order ({pairs(wanted.least_workers)}, {pairs(wanted.most_workers)})"
    )
