"""Batches from tasks of Ray Data, in order: how many steps a task makes, and what may be under way at a time."""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.program.cluster import RETRIES, configure_data, deaths_as_errors
from pipelines.program.errors import UserError

if TYPE_CHECKING:
    from pipelines.dataset.stream import Worker

_PREFETCH = 3  # batches that are ready on the worker
# A task makes several steps: Ray Data polls its tasks ten times a second and needs two polls to reuse a slot, so a task of one
# small batch would leave its CPU idle most of the time.
_TASK_ROWS = 512
_TASK_BYTES = 80 << 20  # at most, unless one step alone is more


def in_tasks(
    compute: Callable[[int], dict[str, np.ndarray]],
    start: int,
    end: int,
    size: int,
    row_bytes: int,
    worker: "Worker",
    culprit: Callable[[int], UserError | None],
) -> Iterator[dict[str, Any]]:
    """The columns of items [start, end), on the worker's device.

    Args:
        compute: the columns of an item; runs in tasks.
        size: rows of an item, of about `row_bytes` each.
        culprit: the error to raise if tasks die at an item from this one on, if it is one of the data.
    """
    import ray.data

    configure_data()
    context = ray.data.DataContext.get_current()
    # Every worker runs its own execution, with its share of the CPUs that are left for data. The object store holds only as
    # many batches as keep those CPUs busy.
    cpus = max(1.0, worker.data_cpus)
    at_once = int(cpus) + 1  # one more than CPUs: it runs while the slot of another is being released
    batch_bytes = size * row_bytes
    together = max(1, min(_TASK_ROWS // size, _TASK_BYTES // batch_bytes))
    context.execution_options.resource_limits = ray.data.ExecutionResources(
        cpu=cpus, object_store_memory=(2 * at_once + 2) * together * batch_bytes
    )

    def make(parts: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for index in range(int(parts["start"][0]), int(parts["end"][0])):
            yield compute(index)

    # Not `from_arrow`, which runs tasks to inspect its tables, on CPUs that are not reserved.
    parts = [{"start": first, "end": last} for first, last in _parts(start, end, together, at_once)]
    items = ray.data.from_items(parts, override_num_blocks=len(parts))
    share = math.floor(100 * cpus / at_once) / 100  # rounded down: if the sum exceeded `cpus`, one task would not run
    dataset = items.map_batches(make, batch_size=1, num_cpus=share, max_retries=RETRIES, **_booked(worker))
    received = start
    with deaths_as_errors("prepare with verify=all to find images that crash their decoder", lambda: culprit(received)):
        for batch in dataset.iter_torch_batches(batch_size=size, prefetch_batches=_PREFETCH, device=worker.device):
            received += 1
            yield batch


def _booked(worker: "Worker") -> dict[str, Any]:
    """Options that make Ray run tasks on the CPUs reserved for them next to the workers, if there are any."""
    import ray.util
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = ray.util.get_current_placement_group()
    if group is None or group.bundle_count <= worker.world_size:
        return {}
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group)}


def _parts(start: int, end: int, together: int, at_once: int) -> Iterator[tuple[int, int]]:
    """The items [first, last) of each task: one item at first, so that the first batch comes soon, then up to `together`."""
    number = 0
    while start < end:
        count = min(together, 2 ** (number // at_once), end - start)
        yield start, start + count
        start, number = start + count, number + 1
