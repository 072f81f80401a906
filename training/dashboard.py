"""A run's figures among Ray's own metrics: on its dashboard, and for Prometheus."""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

_SHOWN = {
    "step": "optimizer steps that are done",
    "samples_per_second": "pairs, over all workers",
    "data_wait": "share of time in which rank 0 waits for data",
    "loss": "of the global batch",
}


class Gauges:
    """`raylign_step` and so on, with the tag `run`, which the process that makes them sets."""

    def __init__(self, run: str):
        self._gauges = {name: Gauge(f"raylign_{name}", about, ("run",)) for name, about in _SHOWN.items()}
        self._tags = {"run": run}

    def show(self, line: Mapping[str, Any]) -> None:
        """Set them from a line of metrics.jsonl."""
        for name, gauge in self._gauges.items():
            if name in line:
                gauge.set(line[name], self._tags)
