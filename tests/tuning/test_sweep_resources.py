"""How many trials at a time: bookings and divisions worked by hand, and refusals whose ways out work."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.program.errors import UserError
from pipelines.program.settings import load
from training.config import TrainSettings
from training.resources import Cluster
from tuning.config import SweepSettings
from tuning.resources import WAITING, Booking, booking_of, trials_at_a_time
from tuning.trials import cells_of

ROOT = Path(__file__).parents[2]
BASE = ROOT / "training" / "configs" / "openmoji.yaml"
LOCKED: dict[str, Any] = {}
STREAMED = {"image_tower.mode": "frozen"}
TEXT_TRAINS = {"text_tower.mode": "trainable"}


def built(trials: list[dict]) -> list[TrainSettings]:
    """Of the demo's config, whose towers are locked; keys without a dot are of its resources."""
    wanted = [{key if "." in key else f"resources.{key}": value for key, value in one.items()} for one in trials]
    return [load(TrainSettings, BASE, one | {"global_batch_size": 120}) for one in wanted]


@pytest.mark.parametrize(
    ("settings", "booking", "bundle", "words"),
    [
        (LOCKED, Booking(True, 1, 1, 0, 0), {"CPU": 1}, "1 worker x 1 CPU"),
        (
            {"cpus_per_worker": 0.5, "data_cpus": 3},
            Booking(True, 1, 0.5, 0, 0),
            {"CPU": 0.5},
            "1 worker x 0.5 CPU",
        ),
        ({"use_gpu": True}, Booking(True, 1, 1, 0, 1), {"CPU": 1, "GPU": 1}, "1 worker x 1 CPU + 1 GPU"),
        # Two workers need processes of their own, but still read nothing.
        ({"num_workers": 2}, Booking(False, 2, 2, 0, 0), WAITING, "2 workers x 1 CPU"),
        (STREAMED, Booking(False, 1, 1, 1, 0), WAITING, "1 worker x 1 CPU + 1 CPU for reading and decoding"),
        (
            STREAMED | {"num_workers": 4, "cpus_per_worker": 1.5, "data_cpus": 6, "use_gpu": True},
            Booking(False, 4, 6, 6, 4),
            WAITING,
            "4 workers x 1.5 CPU + 6 CPU for reading and decoding + 4 GPU",
        ),
        # One locked tower is not enough.
        (
            TEXT_TRAINS,
            Booking(False, 1, 1, 1, 0),
            WAITING,
            "1 worker x 1 CPU + 1 CPU for reading and decoding",
        ),
    ],
    ids=["locked", "half-a-cpu", "gpu", "two-workers", "streamed", "large", "text-trains"],
)
def test_what_a_trial_books(settings: dict, booking: Booking, bundle: dict[str, float], words: str) -> None:
    (found,) = map(booking_of, built([settings]))
    assert found == booking and found.bundle() == bundle and found.words() == words


def test_a_waiting_actor_books_next_to_nothing() -> None:
    """Tens of thousands of CPU-less trials never wait for this; what it names exists on head nodes only."""
    assert sum(WAITING.values()) <= 0.001 and "CPU" not in WAITING


@pytest.mark.parametrize(
    ("trials", "cluster", "wanted", "fits"),
    [
        ([LOCKED], Cluster(2, 0), None, 2),
        ([LOCKED], Cluster(2.9, 0), None, 2),
        ([{"cpus_per_worker": 0.2}], Cluster(0.6, 0), None, 3),  # 0.6 / 0.2 is 2.9999... to a computer
        ([{"cpus_per_worker": 0.1}], Cluster(1, 0), None, 10),
        ([LOCKED], Cluster(16, 0), 3, 3),
        ([LOCKED], Cluster(3, 0), 3, 3),
        # Workers, and what reads for them: 2 + 1 of 8, 4 + 3 of 16.
        ([STREAMED | {"num_workers": 2}], Cluster(8, 0), None, 2),
        ([STREAMED | {"num_workers": 4, "data_cpus": 3}], Cluster(16, 0), None, 2),
        # GPUs or CPUs, whichever run out first.
        ([{"use_gpu": True}], Cluster(64, 4), None, 4),
        ([{"use_gpu": True}], Cluster(3, 4), None, 3),
        ([STREAMED | {"num_workers": 2, "use_gpu": True}], Cluster(64, 5), None, 2),
        # The largest of them decides.
        ([LOCKED, {"cpus_per_worker": 3}, {"cpus_per_worker": 2}], Cluster(10, 0), None, 3),
        ([LOCKED, STREAMED | {"num_workers": 3}], Cluster(8, 0), 2, 2),
        # A cluster that grows is not counted: as many as asked for, or as many as there is room for now, but one.
        ([STREAMED | {"autoscale": True, "num_workers": 8}], Cluster(2, 0), 40, 40),
        ([STREAMED | {"autoscale": True, "num_workers": 8}], Cluster(2, 0), None, 1),
        ([STREAMED | {"autoscale": True}], Cluster(8, 0), None, 4),
        ([{"autoscale": True, "use_gpu": True}], Cluster(8, 0), None, 1),
    ],
)
def test_how_many_trials_run_at_a_time(trials: list[dict], cluster: Cluster, wanted: int | None, fits: int) -> None:
    assert trials_at_a_time(built(trials), cluster, wanted) == fits


