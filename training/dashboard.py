"""A run's figures among Ray's own metrics: on its dashboard, and for Prometheus."""

from collections.abc import Callable, Mapping
from typing import Any

from ray.util.metrics import Gauge

_SHOWN = {
    "step": "optimizer steps that are done",
    "samples_per_second": "pairs, over all workers",
    "data_wait": "share of time in which rank 0 waits for data",
    "loss": "of the global batch",
}


def shown_by_ray(run: str, rank: int) -> Callable[[Mapping[str, Any]], None]:
    """A function that sets `raylign_step` and so on, with the tag `run`, from a line of metrics; on rank 0."""
    if rank:
        return lambda _: None
    gauges = {name: Gauge(f"raylign_{name}", about, ("run",)) for name, about in _SHOWN.items()}

    def show(line: Mapping[str, Any]) -> None:
        for name, gauge in gauges.items():
            if name in line:
                gauge.set(line[name], {"run": run})

    return show
