"""The points of one cell: an Optuna study whose suggestions depend on (sweep, seed, cell, point) only, not on scheduling.

Point k is chosen from the results of points 0 to k - parallel, whichever other trials have ended, by a sampler with its own seed
for this point. So a sweep that was killed, or runs on another number of CPUs, tries the same points. The study is not saved:
asked again in the same order with the same results, it gives the same points.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna

from pipelines.program.errors import UserError
from pipelines.program.randomness import torch_seed
from tuning.config import CmaEsSettings, Dimension, GridSettings, RandomSettings, SweepSettings, TpeSettings

optuna.logging.set_verbosity(optuna.logging.ERROR)

_MOST_CORNERS = 200


class Points:
    """Suggests the points of one cell.

    Args:
        cell: its label, which seeds the random numbers.
        config: the cell's resolved training config as a tree, for `when` conditions.
    """

    def __init__(self, settings: SweepSettings, cell: str, config: Mapping[str, Any]):
        self._settings, self._cell, self._config = settings, cell, config
        sampler = settings.sampler
        self._grid = _combinations(settings.space, config) if isinstance(sampler, GridSettings) else None
        self._costly = isinstance(sampler, TpeSettings) and sampler.cost is not None
        self._learns = not isinstance(sampler, RandomSettings | GridSettings)
        self._study = self._new_study()
        self._unasked = optuna.samplers.RandomSampler(seed=0)
        self._asked = 0
        self._told = 0
        self._open: dict[int, optuna.Trial] = {}  # asked and not told yet
        self._results: dict[int, Result] = {}

    @property
    def total(self) -> int:
        """Number of points to try."""
        if not self._settings.space:
            return 0
        if self._grid is not None:
            return len(self._grid)
        return self._settings.trials or 10

    def ready(self) -> bool:
        """Whether the next point can be chosen now: all results that it depends on are available."""
        return self._asked < self.total and all(k in self._results for k in range(self._depends_on(self._asked)))

    def ask(self, recorded: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """The next point: overrides, and the sampler's exact values, to be passed as `recorded` when it is asked again."""
        number = self._asked
        self._asked += 1
        if self._grid is not None:
            return self._grid[number], {}
        while self._told < self._depends_on(number):
            self._tell(self._told)
            self._told += 1
        study = self._study if self._learns else self._new_study()  # a study keeps all its trials
        # CMA-ES keeps its own state in its suggestions, so it makes them again.
        if recorded is not None and not isinstance(self._settings.sampler, CmaEsSettings):
            # All values are given, and TPE would compute its own first: a sweep of many trials would resume slowly.
            study.sampler = self._unasked
            study.enqueue_trial(dict(recorded))
        else:
            study.sampler = self._sampler(number)
        trial = study.ask()
        if self._learns:
            self._open[number] = trial
        point: dict[str, Any] = {}
        for key, alternatives in self._settings.space.items():
            index = alternative(key, alternatives, self._config, point)
            if index is not None:
                # A name for each alternative: Optuna requires one range per name.
                name = key if len(alternatives) == 1 else f"{key}@{index}"
                point[key] = alternatives[index].tidy(_suggest(trial, name, alternatives[index]))
        return point, dict(trial.params)

    def tell(self, point: int, result: "Result") -> None:
        """Record the result of a point."""
        if self._learns:
            self._results[point] = result

    def _new_study(self) -> optuna.Study:
        best = optuna.study.StudyDirection.MAXIMIZE if self._settings.mode == "max" else optuna.study.StudyDirection.MINIMIZE
        return optuna.create_study(directions=[best, optuna.study.StudyDirection.MINIMIZE][: 1 + self._costly])

    def _depends_on(self, number: int) -> int:
        """How many of the first points must have ended before the one of this number is chosen."""
        sampler = self._settings.sampler
        if isinstance(sampler, RandomSettings | GridSettings) or number < sampler.startup:
            return 0
        return max(0, number - sampler.parallel + 1)

    def _tell(self, number: int) -> None:
        trial, result = self._open.pop(number), self._results[number]
        if result.values is not None:
            self._study.tell(trial, result.values if self._costly else result.values[:1])
            return
        # Stopped or diverged: worse than all that got further. Any other outcome says nothing about the point.
        pruned = result.diverged or bool(result.curve)
        if not self._costly:
            for epoch, score in result.curve:
                trial.report(score, round(epoch))
        self._study.tell(trial, state=optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.FAIL)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        sampler = self._settings.sampler
        seed = torch_seed(f"point of {self._cell}", self._settings.search_seed, number) % 2**32
        if isinstance(sampler, TpeSettings):
            return optuna.samplers.TPESampler(n_startup_trials=sampler.startup, multivariate=True, seed=seed)
        if isinstance(sampler, CmaEsSettings):
            return optuna.samplers.CmaEsSampler(n_startup_trials=sampler.startup, seed=seed, warn_independent_sampling=False)
        return optuna.samplers.RandomSampler(seed=seed)


