"""Whole sweeps through Ray Tune on real, small data: killed drivers, failing trials, early stopping, small and large trials."""

import io
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray
import torch
import yaml
from ray.cluster_utils import Cluster
from ray.experimental import internal_kv
from transformers import DistilBertConfig, DistilBertModel

from pipelines.dataset.prepared import Prepared
from pipelines.dataset.tokenizer import train_tokenizer
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.prepare import prepare
from pipelines.program.display import Display
from pipelines.program.ray_internals import bundles_of, placement_group_of
from pipelines.program.settings import load, parse_overrides
from tests.object_store import Store, object_store
from tests.patience import PATIENCE, wait_until
from tests.stopped import assert_stopped
from tests.training.program import listen
from training.config import TrainSettings
from training.placement import HELD
from training.run import run
from training.run_store import RunStore
from tuning.config import SweepSettings
from tuning.held_out_items import read_items
from tuning.sweep import sweep
from tuning.trials import Folder

import psutil  # isort: skip  # which Ray brings along

ROOT = Path(__file__).parent.parent.parent
QUIET = Display(quiet=True)
R1 = "retrieval/openmoji/mean_recall@1"


@pytest.fixture(scope="module")
def emojis(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 emojis; the first sweep caches their features beside them."""
    output = tmp_path_factory.mktemp("sweeps") / "data"
    tree = {"source": {"name": "openmoji", "limit": 240}, "output": output, "image": {"size": 64, "format": "png"}}
    prepare(PrepareSettings.model_validate(tree | {"splits": {"test": 0.2}}), QUIET)
    return output


@pytest.fixture(scope="module")
def sweep_file(emojis: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function from a name and keys to a sweep file over locked towers, whose folder is beside it."""
    home = tmp_path_factory.mktemp("runs")

    def write(name: str, **keys: Any) -> Path:
        overrides = {"data.path": str(emojis), "data.validation": 0.2, "image_tower.image_size": 64}
        overrides |= {"global_batch_size": 32, "evaluation.every_epochs": 1}
        tree = {"name": name, "storage": str(home), "base": str(ROOT / "training/configs/openmoji.yaml")}
        path = home / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree | keys | {"overrides": overrides | keys.get("overrides", {})}))
        return path

    return write


TWELVE: dict[str, Any] = {
    "grid": {"objective.name": ["clip", "sogclr"]},
    "space": {
        "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "objective.temperature": {"low": 0.02, "high": 0.2, "log": True},
    },
    "sampler": {"name": "tpe", "startup": 2},
    "trials": 4,
    "seeds": [0, 1],
    "budget": {"epochs": 16},
}


@pytest.fixture(scope="module")
def undisturbed(sweep_file: Callable[..., Path]) -> Path:
    """The folder of a sweep of 12 trials that nobody disturbed."""
    path = sweep_file("undisturbed", **TWELVE)
    settings = load(SweepSettings, path)
    sweep(settings, QUIET, "python -m tuning undisturbed.yaml")
    return settings.storage / settings.name


def table(folder: Path | io.BytesIO) -> pd.DataFrame:
    """`trials.csv`: of a folder, or its content."""
    return pd.read_csv(folder / "trials.csv" if isinstance(folder, Path) else folder).set_index("trial").sort_index()


@pytest.fixture
def nodes(ray_session: None, tmp_path: Path) -> Iterator["Nodes"]:
    """A cluster whose nodes share a store and no cache, beside the session's Ray."""
    with object_store() as store:
        cluster = Nodes(store, tmp_path)
        try:
            yield cluster
        finally:
            cluster.cluster.shutdown()
            # It takes this away from the session's Ray too.
            internal_kv._initialize_internal_kv(ray._private.worker.global_worker.gcs_client)


