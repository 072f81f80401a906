"""A run that does not fit is refused with the arithmetic, and every number in the remedy works."""

import re
import threading
from pathlib import Path

import pytest

from pipelines.program.display import Display
from tests.patience import PATIENCE, wait_until
from tests.refusals import refused
from training import placement
from training.config import ResourceSettings
from training.placement import bundles
from training.resources import Cluster, plan_resources


@pytest.mark.parametrize(
    ("wanted", "uses_tasks", "cpus", "left"),
    [
        ({}, True, 2, 1),
        ({}, True, 16, 15),
        ({"num_workers": 2, "cpus_per_worker": 0.5}, True, 2, 1),
        ({"num_workers": 4, "data_cpus": 3}, True, 8, 4),
        ({"num_workers": 2}, False, 2, 0),
        ({"num_workers": 8, "autoscale": True, "data_cpus": 2}, True, 2, 2),
    ],
)
def test_what_fits_is_told_how_much_is_left_for_data(wanted: dict, uses_tasks: bool, cpus: float, left: float) -> None:
    assert plan_resources(ResourceSettings(**wanted), uses_tasks, Cluster(cpus, 0)) == left


@pytest.mark.parametrize(
    ("wanted", "uses_tasks", "cpus", "arithmetic"),
    [
        ({"num_workers": 2}, True, 2, ["2 workers", "1 CPU", "+ 1", "= 3", "2"]),
        ({"num_workers": 3}, False, 2, ["3 workers", "1 CPU", "= 3", "2"]),
        ({"num_workers": 3, "cpus_per_worker": 1.5, "data_cpus": 2}, True, 6, ["3 workers", "1.5 CPU", "+ 2", "= 6.5", "6"]),
        ({"num_workers": 7, "cpus_per_worker": 2}, True, 4, ["7 workers", "2 CPU", "+ 1", "= 15", "4"]),
        ({"num_workers": 30}, True, 3, ["30 workers", "1 CPU", "+ 1", "= 31", "3"]),
    ],
)
def test_what_does_not_fit_is_refused_with_the_arithmetic_and_ways_out_that_work(
    wanted: dict, uses_tasks: bool, cpus: float, arithmetic: list[str]
) -> None:
    with refused("resources", *arithmetic) as caught:
        plan_resources(ResourceSettings(**wanted), uses_tasks, Cluster(cpus, 0))
    offered = re.findall(r"resources\.(\w+)=([\w.]+)", caught.value.remedy)
    assert len(offered) >= 2 and ("autoscale", "true") in offered
    for key, value in offered:
        plan_resources(ResourceSettings(**wanted | {key: value}), uses_tasks, Cluster(cpus, 0))


def test_one_cpu_is_too_few_for_a_stream() -> None:
    """No number of workers fits, so none is suggested."""
    with refused("resources", "= 2", "1", remedy="resources.autoscale=true") as caught:
        plan_resources(ResourceSettings(), True, Cluster(1, 0))
    assert "resources.num_workers" not in caught.value.remedy
    assert plan_resources(ResourceSettings(), False, Cluster(1, 0)) == 0


def test_gpus_are_counted_too() -> None:
    wanted = ResourceSettings(num_workers=2, use_gpu=True)
    assert plan_resources(wanted, True, Cluster(8, 2)) == 6
    with refused("resources", "2 workers", "2 GPUs", remedy="resources.use_gpu=false"):
        plan_resources(wanted, True, Cluster(8, 1))
    assert plan_resources(wanted.model_copy(update={"autoscale": True}), True, Cluster(8, 0)) == 6


def test_in_a_shared_cluster_a_run_reserves_what_it_requested() -> None:
    """It is the same at every start, so that a restart fits where the first start did, and jobs can share."""
    assert plan_resources(ResourceSettings(), True, Cluster(16, 0, shared=True)) == 1
    assert plan_resources(ResourceSettings(data_cpus=5, num_workers=2), True, Cluster(16, 0, shared=True)) == 5
    assert plan_resources(ResourceSettings(data_cpus=5, autoscale=True), True, Cluster(0, 0, shared=True)) == 5
    with refused("resources", "17", "16", remedy="resources.autoscale=true"):
        plan_resources(ResourceSettings(data_cpus=16), True, Cluster(16, 0, shared=True))


@pytest.mark.parametrize("wanted", [{"num_workers": 3, "cpus_per_worker": 1 / 3}, {"num_workers": 2, "cpus_per_worker": 0.66666}])
def test_reservations_fit_as_ray_counts(wanted: dict) -> None:
    """Ray rounds to four digits; a group of bundles one ten-thousandth too large is never placed."""
    settings = ResourceSettings(**wanted)
    data = plan_resources(settings, True, Cluster(16, 0))
    booked = [round(settings.cpus_per_worker, 4)] * settings.num_workers + [b["CPU"] for b in bundles(data)]
    assert 15.98 < sum(booked) <= 16


def test_a_start_waits_for_the_controller_of_one_whose_driver_was_killed(tmp_path: Path) -> None:
    """Else it deletes checkpoints that the other registers a moment later, and Ray Train refuses the list of them."""
    shown = Shown()
    placement.wait_for_earlier(tmp_path, shown)
    for group in ("ab" * 18, "cd" * 18):  # its workers have started twice
        placement._book(tmp_path, group)
    assert (tmp_path / placement.HELD).read_text() == "cd" * 18
    thread = threading.Thread(target=placement.wait_for_earlier, args=(tmp_path, shown))
    thread.start()
    wait_until(lambda: bool(shown.lines))
    assert thread.is_alive() and str(tmp_path) in shown.lines[0]
    while placement._BOOKED:  # its process ends
        placement._BOOKED.pop().close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    placement.wait_for_earlier(tmp_path, shown)
    assert len(shown.lines) == 1


class Shown(Display):
    """Keeps its lines."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def test_what_a_run_holds_without_its_controller_is_freed_by_the_next_start_and_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cluster that lives on: else the same command would wait for its own CPUs for ever."""
    group, freed = "ab" * 18, []
    held = tmp_path / placement.HELD
    held.write_text(group)
    monkeypatch.setattr(placement, "_table", lambda _: {"state": "CREATED"})
    monkeypatch.setattr(placement.ray.util, "remove_placement_group", freed.append)
    with placement.Watch(tmp_path, Display(quiet=True)):
        assert [one.id.hex() for one in freed] == [group] and not held.exists()
        held.write_text(group)  # by the controller of this start
    assert len(freed) == 1 and held.exists(), "Ray Train frees what a run has that ends well"
    with pytest.raises(RuntimeError), placement.Watch(tmp_path, Display(quiet=True)):
        held.write_text(group)
        raise RuntimeError
    assert len(freed) == 3 and not held.exists()
