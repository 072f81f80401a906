"""Features of 100,000 texts: a program for the test that kills it, called with a dataset's folder and the number of actors.

A third argument is the part before which it stops for good, so that whoever kills it does not come too late, on any machine.
"""

import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.dataset.prepared import Prepared
from pipelines.features import feature_store
from pipelines.features.feature_store import stored_text_features
from pipelines.features.pool import Pool
from pipelines.program import cluster
from pipelines.program.display import Display

ROWS, WIDTH = 100_000, 48
TEXTS = [f"thing number {i}, {'very ' * (i % 7)}large" for i in range(ROWS)]


class Letters:
    """Counts of letters, scaled by the longest text seen together, and projected: who shares a batch decides every bit."""

    def __init__(self, seed: int):
        self._projection = np.random.default_rng(seed).normal(size=(128, WIDTH)).astype(np.float32)

    def __call__(self, texts: np.ndarray) -> np.ndarray:
        counts = np.stack([np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=128) for text in texts])
        return np.einsum("tl,lw->tw", counts / counts.sum(axis=1).max(), self._projection)


def features(prepared: Prepared, actors: int, display: Display) -> Path:
    """Where they are, once they are there."""
    (path,) = stored_text_features(prepared, [TEXTS], Letters, (7,), {"weights": "letters"}, Pool(actors), display)
    return path


def stop_before(part: int) -> None:
    """Let this process put no part in place from this one on."""
    write = feature_store._write

    def write_or_stop(found: Any, rows: np.ndarray) -> None:
        while found.start >= part * feature_store._PART:
            signal.pause()
        write(found, rows)

    feature_store._write = write_or_stop


if __name__ == "__main__":
    if len(sys.argv) > 3:
        stop_before(int(sys.argv[3]))
    if int(sys.argv[2]):
        cluster.start(cpus=2)
    features(Prepared.open(sys.argv[1]), int(sys.argv[2]), Display())