class Nodes:
    """A head without CPUs, and two nodes with one each."""

    def __init__(self, store: Store, home: Path):
        self.store, self._home, self._count = store, home, 0
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "env_vars": self.environment()})
        for _ in range(2):
            self.add()

    def environment(self) -> dict[str, str]:
        """Of a process on a new machine: its own cache."""
        self._count += 1
        return self.store.environment | {"XDG_CACHE_HOME": str(self._home / f"machine-{self._count}")}

    def add(self) -> None:
        self.cluster.add_node(num_cpus=1, env_vars=self.environment())

    def lose_that_of(self, process: int) -> None:
        """Kill the node on which a process runs, and what it started."""
        above = {parent.pid for parent in psutil.Process(process).parents()}
        (node,) = (node for node in self.cluster.worker_nodes if _raylet(node) in above)
        self.cluster.remove_node(node, allow_graceful=False)


def _raylet(node: Any) -> int:
    (started,) = node.all_processes["raylet"]
    return started.process.pid


@pytest.mark.e2e
def test_a_sweep_in_a_store_that_loses_its_driver_three_times_and_a_node_ends_as_one_that_was_not_disturbed(
    undisturbed: Path, emojis: Path, sweep_file: Callable[..., Path], nodes: "Nodes", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped, killed while checkpoints are uploaded, stopped: each start is on a new machine; then a node of a trial is lost."""
    store = nodes.store
    for file in emojis.rglob("*"):
        if file.is_file():
            store.put(f"data/{file.relative_to(emojis)}", file.read_bytes())
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    there = RunStore(store.uri("runs", "killed"))
    path = sweep_file("killed", **TWELVE, storage=store.uri("runs"), overrides={"data.path": store.uri("data")})
    command = [sys.executable, "-m", "tuning", str(path)]
    moments = random.Random(4)

    def start() -> subprocess.Popen[str]:
        environment = os.environ | nodes.environment() | {"RAY_ADDRESS": nodes.cluster.address}
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, preexec_fn=listen
        )

    def ended() -> dict[str, int]:
        """Outcomes and when they were written."""
        return {name: file.changed for name, file in there.files("trials").items() if name.endswith("/outcome.json")}

    def uploading(process: subprocess.Popen[str]) -> list[int]:
        """The processes of trials that are held in the upload of a checkpoint."""
        wait_until(lambda: store.held() > 0 or process.poll() is not None)
        assert process.poll() is None, process.communicate()[0]
        trials = {name.partition("/")[0] for name in there.files("trials")}
        leases = [json.loads(store.get(f"runs/killed/trials/{trial}/.lock") or b"{}") for trial in trials]
        return [lease["process"] for lease in leases if lease and psutil.pid_exists(lease["process"])]

    held = {"errors": 0.0, "stalls": 0.0, "resets": 0.0, "held": "PUT .*/trials/.*/checkpoint_.*/state"}
    seen: dict[str, int] = {}
    for number in (signal.SIGINT, signal.SIGKILL, signal.SIGTERM):
        process = start()
        goal, later = len(seen) + moments.randint(1, 2), moments.uniform(0, 1.5)
        wait_until(lambda: len(ended()) >= goal or process.poll() is not None)  # noqa: B023 - asked at once
        assert process.poll() is None, process.communicate()[0]
        if number == signal.SIGKILL:
            with store.faulty(**held):
                assert uploading(process)
                process.kill()
        else:
            time.sleep(later)
            process.send_signal(number)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), output
        if number != signal.SIGKILL:
            assert_stopped(output.splitlines()[-1], number, shlex.join(["python", *command[1:]]), " of 12 trials ")
        assert seen.items() <= ended().items(), "a trial that had ended ran again"
        # Trials live on for some seconds after their driver; what they still bring to its end counts.
        seen = ended()
    process = start()
    with store.faulty(**held):
        nodes.lose_that_of(uploading(process)[0])
    nodes.add()
    with store.faulty(errors=0.03, resets=0.03, stalls=0.02):
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and "its process died; resuming" in output, output
    assert seen.items() <= ended().items(), "a trial that had ended ran again"
    ours, theirs = table(io.BytesIO(there.read("trials.csv"))), table(undisturbed)
    assert list(ours.index) == list(theirs.index) and len(ours) == 12
    assert (ours["status"] == "finished").all()
    same = ["cell", "phase", "point", "seed", "optimizer.lr", "objective.temperature", "score", "loss", "epochs", "samples"]
    pd.testing.assert_frame_equal(ours[same], theirs[same], rtol=1e-9)
    assert json.loads(there.read("sweep.json"))["sessions"] == 4
    files = there.files()
    for trial in ours.index:
        steps = [json.loads(line)["step"] for line in there.read(f"trials/{trial}/metrics.jsonl").splitlines()]
        assert steps == sorted(set(steps)), "every step once"
    # The sampler resumed with its history: the points are not those of a sampler that begins anew.
    assert ours[ours["phase"] == "search"]["optimizer.lr"].nunique() == 8
    # What there is, is whole, and is what a sweep on a disk has.
    assert not [name for name in files if ".parts/" in name or "partial" in name]
    on_disk = {str(file.relative_to(undisturbed)) for file in undisturbed.rglob("*") if file.is_file()}
    hidden = {name for name in on_disk if Path(name).name.startswith(".")}
    assert {name for name in files if not name.startswith("tune/")} == {
        name for name in on_disk - hidden if not name.startswith("tune/")
    }
    assert any(name.startswith("tune/session-") for name in files)


@pytest.mark.e2e
def test_a_sweep_that_has_ended_can_be_extended_and_its_trials_reproduced(
    undisturbed: Path, sweep_file: Callable[..., Path]
) -> None:
    copy = undisturbed.parent / "extended"
    shutil.copytree(undisturbed, copy)
    path = sweep_file("extended", **TWELVE | {"seeds": [0, 1, 2], "grid": {"objective.name": ["clip", "sogclr", "cyclip"]}})
    before = {outcome: outcome.stat().st_mtime_ns for outcome in copy.glob("trials/*/outcome.json")}
    assert {path.parent.name[-5:] for path in copy.glob("trials/*/items.npz")} == {"seed0", "seed1"}
    sweep(load(SweepSettings, path, {"trials": 4}), QUIET, "")
    assert all(outcome.stat().st_mtime_ns == written for outcome, written in before.items())
    trials = table(copy)
    assert len(trials) == 3 * (4 + 3) and (trials["status"] == "finished").all()
    old = table(undisturbed)
    pd.testing.assert_series_equal(trials.loc[old.index, "score"], old["score"])
    summary = pd.read_csv(copy / "summary.csv").query("metric == 'score'").set_index("cell")
    assert list(summary["n"]) == [3, 3, 3]
    finals = trials[(trials["phase"] == "final") & (trials["cell"] == "cyclip")]
    assert summary.loc["cyclip", "mean"] == pytest.approx(finals[R1].mean())
    items = read_items(copy / "trials" / finals.index[0], [R1])
    assert items is not None and items.parts.sum() == pytest.approx(finals.iloc[0][R1], rel=1e-6)
    assert "chance: of seeds and test items" in (copy / "report.html").read_text()
    # The command in the table, as a run of its own through Ray Train: the same figures.
    words = shlex.split(finals.iloc[0]["command"])
    assert words[:3] == ["python", "-m", "training"]
    settings = load(TrainSettings, words[3], parse_overrides(words[4:]) | {"storage": str(copy.parent / "again")})
    result = run(settings, QUIET)
    for metric in [column for column in trials.columns if "/" in column]:
        assert result["metrics"][metric] == pytest.approx(finals.iloc[0][metric]), metric
    assert result["loss"] == pytest.approx(finals.iloc[0]["loss"], rel=1e-5)


@pytest.mark.e2e
def test_failures_are_rows_with_reasons_and_leave_nothing_behind(sweep_file: Callable[..., Path]) -> None:
    """One trial raises, one diverges, one is killed, one is fine."""
    optimizers = [
        {"name": "adamw", "lr": 1e-3},
        {"name": "tests.tuning.failing:Failing", "lr": 1e-3},
        {"name": "sgd", "lr": 1e30},
        {"name": "lion", "lr": 1e-4},
    ]
    labels = {"market": "!spot"}  # of the nodes where trials run
    overrides = {"clip_norm": None, "resources.worker_labels": labels}
    path = sweep_file(
        "failures", grid={"optimizer": optimizers}, seeds=[0], retries=0, budget={"epochs": 60}, overrides=overrides
    )
    settings = load(SweepSettings, path)
    victim = settings.storage / "failures" / "trials" / "lion-p0-seed0"
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.005):
            if (victim / "metrics.jsonl").exists():
                os.kill(int((victim / ".lock").read_text()), signal.SIGKILL)
                return

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        sweep(settings, QUIET, "")
    finally:
        stop.set()
        thread.join()
    trials = table(settings.storage / "failures")
    (raised,) = [name for name in trials.index if "failing" in name.lower()]
    assert trials["status"].to_dict() == {
        "adamw-p0-seed0": "finished",
        raised: "failed",
        "sgd-p0-seed0": "failed",
        "lion-p0-seed0": "failed",
    }
    assert "there is no third step" in trials.loc[raised, "reason"]
    assert "a lower optimizer.lr" in trials.loc["sgd-p0-seed0", "reason"]  # what diverged first, loss or weights, is chance
    assert "its process died" in trials.loc["lion-p0-seed0", "reason"]
    page = (settings.storage / "failures" / "report.html").read_text()
    assert all(word in page for word in ("there is no third step", "a lower optimizer.lr", "its process died"))
    # The one that lived is as it would have been alone.
    assert trials.loc["adamw-p0-seed0", "epochs"] == 60 and trials.loc["adamw-p0-seed0", R1] > 0
    booked = [bundle for group in ray.util.placement_group_table() for bundle, _ in bundles_of(placement_group_of(group))]
    assert any(bundle.labels == labels for bundle in booked), "trials reuse what others booked"
    _nothing_is_taken()


def _nothing_is_taken() -> None:
    """Ray learns of it a little later."""

    def taken() -> list[Any]:
        groups = [g for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
        return groups + ([] if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"] else ["CPUs"])

    wait_until(lambda: not taken(), lambda: f"still taken: {taken()}, {ray.available_resources()}", every=0.2)


@pytest.mark.e2e
@pytest.mark.parametrize("scheduler", ["asha", "hyperband"])
def test_losers_are_stopped_early_and_the_winner_is_not(scheduler: str, sweep_file: Callable[..., Path]) -> None:
    """Of eight learning rates, three of which cannot learn in nine epochs."""
    rates = {"choices": [1e-9, 1e-3, 1e-8, 2e-3, 1e-7, 5e-4, 1e-6, 4e-3]}
    path = sweep_file(
        scheduler, space={"optimizer.lr": rates}, sampler={"name": "grid"}, seeds=[0], budget={"epochs": 9},
        scheduler={"name": scheduler}, loggers=["tensorboard"],
    )  # fmt: skip
    settings = load(SweepSettings, path)
    sweep(settings, QUIET, "")
    trials = table(settings.storage / scheduler)
    search = trials[trials["phase"] == "search"]
    stopped, finished = search[search["status"] == "stopped"], search[search["status"] == "finished"]
    assert len(stopped) >= 2 and len(finished) >= 1 and len(search) == 8
    assert (stopped["epochs"] < 9).all() and (finished["epochs"] == 9).all()
    assert stopped["reason"].str.contains(f"by {scheduler} after").all()
    (final,) = trials[trials["phase"] == "final"].itertuples()
    best = finished.loc[finished["score"].idxmax()]
    assert final.point == best["point"] and final.epochs == 9
    assert best["optimizer.lr"] > 1e-4
    logged = {path.parent.name for path in (settings.storage / scheduler).glob("tune/*/*/events.out.*")}
    assert logged == set(trials.index), "the loggers that the sweep names, and each trial in them"
    _nothing_is_taken()


@pytest.fixture(scope="module")
def course(emojis: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Overrides that make the course's sweep small: toy towers, and small datasets in the places of MS-COCO and ImageNet."""
    home = tmp_path_factory.mktemp("course")
    captions = Prepared.open(emojis).texts().to_pylist()
    tokenizer = train_tokenizer(captions, 300, 30)
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 32}
    torch.manual_seed(0)
    DistilBertModel(DistilBertConfig(**sizes, vocab_size=tokenizer.vocabulary_size)).save_pretrained(home / "bert")
    (home / "bert" / "tokenizer.json").write_text(tokenizer.json, encoding="utf-8")
    for name, lines, label in (("coco", 5, None), ("imagenet", 1, "class")):
        folder = home / f"{name}-images"
        for i, image in enumerate(Prepared.open(emojis).images(np.arange(40))):
            place = folder / ("shark", "clock", "tree")[i % 3] / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            assert isinstance(image, bytes)
            place.write_bytes(image)
            place.with_suffix(".txt").write_text("\n".join(f"image {i} seen {k} times" for k in range(lines)))
        source = {"name": "folder", "path": str(folder), "dataset": name, "captions": "all_lines", "label": label}
        tree = {"source": source, "output": home / name, "image": {"size": 32, "format": "png"}}
        prepare(PrepareSettings.model_validate(tree | {"splits": {"test": 0.5, "validation": 0.3}}), QUIET)
    also = [{"path": str(home / "coco"), "labels": []}, {"path": str(home / "imagenet"), "retrieval": False}]
    yield [
        f"storage={home}",
        f"overrides.data.path={emojis}",
        "overrides.data.validation=0.2",
        f"overrides.evaluation.extra_datasets={json.dumps(also)}",
        "overrides.evaluation.every_epochs=1",
        "overrides.image_tower.model=test_resnet",
        "overrides.image_tower.weights=null",
        "overrides.image_tower.image_size=32",
        f"overrides.text_tower.weights={home}/bert",
        "overrides.precision=fp32",
        "overrides.global_batch_size=64",
        "overrides.resources.use_gpu=false",
        "overrides.resources.cpus_per_worker=1",
        "overrides.resources.data_cpus=1",
        "budget.epochs=2",
        "scheduler.grace_epochs=1",
    ]


