"""cluster.yaml is what Ray expects, and `ray job submit --working-dir .` works from the packaged directory alone."""

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
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipelines.program import spot_notice
from tests.patience import PATIENCE, wait_until
from training.checkpoint import newest_checkpoint

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


# --- jobs on a local head node


@dataclass
class Job:
    """A job that has ended."""

    code: int
    output: str


Submit = Callable[..., Job]


def free_port() -> int:
    """One that no system gives to somebody who does not name it, so that nobody's connection takes it before Ray does."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
    raise AssertionError("a hundred ports are taken")


@pytest.fixture(scope="module")
def session() -> Iterator[Path]:
    """Ray's folder. Short: Ray puts sockets into it, whose paths may have some hundred bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def environment(session: Path) -> dict[str, str]:
    """As on the cluster: a token is asked for, and `python` is the one that Ray runs on. Nothing points at the checkout."""
    kept = ("RAY_memory_monitor_refresh_ms", "RAY_worker_niceness", "RAY_worker_register_timeout_seconds")  # see conftest.py
    own = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHON")) or k in kept}
    path = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
    return own | {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4, "RAY_TMPDIR": str(session)}


@pytest.fixture(scope="module")
def head(session: Path, environment: dict[str, str]) -> Iterator[str]:
    """A head node of two CPUs, started somewhere else than in the checkout; its job address."""
    address = f"http://127.0.0.1:{(dashboard := free_port())}"
    options = {
        "port": free_port(),
        "dashboard-port": dashboard,
        "ray-client-server-port": free_port(),
        "dashboard-agent-listen-port": free_port(),
        "num-cpus": 2,
        "temp-dir": session,
        "include-dashboard": "true",
        "labels": "role=head,ray.io/market-type=on-demand",
    }
    command = ["ray", "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())]
    with (session / "head.txt").open("w") as log:
        process = subprocess.Popen(
            command, cwd=session, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        command = ["ray", "job", "list", "--address", address]

        def answers() -> bool:
            assert process.poll() is None, (session / "head.txt").read_text()
            return subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE).returncode == 0

        wait_until(answers, (session / "head.txt").read_text)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its own session, nobody else's; a polite end takes half a minute
        process.wait()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with what lies around in one after some work."""
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
    return folder


@pytest.fixture(scope="module")
def submit(head: str, package: Path, environment: dict[str, str]) -> Submit:
    """`ray job submit --working-dir . -- COMMAND`, in the checkout."""

    def submit(*command: str, options: tuple[str, ...] = ()) -> Job:
        whole = ["ray", "job", "submit", "--address", head, "--working-dir", ".", *options, "--", *command]
        done = subprocess.run(
            whole, cwd=package, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE
        )
        return Job(done.returncode, done.stdout)

    return submit


@pytest.fixture(scope="module")
def shared(submit: Submit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk that nodes share, with a small dataset that a job has prepared."""
    folder = tmp_path_factory.mktemp("shared")
    overrides = ["source.limit=160", "image.size=48", f"output={folder}/tiny"]
    job = submit("python", "-m", "pipelines", "pipelines/configs/openmoji.yaml", *overrides)
    assert job.code == 0, job.output
    return folder


WHERE = """
import json, ray, pipelines.program.cluster
pipelines.program.cluster.start()
def found():
    import os, training
    return training.__file__, os.environ['RAY_DATA_USE_DATASOURCE_V2'], os.environ['RAY_TRAIN_HEALTH_CHECK_INTERVAL_S']
print('FOUND', json.dumps([pipelines.__file__, *ray.get(ray.remote(found).remote())]))
"""


@pytest.mark.e2e
def test_code_comes_from_the_package(submit: Submit, session: Path) -> None:
    """In the job's process and in its tasks; and the package holds no data. A job may set variables that we set, too."""
    env = json.dumps({"env_vars": {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3"}})
    job = submit("python", "-c", WHERE, options=("--runtime-env-json", env))
    assert job.code == 0, job.output
    (line,) = [line for line in job.output.splitlines() if line.startswith("FOUND")]
    driver, task, reader, interval = json.loads(line.removeprefix("FOUND"))
    assert (reader, interval) == ("0", "0.3"), "our environment reaches tasks; what the job sets stays"
    unpacked = Path(driver).parents[1]
    assert session in unpacked.parents and "working_dir_files" in unpacked.parts
    assert Path(task) == unpacked / "training" / "__init__.py"
    files = [path for path in unpacked.rglob("*") if path.is_file()]
    assert not [path for path in files if path.relative_to(unpacked).parts[0] in ("data", "runs", ".venv", ".git")]
    assert unpacked / "pipelines" / "openmoji" / "annotations.csv" in files
    assert sum(path.stat().st_size for path in files) < 8e6, "sources, and small tables of names"


@pytest.mark.e2e
def test_training_as_a_job(submit: Submit, shared: Path) -> None:
    overrides = [
        f"data.path={shared}/tiny",
        f"storage={shared}/runs",
        "name=job",
        "epochs=1",
        "global_batch_size=32",
        "resources.cpus_per_worker=0.5",
        "resources.worker_labels.role=head",
        "resources.data_labels={role: '!train'}",
    ]
    job = submit("python", "-m", "training", "training/configs/from-scratch.yaml", *overrides)
    assert job.code == 0, job.output
    assert "Traceback" not in job.output
    run = shared / "runs" / "job"
    result = json.loads((run / "result.json").read_text())
    assert result["step"] == result["dataset"]["train_samples"] // 32
    assert (run / "report.html").exists()


@pytest.mark.e2e
def test_a_job_that_is_stopped_saves_a_checkpoint(
    submit: Submit, shared: Path, head: str, package: Path, environment: dict[str, str]
) -> None:
    """`ray job stop` sends SIGTERM, and leaves as long as the job asks for."""
    run = shared / "runs" / "stopped"
    overrides = [f"data.path={shared}/tiny", f"storage={run.parent}", "name=stopped", "epochs=100000", "global_batch_size=32"]
    overrides += ["resources.cpus_per_worker=0.5", "log_every=1", "checkpoint.every_minutes=null", "tensorboard=false"]
    long = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(PATIENCE)}})
    options = ("--no-wait", "--submission-id", "stopped", "--runtime-env-json", long)
    assert submit("python", "-m", "training", "training/configs/from-scratch.yaml", *overrides, options=options).code == 0
    wait_until((run / "metrics.jsonl").exists)

    def ray_job(what: str) -> str:
        command = ["ray", "job", what, "--address", head, "stopped"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout

    ray_job("stop")
    told = ray_job("logs").strip().splitlines()
    kept = newest_checkpoint(run)
    for part in ("SIGTERM: ", f"step {int(kept.name.split('_')[1]):,} ", str(kept), ": python -m training"):
        assert part in told[-1]
    assert "Traceback" not in "".join(told)


@pytest.mark.e2e
def test_a_client_without_the_token_is_rejected(head: str, environment: dict[str, str]) -> None:
    for mode, token in (("token", "fedcba9876543210" * 4), ("disabled", "")):
        others = environment | {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token}
        command = ["ray", "job", "list", "--address", head]
        done = subprocess.run(command, env=others, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode != 0 and "uthenticat" in done.stdout + done.stderr


@pytest.mark.e2e
def test_job_that_fails(submit: Submit, tmp_path: Path) -> None:
    """The program's one line arrives, and the code is not 0."""
    job = submit("python", "-m", "training", "training/configs/openmoji.yaml", "optimizer.learning_rate=1")
    assert job.code != 0
    assert "error: optimizer.learning_rate: " in job.output and "training/configs/openmoji.yaml" in job.output
