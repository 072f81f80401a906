"""A resolved sweep: what every trial trains, on which data and with which score; finds all mistakes that trials would share.

Nothing here starts Ray.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from evaluation.suite import HeldOut, metric_names
from pipelines.dataset.prepared import Prepared
from pipelines.io import storage
from pipelines.program.config_files import find_config
from pipelines.program.errors import UserError
from pipelines.program.settings import apply_overrides, read_config, validate
from pipelines.program.settings_base import digest
from training.config import TrainSettings
from training.plan import check_metric, held_out_data, make_order
from tuning.config import SweepSettings
from tuning.optuna_points import corners
from tuning.resolved import check_conditions, resolve
from tuning.results import dataset_of
from tuning.trials import Cell, Folder, Trial, cells_of


class SweepPlan:
    """Raises `UserError` for a mistake in the sweep file, its base, or the data, before anything starts."""

    def __init__(self, settings: SweepSettings):
        self.settings = settings = resolve(settings)
        self.cells = cells_of(settings)
        self.folder = Folder((settings.storage / settings.name).absolute())
        self.base = read_config(find_config(settings.base, "training"), TrainSettings)
        self._epochs: dict[tuple[str, int], int] = {}  # (cell, seed) -> epochs, if the budget is in samples
        self.prepared: dict[str, Prepared] = {}
        self.datasets: list[dict[str, Any]] = []
        for cell in self.cells:
            self._check(cell)
        check_conditions(settings, self.trees())

    def overrides(self, trial: Trial) -> dict[str, Any]:
        """Overrides of the base config, as in the trial's command."""
        return trial.overrides(self.settings, self._cell(trial.cell), self._budget(trial))

    def build(self, trial: Trial) -> TrainSettings:
        """The training config of a trial, with absolute paths: it runs in another process, perhaps on another machine."""
        return self._build(trial, self.overrides(trial))

    def _build(self, trial: Trial, overrides: Mapping[str, Any]) -> TrainSettings:
        given = {"name": trial.name, "storage": str(self.folder.path / "trials")}
        settings = validate(
            TrainSettings,
            apply_overrides(self.base, dict(overrides) | given, TrainSettings),
            f"{self.settings.base}, {trial.cell}",
        )
        also = tuple(
            other.model_copy(update={"path": storage.absolute(other.path)}) for other in settings.evaluation.extra_datasets
        )
        # A sweep chooses on its validation split and does its own testing, on the split that a run would test on.
        final = None if trial.phase == "search" else settings.evaluation.test_split
        splits = {"split": final or settings.evaluation.split, "test_split": None}
        absolute = {
            "data": settings.data.model_copy(update={"path": storage.absolute(settings.data.path)}),
            "evaluation": settings.evaluation.model_copy(update={"extra_datasets": also} | splits),
        }
        # Tune's loggers write events; a trial's own would duplicate them.
        return settings.model_copy(update=absolute | {"tensorboard": settings.tensorboard or False})

    @cached_property
    def score(self) -> list[str]:
        """The metrics whose mean is the score. Raises `UserError` for one that the runs do not have."""
        data = self._held_out(self.build(self.example(self.cells[0])))
        known = [name for theirs in data for name in metric_names(theirs)]
        if self.settings.score is None:
            return [f"retrieval/{data[0].dataset}/mean_recall@{min(data[0].settings.recall_at)}"]
        for name in [*self.settings.score, *(self.settings.metrics or [])]:
            if name not in known:
                raise UserError(f"score: '{name}' is no metric of these runs; they have: {', '.join(known)}")
        return self.settings.score

    @property
    def shown(self) -> list[str]:
        """Metrics of the report's tables, those of the score first."""
        if self.settings.metrics is not None:
            return list(dict.fromkeys([*self.score, *self.settings.metrics]))
        known = [name for data in self._held_out(self.build(self.example(self.cells[0]))) for name in metric_names(data)]
        more = [name for name in known if name.endswith("/top1") or "/mean_recall@" in name]
        return list(dict.fromkeys([*self.score, *more]))

    @property
    def test_split(self) -> str:
        """The split on which final runs are scored."""
        return self.build(self.example(self.cells[0], "final")).evaluation.split

    def identity(self) -> dict[str, Any]:
        """What must not change when a sweep resumes."""
        prints = {path: prepared.fingerprint for path, prepared in self.prepared.items()}
        cells = {cell.label: cell.overrides for cell in self.cells}
        return {"sweep": self.settings.identity(), "base": self.base, "data": prints, "cells": cells}

    def trees(self) -> list[dict[str, Any]]:
        """Each cell's config, for the conditions of the space."""
        return [self.build(self.example(cell)).model_dump(mode="json") for cell in self.cells]

    def groups(self) -> list[TrainSettings]:
        """Representative configs: one for each set of features that has to be stored."""
        found: dict[str, TrainSettings] = {}
        for cell in self.cells:
            for phase in ("search", "final") if self.settings.space else ("final",):
                settings = self.build(self.example(cell, phase))
                tree = settings.model_dump(mode="json", include={"data", "image_tower", "text_tower", "evaluation"})
                tree["data"] = tree["data"]["path"]
                tree["evaluation"] = [tree["evaluation"][key] for key in ("templates", "labels", "extra_datasets")]
                found.setdefault(digest(tree), settings)
        return list(found.values())

    def example(self, cell: Cell, phase: Any = None, params: Mapping[str, Any] | None = None, seed: int | None = None) -> Trial:
        """An example trial of a cell, for what all its trials share."""
        phase = phase or ("search" if self.settings.space else "final")
        if seed is None:
            seed = self.settings.search_seed if phase == "search" else self.settings.seeds[0]
        return Trial(cell.label, phase, 0, seed, dict(params or {}), {}, cell.slug)

    def _cell(self, label: str) -> Cell:
        return next(cell for cell in self.cells if cell.label == label)

    def _held_out(self, settings: TrainSettings) -> list[HeldOut]:
        found = held_out_data(settings, self.prepared[str(settings.data.path)])
        self.prepared |= {str(prepared.path): prepared for prepared, _ in found}
        return [data for _, data in found]

    def _check(self, cell: Cell) -> None:
        """Check data, splits, budget, and both ends of every range: a mistake here affects all trials of the cell."""
        # Without the budget, which is in samples of data that is not open yet.
        trial = self.example(cell)
        path = str(self._build(trial, trial.overrides(self.settings, cell, {})).data.path)
        if path not in self.prepared:
            self.prepared[path] = Prepared.open(path)
            self.datasets.append(self._describe(self.prepared[path], cell))
        settings = self.build(trial)
        tree = settings.model_dump(mode="json")
        for params in corners(self.settings.space, tree):
            self.build(self.example(cell, params=params))
        for phase in ("search", "final") if self.settings.space else ("final",):
            tried = self.build(self.example(cell, phase))
            make_order(tried, self.prepared[path])
            check_metric(tried, self._held_out(tried))
            tried.optimizer.check()
        if settings.data.fraction < 1:  # each seed draws a different fraction, and one of them may be too small
            for seed in self.settings.seeds:
                make_order(self.build(self.example(cell, "final", seed=seed)), self.prepared[path])

    def _describe(self, prepared: Prepared, cell: Cell) -> dict[str, Any]:
        """What the report says about a dataset. Raises `UserError` if it has no split to choose on."""
        settings, test = (self.build(self.example(cell, phase)) for phase in ("search", "final"))
        ids = prepared.split_ids(settings.data.split_seed, settings.data.validation)
        if self.settings.space and self.settings.validation not in ids:
            raise UserError(
                f"validation: {prepared.path} has no split '{self.settings.validation}' to choose on, but {', '.join(ids)}; hold "
                "one out with overrides: {data.validation: 0.15}, or prepare the data with splits.validation"
            )
        names = settings.data.split, self.settings.validation, test.evaluation.split
        return dataset_of(prepared, *(len(ids.get(name, ())) for name in names))

    def _budget(self, trial: Trial) -> dict[str, Any]:
        budget = self.settings.budget
        if budget.minutes is not None:
            return {"max_minutes": budget.minutes}
        if budget.epochs is not None:
            return {"epochs": budget.epochs}
        if budget.samples is None:
            return {}
        key = trial.cell, trial.seed
        if key not in self._epochs:
            cell = self._cell(trial.cell)
            example = self.example(cell, trial.phase, seed=trial.seed)
            settings = self._build(example, example.overrides(self.settings, cell, {}))
            order = make_order(settings, self.prepared[str(settings.data.path)])
            self._epochs[key] = math.ceil(budget.samples / (order.steps_per_epoch * settings.global_batch_size))
        return {"epochs": self._epochs[key]}
