"""Whatever file of a checkpoint or list is damaged, a run resumes from the newest intact checkpoint, and says so."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import ray.train
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext

from tests.refusals import refused
from training.checkpoint_registry import check, damage, keep_snapshot, newest_checkpoint, put, registered, seal, settle

FILES = ["state.safetensors", "checkpoint.json", "tokenizer.json", "more.npz", "digests.json"]
LISTS = ["checkpoint_manager_snapshot.json", "checkpoint_manager_snapshot.kept.json"]
STEPS = [20, 40, 60]


def flipped(path: Path, at: int | None = None) -> None:
    """One bit of one byte, in the middle by default."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "flipped": flipped,
}


def name_of(step: int) -> str:
    return f"checkpoint_{step:08d}"


def checkpoint(folder: Path, step: int) -> None:
    """The files of a checkpoint, small."""
    folder.mkdir(parents=True)
    (folder / "state.safetensors").write_bytes(bytes(range(200)) + str(step).encode())
    (folder / "checkpoint.json").write_text(json.dumps({"format": 3, "step": step, "config": {"seed": 7}}, indent=1))
    (folder / "tokenizer.json").write_text(json.dumps({"vocabulary": {"cat": 1}}))
    (folder / "more.npz").write_bytes(b"PK rows")
    seal(folder)