class Result:
    """The result of a point for its study.

    values: score and cost of a trial that finished; None for all others. curve: (epoch, score) of one that was stopped.
    diverged: its loss was not finite.
    """

    def __init__(
        self, values: tuple[float, float] | None, curve: list[tuple[float, float]] | None = None, diverged: bool = False
    ):
        self.values, self.curve, self.diverged = values, curve or [], diverged


def _suggest(trial: optuna.Trial, name: str, dimension: Dimension) -> Any:
    if dimension.choices is not None:
        return dimension.choices[trial.suggest_categorical(name, range(len(dimension.choices)))]
    assert dimension.low is not None and dimension.high is not None
    if dimension.integer:
        return trial.suggest_int(name, round(dimension.low), round(dimension.high), log=dimension.log)
    return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)


def alternative(key: str, alternatives: list[Dimension], config: Mapping[str, Any], point: Mapping[str, Any]) -> int | None:
    """Index of the dimension that applies, if any. Raises `UserError` if several do."""
    indices = [i for i, d in enumerate(alternatives) if all(_holds(k, v, config, point) for k, v in d.when.items())]
    if len(indices) > 1:
        problem = f"{len(indices)} of its {len(alternatives)} ranges apply at the same time"
        raise UserError(f"space.{key}", problem, "narrow their `when`")
    return indices[0] if indices else None


def _holds(key: str, wanted: Any, config: Mapping[str, Any], point: Mapping[str, Any]) -> bool:
    value = point[key] if key in point else value_at(config, key)
    return value in (wanted if isinstance(wanted, list) else [wanted])


def value_at(tree: Any, key: str) -> Any:
    """The value of a dotted key in a tree; None if there is none."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def corners(space: dict[str, list[Dimension]], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Points that include both ends of every range and every choice, so that an invalid value fails before the first trial.

    At most 200 for each end: of more combinations of choices the first ones.
    """
    if not space:
        return []

    def at(end: str) -> list[dict[str, Any]]:
        return _walk(space, config, lambda dimension: dimension.choices or [getattr(dimension, end)])

    return at("low")[:_MOST_CORNERS] + at("high")[:_MOST_CORNERS]


def _combinations(space: dict[str, list[Dimension]], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All points of a grid."""
    return _walk(space, config, lambda dimension: dimension.spread())


def _walk(
    space: dict[str, list[Dimension]], config: Mapping[str, Any], values: Callable[[Dimension], Sequence[Any]]
) -> list[dict[str, Any]]:
    """Points with all these values of the dimensions that apply; conditions may use keys that come before their own."""
    points: list[dict[str, Any]] = [{}]
    for key, alternatives in space.items():
        extended = []
        for point in points:
            index = alternative(key, alternatives, config, point)
            if index is None:
                extended.append(point)
            else:
                extended += [point | {key: alternatives[index].tidy(value)} for value in values(alternatives[index])]
        points = extended
    return points
