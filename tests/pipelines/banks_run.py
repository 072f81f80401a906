"""Features of 100,000 texts: a program for the test that kills it, called with a dataset's folder and the number of actors."""

import sys
from pathlib import Path

import numpy as np

from pipelines import cluster
from pipelines.banks import Pool, text_banks
from pipelines.display import Display
from pipelines.prepared import Prepared

ROWS, WIDTH = 100_000, 48
TEXTS = [f"thing number {i}, {'very ' * (i % 7)}large" for i in range(ROWS)]


class Letters:
    """Counts of letters, scaled by the longest text seen together, and projected: who shares a batch decides every bit."""

    def __init__(self, seed: int):
        self._projection = np.random.default_rng(seed).normal(size=(128, WIDTH)).astype(np.float32)

    def __call__(self, texts: np.ndarray) -> np.ndarray:
        counts = np.stack([np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=128) for text in texts])
        return np.einsum("tl,lw->tw", counts / counts.sum(axis=1).max(), self._projection)


def bank(prepared: Prepared, actors: int, display: Display) -> Path:
    """Where it is, when it is there."""
    (path,) = text_banks(prepared, [TEXTS], Letters, (7,), {"weights": "letters"}, Pool(actors), display)
    return path


if __name__ == "__main__":
    if int(sys.argv[2]):
        cluster.start(cpus=2)
    bank(Prepared.open(sys.argv[1]), int(sys.argv[2]), Display())