@pytest.mark.e2e
def test_the_courses_sweep_at_toy_size_with_a_ray_train_run_for_each_trial(course: list[str]) -> None:
    """The first trial's process is killed: its Ray Train run must give its CPU back, or the second would wait for ever."""
    objective = "{name: sogclr, temperature: 0.01, gamma: 0.8, epsilon: 1e-8}"
    small = [f"grid.objective=[{objective}]", "grid.optimizer.name=[adamw]", "trials=2", "seeds=[0]", "retries=0"]
    command = [sys.executable, "-m", "tuning", "tuning/sweeps/course.yaml", *course, *small]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    folder = Path(course[0].removeprefix("storage=")) / "course"
    first = folder / "trials" / "sogclr-adamw-p0"
    wait_until(lambda: (first / HELD).exists() or process.poll() is not None)  # its Ray Train run has begun
    assert process.poll() is None, process.communicate()[0]
    os.kill(int((first / ".lock").read_text()), signal.SIGKILL)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert "1 at a time, each 1 worker x 1 CPU + 1 CPU for reading and decoding" in output
    trials = table(folder)
    assert trials["status"].to_dict() == {
        "sogclr-adamw-p0": "failed",
        "sogclr-adamw-p1": "finished",
        "sogclr-adamw-p1-seed0": "finished",
    }
    ways = ["retrieval/coco/image_to_text_recall@1", "retrieval/coco/text_to_image_recall@1", "zero_shot/imagenet_class/top1"]
    ended = trials[trials["status"] == "finished"]
    assert ended["score"].to_list() == pytest.approx(ended[ways].mean(axis=1).to_list())
    sizes = json.loads((folder / "sweep.json").read_text())["sample_sizes"]
    coco = Prepared.open(folder.parent / "coco").split_ids()["test"]
    assert sizes[ways[0]] == len(coco) and sizes[ways[1]] == 5 * len(coco)
    assert not [c for c in trials.columns if c.startswith("retrieval/imagenet")]
    assert list(Folder(folder).of("sogclr-adamw-p1-seed0").glob("checkpoint_*")), "the seeds' runs keep their weights"
    assert not list(folder.glob("trials/*-p1/checkpoint_*")), "those of the search do not"
