"""cluster.yaml is what Ray expects, and `ray job submit --working-dir .` works from the packaged directory alone.

No disk is shared: each node has a session folder, a home, a cache and a temporary folder of its own, and the rest is in a store.
"""

import copy
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray  # noqa: F401  brings psutil along
import yaml

from pipelines.program import spot_notice
from tests.object_store import Store, object_store
from tests.patience import PATIENCE, wait_until
from training.run_store import RunStore
from training.status import status_of

import psutil  # isort: skip  comes with ray

ROOT = Path(__file__).parents[1]


# --- cluster.yaml, offline


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """The config as `ray up` fills it in. Raises where Ray's schema or rules are broken."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    full = prepare_config(copy.deepcopy(config))
    validate_config(full)
    return full


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_cluster_is_valid(config: dict[str, Any]) -> None:
    full = checked(config)
    types = full["available_node_types"]
    head, workers = types[full["head_node_type"]], {n: t for n, t in types.items() if n != full["head_node_type"]}
    assert head["resources"]["CPU"] == 0, "training and data tasks stay off the head"
    assert "InstanceMarketOptions" not in head["node_config"], "the head is not reclaimed"
    assert set(workers) == {"cpu_worker", "gpu_worker"}
    assert all(t["min_workers"] == 0 < t["max_workers"] <= full["max_workers"] for t in workers.values())
    assert workers["gpu_worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert 0 < full["idle_timeout_minutes"] <= 30
    assert full["upscaling_speed"] > 0
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in " ".join(full["head_start_ray_commands"])
    assert "$RAY_HEAD_IP" in " ".join(full["worker_start_ray_commands"])
    watcher = f"python -m {spot_notice.__name__} aws --address=$RAY_HEAD_IP:6379"
    assert watcher in " ".join(full["worker_start_ray_commands"]), "Ray itself does not look for AWS's notices"
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in " ".join(full[commands]), "an open port of an open cluster runs anybody's code"


def test_cluster_installs_what_is_here(config: dict[str, Any]) -> None:
    """Mounted files exist, and are all that an installation needs; exact versions come from the constraints."""
    mounts = {remote: local for remote, local in config["file_mounts"].items() if remote.startswith("~/raylign/")}
    for remote, local in mounts.items():
        assert (ROOT / local).exists(), local
        assert remote == f"~/raylign/{local}"
    assert {"pyproject.toml", "constraints.txt", "pipelines", "evaluation", "training", "tuning"} <= set(mounts.values())
    installs = [command for command in config["setup_commands"] if "pip install" in command and "--no-deps" not in command]
    assert installs and all("-c ~/raylign/constraints.txt" in command for command in installs)


def test_what_is_somebodys_own_is_marked_and_not_filled_in() -> None:
    _, body = (ROOT / "cluster.yaml").read_text().split("\ncluster_name", 1)
    assert body.count("# CHANGE") == 4
    assert "ami-CHANGE-ME" in body and "fs-CHANGE-ME" in body


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("idle_timeout_minute",), 5),
        (("idle_timeout_minutes",), "soon"),
        (("head_node_type",), "haed"),
        (("available_node_types", "gpu_worker", "min_worker"), 0),
        (("available_node_types", "gpu_worker", "min_workers"), 100),
        (("provider", "type"), None),
        (("auth", "user"), "ubuntu"),
        (("worker_start_ray_commands",), "ray start"),
    ],
)
def test_a_mistake_is_found(config: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """So `test_cluster_is_valid` says something."""
    broken = copy.deepcopy(config)
    node = broken
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, ValueError, NotImplementedError)):
        checked(broken)


# --- jobs on a head and three nodes that share nothing but a store


# Nodes by name: the label `role`, and CPUs. A worker takes one CPU, so two of them are on two nodes.
NODES = {"head": ("head", 0), "data": ("data", 2), "first": ("train", 1), "second": ("train", 1)}
ON_LABELS = ["resources.worker_labels.role=train", "resources.data_labels.role=data"]


@dataclass
class Job:
    """A job that has ended."""

    code: int
    output: str


Submit = Callable[..., Job]


@dataclass(frozen=True)
class Nodes:
    """A running cluster. `folder`: a folder of each node, in which all of its own is."""

    folder: Path
    address: str  # of the job server
    metrics: int  # port of the head's own metrics

    def of(self, path: str | Path) -> str | None:
        """The node in whose folder a path is."""
        inside = Path(path).is_relative_to(self.folder)
        return Path(path).relative_to(self.folder).parts[0] if inside and Path(path) != self.folder else None

    def processes(self) -> Iterator[tuple[str, psutil.Process]]:
        """Those of each node: their environment has its folder."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                node = self.of(process.environ().get("XDG_CACHE_HOME", "/"))
                if node is not None:
                    yield node, process

    def cached(self, node: str) -> set[str]:
        """What a node has copied: the URIs of runs, and `features` if it has any."""
        cache = self.folder / node / "cache" / "raylign"
        runs = {note.read_text() for note in cache.glob("runs/*/.raylign-place")}
        return runs | {"features" for folder in cache.glob("*/*") if folder.parent.name != "runs"}


