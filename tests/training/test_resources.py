"""A run that does not fit is refused with the arithmetic, and every number in the remedy works."""

import re
import threading
from pathlib import Path

import pytest

from pipelines.program.display import Display
from pipelines.program.nodes import Bundle, Node
from pipelines.program.settings import load, parse_overrides
from tests.patience import PATIENCE, wait_until
from tests.refusals import refused
from training import placement
from training.config import ResourceSettings, TrainSettings
from training.placement import most_that_fit
from training.resources import Cluster, bundles, plan_resources, range_in_words

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("wanted", "uses_tasks", "cpus", "left"),
    [
        ({}, True, 2, 1),
        ({}, True, 16, 15),
        ({"num_workers": 2, "cpus_per_worker": 0.5}, True, 2, 1),
        ({"num_workers": 4, "data_cpus": 3}, True, 8, 4),
        ({"num_workers": 2}, False, 2, 0),
        ({"num_workers": 8, "autoscale": True, "data_cpus": 2}, True, 2, 2),
        # Of a range the least has to fit, and as many as there is room for leave the rest.
        ({"num_workers": [1, 8]}, True, 2, 1),
        ({"num_workers": [2, 3], "data_cpus": 4}, True, 16, 13),
        ({"num_workers": [1, 8], "cpus_per_worker": 1.5, "data_cpus": 2}, True, 6, 3),
        ({"num_workers": [4, 8], "autoscale": True, "data_cpus": 2}, True, 2, 2),
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
        ({"num_workers": [3, 8]}, True, 3, ["least 3 workers", "1 CPU", "+ 1", "= 4", "3"]),
    ],
)
def test_what_does_not_fit_is_refused_with_the_arithmetic_and_ways_out_that_work(
    wanted: dict, uses_tasks: bool, cpus: float, arithmetic: list[str]
) -> None:
    with refused("resources", *arithmetic) as caught:
        plan_resources(ResourceSettings(**wanted), uses_tasks, Cluster(cpus, 0))
    offered = parse_overrides(re.findall(r"resources\.(\w+=[\w.]+|\w+=\[.+?\])", caught.value.remedy))
    assert len(offered) >= 2 and offered["autoscale"] is True
    for key, value in offered.items():
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
    least = ResourceSettings(num_workers=[1, 4], use_gpu=True)
    assert plan_resources(least, True, Cluster(8, 2)) == 6, "two workers, for whom there are GPUs"
    with refused("resources", "least 1 workers", "1 GPU", "has 0", remedy="resources.use_gpu=false"):
        plan_resources(least, True, Cluster(8, 0))


def test_in_a_shared_cluster_a_run_reserves_what_it_requested() -> None:
    """It is the same at every start, so that a restart fits where the first start did, and jobs can share."""
    assert plan_resources(ResourceSettings(), True, Cluster(16, 0, shared=True)) == 1
    assert plan_resources(ResourceSettings(data_cpus=5, num_workers=2), True, Cluster(16, 0, shared=True)) == 5
    assert plan_resources(ResourceSettings(data_cpus=5, autoscale=True), True, Cluster(0, 0, shared=True)) == 5
    with refused("resources", "17", "16", remedy="resources.autoscale=true"):
        plan_resources(ResourceSettings(data_cpus=16), True, Cluster(16, 0, shared=True))


ONE = {"CPU": 1.0}
ON_A_GPU = {"CPU": 1.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("nodes", "worker", "beside", "most", "count"),
    [
        ([ONE] * 4, ONE, [ONE], 8, 3),
        ([ONE] * 4, ONE, [ONE], 2, 2),
        ([ONE] * 2, ONE, [ONE, ONE], 8, 0),
        ([], ONE, [], 8, 0),
        ([{"CPU": 16.0, "memory": 1e9}], ONE, [ONE] * 4, 8, 8),
        # A bundle needs a node of its size, however much is free in all.
        ([{"CPU": 1.5}] * 4, {"CPU": 2.0}, [], 8, 0),
        ([{"CPU": 0.5}, {"CPU": 1.5}, {"CPU": 0.9}], {"CPU": 0.5}, [ONE], 8, 3),
        ([{"CPU": 0.6}], {"CPU": 0.2}, [], 8, 3),  # 0.6 - 0.2 - 0.2 is 0.1999... to a computer
        ([{"CPU": 2.0}, {"CPU": 1.5}], {"CPU": 1.5}, [ONE, ONE], 8, 1),  # only if each is where it leaves room for the others
        # Those who read leave the GPU nodes' CPUs to the workers if they can, and take what is left there if they must.
        ([{"CPU": 2.0, "GPU": 2.0}, {"CPU": 4.0}], ON_A_GPU, [ONE] * 4, 8, 2),
        ([{"CPU": 2.0, "GPU": 2.0}, {"CPU": 3.0}], ON_A_GPU, [ONE] * 4, 8, 1),
        ([{"CPU": 8.0, "GPU": 2.0}], ON_A_GPU, [ONE] * 4, 8, 2),
        ([{"CPU": 8.0, "GPU": 0.0}], ON_A_GPU, [], 8, 0),
    ],
)
def test_how_many_workers_there_is_room_for(nodes: list, worker: dict, beside: list, most: int, count: int) -> None:
    before = [dict(node) for node in nodes]
    assert most_that_fit([*map(Node, nodes)], Bundle(worker), [*map(Bundle, beside)], most) == count
    assert nodes == before


