"""A trial in this process, interrupted: it resumes from its newest intact checkpoint, on a disk and from a store."""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from pipelines.program.display import Display
from tests.object_store import Store, object_store
from tests.training.squares import BATCH, BEST, STEPS, tree_of, write_root
from training.checkpoint import find_checkpoint
from training.checkpoint_registry import NEWEST
from training.metrics_file import read_metrics
from training.run_store import RunStore, kept
from training.working_copy import working_copy
from tuning.held_out_items import read_items
from tuning.trial_runner import run_trial
from tuning.trials import Folder, Outcome, Trial, pull

pytestmark = pytest.mark.filterwarnings("ignore:`(report|get_session)` is meant to only be called")
QUIET = Display(quiet=True)
Interrupt = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trials")
    write_root(root)
    return root


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """A function that runs a trial until its first evaluation has been saved."""

    def die(values: dict[str, Any]) -> None:
        raise KeyboardInterrupt  # which no outcome records, as a killed process

    def run(config: dict[str, Any]) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(tune, "report", die)
            with pytest.raises(KeyboardInterrupt):
                run_trial(config)

    return run


def config_of(root: Path, folder: Folder, trial: Trial) -> dict[str, Any]:
    """As the searcher gives it to a trial."""
    tree = tree_of(root) | {"name": trial.name, "storage": str(folder.place(trial.name)).rpartition("/")[0]}
    config = {"name": trial.name, "tree": tree, "place": str(folder.place(trial.name)), "items": trial.phase == "final"}
    return config | {"inline": True, "data_cpus": 1, "score": [BEST], "logged": False}


def test_a_trials_damaged_checkpoint_is_named_in_its_outcome(root: Path, tmp_path: Path, interrupt: Interrupt) -> None:
    folder = Folder(tmp_path / "sweep")
    trial = Trial("all", "final", 0, 0, {}, {}, "all")
    folder.begin(trial)
    config = config_of(root, folder, trial) | {"items": False}
    interrupt(config)
    place = folder.of(trial.name)
    assert folder.ended(trial.name) is None
    saved = [place / name for name in json.loads((place / NEWEST).read_text())]
    weights = saved[-1] / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    run_trial(config)
    outcome = folder.ended(trial.name)
    assert outcome is not None and outcome.status == "finished" and outcome.samples == STEPS * BATCH
    assert saved[-1].name in outcome.reason and "state.safetensors" in outcome.reason


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with object_store() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store


@pytest.mark.slow
def test_a_trial_in_a_store_goes_on_on_another_node(
    root: Path, tmp_path: Path, interrupt: Interrupt, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through faults; what the driver then knows, and what the store has, is as on a disk. No node keeps a copy."""

    def go(node: str) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / node))
        return tmp_path / node

    uri, disk = store.uri("runs", "sweep"), Folder(tmp_path / "sweep")
    trials = [Trial("all", "search", 0, 0, {}, {}, "all"), Trial("all", "final", 0, 1, {}, {}, "all")]
    go("driver")
    with working_copy(uri, QUIET, "sweep", pull):
        folder = Folder(uri)
        with store.faulty(errors=0.05, resets=0.05, stalls=0.02):
            for trial in trials:
                folder.begin(trial)
                folder.keep()
                config = config_of(root, folder, trial)
                go("first")
                interrupt(config)
                metrics = store.get(f"runs/sweep/trials/{trial.name}/metrics.jsonl.parts/000000") or b""
                assert 0 < len(metrics.splitlines()) < STEPS
                go("second")
                run_trial(config)
                go("driver")
                folder.hear(trial.name)
    assert sum(store.faults().values()) > 3
    for node in ("first", "second"):
        assert not [path for path in (tmp_path / node / "raylign" / "runs").rglob("*") if path.is_file()]
    go("another driver")
    with working_copy(uri, QUIET, "sweep", pull) as copy:
        for trial in trials:
            disk.begin(trial)
            run_trial(config_of(root, disk, trial))
            ours, theirs = folder.ended(trial.name), disk.ended(trial.name)
            assert ours is not None and theirs is not None and ours == Folder(uri).ended(trial.name)
            assert (ours.status, ours.metrics, ours.loss) == ("finished", theirs.metrics, theirs.loss)
            there = copy / "trials" / trial.name
            steps = [[line["step"] for line in read_metrics(run / "metrics.jsonl")] for run in (there, disk.of(trial.name))]
            assert steps[0] == steps[1] == list(range(1, STEPS + 1)), "every step once"
            kept = {name.partition("/")[0] for name in RunStore(str(folder.place(trial.name))).files()}
            assert kept == {path.name for path in disk.of(trial.name).iterdir() if not path.name.startswith(".")}
        assert read_items(there, [BEST]) is not None
    assert find_checkpoint(f"{uri}/trials/{trials[1].name}").name == f"checkpoint_{STEPS:08d}"


@pytest.mark.slow
def test_a_trial_whose_process_dies_at_its_end_leaves_what_others_leave(store: Store, tmp_path: Path) -> None:
    """Killed after any deletion, in a store and on a disk: the sweep's end deletes its weights, and none of final runs."""
    dropped, left = RunStore.drop, [0]

    def until_killed(self: RunStore, name: str) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        dropped(self, name)

    def save(run: Path, *names: str) -> None:
        for name in names:
            (run / name).mkdir()
            (run / name / "digests.json").write_text("{}")
            kept(run, name)

    for place in (store.uri("runs", "ends"), tmp_path / "ends"):
        with working_copy(place, QUIET, "sweep", pull) if isinstance(place, str) else nullcontext():
            folder = Folder(place)
            for deletions in range(4):
                for phase in ("search", "final"):
                    trial = Trial("all", phase, deletions, 0, {}, {}, "all")
                    folder.begin(trial)
                    save(folder.of(trial.name), "checkpoint_00000002", "checkpoint_00000004", "best")
                    left[0] = deletions
                    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
                        patch.setattr(RunStore, "drop", until_killed)
                        folder.end(trial.name, Outcome("finished"))
            save(folder.of("all-p3"), "checkpoint_00000006")  # of a trial that was stopped while it saved
            folder.begin(Trial("all", "search", 9, 0, {}, {}, "all"))
            save(folder.of("all-p9"), "best")  # it is under way
            folder.clear()
            files = (
                RunStore(place).files() if isinstance(place, str) else (str(p.relative_to(place)) for p in place.rglob("*.json"))
            )
            weights = {name.rpartition("/")[0] for name in files if name.endswith("digests.json")}
        assert {name for name in weights if "seed" not in name} == {"trials/all-p9/best"}
        assert len(weights) == 1 + 4 * 3, "the weights of final runs stay"
