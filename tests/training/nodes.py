"""Nodes of a cluster on this machine, for tests that take them away from a run."""

from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import PlacementGroup

from pipelines.program.ray_internals import placement_group_of
from training.placement import HELD


def node_with(cluster: Cluster, run: Path, bundle: int) -> Any:
    """The node with this one of a run's bundles, its workers' first; each is on a node of its own."""
    group: PlacementGroup = placement_group_of((run / HELD).read_text())
    nodes = ray.util.placement_group_table(group)["bundles_to_node_id"]
    assert len(set(nodes.values())) == len(nodes)
    (node,) = (node for node in cluster.worker_nodes if node.node_id == nodes[bundle])
    return node
