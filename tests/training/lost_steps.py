"""How many steps a run loses when its nodes are taken away, with a notice or without one, at moments that a seed chooses.

    python -m tests.training.lost_steps 20 --kills 5 --seed 1

One long run on a cluster of several nodes on this machine, of one CPU each. It prints a table with a row for each node that is
taken away. Another is there to take its place, or, with --elastic, comes once the run has gone on with fewer workers. Steps are
counted by what the workers report, which they do after each.
"""

import argparse
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.cluster_utils import Cluster

from tests.patience import wait_until
from tests.training.nodes import node_with
from tests.training.program import Program
from tests.training.squares import prepared_by_hand
from training.checkpoint_registry import newest_step
from training.metrics_file import read_metrics
from training.pulse import pulses
from training.run_store import RunStore

NOTICE = 60  # seconds between a notice and the loss of the node
WORKERS = 2
EVERY = 25  # steps between two checkpoints
CONFIG: dict[str, Any] = {
    "name": "run",
    "image_tower": {"name": "conv", "image_size": 16, "channels": [8, 16]},
    "text_tower": {"name": "bag", "width": 16, "max_tokens": 8},
    "embed_dim": 16,
    "epochs": 1_000_000,
    "global_batch_size": 7,
    "log_every": 1,
    "evaluation": {"every_epochs": 1_000_000},
    "checkpoint": {"every_steps": EVERY, "every_minutes": None},
    "resources": {"num_workers": WORKERS, "max_failures": 0},
    "tensorboard": False,
}


@dataclass(frozen=True)
class Loss:
    """A node that is taken away: `bundle` of the run is on it, a worker's or, the last one, that of the tasks that read."""

    notice: bool
    bundle: int
    after: int  # steps that the workers have made since they were started

    @property
    def of(self) -> str:
        return "the reading tasks" if self.bundle == WORKERS else f"worker {self.bundle + 1}"


@dataclass(frozen=True)
class Outcome:
    """What the run made of it: the steps done before, those of the checkpoints before and after, and the time to go on."""

    loss: Loss
    kind: str
    done: int
    saved: int
    resumed: int
    workers: int
    seconds: float

    @property
    def lost(self) -> int:
        return self.done - self.resumed


def losses(notices: int, kills: int, seed: int) -> list[Loss]:
    """In an order that the seed chooses."""
    chance = random.Random(seed)
    kinds = [True] * notices + [False] * kills
    chance.shuffle(kinds)
    return [Loss(notice, chance.randrange(WORKERS + notice), chance.randint(1, 2 * EVERY)) for notice in kinds]


class LongRun:
    """A run that goes on for as long as nodes are taken from it."""

    def __init__(self, cluster: Cluster, folder: Path, elastic: bool = False, storage: str = "", every: int = EVERY):
        """`storage`: a store's URI, where the run is to be; `every`: steps between two checkpoints."""
        self._cluster, self.run = cluster, RunStore(f"{storage}/run").folder if storage else folder / "run"
        for _ in range(WORKERS + 1 + (not elastic)):  # for the workers, the tasks that read for them, and to spare
            add_node(cluster)
        resources = {"num_workers": [1, WORKERS]} if elastic else {}
        squares = prepared_by_hand(folder / "squares", "squares")
        more = {"storage": storage or str(folder), "data": {"path": str(squares.path)}}
        more |= {"checkpoint": CONFIG["checkpoint"] | {"every_steps": every}}
        config = folder / "run.yaml"
        config.write_text(yaml.safe_dump(CONFIG | more | {"resources": CONFIG["resources"] | resources}))
        self.program = Program(config)

    def restarts(self) -> list[dict[str, Any]]:
        """The lines of restarts.jsonl."""
        return read_metrics(self.run / "restarts.jsonl")

    def reported(self) -> list[dict[str, Any]]:
        """The reports of the workers since they were last started."""
        assert self.program.process.poll() is None, self.program.text()
        since = max((line["time"] for line in self.restarts()), default=0.0)
        return [line for line in read_metrics(self.run / "metrics.jsonl") if line["time"] > since]

    def bundle_of_rank_0(self) -> int:
        """Where the worker is that saves."""
        (place,) = (i for i in range(WORKERS) if node_with(self._cluster, self.run, i).node_id == pulses(self.run)[0]["node"])
        return place

    def lose(self, loss: Loss, too_late: Callable[[Callable[[], None]], None] | None = None) -> Outcome:
        """Take a node away once all workers have made enough steps.

        `too_late`: called after the notice, with the function that takes the node away, which else waits until the run has left.
        """
        wait_until(
            lambda: sum(line["workers"] == WORKERS for line in self.reported()) >= loss.after, self.program.text, every=0.1
        )
        before, saved = len(self.restarts()), newest_step(self.run)
        node, begun = node_with(self._cluster, self.run, loss.bundle), time.time()
        take = partial(self._cluster.remove_node, node, allow_graceful=False)
        if loss.notice:
            give_notice(self._cluster, node)
        if too_late is not None:
            too_late(take)
        elif not loss.notice:
            take()
        wait_until(lambda: len(self.restarts()) > before, self.program.text, every=0.1)
        (line,) = self.restarts()[before:]
        if loss.notice and too_late is None:
            take()
        wait_until(lambda: bool(self.reported()), self.program.text, every=0.1)
        first = self.reported()[0]
        add_node(self._cluster)
        return Outcome(loss, line["kind"], line["step"], saved or 0, first["step"] - 1, first["workers"], first["time"] - begun)


