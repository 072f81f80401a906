"""The simulator of faults (tests/chaos): schedules of kinds that no other test has together, and what is recorded of them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from tests.chaos import records
from tests.chaos.__main__ import small_disk
from tests.chaos.checks import Injected, Outcome
from tests.chaos.schedule import KINDS, drawn, parsed
from tests.chaos.simulation import Simulator
from tests.object_store import object_store

SCHEDULES = [
    "1-3/declip/full-disk@report:2:0,cut-checkpoint@forward:11:1",
    "2/isogclr/kill-head@read:14:0",
    "1-3/mcd/kill-node@backward:8:1",
    "2/clip/s3/store-is-mute@checkpoint:3:0,kill-driver@upload:9:0",
    "1-3/siglip/s3/flip-checkpoint@backward:14:1",
]


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """One cluster for all schedules, in the place of the session's Ray."""
    ray.shutdown()
    home = tmp_path_factory.mktemp("chaos")
    with (
        pytest.MonkeyPatch.context() as environment,
        small_disk(home / "small") as small,
        object_store() as store,
        Simulator(home / "runs", small, store) as simulator,
    ):
        environment.setenv("XDG_CACHE_HOME", str(home))  # the simulator sets it
        yield simulator


@pytest.mark.e2e
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_ends_as_undisturbed(simulator: Simulator, schedule: str) -> None:
    outcome = simulator.run(parsed(schedule), f"run-{SCHEDULES.index(schedule)}")
    if outcome.broken.endswith("may not mount"):
        pytest.skip(outcome.broken)
    assert not outcome.broken, outcome.broken
    assert len(outcome.injected) == len(outcome.schedule.faults) and outcome.samples == (0, 0)


def test_a_schedule_is_its_text() -> None:
    for seed in range(50):
        schedule = drawn(seed, list(KINDS))
        assert parsed(str(schedule)) == schedule
    assert parsed("2/clip/kill-worker@read:4:1").storage == "disk"
    for text in (
        "2/clip/s3/full-disk@read:4:1",
        "2/clip/store-fails@read:4:1",
        "5/clip/add-node@read:4:1",
        "2/clip/add@read:4:1",
    ):
        with pytest.raises(ValueError):
            parsed(text)


def test_records_of_several_sessions(tmp_path: Path) -> None:
    """A schedule that did not end well is run again, and the newest run of it counts; older files lack columns."""
    file = tmp_path / "record.csv"
    old = "2/clip/kill-worker@read:4:1"
    file.write_text(
        "schedule,fault,phase,workers,objective,outcome,starts,lost_steps,seconds_to_recover\n"
        f"{old},kill-worker,read,2,clip,exact,1,3,20.5\n"
    )
    schedule = parsed("1-3/mcd/s3/kill-worker@forward:7:1,store-fails@end:18:0")
    first = Injected(0, schedule.faults[0], 0.0, lost=1, seconds=40.0)
    records.add(Outcome(schedule, [first], 1, 60.0, broken="one\ntwo"), file)
    assert records.done(file) == {old}
    records.add(Outcome(schedule, [replace(first, lost=2)], 1, 60.0, samples=(0, 0)), file)
    assert records.done(file) == {old, str(schedule)}
    lines = records.read(file)
    assert [(line["fault"], line["outcome"]) for line in lines] == [
        ("kill-worker", "exact"),
        ("kill-worker", "exact"),
        ("store-fails", "did not come"),
    ]
    assert "| kill-worker | 2 | 2 | 2 | 3 | 0 | 0 | 30 | 40 |" in records.table(lines)


def test_the_table_in_the_docs_is_that_of_the_record() -> None:
    folder = Path(__file__).parents[1] / "docs" / "benchmarks"
    assert records.table(records.read(folder / "faults.csv")) in (folder / "faults.md").read_text(encoding="utf-8")
