"""The config of `python -m tuning SWEEP.yaml`: a training config, a grid of overrides, a search space for each cell, and seeds.

There is no second configuration language: the keys of grid and space are keys of the training config, and a trial is a set of
overrides of it.
"""

import math
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.program.path_keys import LocalPlace, Place
from pipelines.program.settings_base import Settings


class Dimension(Settings):
    """Values of one key that the sampler may choose from: a range, or a list of choices."""

    low: float | None = Field(None, description="lower bound of a range")
    high: float | None = Field(None, description="upper bound of a range")
    log: bool = Field(False, description="search on a logarithmic scale, as for learning rates")
    integer: bool = Field(False, description="whole numbers only")
    points: int | None = Field(None, ge=2, description="for sampler grid: number of values, evenly spread over the range")
    choices: list[Any] | None = Field(None, min_length=1, description="values to choose from, in place of a range")
    when: dict[str, Any] = Field(
        default_factory=dict, description="only if these keys have this value, or one of these: {objective.name: [clip, psd]}"
    )

    @model_validator(mode="after")
    def _range_or_choices(self) -> "Dimension":
        ends = (self.low, self.high)
        if (self.choices is None) == (None in ends):
            raise ValueError("give low and high, or choices")
        if self.choices is not None and (twice := _twice(self.choices)):
            raise ValueError(f"choices: {twice[0]!r} is listed twice; remove one of them")
        if self.choices is not None and (ends != (None, None) or self.log or self.integer or self.points):
            raise ValueError("choices take no low, high, log, integer or points")
        if self.low is not None and self.high is not None:
            if not self.low < self.high:
                raise ValueError(f"low: {self.low:g} is not below high: {self.high:g}")
            if self.log and self.low <= 0:
                raise ValueError(f"low: {self.low:g} has no logarithm; with log: true choose a positive number")
            if self.integer and (self.low % 1 or self.high % 1):
                raise ValueError(f"integer: the range {self.low:g} to {self.high:g} must begin and end with whole numbers")
        return self

    def spread(self) -> list[Any]:
        """The values that a grid tries: the choices, or `points` values over the range."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None and self.high is not None and self.points is not None
        shares = [i / (self.points - 1) for i in range(self.points)]
        if self.log:
            values = [math.exp(math.log(self.low) + s * (math.log(self.high) - math.log(self.low))) for s in shares]
        else:
            values = [self.low + s * (self.high - self.low) for s in shares]
        return list(dict.fromkeys(self.tidy(value) for value in values))

    def tidy(self, value: Any) -> Any:
        """Four significant digits, within the range: short enough to type, and as in the trial's command."""
        if self.choices is not None:
            return value
        assert self.low is not None and self.high is not None
        if self.integer:
            return round(value)
        return min(max(float(f"{value:.4g}"), self.low), self.high)


class TpeSettings(Settings):
    """Optuna's tree-structured Parzen estimator: learns from each cell's earlier trials where good points lie."""

    name: Literal["tpe"] = "tpe"
    startup: int = Field(5, ge=1, description="points of a cell that are drawn at random first")
    parallel: int = Field(
        1, ge=1, description="points of a cell that may run at once; each is chosen without the others' results"
    )
    cost: Literal["seconds", "peak_memory_gib"] | None = Field(
        None, description="search for good trade-offs between score and this cost; null: for the score alone"
    )


class CmaEsSettings(Settings):
    """Optuna's CMA-ES: for several continuous keys and many trials."""

    name: Literal["cmaes"]
    startup: int = Field(5, ge=1, description="points of a cell that are drawn at random first")
    parallel: int = Field(
        1, ge=1, description="points of a cell that may run at once; each is chosen without the others' results"
    )


class RandomSettings(Settings):
    """Independent draws."""

    name: Literal["random"]


class GridSettings(Settings):
    """Every combination of the choices, and of `points` values of the ranges."""

    name: Literal["grid"]


SamplerUnion = Annotated[TpeSettings | CmaEsSettings | RandomSettings | GridSettings, Field(discriminator="name")]


class NoScheduler(Settings):
    """Every trial runs to its end."""

    name: Literal["none"] = "none"


class AshaSettings(Settings):
    """Asynchronous successive halving: at each rung only the best share of all trials so far continues."""

    name: Literal["asha"]
    grace_epochs: int = Field(1, ge=1, description="epochs before a trial can be stopped")
    reduction_factor: float = Field(3, gt=1, description="one in N continues to the next rung, which is N times as far")


