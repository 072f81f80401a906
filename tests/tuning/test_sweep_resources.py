"""Trials at a time: bookings and divisions worked out by hand, and errors whose remedies work."""

from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial

from pipelines.program.nodes import Bundle
from pipelines.program.settings import load, parse_overrides
from tests.refusals import refused
from training.config import TrainSettings
from training.resources import Cluster
from tuning.config import SweepSettings
from tuning.resources import WAITING, Booking, booking_of, trials_at_a_time
from tuning.searcher import Follow
from tuning.trials import cells_of

ROOT = Path(__file__).parents[2]
BASE = ROOT / "training" / "configs" / "openmoji.yaml"
LOCKED: dict[str, Any] = {}
STREAMED = {"image_tower.mode": "frozen"}
TEXT_TRAINS = {"text_tower.mode": "trainable"}


def built(trials: list[dict]) -> list[TrainSettings]:
    """Of the demo's config, whose towers are locked; keys without a dot are of its resources."""
    overrides = [{key if "." in key else f"resources.{key}": value for key, value in trial.items()} for trial in trials]
    return [load(TrainSettings, BASE, trial | {"global_batch_size": 120}) for trial in overrides]


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
        (
            {"use_gpu": True, "worker_labels": {"role": "train"}},
            Booking(True, 1, 1, 0, 1, {"role": "train"}),
            {"CPU": 1, "GPU": 1},
            "1 worker x 1 CPU + 1 GPU",
        ),
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
    (actual,) = map(booking_of, built([settings]))
    assert (
        actual == booking and actual.actor() == Bundle(bundle, actual.labels if actual.inline else {}) and actual.words() == words
    )


def test_a_trial_books_a_number_of_workers_and_no_range() -> None:
    key = "overrides.resources.num_workers"
    with refused(key, "[1, 3]", remedy=f"{key}=1"):
        trials_at_a_time(built([STREAMED | {"num_workers": [1, 3]}]), Cluster(8, 0), None)


def test_a_waiting_actor_reserves_next_to_nothing() -> None:
    """Tens of thousands of trials without a CPU fit; the resource exists on head nodes only."""
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
        # Workers and the tasks that read for them: 2 + 1 of 8, 4 + 3 of 16.
        ([STREAMED | {"num_workers": 2}], Cluster(8, 0), None, 2),
        ([STREAMED | {"num_workers": 4, "data_cpus": 3}], Cluster(16, 0), None, 2),
        # GPUs or CPUs, whichever run out first.
        ([{"use_gpu": True}], Cluster(64, 4), None, 4),
        ([{"use_gpu": True}], Cluster(3, 4), None, 3),
        ([STREAMED | {"num_workers": 2, "use_gpu": True}], Cluster(64, 5), None, 2),
        # The largest of them decides.
        ([LOCKED, {"cpus_per_worker": 3}, {"cpus_per_worker": 2}], Cluster(10, 0), None, 3),
        ([LOCKED, STREAMED | {"num_workers": 3}], Cluster(8, 0), 2, 2),
        # A cluster that grows is not counted: as many as requested, else as many as fit now, and at least one.
        ([STREAMED | {"autoscale": True, "num_workers": 8}], Cluster(2, 0), 40, 40),
        ([STREAMED | {"autoscale": True, "num_workers": 8}], Cluster(2, 0), None, 1),
        ([STREAMED | {"autoscale": True}], Cluster(8, 0), None, 4),
        ([{"autoscale": True, "use_gpu": True}], Cluster(8, 0), None, 1),
    ],
)
def test_how_many_trials_run_at_a_time(trials: list[dict], cluster: Cluster, wanted: int | None, fits: int) -> None:
    assert trials_at_a_time(built(trials), cluster, wanted) == fits


@pytest.mark.parametrize(
    ("trials", "cluster", "wanted", "fits", "booking"),
    [
        ([LOCKED], Cluster(2, 0), 3, 2, "1 worker x 1 CPU"),
        ([STREAMED | {"num_workers": 2}], Cluster(8, 0), 4, 2, "2 workers x 1 CPU + 1 CPU"),
        ([{"use_gpu": True}], Cluster(64, 4), 5, 4, "1 worker x 1 CPU + 1 GPU"),
        ([LOCKED, {"cpus_per_worker": 1.5}], Cluster(4, 0), 3, 2, "1 worker x 1.5 CPU"),
    ],
)
def test_more_than_fit_are_refused_with_the_arithmetic(
    trials: list[dict], cluster: Cluster, wanted: int, fits: int, booking: str
) -> None:
    sizes = f"{cluster.cpus} CPUs", f"{cluster.gpus} GPUs"
    remedies = f"concurrency={fits}", "concurrency=null", "overrides.resources.autoscale=true"
    with refused("concurrency", f"{wanted} trials", booking, *sizes, *remedies, remedy=remedies[0]):
        trials_at_a_time(built(trials), cluster, wanted)
    # And each of the remedies works.
    assert trials_at_a_time(built(trials), cluster, fits) == trials_at_a_time(built(trials), cluster, None) == fits
    assert trials_at_a_time(built([trial | {"autoscale": True} for trial in trials]), cluster, wanted) == wanted


