"""Reserves a run's resources whenever its workers start: their CPUs and GPUs, and the CPUs of the tasks that read for them.

Ray Train reserves resources for its workers only. If these take all CPUs, after a node was lost or next to another job, reading
tasks wait for ever without a message. Here both are reserved in one placement group, all or nothing, so workers never run without
the tasks that feed them; and a group that has to wait is reported.
"""

import fcntl
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import ray
import ray.util
from ray.util.placement_group import PlacementGroup

from pipelines.program.display import Display
from pipelines.program.nodes import Bundle, Node, Notices, all_fit, shortage, waits_for
from pipelines.program.ray_elastic import all_nodes, beyond_limits, free_resources
from pipelines.program.ray_internals import Store, beside_workers, bundles_of, can_grow, placement_group_of
from training.run_store import place_of

HELD = "placement_group"  # file in a run's folder with the placement group that it has reserved, or is waiting for
_INTERVAL = 1.0  # seconds between two checks
_STORE = Store("raylign-groups")  # the same of runs in a store, by their URIs: other nodes do not see the file
_BEYOND = "the cluster cannot grow enough for that, by its node types and their limits"


def room(beside: Sequence[Bundle], folder: Path) -> Any:
    """A callback for Ray Train that makes its controller reserve bundles for reading tasks with the workers."""
    return beside_workers(beside, partial(_book, folder))


_BOOKED: list[IO[str]] = []  # open, and locked, as long as the controller's process lives


def _book(folder: Path, group: str) -> None:
    file = (folder / HELD).open("w")
    fcntl.flock(file, fcntl.LOCK_SH)
    file.write(group)
    file.flush()
    _BOOKED.append(file)
    if isinstance(place := place_of(folder), str):
        _STORE.put(place, group.encode())


def wait_for_earlier(folder: Path, display: Display) -> None:
    """Wait until the controller of an earlier start has ended: it lives on for some seconds after its driver was killed.

    Until then it registers checkpoints, among them those that this start would take for incomplete ones.
    """
    try:
        with (folder / HELD).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                display.line(f"{folder}: waiting until what an earlier start of this run left running has ended")
                fcntl.flock(file, fcntl.LOCK_EX)
    except FileNotFoundError:
        return


def most_that_fit(nodes: Sequence[Node], worker: Bundle, beside: Sequence[Bundle], most: int) -> int:
    """How many workers, `most` or fewer, nodes with these free resources have room for, beside other bundles; 0 if for none."""
    return next((count for count in range(most, 0, -1) if all_fit([worker] * count + [*beside], nodes)), 0)


def give_back(place: Path | str) -> None:
    """Free the resources of a run that lost its driver or its controller, if it has any. `place`: its folder, or URI in a store.

    The controller has reserved them, and Ray frees them only when the whole job has ended too.
    """
    group = _group(place)
    if group is not None and _table(group).get("state") not in (None, "REMOVED"):
        ray.util.remove_placement_group(group)
    if isinstance(place, str):
        _STORE.delete(place)
    else:
        (place / HELD).unlink(missing_ok=True)


def waiting(place: Path | str) -> str:
    """What a run is waiting for before it starts or resumes; empty if it is not waiting."""
    group = _group(place)
    table = {} if group is None else _table(group)
    # RESCHEDULING: a node was lost with bundles of a group whose workers may still run.
    if table.get("state") not in ("PENDING", "RESCHEDULING"):
        return ""
    assert group is not None
    waiting = [bundle for bundle, node in bundles_of(group) if node is None]
    if not waiting:
        return ""
    beyond = f"; {_BEYOND}" if can_grow() and beyond_limits(group) else ""
    return shortage(waiting, free_resources(None), all_nodes()) + beyond


def nodes_of(folder: Path) -> dict[str, str]:
    """The addresses, by id, of the nodes on which a run has reserved resources."""
    group = _group(folder)
    ids = {} if group is None else _table(group).get("bundles_to_node_id", {})
    alive = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    return {node: alive[node] for node in ids.values() if node in alive}


class Watch:
    """A context in which a thread reports workers that wait for resources; the main thread is blocked by Ray Train.

    What an earlier start of the run still holds is freed before, and what this one holds if it fails.
    """

    def __init__(self, folder: Path, display: Display):
        self._folder, self._display, self._stop = folder, display, threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        give_back(self._folder)  # else, in a cluster that lives on, the same command would wait for its own CPUs
        if not self._display.quiet:
            self._thread.start()

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        if not self._display.quiet:
            self._thread.join()
        if error is not None and issubclass(error, Exception):  # if the program ends, so does its job
            give_back(self._folder)

    def _follow(self) -> None:
        notice = WaitNotice()
        while not self._stop.wait(_INTERVAL):
            if text := notice.due(self._folder):
                self._display.line(text)


class WaitNotice:
    """Reports that a run waits, again and again."""

    def __init__(self) -> None:
        self._notices = Notices()

    def due(self, place: Path | str) -> str:
        """The message to show now; usually empty."""
        text = waiting(place)
        seconds = self._notices.due(bool(text))
        if seconds is None:
            return ""
        return (
            f"{waits_for(text, seconds)}; or stop it, and start it again with fewer resources.num_workers or resources.data_cpus"
        )


def _group(place: Path | str) -> PlacementGroup | None:
    try:
        held = (_STORE.get(place) or b"").decode() if isinstance(place, str) else (place / HELD).read_text()
        return placement_group_of(held)
    except (OSError, ValueError):  # there is none, or it is being written
        return None


def _table(group: PlacementGroup) -> dict[str, Any]:
    return ray.util.placement_group_table(group)
