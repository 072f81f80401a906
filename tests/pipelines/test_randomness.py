"""Random numbers belong to names, not to processes: resume and resharding depend on it."""

import os
import subprocess
import sys

import numpy as np
import pytest

from pipelines.program.randomness import generator, torch_seed, uniform_of
from tests.patience import PATIENCE

PRINT = """
from pipelines.program.randomness import generator, torch_seed, uniform_of
from tests.patience import PATIENCE
print(generator("view", 1, 2, 3).integers(2**40, size=3).tolist(), torch_seed("step", 0, 5, 1), uniform_of("a cat", 7))
"""


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_other_processes_draw_the_same_numbers(hash_seed: str) -> None:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", PRINT]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=PATIENCE)
    here = generator("view", 1, 2, 3).integers(2**40, size=3).tolist()
    assert ended.stdout.strip() == f"{here} {torch_seed('step', 0, 5, 1)} {uniform_of('a cat', 7)}"


def test_the_numbers_never_change() -> None:
    """Splits, orders and resumed runs of older versions hang on these values."""
    assert uniform_of("a cat", 0) == pytest.approx(0.7785017366793227, abs=1e-15)
    assert torch_seed("step", 0, 0, 0) == 8208872604703280409
    assert generator("rows", 0, 0, 0).permutation(6).tolist() == [2, 4, 0, 5, 3, 1]


def test_every_part_of_the_key_matters() -> None:
    keys = [("view", 1, 2), ("view", 2, 1), ("view", 1, 3), ("view", 1), ("caption", 1, 2)]
    assert len({int(generator(*key).integers(2**62)) for key in keys}) == len(keys)
    assert len({torch_seed(*key) for key in keys}) == len(keys)
    assert len({uniform_of(t, *k) for t, *k in [("a", 1), ("a", 2), ("b", 1), ("a1",), ("a",)]}) == 5
    assert all(0 <= torch_seed("step", s) < 2**63 for s in range(100))


def test_texts_are_spread_evenly_over_the_unit_interval() -> None:
    values = np.sort([uniform_of(f"group {i}", 0) for i in range(2000)])
    assert values[0] >= 0 and values[-1] < 1
    # Kolmogorov-Smirnov at about 1 in 1000.
    assert np.abs(values - (np.arange(2000) + 0.5) / 2000).max() < 1.95 / np.sqrt(2000)
