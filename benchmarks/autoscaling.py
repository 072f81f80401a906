"""A cluster that grows from nothing for a run, loses a spot node under it, and shrinks to nothing again: its nodes over time.

    python -m benchmarks.autoscaling [--idle SECONDS]      # about two minutes on 2 cores; prints a table

Ray's own autoscaler with the node types, labels and limits of `cluster.yaml`, on this machine: its fake provider starts a node's
processes in place of a machine. A node has one CPU (and a GPU that nobody uses) in place of its machine's. Preparing asks for
nodes with role=data, and training for these and for two with role=train, one of which is killed in the middle as a reclaimed spot
node is.

The provider is private to Ray and works only as an external one (`provider.type: external`), hence no test runs this.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
HEAD, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"  # what the provider calls the head, and its type
PATIENCE = 1800.0  # seconds for any step
TYPES = {"head": "head", "data": "cpu_worker", "train": "gpu_worker"}  # by their label; the provider mixes up other ones
RESOURCES = {"head": {"CPU": 0}, "cpu_worker": {"CPU": 1}, "gpu_worker": {"CPU": 1, "GPU": 1}}
STORE = 200 * 2**20  # bytes of each node's object store
TRAIN = {
    "name": "scaled",
    "image_tower": {"name": "conv", "image_size": 32, "channels": [16, 32]},
    "text_tower": {"name": "bag", "width": 32, "max_tokens": 16},
    "embed_dim": 32,
    "epochs": 10,
    "global_batch_size": 16,
    "log_every": 1,
    "evaluation": {"every_epochs": 10},
    "checkpoint": {"every_steps": 10},
    "resources": {"num_workers": 2, "data_cpus": 1, "worker_labels": {"role": "train"}, "data_labels": {"role": "data"}},
    "tensorboard": False,
}
PREPARE = {
    "source": {"name": "openmoji", "limit": 320},
    "image": {"size": 48, "format": "png"},
    "splits": {"test": 0.1},
    "node_labels": {"role": "data"},
}


def autoscaler(address: str, idle: float) -> dict[str, Any]:
    """The config of Ray's autoscaler: that of `cluster.yaml`, on this machine; nodes go after `idle` seconds."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    types = config["available_node_types"]
    for name, kind in types.items():
        kind |= {"resources": RESOURCES[name] | {"object_store_memory": STORE}, "node_config": {}}
    provider = {"type": "external", "module": PROVIDER, "gcs_address": address, "launch_multiple": True, "head_node_id": HEAD}
    types[HEAD_TYPE] = types.pop(config["head_node_type"])
    config |= {
        "head_node_type": HEAD_TYPE,
        "provider": provider,
        "auth": {},
        "idle_timeout_minutes": idle / 60,
        "file_mounts": {},
    }
    lists = [key for key in config if key.endswith("_commands")]
    lists += ["initialization_commands", "cluster_synced_files"]  # for other providers, Ray fills them in
    return config | {key: [] for key in lists} | {"file_mounts_sync_continuously": False}


