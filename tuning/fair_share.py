"""Gives other jobs their share of a cluster that a sweep fills.

A sweep's small trials run in one another's processes, whose resources Ray Tune would hold until the sweep ends; another sweep or
run would wait for hours. So a sweep hands out no further trial while it owes a place to a job that waits for one, and gives the
place of the next trial that ends back. Two sweeps that want everything have half of it each, in the end.
"""

import time
from collections.abc import Mapping, Sequence

from pipelines.program.nodes import Bundle, Node, all_fit
from pipelines.program.ray_elastic import Group, free_by_node, groups

_EVERY = 1.0  # seconds between two looks


class Share:
    """Of this process's job. `place`: what one trial takes."""

    def __init__(self, place: Bundle):
        self._place, self._looked, self._owes = place, 0.0, False

    def owed(self) -> bool:
        """Whether the next place belongs to another job, as of at most a second ago."""
        import ray

        if time.monotonic() - self._looked >= _EVERY:
            job = ray.get_runtime_context().get_job_id()
            self._owes = owes(job, self._place, groups(), free_by_node())
            self._looked = time.monotonic()
        return self._owes


def owes(own: str, place: Bundle, found: Sequence[Group], free: Mapping[str, Node]) -> bool:
    """Whether the job `own` has a place to give up.

    It has if another one waits for what fits only with the help of what this one holds, and would not have more than this one
    keeps, or has nothing at all.
    """
    kind = "GPU" if place.resources.get("GPU") else "CPU"
    held: dict[str, float] = {}
    with_ours = {node: Node(dict(one.resources), one.labels) for node, one in free.items()}
    for group in found:
        for bundle, node in group.bundles:
            if node is not None:
                held[group.job] = held.get(group.job, 0.0) + bundle.resources.get(kind, 0.0)
                if group.job == own and node in with_ours:
                    resources = with_ours[node].resources
                    for name, amount in bundle.resources.items():
                        resources[name] = resources.get(name, 0.0) + amount  # type: ignore[index]
    kept = held.get(own, 0.0) - place.resources.get(kind, 0.0)
    for group in found:
        waiting = [bundle for bundle, node in group.bundles if node is None]
        if group.job == own or not waiting:
            continue
        theirs, wanted = held.get(group.job, 0.0), sum(bundle.resources.get(kind, 0.0) for bundle in waiting)
        if not wanted or (theirs and theirs + wanted > kept):
            continue
        if not all_fit(waiting, list(free.values())) and all_fit(waiting, list(with_ours.values())):
            return True
    return False