@pytest.mark.parametrize(
    ("trials", "cluster", "wanted", "fits", "text"),
    [
        ([LOCKED], Cluster(2, 0), 3, 2, "3 trials x (1 worker x 1 CPU) is more than the cluster's 2 CPUs and 0 GPUs; 2 fit"),
        (
            [STREAMED | {"num_workers": 2}],
            Cluster(8, 0),
            4,
            2,
            "4 trials x (2 workers x 1 CPU + 1 CPU for reading and decoding) is more than the cluster's 8 CPUs and 0 GPUs; 2 fit",
        ),
        (
            [{"use_gpu": True}],
            Cluster(64, 4),
            5,
            4,
            "5 trials x (1 worker x 1 CPU + 1 GPU) is more than the cluster's 64 CPUs and 4 GPUs; 4 fit",
        ),
        (
            [LOCKED, {"cpus_per_worker": 1.5}],
            Cluster(4, 0),
            3,
            2,
            "3 trials x (1 worker x 1.5 CPU) is more than the cluster's 4 CPUs and 0 GPUs; 2 fit",
        ),
    ],
)
def test_more_than_fit_are_refused_with_the_arithmetic(
    trials: list[dict], cluster: Cluster, wanted: int, fits: int, text: str
) -> None:
    with pytest.raises(UserError) as caught:
        trials_at_a_time(built(trials), cluster, wanted)
    assert str(caught.value) == (
        f"concurrency: {text}: pass concurrency={fits}, or null, or on a cluster that grows overrides.resources.autoscale=true"
    )
    # And each of the ways out is one.
    assert trials_at_a_time(built(trials), cluster, fits) == trials_at_a_time(built(trials), cluster, None) == fits
    assert trials_at_a_time(built([one | {"autoscale": True} for one in trials]), cluster, wanted) == wanted


@pytest.mark.parametrize(
    ("settings", "cluster", "text"),
    [
        (STREAMED, Cluster(1, 0), "1 workers x 1 CPU + 1 for reading and decoding = 2 CPUs, and the cluster has 1"),
        ({"num_workers": 3}, Cluster(2, 0), "3 workers x 1 CPU = 3 CPUs, and the cluster has 2"),
        ({"use_gpu": True}, Cluster(8, 0), "1 workers x 1 GPU = 1 GPUs, and the cluster has 0"),
    ],
)
@pytest.mark.parametrize("wanted", [None, 1])
def test_a_trial_that_never_fits_is_refused_before_it_waits(
    settings: dict, cluster: Cluster, text: str, wanted: int | None
) -> None:
    with pytest.raises(UserError, match=f"^resources: {re.escape(text)}"):
        trials_at_a_time(built([LOCKED, settings]), cluster, wanted)


# The course's sweep


@pytest.fixture(scope="module")
def course() -> list[TrainSettings]:
    """A trial of each of its 15 cells."""
    sweep = load(SweepSettings, ROOT / "tuning" / "sweeps" / "course.yaml")
    cells = cells_of(sweep)
    assert len(cells) == 15
    return [load(TrainSettings, ROOT / sweep.base, sweep.overrides | cell.overrides) for cell in cells]


def test_the_courses_sweep_keeps_eight_gpus_busy(course: list[TrainSettings]) -> None:
    """2 CPUs for the worker and 5 to read: 64 / 7 is 9, and there are 8 GPUs."""
    assert {booking_of(settings) for settings in course} == {Booking(False, 1, 2, 5, 1)}
    assert trials_at_a_time(course, Cluster(64, 8), None) == 8
    assert trials_at_a_time(course, Cluster(64, 16), None) == 9
    assert trials_at_a_time(course, Cluster(55, 8), None) == 7


def test_four_cpus_are_too_few_for_the_courses_sweep(course: list[TrainSettings]) -> None:
    with pytest.raises(UserError) as caught:
        trials_at_a_time(course, Cluster(4, 8), None)
    assert str(caught.value).startswith(
        "resources: 1 workers x 2 CPU + 5 for reading and decoding = 7 CPUs, and the cluster has 4; pass "
    )
