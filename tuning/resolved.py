"""Resolves a sweep's values as the training config reads them, and finds conditions of its space that can never hold.

`"0.001"` and `1e-3` are the same learning rate to the training config, so labels, duplicates and `when` must treat them alike.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pipelines.program.errors import UserError
from pipelines.program.settings import apply_overrides, readings, validate
from training.config import TrainSettings
from tuning.config import Dimension, SweepSettings
from tuning.optuna_points import value_at


def resolve(settings: SweepSettings) -> SweepSettings:
    """Settings with every value as the training config reads it. Raises `UserError` if two values turn out to be equal."""
    space = {
        key: [
            dimension.model_dump()
            | {
                "choices": None if dimension.choices is None else [_resolved(key, value) for value in dimension.choices],
                "when": {name: _resolved_each(name, wanted) for name, wanted in dimension.when.items()},
            }
            for dimension in alternatives
        ]
        for key, alternatives in settings.space.items()
    }
    tree = settings.model_dump() | {
        "overrides": {key: _resolved(key, value) for key, value in settings.overrides.items()},
        "grid": {key: [_resolved(key, value) for value in values] for key, values in settings.grid.items()},
        "space": space,
    }
    return validate(SweepSettings, tree, settings.name)


def _resolved(key: str, value: Any) -> Any:
    parsed = [] if isinstance(value, dict) else readings(TrainSettings, key, value)
    # An integer stays as it was typed if it is read as a float.
    typed = type(value) is int and bool(parsed) and type(parsed[0]) is float
    return parsed[0] if parsed and not typed else value


def _resolved_each(key: str, wanted: Any) -> Any:
    return [_resolved(key, value) for value in wanted] if isinstance(wanted, list) else _resolved(key, wanted)


def check_conditions(settings: SweepSettings, trees: Sequence[Mapping[str, Any]]) -> None:
    """Raises `UserError` for a range of the space that no cell searches, and for a value in a `when` that never occurs.

    A grid may be narrowed on the command line: a name or a switch that its key can have may be missing from the grid.

    Args:
        trees: each cell's training config.
    """
    for key, alternatives in settings.space.items():
        for number, dimension in enumerate(alternatives):
            place = f"space.{key}" + (f".{number}" if len(alternatives) > 1 else "")
            narrowed = False
            for name, wanted in dimension.when.items():
                values = [value for tree in trees for value in _values(settings, name, tree)]
                for value in _listed(wanted):
                    if value not in values:
                        if not _may_be_missing(settings, name, value, trees):
                            raise UserError(
                                f"{place}.when",
                                f"{name} is never {value!r} in this sweep",
                                f"it is {_words(values)}; name one of these, or leave the range out",
                            )
                        narrowed = True
            if not narrowed and not any(_holds(settings, dimension, tree) for tree in trees):
                raise UserError(f"{place}.when", f"no cell of this sweep meets all of {dimension.when}", "remove a condition")


def _holds(settings: SweepSettings, dimension: Dimension, tree: Mapping[str, Any]) -> bool:
    """Whether any point of a cell can meet all conditions."""
    return all(
        any(value in _listed(wanted) for value in _values(settings, name, tree)) for name, wanted in dimension.when.items()
    )


def _values(settings: SweepSettings, key: str, tree: Mapping[str, Any]) -> list[Any]:
    """The possible values of a key in a cell: its config's value, or those searched."""
    values = [value_at(tree, key)]
    for dimension in settings.space.get(key, ()):
        if dimension.choices is not None or dimension.points:
            values += dimension.spread()
        elif dimension.integer:
            assert dimension.low is not None and dimension.high is not None
            values += range(round(dimension.low), round(dimension.high) + 1)
    return values


def _may_be_missing(settings: SweepSettings, key: str, value: Any, trees: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the value is a name, a switch or null of a key that the sweep varies, possible in some cell."""
    varied = any(key == axis or key.startswith(f"{axis}.") for axis in (*settings.grid, *settings.space))
    if not varied or not (value is None or isinstance(value, str | bool)):
        return False
    for tree in trees:
        with suppress(UserError):
            validate(TrainSettings, apply_overrides(tree, {key: value}, TrainSettings), settings.name)
            return True
    return False


def _listed(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def _words(values: Sequence[Any]) -> str:
    distinct = [value for i, value in enumerate(values) if value not in values[:i]]
    if distinct == [None]:
        return "null, or not a key of these runs"
    return " or ".join(repr(value) for value in distinct[:6]) + (" and more" if len(distinct) > 6 else "")
