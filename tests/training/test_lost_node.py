"""A cluster of several nodes on this machine that loses nodes under a run: the run says what it waits for, and resumes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from program import Program
from ray._raylet import PlacementGroupID
from ray.cluster_utils import Cluster
from ray.util.placement_group import PlacementGroup

from pipelines.dataset.prepared import Prepared
from pipelines.program.ray_internals import LOCAL_VARIABLES
from tests.patience import wait_until
from tests.training.squares import prepared_by_hand
from training.placement import HELD

pytestmark = pytest.mark.e2e

CONFIG: dict[str, Any] = {
    "name": "run",
    "image_tower": {"name": "conv", "image_size": 16, "channels": [8, 16]},
    "text_tower": {"name": "bag", "width": 16, "max_tokens": 8},
    "embed_dim": 16,
    "epochs": 100_000,
    "global_batch_size": 8,
    "log_every": 1,
    "evaluation": {"every_epochs": 100_000},
    "checkpoint": {"every_steps": 5},
    "resources": {"num_workers": 2, "max_failures": 1},
    "tensorboard": False,
}


@pytest.fixture
def squares(tmp_path: Path) -> Prepared:
    return prepared_by_hand(tmp_path / "squares", "squares")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without CPUs, and three nodes of one CPU each: for two workers, and the tasks that read for them."""
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0}, connect=True)
    for _ in range(3):
        cluster.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    for name in LOCAL_VARIABLES:  # which a local Ray of this process has set
        monkeypatch.delenv(name, raising=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_run_says_that_it_waits_for_a_lost_node(cluster: Cluster, squares: Prepared, tmp_path: Path) -> None:
    """First the node of the reading tasks, which the workers survive, then a worker's. Each time another node joins."""
    config, run = tmp_path / "run.yaml", tmp_path / "runs" / "run"
    config.write_text(yaml.safe_dump(CONFIG | {"storage": str(run.parent), "data": {"path": str(squares.path)}}))
    program = Program(config)
    try:

        def steps() -> int:
            assert program.process.poll() is None, program.text()
            file = run / "metrics.jsonl"
            lines = file.read_text().split("\n")[:-1] if file.exists() else []
            return json.loads(lines[-1])["step"] if lines else 0

        def lose(bundle: int) -> None:
            """Remove the node with this one of the run's bundles."""
            group = PlacementGroup(PlacementGroupID.from_hex((run / HELD).read_text()))
            nodes = ray.util.placement_group_table(group)["bundles_to_node_id"]
            assert len(set(nodes.values())) == 3, "of one CPU each"
            (node,) = (node for node in cluster.worker_nodes if node.node_id == nodes[bundle])
            cluster.remove_node(node, allow_graceful=False)

        wait_until(lambda: steps() > 0, program.text)
        for losses, bundle in enumerate((2, 0), 1):
            lose(bundle)
            # The number that the cluster has is not asserted: its head may notice the loss later.
            wait_until(lambda losses=losses: program.text().count("waiting for 3 CPUs ") == losses, program.text)
            before = steps()
            cluster.add_node(num_cpus=1)
            wait_until(lambda before=before: steps() > before + 10, program.text)
    finally:
        program.kill()
