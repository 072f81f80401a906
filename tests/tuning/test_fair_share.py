"""When a sweep gives a place to another job, and two sweeps that both want the whole cluster. Numbers worked out by hand."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml

from pipelines.program.nodes import Bundle, Node
from pipelines.program.ray_elastic import Group
from tests.patience import PATIENCE, wait_until
from tests.training.squares import tree_of, write_root
from tuning.fair_share import owes

ROOT = Path(__file__).parents[2]
CPU = Bundle({"CPU": 1.0})


def job(name: str, held: int = 0, waits: int = 0, bundle: Bundle = CPU, node: str = "a") -> list[Group]:
    """Groups of one bundle each."""
    return [Group(name, [(bundle, node)])] * held + [Group(name, [(bundle, None)])] * waits


def nodes(**cpus: float) -> dict[str, Node]:
    """Free CPUs by node."""
    return {name: Node({"CPU": count}) for name, count in cpus.items()}


@pytest.mark.parametrize(
    ("found", "free", "owed"),
    [
        (job("own", 2), nodes(a=0), False),  # nobody else is there
        (job("own", 2) + job("other", 2), nodes(a=0), False),  # nobody waits
        (job("own", 2) + job("other", 0, 1), nodes(a=0), True),
        (job("own", 1) + job("other", 0, 1), nodes(a=0), True),  # by turns on a single CPU
        (job("own", 1, 1) + job("other", 1, 1), nodes(a=0), False),
        (job("own", 2) + job("other", 1, 1), nodes(a=0), False),  # else they would exchange the third for ever
        (job("own", 7, 1) + job("other", 1, 1), nodes(a=0), True),
        (job("own", 5) + job("other", 3, 1), nodes(a=0), True),
        (job("own", 4) + job("other", 4, 1), nodes(a=0), False),
        (job("own", 1) + job("other", 1, 1) + job("third", 0, 1), nodes(a=0), True),
        (job("own", 2) + job("other", 0, 1), nodes(a=1), False),  # it is about to get what is free
        (job("own", 1, node="b") + job("other", 0, 1), nodes(a=1, b=0), False),
        (job("own", 4) + job("other", 0, 1, Bundle({"CPU": 3.0})), nodes(a=0), True),
        (job("own", 2) + job("other", 0, 1, Bundle({"CPU": 3.0})), nodes(a=0), False),  # all of ours would not do
        (job("own", 2) + job("other", 0, 1, Bundle({"CPU": 1.0, "GPU": 1.0})), nodes(a=0), False),
        (job("own", 2) + job("other", 0, 1, Bundle({"CPU": 1.0}, {"role": "train"})), nodes(a=0), False),
    ],
)
def test_whom_a_sweep_owes_a_place(found: list[Group], free: dict[str, Node], owed: bool) -> None:
    assert owes("own", CPU, found, free) is owed


def test_a_gpu_counts_where_trials_take_one() -> None:
    place = Bundle({"CPU": 1.0, "GPU": 1.0})
    free = {"a": Node({"CPU": 60.0, "GPU": 0.0})}
    assert owes("own", place, job("own", 4, bundle=place) + job("other", 1, 1, place), free)
    assert not owes("own", place, job("own", 4, bundle=place) + job("other", 4, 1, place), free)


@pytest.mark.e2e
def test_a_sweep_that_holds_the_whole_cluster_lets_another_one_run(ray_session: None, tmp_path: Path) -> None:
    """Each wants both CPUs, for more trials than end in the time of this test. Both go on while the other one does."""
    write_root(tmp_path)
    space = {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    sweep = {"sampler": {"name": "random"}, "trials": 3000, "space": space, "base": str(tmp_path / "base.yaml")}
    tree = tree_of(tmp_path) | {"data": {"path": str(tmp_path / "squares"), "validation": 0.3}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(tree))
    processes: dict[str, subprocess.Popen[bytes]] = {}
    address = ray.get_runtime_context().gcs_address

    def start(name: str) -> None:
        own = {"name": name, "storage": str(tmp_path / "runs")}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(sweep | own))
        output = (tmp_path / f"{name}.txt").open("wb")
        command = [sys.executable, "-m", "tuning", str(tmp_path / f"{name}.yaml")]
        environment = os.environ | {"RAY_ADDRESS": address}
        processes[name] = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )

    def ended(name: str) -> int:
        assert processes[name].poll() is None, (tmp_path / f"{name}.txt").read_text()
        return len(list((tmp_path / "runs" / name / "trials").glob("*/outcome.json")))

    try:
        start("first")
        wait_until(lambda: ended("first") >= 2)
        start("second")
        wait_until(lambda: ended("second") >= 2)
        before = ended("first")
        wait_until(lambda: ended("first") >= before + 2 and ended("second") >= 4)
    finally:
        for process in processes.values():
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE)
