"""A cluster of several nodes on this machine that loses nodes under a run: the run says what it waits for, and resumes."""

import json
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from program import Program
from ray.cluster_utils import Cluster

from pipelines.dataset.prepared import Prepared
from pipelines.program.nodes import Bundle
from pipelines.program.ray_internals import HEAD_NODE
from tests.patience import wait_until
from tests.training.nodes import node_with
from tests.training.squares import prepared_by_hand
from training.metrics_file import read_metrics
from training.status import status_of

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
    "resources": {
        "num_workers": 2,
        "max_failures": 0,
        "worker_labels": {"role": "train", "market": "!spot"},
        "data_labels": {"role": "in(data, other)"},
    },
    "tensorboard": False,
}


@pytest.fixture
def squares(tmp_path: Path) -> Prepared:
    return prepared_by_hand(tmp_path / "squares", "squares")


def test_a_run_says_that_it_waits_for_a_lost_node(cluster: Cluster, squares: Prepared, tmp_path: Path) -> None:
    """First the node of the reading tasks, which the workers survive, then a worker's. Each time other nodes join.

    Each runs on nodes with its labels alone, and only such a node ends the wait.
    """
    train, data, spot = ({"role": "train"}, {"role": "data"}, {"role": "train", "market": "spot"})
    for labels in (train, data, train, spot):  # for two workers, the tasks that read for them, and nobody
        cluster.add_node(num_cpus=1, labels=labels)
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
            cluster.remove_node(node_with(cluster, run, bundle), allow_graceful=False)

        wait_until(lambda: steps() > 0, program.text)
        for bundle, labels, others in ((2, data, ()), (0, train, (data,))):
            assert [node_with(cluster, run, place)._ray_params.labels for place in range(3)] == [train, train, data]
            lose(bundle)
            selector = CONFIG["resources"]["data_labels" if labels == data else "worker_labels"]
            # How many are free is not asserted: the head may notice the loss later.
            missing = f"x {Bundle({'CPU': 1}, selector)}: "
            wait_until(lambda missing=missing: missing in " ".join(program.text().split()), program.text)
            wait_until(lambda: status_of(run).state == "waiting", program.text)
            before = steps()
            for added in (*others, labels):
                cluster.add_node(num_cpus=1, labels=added)
            wait_until(lambda before=before: steps() > before + 10, program.text)
            wait_until(lambda: status_of(run).state == "running", program.text)
        assert [line["kind"] for line in read_metrics(run / "restarts.jsonl")] == ["lost node"], "which costs no max_failures"
        # What Ray Data keeps for the whole cluster would hold a worker's node for ever.
        (head,) = (node["NodeID"] for node in ray.nodes() if node["Alive"] and HEAD_NODE in node["Resources"])
        kept = [actor for actor in ray._private.state.actors().values() if actor["IsDetached"] and actor["State"] == "ALIVE"]
        assert {actor["Address"]["NodeID"] for actor in kept} == {head}
    finally:
        program.kill()