GPU, BIG, SMALL = ({"role": role} for role in ("train", "data", "other"))


@pytest.mark.parametrize(
    ("worker", "beside", "count"),
    [
        ({}, {}, 5),
        ({"role": "train"}, {}, 2),
        ({"role": "train"}, {"role": "train"}, 1),
        ({"role": "!train"}, {"role": "train"}, 4),
        ({"role": "in(train, other)", "zone": "!a"}, {"role": "data"}, 1),
        ({"role": "train"}, {"role": "nowhere"}, 0),
    ],
)
def test_workers_and_tasks_have_room_on_nodes_with_their_labels_alone(worker: dict, beside: dict, count: int) -> None:
    nodes = [Node({"CPU": 2.0}, GPU | {"zone": "a"}), Node({"CPU": 3.0}, BIG), Node({"CPU": 1.0}, SMALL)]
    assert most_that_fit(nodes, Bundle(ONE, worker), [Bundle(ONE, beside)], 8) == count


def test_labels_that_no_node_has_are_refused_unless_the_cluster_grows() -> None:
    nodes = (Node({"CPU": 4.0}, GPU | {"ray.io/node-id": "1f"}), Node({"CPU": 4.0}, BIG))
    cluster = Cluster(8, 0, shared=True, nodes=nodes)
    wanted = {"num_workers": 2, "worker_labels": {"role": "trian"}, "data_labels": {"role": "dta"}}
    with refused(
        "resources.worker_labels", "{role: trian}", "{role: train}", "{role: data}", remedy="resources.autoscale"
    ) as caught:
        plan_resources(ResourceSettings(**wanted), True, cluster)
    assert "1f" not in str(caught.value)
    wanted["worker_labels"] = GPU
    with refused("resources.data_labels", "{role: dta}"):
        plan_resources(ResourceSettings(**wanted), True, cluster)
    assert plan_resources(ResourceSettings(**wanted), False, cluster) == 0, "it reads nothing"
    assert plan_resources(ResourceSettings(**wanted | {"data_labels": BIG}), True, cluster) == 1
    with refused("resources", "5 x {CPU: 1} on nodes with {role: train}: 4 free of 4", remedy="resources.num_workers"):
        plan_resources(ResourceSettings(num_workers=5, worker_labels=GPU), True, cluster)
    for waits in ({"autoscale": True}, {}):
        growing = Cluster(8, 0, shared=True, grows=not waits, nodes=nodes)
        assert plan_resources(ResourceSettings(**wanted | {"num_workers": 9} | waits), True, growing) == 1
    with refused("resources", "10 CPUs"):
        plan_resources(ResourceSettings(num_workers=9, autoscale=False), True, Cluster(8, 0, grows=True))


@pytest.mark.parametrize(
    ("labels", "named"),
    [({"a b": "x"}, "a b"), ({"role": "a b"}, "a b"), ({"role": True}, "role"), ({"role": "in()"}, "in()"), ("train", "train")],
)
def test_what_is_no_selector_is_refused(labels: object, named: str) -> None:
    with refused("resources.worker_labels", named):
        load(TrainSettings, ROOT / "training/configs/openmoji.yaml", {"resources.worker_labels": labels})


def test_what_a_range_means_is_said_in_numbers() -> None:
    assert range_in_words(ResourceSettings(num_workers=3), 7) == ""
    words = range_in_words(ResourceSettings(num_workers=[1, 3]), 7)
    assert all(part in words for part in ("1 to 3", "batches of 7", "7 pairs on 1", "2 or 3 pairs each on 3"))


@pytest.mark.parametrize("wanted", [{"num_workers": 3, "cpus_per_worker": 1 / 3}, {"num_workers": 2, "cpus_per_worker": 0.66666}])
def test_reservations_fit_as_ray_counts(wanted: dict) -> None:
    """Ray rounds to four digits; a group of bundles one ten-thousandth too large is never placed."""
    settings = ResourceSettings(**wanted)
    data = plan_resources(settings, True, Cluster(16, 0))
    booked = [settings.worker.resources["CPU"]] * settings.most_workers
    booked += [bundle.resources["CPU"] for bundle in bundles(data, {})]
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