def ray_list(run: Path, steps: list[int]) -> None:
    """As Ray Train writes it."""
    results = [{"version": 0, "checkpoint_dir_name": name_of(step), "metrics": {"step": step, "loss": 0.5}} for step in steps]
    tree = {
        "ray_version": ray.__version__,
        "checkpoint_results": results,
        "checkpoint_report_indices": [step // 10 for step in steps],
        "latest_checkpoint_result": results[-1],
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": steps[-1] // 10 + 1,
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    (run / LISTS[0]).write_text(json.dumps(tree))


def ray_goes_on_from(run: Path) -> Path | None:
    """What Ray Train itself reads."""
    place = StorageContext(storage_path=str(run.parent), experiment_dir_name=run.name)
    found = CheckpointManager(ray.train.CheckpointConfig(num_to_keep=2), place).latest_checkpoint_result
    return None if found is None else Path(found.checkpoint.path)


@pytest.fixture(params=["ray", "inline"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A run with three checkpoints and an incomplete fourth one."""
    place = tmp_path / "run"
    for step in STEPS:
        checkpoint(place / name_of(step), step)
    (place / name_of(80)).mkdir()
    (place / name_of(80) / "state.safetensors").write_bytes(b"a part")
    if request.param == "ray":
        ray_list(place, STEPS)
        assert keep_snapshot(place)
    else:
        put(place / "newest_checkpoint.json", json.dumps([name_of(step) for step in STEPS]))
    return place


def lists_of(run: Path) -> list[str]:
    return [name for name in (*LISTS, "newest_checkpoint.json") if (run / name).exists()]


def test_a_whole_run_goes_on_from_its_newest(run: Path) -> None:
    printed: list[str] = []
    assert [path.name for path in registered(run)] == [name_of(step) for step in STEPS], "no incomplete one"
    assert settle(run, printed.append) == newest_checkpoint(run) == run / name_of(60) and printed == []
    assert sorted(path.name for path in run.glob("*checkpoint_0*")) == [name_of(step) for step in STEPS]
    if LISTS[0] in lists_of(run):
        assert ray_goes_on_from(run) == run / name_of(60)


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(run: Path, file: str, kind: str) -> None:
    newest, printed = run / name_of(60), []
    DAMAGES[kind](newest / file)
    with refused("checkpoint", newest, file, remedy=run / name_of(40)):
        check(newest)
    assert settle(run, printed.append) == newest_checkpoint(run) == run / name_of(40)
    assert len(printed) == 1 and str(newest) in printed[0] and file in printed[0] and name_of(40) in printed[0]
    assert (run / f"damaged-{name_of(60)}").is_dir() and not newest.exists(), "it is put aside"
    if LISTS[0] in lists_of(run):
        assert ray_goes_on_from(run) == run / name_of(40)
    assert settle(run, printed.append) == run / name_of(40) and len(printed) == 1, "reported once"


def test_a_bit_that_was_flipped_anywhere_is_seen(run: Path) -> None:
    newest = run / name_of(60)
    for file in FILES:
        whole = (newest / file).read_bytes()
        for at in range(len(whole)):
            flipped(newest / file, at)
            assert damage(newest) is not None, f"{file}, byte {at}"
            (newest / file).write_bytes(whole)
    assert damage(newest) is None


def test_a_deleted_checkpoint_is_reported(run: Path) -> None:
    printed: list[str] = []
    shutil.rmtree(run / name_of(60))
    assert settle(run, printed.append) == run / name_of(40)
    assert len(printed) == 1 and str(run / name_of(60)) in printed[0] and name_of(40) in printed[0]
    if LISTS[0] in lists_of(run):
        assert ray_goes_on_from(run) == run / name_of(40)


def test_without_an_intact_checkpoint_each_damaged_file_is_named(run: Path) -> None:
    (run / name_of(20) / "tokenizer.json").unlink()
    flipped(run / name_of(40) / "state.safetensors")
    shutil.rmtree(run / name_of(60))
    before = sorted(run.rglob("*"))
    with refused("checkpoint", run, "tokenizer.json", "state.safetensors", *map(name_of, (20, 40, 60)), remedy="overwrite=true"):
        settle(run, print)
    assert sorted(run.rglob("*")) == before, "nothing is touched"


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_list_costs_no_checkpoint(run: Path, kind: str) -> None:
    for name in lists_of(run):
        if kind == "missing" and name == "newest_checkpoint.json":
            continue  # then it is a run that never had a checkpoint
        whole = (run / name).read_bytes()
        DAMAGES[kind](run / name)
        assert settle(run, lambda line: None) == run / name_of(60)
        if name in LISTS:
            assert ray_goes_on_from(run) == run / name_of(60)
        (run / name).write_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["ray"], indirect=True)
def test_a_bit_that_was_flipped_anywhere_in_rays_list(run: Path) -> None:
    for name in LISTS:
        whole = {file: (run / file).read_bytes() for file in LISTS}
        for at in range(len(whole[name])):
            flipped(run / name, at)
            assert settle(run, lambda line: None) == run / name_of(60) == ray_goes_on_from(run), f"{name}, byte {at}"
            for file in LISTS:
                (run / file).write_bytes(whole[file])


def test_a_run_whose_list_is_gone_does_not_begin_anew(run: Path) -> None:
    """For a few files were forgotten in a copy: beginning anew would delete the checkpoints."""
    for name in lists_of(run):
        (run / name).unlink()
    with refused("checkpoint", run, "newest_checkpoint.json", LISTS[0], remedy="copy"):
        settle(run, print)
    assert len(list(run.glob("checkpoint_*"))) == len(STEPS) + 1
    # One alone may be of a process that died before it wrote the first list.
    for step in STEPS[1:]:
        shutil.rmtree(run / name_of(step))
    assert settle(run, print) is None


def test_a_run_without_a_finished_checkpoint_begins(tmp_path: Path) -> None:
    """Ray's very first list may be cut off: without it Ray begins, with it Ray would stop."""
    assert settle(tmp_path, print) is None and list(tmp_path.iterdir()) == []
    (tmp_path / LISTS[0]).write_text("")
    assert settle(tmp_path, print) is None and ray_goes_on_from(tmp_path) is None
    with refused("checkpoint", tmp_path, remedy="run's folder"):
        newest_checkpoint(tmp_path)


def test_a_pickle_of_an_earlier_version_is_refused_and_kept(run: Path) -> None:
    """It is not damaged: the version that wrote it still reads it."""
    newest = run / name_of(60)
    (newest / "state.pt").write_bytes(b"a pickle")
    (newest / "state.safetensors").unlink()
    for use in (lambda: settle(run, print), lambda: check(newest)):
        with refused("checkpoint", newest, "state.pt", remedy="raylign export"):
            use()
    assert newest.exists() and (run / name_of(80)).exists(), "nothing is touched"


def test_ray_trains_list_is_copied_only_while_it_is_whole(tmp_path: Path) -> None:
    """Ray writes it in place; killed meanwhile, it could never resume from it."""
    run = tmp_path / "run"
    for step in (20, 40):
        checkpoint(run / name_of(step), step)
    ray_list(run, [20])
    assert keep_snapshot(run)
    (run / LISTS[0]).write_text((run / LISTS[0]).read_text()[:50])
    assert not keep_snapshot(run) and newest_checkpoint(run) == run / name_of(20), "half a list replaces none"
    ray_list(run, [20, 40])
    assert newest_checkpoint(run) == run / name_of(40), "a whole one counts, even if it was never copied"