def add_node(cluster: Cluster, **options: Any) -> None:
    """Of one CPU. Ray gives a node half a minute to start, which is too short on a busy machine."""
    for _ in range(4):
        with suppress(Exception):
            cluster.add_node(num_cpus=1, **options)
            return
    cluster.add_node(num_cpus=1, **options)


class Announced(BaseHTTPRequestHandler):
    """AWS's metadata of a spot node that will be taken away."""

    def do_PUT(self) -> None:
        self._answer("token")

    def do_GET(self) -> None:
        right = (
            self.path.endswith("/latest/meta-data/spot/instance-action") and self.headers["X-aws-ec2-metadata-token"] == "token"
        )
        when = (datetime.now(UTC) + timedelta(seconds=NOTICE)).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._answer(json.dumps({"action": "terminate", "time": when})) if right else self.send_error(401)

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


def give_notice(cluster: Cluster, node: Any) -> None:
    """As a cloud's notice reaches Ray (docs/cluster.md): `spot_notice`, which runs on each node, reads it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Announced) as cloud:
        threading.Thread(target=cloud.serve_forever, daemon=True).start()
        command = [sys.executable, "-m", "pipelines.program.spot_notice", "aws", "--address", cluster.address]
        command += ["--node-id", node.node_id, "--metadata", f"http://127.0.0.1:{cloud.server_port}"]
        subprocess.run(command, check=True, capture_output=True)
        cloud.shutdown()


@contextmanager
def empty_cluster() -> Iterator[Cluster]:
    """A head without CPUs."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


COLUMNS = ("taken away", "of", "kind", "step", "saved before", "resumed at", "workers", "lost steps", "seconds")


def row(outcome: Outcome) -> tuple[str, ...]:
    loss = outcome.loss
    what = f"{NOTICE} s after a notice" if loss.notice else "without one"
    numbers = outcome.done, outcome.saved, outcome.resumed, outcome.workers, outcome.lost, f"{outcome.seconds:.0f}"
    return what, loss.of, outcome.kind, *map(str, numbers)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.training.lost_steps", description=__doc__)
    parser.add_argument("notices", type=int, help="nodes taken away after a notice")
    parser.add_argument("--kills", type=int, default=0, help="nodes killed without one")
    parser.add_argument("--seed", type=int, default=0, help="of what is taken away, and when")
    parser.add_argument("--elastic", action="store_true", help=f"resources.num_workers=[1, {WORKERS}]")
    options = parser.parse_args(arguments)
    outcomes = []
    print("|", " | ".join(COLUMNS), "|", flush=True)
    print("|", " | ".join("---" for _ in COLUMNS), "|", flush=True)
    with tempfile.TemporaryDirectory() as folder, empty_cluster() as cluster:
        long = LongRun(cluster, Path(folder), options.elastic)
        try:
            for loss in losses(options.notices, options.kills, options.seed):
                outcomes.append(long.lose(loss))
                print("|", " | ".join(row(outcomes[-1])), "|", flush=True)
        finally:
            long.program.kill()
    for notice, most in ((True, 1), (False, EVERY)):
        lost = [outcome.lost for outcome in outcomes if outcome.loss.notice is notice]
        if lost:
            fine = sum(0 <= steps <= most for steps in lost)
            print(
                f"{'with' if notice else 'without'} a notice: 0 to {most} steps lost in {fine} of {len(lost)}, most {max(lost)}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
