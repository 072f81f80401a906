"""Checks before anything starts whether a run fits into the cluster: if it does not, Ray waits for ever without a message."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.dataset.shares import shares
from pipelines.program.cluster import own_machine
from pipelines.program.errors import UserError
from pipelines.program.nodes import Bundle, Node, all_fit, in_words, matches, shortage
from pipelines.program.ray_elastic import all_nodes
from pipelines.program.ray_internals import can_grow
from training.config import ResourceSettings


@dataclass(frozen=True)
class Cluster:
    """The resources of a cluster, in Ray's logical units."""

    cpus: float
    gpus: float
    shared: bool = False  # with other jobs: a run then reserves what it requested, and no more
    grows: bool = False  # has an autoscaler that may add nodes
    nodes: tuple[Node, ...] = ()  # empty for one that has not started


def expected_cluster() -> Cluster | None:
    """The cluster that this process will start; None if it will join one, or is part of one already."""
    size = own_machine()
    return None if size is None else Cluster(*size)


def current_cluster() -> Cluster:
    """The cluster that this process is part of, without nodes that will be taken away according to a notice."""
    nodes, shared = tuple(all_nodes()), "RAY_ADDRESS" in os.environ
    cpus, gpus = (sum(node.resources.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    return Cluster(cpus, gpus, shared, shared and can_grow(), nodes)


def waits_to_grow(wanted: ResourceSettings, cluster: Cluster) -> bool:
    """Whether what does not fit now waits for further nodes."""
    return cluster.grows if wanted.autoscale is None else wanted.autoscale


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
    if waits_to_grow(wanted, cluster):
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
    _check_nodes(wanted, data, cluster, key)
    return reserved


def _check_nodes(wanted: ResourceSettings, data: float, cluster: Cluster, key: str) -> None:
    """Raises `UserError` for labels that no node has, or if the nodes, each of its size, have no room for workers and `data`."""
    if not cluster.nodes:
        return
    for name, labels in (("worker_labels", wanted.worker_labels), ("data_labels", wanted.data_labels if data else {})):
        if labels and not any(matches(labels, node.labels) for node in cluster.nodes):
            have = " and ".join(sorted({in_words(_own(node.labels)) for node in cluster.nodes}))
            problem = f"no node of the cluster has {in_words(labels)}; they have {have}"
            raise UserError(f"{key}.{name}", problem, f"name theirs, or pass {key}.autoscale=true on a cluster that grows")
    needed = [wanted.worker] * wanted.least_workers + bundles(data, wanted.data_labels)
    if not all_fit(needed, cluster.nodes):
        raise UserError(
            key,
            f"the cluster's nodes have no room for {shortage(needed, cluster.nodes, cluster.nodes)} if nothing else runs",
            f"pass fewer {key}.num_workers, {key}.cpus_per_worker or {key}.data_cpus, or {key}.autoscale=true on a cluster that "
            "grows",
        )


def _own(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels without the one that differs on every node."""
    return {key: value for key, value in labels.items() if key != "ray.io/node-id"}


def check_driver(wanted: ResourceSettings, key: str = "resources") -> None:
    """Raises `UserError` if the node on which this program runs is not one that `driver_labels` selects, such as a spot node."""
    import ray

    labels = ray.get_runtime_context().get_node_labels()
    if not matches(wanted.driver_labels, labels):
        chosen = json.dumps(wanted.driver_labels)
        raise UserError(
            f"{key}.driver_labels",
            f"{in_words(wanted.driver_labels)}, and this program runs on a node with {in_words(_own(labels))}",
            f"submit it with ray job submit --entrypoint-label-selector '{chosen}', or pass {key}.driver_labels={{}}",
        )


def bundles(cpus: float, labels: Mapping[str, str]) -> list[Bundle]:
    """The resources for reading tasks, in bundles of one CPU, which may lie on different nodes that these labels select."""
    whole, rest = int(cpus), cpus - int(cpus)
    return [Bundle({"CPU": 1.0}, labels)] * whole + ([Bundle({"CPU": rest}, labels)] if rest >= 0.01 else [])


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
