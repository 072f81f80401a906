"""What `python -m tuning SWEEP.yaml` is told: a training config, a grid of overrides, and seeds."""

from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from pipelines.settings import Settings


class SweepSettings(Settings):
    """A training config, run once for every cell of the grid and every seed."""

    name: str = Field(description="the sweep writes under storage/name", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    storage: Path = Field(Path("runs"), description="folder of all runs and sweeps")
    base: Path = Field(description="training config that every trial starts from")
    overrides: dict[str, Any] = Field(default_factory=dict, description="for all trials: key of the training config -> value")
    grid: dict[str, list[Any]] = Field(default_factory=dict, description="key of the training config -> values to cross")
    seeds: list[int] = Field([0], min_length=1, description="every cell is run with each of them")
    seed_keys: list[str] = Field(["seed", "data.split_seed"], description="keys that receive the seed: another split each time")

    @field_validator("grid")
    @classmethod
    def _no_empty_axis(cls, value: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in value.items():
            if not values:
                raise ValueError(f"'{key}' has no values; list at least one, or remove the key")
        return value

    def cells(self) -> list[dict[str, Any]]:
        """Overrides of each cell, in the order of the grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]
