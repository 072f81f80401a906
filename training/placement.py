"""What a run reserves whenever its workers start: their own CPUs and GPUs, and the CPUs of the tasks that read for them.

Ray Train reserves resources for its workers only. If those take all CPUs that are left, after a node was lost or next to
another job, reading tasks wait for ever without a message. Here both are reserved in one placement group, all or nothing, so
workers never run without the tasks that feed them; and a group that has to wait is reported.
"""

import threading
import time
from pathlib import Path
from typing import Any

import ray
import ray.util
from ray.util.placement_group import PlacementGroup

from pipelines.program.display import Display
from pipelines.program.ray_internals import beside_workers, placement_group_of

HELD = "placement_group"  # file in a run's folder: what it has reserved, or is waiting for
_PATIENCE = 5.0  # seconds within which a group that fits is placed
_LOOK = 1.0  # seconds between two checks


def room(cpus: float, folder: Path) -> Any:
    """A callback for Ray Train: its controller then starts workers with `cpus` for reading tasks beside them."""
    return beside_workers(bundles(cpus), (folder / HELD).write_text)


def bundles(cpus: float) -> list[dict[str, float]]:
    """What is booked for reading tasks, in pieces of one CPU: they may lie on different nodes."""
    whole, rest = int(cpus), cpus - int(cpus)
    return [{"CPU": 1.0}] * whole + ([{"CPU": rest}] if rest >= 0.01 else [])


def give_back(folder: Path) -> None:
    """Free the resources of a run's workers whose driver was killed or stopped, if there are any.

    Ray Train has a watcher for that, but it dies if two Ray instances run on one machine.
    """
    group = _group(folder)
    if group is not None and _table(group).get("state") not in (None, "REMOVED"):
        ray.util.remove_placement_group(group)
    (folder / HELD).unlink(missing_ok=True)


def waiting(folder: Path) -> str:
    """A description of what a run is waiting for before it starts or resumes; empty if it is not waiting."""
    group = _group(folder)
    table = {} if group is None else _table(group)
    # RESCHEDULING: a node was lost with bundles of a group whose workers may still run.
    if table.get("state") not in ("PENDING", "RESCHEDULING"):
        return ""
    needed = [sum(bundle.get(kind, 0) for bundle in table["bundles"].values()) for kind in ("CPU", "GPU")]
    there, free = ray.cluster_resources(), ray.available_resources()
    parts = [
        f"{count:g} {kind}s (the cluster has {there.get(kind, 0):g}, {free.get(kind, 0):g} of them free)"
        for kind, count in zip(("CPU", "GPU"), needed, strict=True)
        if count
    ]
    return (
        f"waiting for {' and '.join(parts)}: it goes on when a node comes or another job ends; or stop it, and start it again "
        "with fewer resources.num_workers or resources.data_cpus"
    )


class Watch:
    """Shows when a run's workers wait to be placed, from a thread, since the main thread is blocked."""

    def __init__(self, folder: Path, display: Display):
        self._folder, self._display, self._stop = folder, display, threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        (self._folder / HELD).unlink(missing_ok=True)  # of a run that was killed
        if not self._display.quiet:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if not self._display.quiet:
            self._thread.join()

    def _follow(self) -> None:
        teller = Teller()
        while not self._stop.wait(_LOOK):
            if text := teller.news(self._folder):
                self._display.line(text)


class Teller:
    """Reports a waiting run once, and again if it waits after it had continued."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._told = False

    def news(self, folder: Path) -> str:
        """The message to show now; usually none."""
        text, now = waiting(folder), time.monotonic()
        if not text:
            self._since, self._told = None, False
            return ""
        if self._since is None:
            self._since = now
        if self._told or now - self._since < _PATIENCE:
            return ""
        self._told = True
        return text


def _group(folder: Path) -> PlacementGroup | None:
    try:
        return placement_group_of((folder / HELD).read_text())
    except (OSError, ValueError):  # there is none, or it is being written
        return None


def _table(group: PlacementGroup) -> dict[str, Any]:
    return ray.util.placement_group_table(group)