def free_port() -> int:
    """One that no system gives to somebody who does not name it, so that nobody's connection takes it before Ray does."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
    raise AssertionError("a hundred ports are taken")


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with object_store() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield store


@pytest.fixture(scope="module")
def environment(store: Store) -> dict[str, str]:
    """As on the cluster: a token is asked for, and `python` is the one that Ray runs on. Nothing points at the checkout."""
    kept = ("RAY_memory_monitor_refresh_ms", "RAY_worker_niceness", "RAY_worker_register_timeout_seconds")  # see conftest.py
    own = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHON")) or k in kept}
    path = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
    return own | {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


@pytest.fixture(scope="module")
def nodes(environment: dict[str, str]) -> Iterator[Nodes]:
    """Started somewhere else than in the checkout."""
    folder = Path(
        tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    )  # short: of the sockets in it paths have some hundred bytes at most
    port, dashboard, metrics, processes = free_port(), free_port(), free_port(), list[subprocess.Popen]()

    def start(name: str, *options: str) -> None:
        role, cpus = NODES[name]
        home = folder / name
        own = {"HOME": home / "home", "XDG_CACHE_HOME": home / "cache", "TMPDIR": home / "tmp", "RAY_TMPDIR": home / "ray"}
        for place in own.values():
            place.mkdir(parents=True)
        command = ["ray", "start", "--block", f"--num-cpus={cpus}", f"--temp-dir={home / 'ray'}", *options]
        command += [f"--dashboard-agent-listen-port={free_port()}", f"--labels=role={role},ray.io/market-type=on-demand"]
        with (home / "log.txt").open("w") as log:
            processes.append(
                subprocess.Popen(
                    command,
                    cwd=home,
                    env=environment
                    | {key: str(place) for key, place in own.items()}
                    | {"RAY_metrics_report_interval_ms": "1000"},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def told() -> str:
        return "\n".join(log.read_text() for log in folder.glob("*/log.txt"))

    def running() -> int:
        assert all(process.poll() is None for process in processes), told()
        return told().count("Ray runtime started")

    try:
        ports = [f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}", f"--metrics-export-port={metrics}"]
        start("head", "--head", f"--port={port}", "--include-dashboard=true", *ports)
        wait_until(lambda: running() == 1, told)
        for name in list(NODES)[1:]:
            start(name, f"--address=127.0.0.1:{port}")
        wait_until(lambda: running() == len(NODES), told)
        yield Nodes(folder, f"http://127.0.0.1:{dashboard}", metrics)
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)  # its own session, nobody else's; a polite end takes half a minute
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def sweep_of(store: Store) -> dict[str, Any]:
    """A sweep of two cells, a trial of the search and a final one of each, on the features of a run in the store."""
    tower = {"name": "run", "path": store.uri("runs", "job"), "mode": "locked"}
    return {
        "name": "sweep",
        "storage": store.uri("runs"),
        "base": "training/configs/openmoji.yaml",
        "overrides": {
            "data": {"path": store.uri("tiny"), "validation": 0.3},
            "image_tower": tower | {"image_size": 48},
            "text_tower": tower,
            "global_batch_size": 32,
            "resources.worker_labels.role": "train",
            "resources.data_labels.role": "data",
        },
        "grid": {"objective.name": ["clip", "cyclip"]},
        "space": {"optimizer.lr": {"low": 1e-3, "high": 1e-2}},
        "trials": 1,
        "budget": {"epochs": 1},
    }


@pytest.fixture(scope="module")
def package(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with what lies around in one after some work, and a config."""
    folder = tmp_path_factory.mktemp("package")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for name in (
        "data/openmoji/shard.parquet",
        "runs/demo/state.safetensors",
        ".venv/lib/torch.so",
        "pipelines/__pycache__/a.pyc",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(2**20))
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep_of(store)))
    return folder


@pytest.fixture(scope="module")
def submit(nodes: Nodes, package: Path, environment: dict[str, str]) -> Submit:
    """`ray job submit --working-dir . -- COMMAND`, in the checkout."""

    def submit(*command: str, options: tuple[str, ...] = ()) -> Job:
        whole = ["ray", "job", "submit", "--address", nodes.address, "--working-dir", ".", *options, "--", *command]
        done = subprocess.run(
            whole, cwd=package, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE
        )
        return Job(done.returncode, done.stdout)

    return submit