@pytest.mark.parametrize(
    ("settings", "cluster", "arithmetic", "remedies"),
    [
        (STREAMED, Cluster(1, 0), ["1 CPU + 1", "= 2 CPUs", "has 1"], ["autoscale=true"]),
        (
            {"num_workers": 3},
            Cluster(2, 0),
            ["3 workers x 1 CPU", "= 3 CPUs", "has 2"],
            ["num_workers=2", "cpus_per_worker=0.66"],
        ),
        ({"use_gpu": True}, Cluster(8, 0), ["1 GPU", "has 0"], ["use_gpu=false", "autoscale=true"]),
    ],
)
@pytest.mark.parametrize("wanted", [None, 1])
def test_a_trial_that_never_fits_is_refused_before_it_waits(
    settings: dict, cluster: Cluster, arithmetic: list[str], remedies: list[str], wanted: int | None
) -> None:
    """The remedies are overrides of the sweep, and each of them works."""
    keys = [f"overrides.resources.{remedy}" for remedy in remedies]
    with refused("overrides.resources", *arithmetic, *keys, remedy=keys[0]):
        trials_at_a_time(built([LOCKED, settings]), cluster, wanted)
    for remedy in remedies:
        assert trials_at_a_time(built([LOCKED, settings | parse_overrides([remedy])]), cluster, wanted) >= 1


def test_every_key_in_the_error_is_one_of_the_sweep() -> None:
    """`resources.num_workers=1` is a key of a training config: as an override of a sweep it is unknown."""
    for settings in ({"num_workers": 3}, {"use_gpu": True, "num_workers": 3}, STREAMED | {"num_workers": 8}):
        with refused("overrides.resources") as caught:
            trials_at_a_time(built([settings]), Cluster(3 if "use_gpu" in settings else 2, 0), None)
        remedy = caught.value.remedy
        assert remedy.count("resources.") == remedy.count("overrides.resources.") > 0


# The course project's sweep


@pytest.fixture(scope="module")
def course() -> list[TrainSettings]:
    """A trial of each of its 15 cells."""
    sweep = load(SweepSettings, ROOT / "tuning" / "sweeps" / "course.yaml")
    cells = cells_of(sweep)
    assert len(cells) == 15
    return [load(TrainSettings, ROOT / sweep.base, sweep.overrides | cell.overrides) for cell in cells]


def test_the_courses_sweep_keeps_eight_gpus_busy(course: list[TrainSettings]) -> None:
    """A trial takes 2 CPUs for its worker and 5 for reading: 64 / 7 is 9, and there are 8 GPUs."""
    assert {booking_of(settings) for settings in course} == {Booking(False, 1, 2, 5, 1)}
    assert trials_at_a_time(course, Cluster(64, 8), None) == 8
    assert trials_at_a_time(course, Cluster(64, 16), None) == 9
    assert trials_at_a_time(course, Cluster(55, 8), None) == 7


def test_four_cpus_are_too_few_for_the_courses_sweep(course: list[TrainSettings]) -> None:
    with refused("overrides.resources", "1 workers x 2 CPU", "= 7 CPUs", "has 4"):
        trials_at_a_time(course, Cluster(4, 8), None)


@pytest.mark.parametrize(
    ("statuses", "waits"),
    [
        ([], False),
        (["PENDING"], True),
        (["TERMINATED", "PENDING", "PENDING"], True),
        (["PENDING", "RUNNING"], False),
        (["ERROR"], False),
    ],
)
def test_a_sweep_waits_while_none_of_its_trials_runs(statuses: list[str], waits: bool) -> None:
    trials, told = [Trial("ended", stub=True) for _ in statuses], list[bool]()
    for trial, status in zip(trials, statuses, strict=True):
        trial.set_status(status)
    Follow(told.append, lambda name: None).on_step_end(1, trials)
    assert told == [waits]
