"""One run under a schedule on a cluster of this machine: its faults come when it reaches their points."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import ray
import ray._private.state
import yaml
from ray.cluster_utils import Cluster

from tests.chaos.checks import Broken, Checks, Injected, Outcome
from tests.chaos.places import InStore, OnDisk, Place
from tests.chaos.schedule import BATCH, BATCHES, EVALUATED, EVERY, STEPS, Fault, Schedule
from tests.object_store import Store
from tests.training.lost_steps import NOTICE, add_node, give_notice
from tests.training.squares import TRAIN
from tests.training.undisturbed import broken_squares, tree_of
from training.checkpoint_registry import registered
from training.placement import HELD
from training.process_states import _TASKS

import psutil  # isort: skip  comes with ray

ROOT = Path(__file__).parents[2]
NODES = 4  # of one CPU: for three workers, or two and a spare one, and for the tasks that read
STARTS = 8  # of the command, at most
SECONDS = 5.0  # that a worker stands still, a disk is full, or a store fails
MUTE = 30.0  # that a store answers nothing: longer than its clients wait for one answer
OF_A_PROCESS = {"kill-worker", "stop-worker", "freeze-worker", "kill-node", "notice"}
FREEZES = ("freeze-worker", "freeze-task")
PATIENCE = 600.0  # seconds without any news of a run: it hangs
DOCTORS = 30.0  # seconds of resources.patience_minutes where something freezes


class Simulator:
    """A cluster, and runs on it one after another; a context.

    Args:
        home: a folder for all that the runs need and leave; those of runs that ended well are deleted.
        small: a folder of a small file system, which can be filled; None: a schedule with `full-disk` is broken.
        store: for runs in a store; None: there are none.
    """

    def __init__(self, home: Path, small: Path | None = None, store: Store | None = None):
        self._home, self._small, self._store = home, small, store
        self._cluster: Cluster | None = None
        self._leaving: list[tuple[Any, float]] = []  # nodes under notice, and when they are taken away
        self._lasting: list[tuple[float, Callable[[], object]]] = []  # faults that last: until when, and what ends them
        self._caches, self._environment = 0, dict(os.environ)
        home.mkdir(parents=True, exist_ok=True)
        self._squares = broken_squares(home / "squares")
        self._checks = Checks(home, self._tree)
        if store is not None:
            os.environ |= store.environment
            for file in Path(self._squares.path).iterdir():
                store.put(f"squares/{file.name}", file.read_bytes())

    def __enter__(self) -> "Simulator":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        os.environ.clear()
        os.environ |= self._environment

    def run(self, schedule: Schedule, name: str) -> Outcome:
        """A run under this schedule."""
        outcome, began = Outcome(schedule), time.monotonic()
        try:
            self._start()
            aside = self._home / name
            aside.mkdir()
            place = self._place(schedule, name, aside)
            self._run(schedule, name, aside, place, outcome)
            self._take_away(time.monotonic() + NOTICE)
            self._checks.all_hold(schedule, place.brought(), aside, outcome, DOCTORS)
            self._nothing_is_taken()
            for injected in outcome.injected:
                self._stand_up(injected.pids)
            place.delete()
            shutil.rmtree(aside, ignore_errors=True)
        except Exception as error:
            outcome.broken = str(error) if isinstance(error, Broken) else f"the simulator failed: {traceback.format_exc()}"
            self._stop()  # whatever is left is gone before the next run
        outcome.seconds = time.monotonic() - began
        return outcome

    # --- the cluster

    def _start(self) -> None:
        if self._cluster is None:
            os.environ.pop("RAY_ADDRESS", None)
            os.environ["XDG_CACHE_HOME"] = self._cache()
            self._cluster = _head()
            ray.init(self._cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        assert self._cluster is not None
        self._take_away(time.monotonic() + NOTICE)
        while len(self._cluster.worker_nodes) < NODES:
            self._add_node()
        for node in sorted(self._cluster.worker_nodes, key=str)[NODES:]:
            self._cluster.remove_node(node)

    def _add_node(self) -> None:
        add_node(self._cluster, env_vars={"XDG_CACHE_HOME": self._cache()})

    def _cache(self) -> str:
        """A node's own disk."""
        self._caches += 1
        return str(self._home / f"cache-{self._caches}")

    def _take_away(self, now: float) -> None:
        """Kill the nodes whose notice has run out."""
        for entry in [entry for entry in self._leaving if entry[1] <= now]:
            self._leaving.remove(entry)
            if self._cluster is not None and entry[0] in self._cluster.worker_nodes:
                self._cluster.remove_node(entry[0], allow_graceful=False)

    def _end_lasting(self, now: float) -> None:
        for entry in [entry for entry in self._lasting if entry[0] <= now]:
            self._lasting.remove(entry)
            entry[1]()

    def _stop(self) -> None:
        self._end_lasting(float("inf"))
        with suppress(Exception):
            ray.shutdown()
        if self._cluster is not None:
            with suppress(Exception):
                self._cluster.shutdown()
        self._cluster, self._leaving = None, []

    def _nothing_is_taken(self) -> None:
        """The cluster is as it was: no placement group, all CPUs free, and no actor but what Ray Data keeps for the cluster."""

        def taken() -> list[Any]:
            groups = [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
            actors = [
                actor["ActorClassName"]
                for actor in ray._private.state.actors().values()
                if actor["State"] == "ALIVE" and not actor["IsDetached"]
            ]
            free = ray.available_resources().get("CPU", 0), ray.cluster_resources().get("CPU", 0)
            return groups + actors + ([] if free[0] == free[1] else [free])

        self._wait(lambda: not taken(), lambda: f"still taken in the cluster: {taken()}", 120)

    # --- one run

    def _place(self, schedule: Schedule, name: str, aside: Path) -> Place:
        if schedule.storage == "s3":
            assert self._store is not None
            place = InStore(self._store, name, aside / "brought")
            place.delete()  # what a broken run has left
            return place
        if not schedule.has("full-disk"):
            return OnDisk(aside, name)
        if self._small is None:
            raise Broken("full-disk needs a small file system, which this user may not mount")
        return OnDisk(self._small, name)

    def _run(self, schedule: Schedule, name: str, aside: Path, place: Place, outcome: Outcome) -> None:
        """Start the run, inject its faults, start it again until it has ended."""
        (aside / "schedule.json").write_text(json.dumps([[fault.phase, fault.step, fault.rank] for fault in schedule.faults]))
        tree = self._tree(schedule) | {"name": name, "storage": place.storage}
        if schedule.storage == "s3":
            assert self._store is not None
            tree["data"] = {"path": self._store.uri("squares")}
        (aside / "run.yaml").write_text(yaml.safe_dump(tree))
        program, news = None, time.monotonic()
        while True:
            if program is None:
                if outcome.starts == STARTS:
                    raise Broken(f"not ended after {STARTS} starts:\n{self._said(aside)}")
                outcome.starts += 1
                program = self._program(aside, outcome.starts)
                news = time.monotonic()
            for number, fault in enumerate(schedule.faults):
                told, go = aside / f"at-{number}", aside / f"go-{number}"
                if told.exists() and not go.exists():
                    worker = int(told.read_text())
                    if fault.kind in OF_A_PROCESS and not psutil.pid_exists(worker):
                        go.touch()  # an earlier fault took it along
                        continue
                    injected = Injected(number, fault, time.time())
                    outcome.injected.append(injected)
                    alive = self._inject(injected, worker, program, place)
                    go.touch()
                    news = time.monotonic()
                    if not alive:
                        program = None
                        break
            if program is not None and (code := program.poll()) is not None:
                if code == 0:
                    break
                if not outcome.injected:
                    raise Broken(f"ended with code {code} before any fault:\n{self._said(aside)}")
                program = None
            self._take_away(time.monotonic())
            self._end_lasting(time.monotonic())
            with suppress(FileNotFoundError):
                changed = (place.working / "metrics.jsonl").stat().st_mtime
                news = max(news, time.monotonic() - (time.time() - changed))
            if time.monotonic() - news > PATIENCE:
                said = self._said(aside)
                if program is not None:
                    self._kill(program)
                raise Broken(f"no news for {PATIENCE:.0f} s:\n{said}")
            time.sleep(0.05)
        self._end_lasting(float("inf"))

    def _tree(self, schedule: Schedule) -> dict[str, Any]:
        tree, batch = tree_of(self._squares, schedule.objective), BATCHES.get(schedule.objective, BATCH)
        epoch = TRAIN // batch  # steps
        workers: Any = [1, 3] if schedule.workers == "1-3" else int(schedule.workers)
        resources = {"num_workers": workers, "max_failures": 20}
        return tree | {
            "global_batch_size": batch,
            "epochs": STEPS // epoch,
            "evaluation": tree["evaluation"] | {"every_epochs": EVALUATED[0] // epoch},
            "checkpoint": {"every_steps": EVERY},
            "resources": resources | ({"patience_minutes": DOCTORS / 60} if schedule.has(*FREEZES) else {}),
        }

    def _program(self, aside: Path, start: int) -> psutil.Popen:
        assert self._cluster is not None
        with (aside / f"output-{start}.txt").open("w") as output:
            return psutil.Popen(
                [sys.executable, "-m", "tests.chaos.program", str(aside), str(aside / "run.yaml")],
                cwd=ROOT,
                env=os.environ | {"RAY_ADDRESS": self._cluster.address},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _said(self, aside: Path) -> str:
        return "\n".join(f"[start {p.stem}] {p.read_text()[-1500:]}" for p in sorted(aside.glob("output-*.txt"))[-2:])

    def _kill(self, program: psutil.Popen) -> None:
        with suppress(psutil.NoSuchProcess):  # it may have ended by itself
            program.kill()
        program.wait()

    # --- the faults

    def _inject(self, injected: Injected, worker: int, program: psutil.Popen, place: Place) -> bool:
        """Whether the program goes on."""
        assert self._cluster is not None
        kind = injected.fault.kind
        if kind == "kill-worker":
            os.kill(worker, signal.SIGKILL)
        elif kind in ("stop-worker", "freeze-worker", "freeze-task"):
            injected.pids = [*self._readers()] if kind == "freeze-task" else [worker]
            self._stand_still(injected.pids, for_ever=kind in FREEZES)
        elif kind in ("kill-node", "notice"):
            node = self._node_of(worker)
            if kind == "notice":
                give_notice(self._cluster, node)
            else:
                self._cluster.remove_node(node, allow_graceful=False)
            self._add_node()
            if kind == "notice":  # from now on the run goes on
                self._leaving.append((node, time.monotonic() + NOTICE))
        elif kind == "add-node":
            self._add_node()
        elif kind == "full-disk":
            self._fill(place.working.parent)
        elif kind == "store-fails":
            self._disturb(SECONDS, errors=0.5, resets=0.5, stalls=0)
        elif kind == "store-stalls":
            self._disturb(2 * SECONDS, errors=0, resets=0, stalls=1, stall_seconds=2)
        elif kind == "store-is-mute":
            self._disturb(MUTE, errors=0, resets=0, stalls=0, held=".")
        elif kind == "kill-head":
            ray.shutdown()  # Ray ends a process that is still connected after a minute, and the program may take longer
            self._cluster.head_node.kill_gcs_server(check_alive=False)
            with suppress(psutil.TimeoutExpired):
                program.wait(120)
            self._kill(program)
            self._stop()
            self._start()
            return False
        else:
            self._kill(program)
            self._damage(injected.fault, place)
            return False
        return True

    def _readers(self) -> Iterator[int]:
        """The processes of the cluster's nodes that read."""
        assert self._cluster is not None
        for node in self._cluster.worker_nodes:
            with suppress(psutil.Error):
                for child in psutil.Process(node.all_processes["raylet"][0].process.pid).children():
                    if " ".join(child.cmdline()).startswith(_TASKS):
                        yield child.pid

    def _stand_still(self, pids: list[int], for_ever: bool) -> None:
        def each(of: signal.Signals) -> None:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, of)

        each(signal.SIGSTOP)
        if not for_ever:
            self._lasting.append((time.monotonic() + SECONDS, lambda: each(signal.SIGCONT)))

    def _stand_up(self, pids: list[int]) -> None:
        """End processes that stand still and that nobody needed: Ray cannot end one when its job has ended."""
        for pid in pids:
            with suppress(psutil.Error):
                if (process := psutil.Process(pid)).status() == psutil.STATUS_STOPPED:
                    process.kill()

    def _node_of(self, worker: int) -> Any:
        assert self._cluster is not None
        raylets = [parent.pid for parent in psutil.Process(worker).parents()]
        (node,) = (n for n in self._cluster.worker_nodes if n.all_processes["raylet"][0].process.pid in raylets)
        return node

    def _fill(self, folder: Path) -> None:
        """Leave no byte on a disk for some seconds."""
        if folder != self._small:
            return
        filler = folder / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            for size in (1 << 16, 1):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))
        self._lasting.append((time.monotonic() + SECONDS, lambda: filler.unlink(missing_ok=True)))

    def _disturb(self, seconds: float, **policy: Any) -> None:
        """Let the store fail."""
        assert self._store is not None
        ends = ExitStack()
        ends.enter_context(self._store.faulty(**policy))
        self._lasting.append((time.monotonic() + seconds, ends.close))

    def _damage(self, fault: Fault, place: Place) -> None:
        """Of a checkpoint that has another one before it: without that the run could only say so."""
        if fault.kind == "kill-driver":
            return
        self._wait(lambda: not _group_is_there(place.working), lambda: "the controller of a killed program lives on", 120)
        run = place.brought()
        if len(registered(run)) < 2:
            return
        file = max(registered(run)[-1].iterdir(), key=lambda path: path.stat().st_size)
        data = bytearray(file.read_bytes())
        if fault.kind == "cut-checkpoint":
            del data[len(data) // 2 :]
        else:
            data[len(data) // 2] ^= 1
        place.replace(f"{file.parent.name}/{file.name}", bytes(data))

    def _wait(self, reached: Callable[[], bool], told: Callable[[], str], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not reached():
            if time.monotonic() > end:
                raise Broken(told())
            time.sleep(0.1)


def _head() -> Cluster:
    """A cluster of its head alone, which on a busy machine may not start in time, as other nodes."""
    options = {"num_cpus": 0, "include_dashboard": False}
    for _ in range(4):
        with suppress(Exception):
            return Cluster(initialize_head=True, head_node_args=options)
    return Cluster(initialize_head=True, head_node_args=options)


def _group_is_there(run: Path) -> bool:
    """Whether the controller of an earlier start holds its file: it registers checkpoints until it ends."""
    import fcntl

    try:
        with (run / HELD).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