@pytest.fixture(scope="module")
def prepared(submit: Submit, store: Store) -> str:
    """A small dataset in the store, which a job has prepared."""
    overrides = ["source.limit=160", "image.size=48", f"output={store.uri('tiny')}", "node_labels.role=data"]
    job = submit("python", "-m", "pipelines", "pipelines/configs/openmoji.yaml", *overrides)
    assert job.code == 0, job.output
    return store.uri("tiny")


@pytest.fixture(scope="module")
def trained(submit: Submit, store: Store, prepared: str) -> Job:
    """The run `job` in the store, by two workers on two nodes."""
    overrides = [f"data.path={prepared}", f"storage={store.uri('runs')}", "name=job", "epochs=1", "global_batch_size=32"]
    overrides += ["resources.num_workers=2", *ON_LABELS]
    return submit("python", "-m", "training", "training/configs/from-scratch.yaml", *overrides)


WHERE = """
import json, ray, pipelines.program.cluster
pipelines.program.cluster.start()
def found():
    import os, training
    return training.__file__, os.environ['RAY_DATA_USE_DATASOURCE_V2'], os.environ['RAY_TRAIN_HEALTH_CHECK_INTERVAL_S']
print('FOUND', json.dumps([pipelines.__file__, *ray.get(ray.remote(found).remote())]))
"""