class Cluster:
    """A head without CPUs and its autoscaler, in a session of their own, which is killed at the end."""

    def __init__(self, folder: Path, idle: float):
        import ray.util

        port = _free_port()
        self.address = f"{ray.util.get_node_ip_address()}:{port}"
        config = autoscaler(self.address, idle)
        file = folder / "autoscaler.yaml"
        file.write_text(yaml.safe_dump(config))
        self.environment = os.environ | {"PYTHONPATH": str(ROOT)}
        fake = {
            "RAY_enable_autoscaler_v2": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
            "RAY_NODE_TYPE_NAME": "head",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_raylet_start_wait_time_s": "300",  # where the machine is busy
        }
        labels = ",".join(f"{key}={value}" for key, value in config["available_node_types"][HEAD_TYPE]["labels"].items())
        command = ["ray", "start", "--head", "--block", f"--port={port}", f"--autoscaling-config={file}", "--num-cpus=0"]
        command += [f"--object-store-memory={STORE}", f"--labels={labels}", f"--temp-dir={folder}/r", "--include-dashboard=false"]
        command += [f"--dashboard-port={_free_port()}", f"--dashboard-agent-listen-port={_free_port()}"]
        command += [f"--ray-client-server-port={_free_port()}"]
        self._log = folder / "head.txt"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, env=self.environment | fake, stdout=log, stderr=log, start_new_session=True
            )

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def check(self) -> None:
        """Raises where the head has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the head ended: {self._log.read_text()[-2000:]}")


class Record:
    """What happened, in seconds since the start: the number of live nodes of each type whenever it changed, and events."""

    def __init__(self) -> None:
        self._begun, self._lock = time.monotonic(), threading.Lock()
        self.lines: list[tuple[float, str, dict[str, int]]] = []
        self.nodes: dict[str, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Record":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def add(self, event: str) -> None:
        with self._lock:
            seconds = time.monotonic() - self._begun
            self.lines.append((seconds, event, dict(self.nodes)))
            print(f"{seconds:6.0f} s  {json.dumps(self.nodes)}  {event}", file=sys.stderr, flush=True)

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            nodes = _live_nodes()
            if nodes != self.nodes:
                before, self.nodes = self.nodes, nodes
                changes = [f"{n:+d} {kind}" for kind in RESOURCES if (n := nodes.get(kind, 0) - before.get(kind, 0))]
                self.add(", ".join(changes))

    def table(self) -> str:
        """In Markdown."""
        kinds = [kind for kind in RESOURCES if kind != "head"]
        rows = [f"| s | {' | '.join(kinds)} | |", f"|{'---|' * (len(kinds) + 2)}"]
        for seconds, event, nodes in self.lines:
            rows.append(f"| {seconds:.0f} | {' | '.join(str(nodes.get(kind, 0)) for kind in kinds)} | {event} |")
        return "\n".join(rows)


def _live_nodes() -> dict[str, int]:
    """The number of live nodes of each type."""
    import ray

    return dict(Counter(TYPES[node["Labels"]["role"]] for node in ray.nodes() if node["Alive"]))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(reached: Callable[[], bool], cluster: Cluster, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not reached():
        cluster.check()
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.2)


class Program:
    """A program of raylign's on the cluster; what it prints while it waits becomes part of the record."""

    def __init__(self, package: str, config: dict[str, Any], folder: Path, cluster: Cluster, record: Record):
        file = folder / f"{package}.yaml"
        file.write_text(yaml.safe_dump(config))
        self._record, self.text, self._name = record, "", package
        self._process = subprocess.Popen(
            [sys.executable, "-m", package, str(file)],
            cwd=folder,
            env=cluster.environment | {"RAY_ADDRESS": cluster.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        record.add(f"`python -m {package}` starts")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.text += line
            if line.startswith(("waiting for", "worker lost", "error", "training goes on")):
                said = line.strip().split(": it continues")[0].split(": a worker")[0]
                self._record.add(f"`{said}`")

    def ended(self) -> bool:
        """Whether it has ended. Raises where it failed."""
        code = self._process.poll()
        if code:
            raise RuntimeError(f"{self._name} ended with {code}: {self.text[-3000:]}")
        return code == 0

    def wait(self, cluster: Cluster) -> None:
        _wait(self.ended, cluster, self._name)
        self._thread.join()
        self._record.add(f"`python -m {self._name}` ends")

    def kill(self) -> None:
        self._process.kill()


def _reclaim(kind: str) -> None:
    """Kill a node's processes at once, as a machine that is taken away."""
    import ray

    import psutil  # isort: skip  comes with ray

    node = next(node for node in ray.nodes() if node["Alive"] and TYPES[node["Labels"]["role"]] == kind)
    raylets = [p for p in psutil.process_iter(["cmdline"]) if any(node["NodeID"] in word for word in p.info["cmdline"] or ())]
    if not raylets:
        raise RuntimeError(f"no process is the node {node['NodeID']}")
    for process in [*raylets, *(child for raylet in raylets for child in raylet.children(recursive=True))]:
        if process.is_running():
            process.kill()


def _steps(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", type=float, default=20, help="seconds after which an idle node goes")
    idle = parser.parse_args().idle
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex()}  # read when Ray is imported
    # Short: Ray puts sockets into it, whose paths may have some hundred bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as name, Cluster(folder := Path(name), idle) as cluster:
        import ray

        def joined() -> bool:
            try:
                ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, RuntimeError):
                return False
            return True

        _wait(joined, cluster, "the head")
        with Record() as record:
            _wait(lambda: record.nodes == {"head": 1}, cluster, "the first look")
            first = Program("pipelines", PREPARE | {"output": f"{folder}/data"}, folder, cluster, record)
            first.wait(cluster)
            run = folder / "runs" / TRAIN["name"]  # type: ignore[operator]
            config = TRAIN | {"storage": str(run.parent), "data": {"path": f"{folder}/data"}}
            program = Program("training", config, folder, cluster, record)
            try:
                _wait(lambda: program.ended() or _steps(run) > 25, cluster, "the first steps")
                _reclaim("gpu_worker")
                record.add(f"a gpu_worker is reclaimed at step {_steps(run)}")
                program.wait(cluster)
                _wait(lambda: record.nodes == {"head": 1}, cluster, "idle nodes to go")
                record.add("only the head is left")
            finally:
                program.kill()
                first.kill()
                print(record.table())
        ray.shutdown()
    print(json.dumps({"idle_timeout_s": idle, "cpus": os.cpu_count(), "ray": ray.__version__}))


if __name__ == "__main__":
    main()
