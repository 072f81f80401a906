"""A run whose number of workers changes is the run of one worker, at a batch that no number but one divides: 1, 3, 2, 1 workers.

The real loop on real batches, by checkpoints in processes of their own without Ray; then once on a cluster to which nodes are
added and from which nodes are lost.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml
from program import Program
from ray.cluster_utils import Cluster
from recording_run import consumed_in

from pipelines.dataset.prepared import Prepared
from tests.patience import wait_until
from tests.training.gloo import Gloo
from tests.training.nodes import node_with
from tests.training.squares import TRAIN
from tests.training.undisturbed import BATCH, BROKEN, EPOCHS, OBJECTIVES, broken_squares, leg, planned, tree_of
from training.checkpoint_registry import newest_step
from training.resources import range_in_words
from training.tensor_tree import load_tree

LEGS = ((1, 3), (3, 5), (2, 9), (1, TRAIN // BATCH * EPOCHS))  # workers, and the step at which they stop


@pytest.fixture(scope="module")
def gloo() -> Iterator[Gloo]:
    with Gloo(3) as workers:
        yield workers


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return broken_squares(tmp_path_factory.mktemp("elastic") / "squares")


def assert_same_course(lines: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Each step once, with the fixed run's loss and learning rate."""
    assert [line["step"] for line in lines] == list(range(1, len(expected) + 1))
    for found, fixed in zip(lines, expected, strict=True):
        assert found["loss"] == pytest.approx(fixed["loss"], abs=1e-4), found["step"]
        assert (found["lr"], found["epoch"], found["samples"]) == (fixed["lr"], fixed["epoch"], fixed["samples"])


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_run_at_one_three_two_and_one_workers(gloo: Gloo, squares: Prepared, tmp_path: Path, objective: str) -> None:
    """Each step consumes the same samples, and the losses, the weights and the objective's state are the fixed run's."""
    plan = planned(tree_of(squares, objective))
    assert all(BATCH % workers for workers, _ in LEGS if workers > 1)
    expected, consumed = leg(plan, None, plan.total_steps, tmp_path / f"{plan.total_steps}-fixed")

    start: Any = None
    lines, samples = list[dict[str, Any]](), dict[int, list[int]]()
    for workers, end in LEGS:
        place = tmp_path / str(end)
        parts = [leg(plan, start, end, place)] if workers == 1 else gloo(workers, leg, plan, start, end, place)
        lines += parts[0][0]
        for step, _, ids in sorted(entry for _, entries in parts for entry in entries):
            samples.setdefault(step, []).extend(ids)
        start = place
    assert samples == {step: ids for step, _, ids in consumed}, "in the same order, too"
    assert not {sample for ids in samples.values() for sample in ids} & {*BROKEN} and len(samples) == plan.total_steps
    assert [line["workers"] for line in lines] == [1] * 3 + [3] * 2 + [2] * 4 + [1] * 3
    assert_same_course(lines, expected)
    assert lines[0]["loss"] != pytest.approx(lines[-1]["loss"], abs=1e-2), "training moves"
    folders = start, tmp_path / f"{plan.total_steps}-fixed"
    ends = [load_tree(folder, "state") for folder in folders]
    for part in ("encoder", "objective", "teacher"):
        torch.testing.assert_close(ends[0][part], ends[1][part], rtol=1e-3, atol=1e-4)


WAIT = 4  # steps that an attempt does before it waits; every third has a checkpoint
STARTS = ((0, 1), (6, 3), (9, 2), (12, 1))  # first step and number of workers of each attempt


@pytest.mark.e2e
def test_a_run_grows_and_shrinks_with_its_cluster(cluster: Cluster, squares: Prepared, tmp_path: Path) -> None:
    """One worker, until two nodes are added and the next checkpoint is saved; then each of the two is lost."""
    tree = tree_of(squares, "siglip") | {"storage": str(tmp_path), "global_batch_size": 7}
    plan = planned(tree)
    expected, reference = leg(plan, None, plan.total_steps, tmp_path / "fixed")
    config, run, records = tmp_path / "run.yaml", tmp_path / "run", consumed_in(tmp_path, "run")
    config.write_text(yaml.safe_dump(tree | {"checkpoint": {"every_steps": 3}}))
    for _ in range(2):
        cluster.add_node(num_cpus=1)  # for a worker, and the tasks that read for it
    program = Program(config, str(WAIT), run=(str(Path(__file__).parent / "recording_run.py"),))

    def attempt(number: int, steps: int) -> None:
        """Wait until all workers of this attempt have consumed so many steps."""
        first, workers = STARTS[number]

        def reached() -> bool:
            assert program.process.poll() is None, program.text()
            files = list(records.glob(f"*-{first:06d}-?-of-{workers}.jsonl"))
            return len(files) == workers and all(file.read_text().count("\n") >= steps for file in files)

        wait_until(reached, program.text)

    def lose(bundle: int, saved: int) -> None:
        """Once the checkpoint of step `saved` is registered, which is later than its report."""
        wait_until(lambda: newest_step(run) == saved, program.text)
        cluster.remove_node(node_with(cluster, run, bundle), allow_graceful=False)

    try:
        attempt(0, WAIT)
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        wait_until(lambda: ray.available_resources().get("CPU", 0) == 2)
        (records / "go").touch()
        attempt(1, 0)
        (records / "go").unlink()
        attempt(1, WAIT)
        lose(2, STARTS[2][0])
        attempt(2, WAIT)
        lose(1, STARTS[3][0])
        attempt(3, WAIT)
        (records / "go").touch()
        assert program.wait() == 0, program.text()
    finally:
        program.kill()

    samples: dict[int, list[int]] = {}
    for first, workers in STARTS:
        parts = [
            [json.loads(line) for line in file.read_text().splitlines()]
            for file in sorted(records.glob(f"*-{first:06d}-?-of-{workers}.jsonl"))
        ]
        samples = {step: ids for step, ids in samples.items() if step < first}
        samples |= {of[0]["step"]: [i for line in of for i in line["ids"]] for of in zip(*parts, strict=False)}
    assert samples == {step: ids for step, _, ids in reference}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert_same_course(lines, expected)
    assert [line["workers"] for line in lines] == [1] * 6 + [3] * 3 + [2] * 3 + [1] * 6
    result = json.loads((run / "result.json").read_text())
    assert result["machine"]["worker_history"] == [1, 3, 2, 1]
    assert [(start["step"], start["workers"]) for start in result["history"]["workers"]] == [*STARTS]
    restarts = [json.loads(line) for line in (run / "restarts.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in restarts] == ["lost node"] * 2, "growing is no failure"
    assert range_in_words(plan.settings.resources, 7) in program.text().replace("\n", " ")