@pytest.mark.e2e
def test_code_comes_from_the_package(submit: Submit, nodes: Nodes) -> None:
    """In the job's process and in its tasks; and the package holds no data. A job may set variables that we set, too."""
    env = json.dumps({"env_vars": {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3"}})
    job = submit("python", "-c", WHERE, options=("--runtime-env-json", env))
    assert job.code == 0, job.output
    (line,) = [line for line in job.output.splitlines() if line.startswith("FOUND")]
    driver, task, reader, interval = json.loads(line.removeprefix("FOUND"))
    assert (reader, interval) == ("0", "0.3"), "our environment reaches tasks; what the job sets stays"
    unpacked, elsewhere = Path(driver).parents[1], Path(task).parents[1]
    assert nodes.of(unpacked) == "head" and nodes.of(elsewhere) in ("data", "first", "second")
    assert "working_dir_files" in unpacked.parts and unpacked.name == elsewhere.name
    files = [path for path in unpacked.rglob("*") if path.is_file()]
    assert not [path for path in files if path.relative_to(unpacked).parts[0] in ("data", "runs", ".venv", ".git")]
    assert unpacked / "pipelines" / "openmoji" / "annotations.csv" in files
    assert sum(path.stat().st_size for path in files) < 8e6, "sources, and small tables of names"


@pytest.mark.e2e
def test_training_as_a_job(trained: Job, store: Store) -> None:
    assert trained.code == 0, trained.output
    assert "Traceback" not in trained.output
    result = json.loads(store.get("runs/job/result.json") or b"")
    assert result["step"] == result["dataset"]["train_samples"] // 32
    assert b"</html>" in (store.get("runs/job/report.html") or b"")
    (start,) = result["history"]["workers"]
    assert start["workers"] == 2 and "s3://" in trained.output


@pytest.mark.e2e
def test_evaluation_as_a_job(trained: Job, submit: Submit, store: Store, nodes: Nodes, prepared: str) -> None:
    """It gives the scores that the run had at its end."""
    out = nodes.folder / "head" / "scores"
    settings = {"checkpoint": store.uri("runs", "job"), "data.openmoji.path": prepared, "cache": store.uri("embeddings")}
    overrides = [f"{key}={value}" for key, value in settings.items()] + [f"output={out}"]
    job = submit(
        "python", "-m", "evaluation", "evaluation/configs/openmoji.yaml", *overrides, "tasks=[retrieval]", "node_labels.role=data"
    )
    assert job.code == 0, job.output
    (file,) = out.glob("*/*/zeroshot_retrieval/result.json")
    scores = json.loads(file.read_text())["scores"]
    metrics = json.loads(store.get("runs/job/result.json") or b"")["metrics"]
    recalls = {name.rpartition("/")[2]: value for name, value in metrics.items() if name.endswith("_recall@1")}
    assert recalls and all(scores[name] == pytest.approx(value) for name, value in recalls.items())
    assert (out / "report.html").exists()


@pytest.mark.e2e
def test_a_job_that_is_stopped_saves_a_checkpoint(
    trained: Job, submit: Submit, store: Store, nodes: Nodes, package: Path, environment: dict[str, str], prepared: str
) -> None:
    """`ray job stop` sends SIGTERM, and leaves as long as the job asks for. While it runs: what each node has, and only it.

    Its image tower is the other run's, locked, so that nodes also read a tower and stored features.
    """
    before = sorted(package.rglob("*"))
    tower = {"name": "run", "path": store.uri("runs", "job"), "image_size": 48, "mode": "locked"}
    overrides = [f"data.path={prepared}", f"storage={store.uri('runs')}", "name=stopped", "epochs=100000", "global_batch_size=32"]
    overrides += ["log_every=1", "checkpoint.every_minutes=null", "tensorboard=false", "resources.num_workers=2", *ON_LABELS]
    overrides += [f"image_tower={json.dumps(tower)}"]
    long = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(PATIENCE)}})
    options = ("--no-wait", "--submission-id", "stopped", "--runtime-env-json", long)
    job = submit("python", "-m", "training", "training/configs/from-scratch.yaml", *overrides, options=options)
    assert job.code == 0, job.output

    def ray_job(what: str) -> str:
        command = ["ray", "job", what, "--address", nodes.address, "stopped"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout

    wait_until(lambda: store.get("runs/stopped/metrics.jsonl.parts/000000") is not None, lambda: ray_job("logs"), every=0.5)

    def scraped() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{nodes.metrics}/metrics") as answer:
            return answer.read().decode()

    def gauges() -> set[str]:
        shown = (line for line in scraped().splitlines() if 'run="stopped"' in line)
        return {line.partition("{")[0] for line in shown}

    names = {f"ray_raylign_{name}" for name in ("step", "samples_per_second", "data_wait", "loss")}
    wait_until(lambda: gauges() >= names, scraped, every=0.5)
    workers, writers = set(), set()
    for node, process in nodes.processes():
        with suppress(psutil.Error):
            title, opened = " ".join(process.cmdline()), process.open_files()
            for path in (process.cwd(), *(file.path for file in opened)):
                assert nodes.of(path) in (None, node), f"{title} of {node} uses {path}"
            written = [file.path for file in opened if file.mode != "r" and not file.path.startswith("/dev/")]
            assert all(nodes.of(path) == node for path in written), f"{title} of {node} writes to {written}"
            writers |= {node} if written else set()
            if title.startswith("ray::RayTrainWorker"):
                workers.add(node)
                assert "working_dir_files" in process.cwd()
    assert workers == {"first", "second"} and writers == NODES.keys()
    ray_job("stop")
    told = ray_job("logs").strip().splitlines()
    assert "Traceback" not in "".join(told)
    kept = status_of(store.uri("runs", "stopped")).kept
    for part in ("SIGTERM: ", f"step {kept:,} ", store.uri("runs", "stopped", f"checkpoint_{kept:08d}"), ": python -m training"):
        assert part in told[-1]
    other, stopped = (store.uri("runs", name) for name in ("job", "stopped"))
    assert nodes.cached("head") == {other, stopped, "features"}, "the programs ran here"
    assert nodes.cached("data") == {other}, "it computed features with the tower of the other run"
    assert nodes.cached("first") == nodes.cached("second") == {"features"}, "they train on them"
    assert sorted(package.rglob("*")) == before


@pytest.mark.e2e
def test_a_sweep_as_a_job(trained: Job, submit: Submit, store: Store, nodes: Nodes) -> None:
    job = submit("python", "-m", "tuning", "sweep.yaml")
    assert job.code == 0, job.output
    table = (store.get("runs/sweep/trials.csv") or b"").decode().splitlines()
    assert len(table) == 1 + 4 and b"</html>" in (store.get("runs/sweep/report.html") or b"")
    names = {name.split("/")[0] for name in RunStore(store.uri("runs", "sweep", "trials")).files()}
    assert len(names) == 4
    assert {status_of(store.uri("runs", "sweep", "trials", name)).state for name in names} == {"finished"}


@pytest.mark.e2e
def test_a_client_without_the_token_is_rejected(nodes: Nodes, environment: dict[str, str]) -> None:
    for mode, token in (("token", "fedcba9876543210" * 4), ("disabled", "")):
        others = environment | {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token}
        command = ["ray", "job", "list", "--address", nodes.address]
        done = subprocess.run(command, env=others, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode != 0 and "uthenticat" in done.stdout + done.stderr


@pytest.mark.e2e
def test_job_that_fails(submit: Submit, tmp_path: Path) -> None:
    """The program's one line arrives, and the code is not 0."""
    job = submit("python", "-m", "training", "training/configs/openmoji.yaml", "optimizer.learning_rate=1")
    assert job.code != 0
    assert "error: optimizer.learning_rate: " in job.output and "training/configs/openmoji.yaml" in job.output