class MedianSettings(Settings):
    """Stops a trial whose best score so far is worse than the median of the others' means up to the same epoch."""

    name: Literal["median"]
    grace_epochs: int = Field(1, ge=1, description="epochs before a trial can be stopped")
    min_trials: int = Field(3, ge=1, description="trials that must have reached this epoch before the median is used")


class HyperbandSettings(Settings):
    """Successive halving in brackets: trials wait for each other at each rung, and continue from their checkpoints."""

    name: Literal["hyperband"]
    reduction_factor: float = Field(3, gt=1, description="one in N continues to the next rung, which is N times as far")


SchedulerUnion = Annotated[NoScheduler | AshaSettings | MedianSettings | HyperbandSettings, Field(discriminator="name")]


class BudgetSettings(Settings):
    """How long a trial trains: at most one of these keys; without any, as the training config says."""

    epochs: int | None = Field(None, ge=1, description="passes over the training split")
    samples: int | None = Field(None, ge=1, description="pairs seen, rounded up to whole epochs")
    minutes: float | None = Field(None, gt=0, description="time of training; a trial ends at the first evaluation after it")

    @model_validator(mode="after")
    def _one(self) -> "BudgetSettings":
        if sum(value is not None for value in (self.epochs, self.samples, self.minutes)) > 1:
            raise ValueError("give one of epochs, samples and minutes")
        return self


class SweepSettings(Settings):
    """For every cell of a grid: search good hyperparameters on a validation split, train the best with several seeds, test."""

    name: str = Field(description="the sweep writes under storage/name", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    storage: Place = Field(
        Path("runs"), description="folder of all runs and sweeps: on a cluster one that all nodes share, or s3://bucket/runs"
    )
    base: LocalPlace = Field(description="training config that every trial starts from")
    overrides: dict[str, Any] = Field(default_factory=dict, description="for all trials: key of the training config -> value")
    grid: dict[str, list[Any]] = Field(default_factory=dict, description="key of the training config -> values to cross")
    space: dict[str, Annotated[list[Dimension], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="key of the training config -> what to search in each cell; of several ranges the one whose `when` holds",
    )
    sampler: SamplerUnion = Field(TpeSettings(), description="how points of the space are chosen")
    trials: int | None = Field(None, ge=1, description="points that are tried in each cell; null: 10, or all of a grid")
    search_seed: int = Field(
        0, ge=0, description="seed of the search: of the points drawn, and of every trial's initial weights and data order"
    )
    seeds: list[int] = Field(
        [0], min_length=1, description="the best point of each cell is trained and tested with each of these seeds"
    )
    seed_keys: list[str] = Field(
        ["seed"], description="keys that receive the seed; with data.split_seed among them each seed has another test split"
    )
    validation: str = Field("validation", description="split on which points are chosen; final runs use the training config's")
    score: list[str] | None = Field(
        None, description="metrics whose mean ranks trials and cells; null: R@1, mean of both directions"
    )
    mode: Literal["max", "min"] = Field("max", description="whether larger or smaller scores are better")
    metrics: list[str] | None = Field(None, description="further metrics to show in the report; null: a selection")
    budget: BudgetSettings = Field(BudgetSettings(), description="how long a trial trains")
    scheduler: SchedulerUnion = Field(NoScheduler(), description="how trials of the search are stopped early")
    concurrency: int | None = Field(None, ge=1, description="trials at a time; null: as many as fit into the cluster")
    retries: int = Field(1, ge=0, description="restarts of a trial whose process died; it resumes from its checkpoint")
    loggers: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(
        default_factory=list, description="Ray Tune's own loggers; each needs its package"
    )
    overwrite: bool = Field(False, description="delete an earlier sweep of this name")

    @field_validator("overrides", "grid", mode="before")
    @classmethod
    def _dotted(cls, value: Any) -> Any:
        """`{optimizer: {lr: ...}}`, as dots on the command line make it, means `{optimizer.lr: ...}`."""
        return _flat(value) if isinstance(value, dict) else value

    @field_validator("space", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        """A single dimension needs no brackets."""
        if not isinstance(value, dict):
            return value
        return {key: [inner] if isinstance(inner, dict | Dimension) else inner for key, inner in _flat(value).items()}

    @field_validator("sampler", mode="before")
    @classmethod
    def _tpe_by_default(cls, value: Any) -> Any:
        return {"name": "tpe"} | value if isinstance(value, dict) else value

    @field_validator("grid")
    @classmethod
    def _no_empty_axis(cls, value: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in value.items():
            if not values:
                raise ValueError(f"'{key}' has no values; list at least one, or remove the key")
            labels = [label(key, v) for v in values]
            if len(set(labels)) < len(labels):
                twice = max(labels, key=labels.count)
                raise ValueError(f"'{key}' has two values called '{twice}'; make the key that differs an axis of its own")
        return value

    @field_validator("loggers")
    @classmethod
    def _installed(cls, value: list[str]) -> list[str]:
        packages = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
        for name in value:
            if find_spec(packages[name]) is None:
                problem = f"'{name}' needs the package {packages[name]}, which is not installed"
                raise ValueError(f"{problem}; pip install 'raylign[{name}]', or leave it out")
        return value

    @model_validator(mode="after")
    def _database_on_a_disk(self) -> "SweepSettings":
        if "mlflow" in self.loggers and isinstance(self.storage, str):
            raise ValueError("loggers: 'mlflow' writes into a database on a disk; leave it out, or give a folder as storage")
        return self

    @field_validator("seeds", "seed_keys", "score", "metrics", "loggers")
    @classmethod
    def _different(cls, value: list[Any] | None) -> list[Any] | None:
        if value is not None and (twice := _twice(value)):
            raise ValueError(f"{twice[0]!r} is listed twice; remove one of them")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> "SweepSettings":
        both = sorted(self.grid.keys() & self.space.keys())
        if both:
            raise ValueError(f"space.{both[0]}: is an axis of the grid too; remove it from one of them")
        for part in ("overrides", "grid", "space"):
            for key in getattr(self, part):
                if reason := self._set_by_the_sweep(key):
                    raise ValueError(f"{part}.{key}: {reason}")
        always = {key for key, dimensions in self.space.items() if not all(dimension.when for dimension in dimensions)}
        ignored = sorted(self.overrides.keys() & (self.grid.keys() | always))
        if ignored:
            raise ValueError(
                f"overrides.{ignored[0]}: is never used, as grid or space sets the key too; remove it from one of them"
            )
        names = list(self.space)
        for place, key in enumerate(names):
            later = [name for dimension in self.space[key] for name in dimension.when if name in names[place:]]
            if later:
                raise ValueError(
                    f"space.{key}: its `when` depends on {later[0]}, which is chosen after it; put {later[0]} before it"
                )
        if self.sampler.name == "grid":
            for key, dimensions in self.space.items():
                if any(d.choices is None and d.points is None for d in dimensions):
                    raise ValueError(f"space.{key}: a grid cannot spread a range without points; set points, or give choices")
        if self.sampler.name == "grid" and self.trials is not None:
            raise ValueError("trials: a grid tries all combinations; leave trials null, or choose sampler.name=random")
        if self.scheduler.name == "hyperband" and self.sampler.name not in ("random", "grid"):
            raise ValueError(
                "scheduler.name: hyperband makes points of a cell wait for each other, so none may depend on another's result; "
                "choose sampler.name=random or grid, or scheduler.name=asha"
            )
        if self.scheduler.name == "hyperband" and self.concurrency is not None:
            raise ValueError("concurrency: hyperband runs as many trials as there are CPUs for; leave concurrency null")
        if self.trials is not None and not self.space:
            raise ValueError("trials: there is nothing to try without a space; add a space, or leave trials null")
        return self

    def _set_by_the_sweep(self, key: str) -> str:
        """Why a trial would not read this key of the training config, and the way out; "" if it does."""
        if key in ("name", "storage", "overwrite"):
            return "each trial has its own folder below the sweep's; remove it, or set the sweep's own key"
        if key in self.seed_keys:
            return "seed_keys has it, so it is one of seeds in each trial; remove it from one of them"
        budget = "max_minutes" if self.budget.minutes is not None else "epochs"
        if key == budget and self.budget != BudgetSettings():
            return "budget sets it; remove it from one of them"
        return ""

    def cells(self) -> list[dict[str, Any]]:
        """Overrides of each cell, in the order of the grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]

    def identity(self) -> dict[str, Any]:
        """The settings that make results comparable; others (cells, trials, seeds, resources) may change when a sweep resumes."""
        free = {"name", "storage", "grid", "trials", "seeds", "metrics", "concurrency", "retries", "loggers", "overwrite"}
        return self.model_dump(mode="json", exclude=free) | {"axes": list(self.grid)}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a nested mapping; a dimension of a space is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value and not value.keys() & Dimension.model_fields.keys():
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _twice(values: list[Any]) -> list[Any]:
    """Values that repeat an earlier one; True does not equal 1 here."""
    return [
        value
        for i, value in enumerate(values)
        if any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in values[:i])
    ]


def label(key: str, value: Any) -> str:
    """The label of a value of an axis: a name, or the last part of the key with a number."""
    if isinstance(value, dict) and "name" in value:
        return str(value["name"])
    if isinstance(value, str):
        return value
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{key.split('.')[-1]}={text}"
