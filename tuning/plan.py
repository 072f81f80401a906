"""The plan of a sweep: the config, data and score of every trial. Finds all mistakes that trials would share.

Configs are checked before data is opened. Nothing here starts Ray, or imports what only running trials or the report need: a
mistake in the sweep file is reported within seconds.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from evaluation.suite import HeldOut, metric_names
from pipelines.dataset.prepared import Prepared
from pipelines.io import storage
from pipelines.program.config_files import find_config, find_shipped, shipped, short_name
from pipelines.program.config_keys import alike
from pipelines.program.errors import UserError
from pipelines.program.settings import apply_overrides, read_config, read_yaml, validate
from pipelines.program.settings_base import digest
from training.config import TrainSettings
from training.data import check_metric, held_out_data, make_order
from training.warmup import warmup_warning
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
        self.place = storage.join(storage.absolute(settings.storage), settings.name)
        self.folder = Folder(self.place)
        self.base = _read_base(settings.base)
        self._epochs: dict[tuple[str, int], int] = {}  # (cell, seed) -> epochs, if the budget is in samples
        self.prepared: dict[str, Prepared] = {}
        self.datasets: list[dict[str, Any]] = []
        self.warnings: dict[str, None] = {}  # about settings of the trials, each once
        with self.keys_of_runs():
            for cell in self.cells:
                self._build_without_budget(self.example(cell))
            for cell in self.cells:
                self._check(cell)
        check_conditions(settings, self.trees())

    @contextmanager
    def keys_of_runs(self) -> Iterator[None]:
        """Errors about keys of the runs name them as this sweep sets them: below `overrides`, `grid` or `space`."""
        try:
            yield
        except UserError as error:
            own = self._place(error.key) or error.key  # a key that only the base sets is named as in its file
            remedy = error.moved(lambda key: self._place(key) or f"overrides.{key}").remedy
            raise UserError(own, error.problem, remedy) from None

    def _place(self, key: str) -> str | None:
        """The sweep's key that sets a key of the runs; None if only their base does. Other keys are unchanged."""
        if key in self.settings.seed_keys:
            return "seed_keys"
        for part in ("space", "grid", "overrides"):
            names = getattr(self.settings, part)
            if key and any(f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.") for name in names):
                return f"{part}.{key}"
        return None if re.split(r"[.\[]", key)[0] in TrainSettings.model_fields else key

    def overrides(self, trial: Trial) -> dict[str, Any]:
        """Overrides of the base config, as in the trial's command."""
        return trial.overrides(self.settings, self._cell(trial.cell), self._budget(trial))

    def build(self, trial: Trial) -> TrainSettings:
        """The training config of a trial, with absolute paths: it runs in another process, perhaps on another machine."""
        return self._build(trial, self.overrides(trial))

    def _build_without_budget(self, trial: Trial) -> TrainSettings:
        """A budget in samples is known only when the data is open."""
        return self._build(trial, trial.overrides(self.settings, self._cell(trial.cell), {}))

    def _build(self, trial: Trial, overrides: Mapping[str, Any]) -> TrainSettings:
        own = {"name": trial.name, "storage": str(storage.join(self.place, "trials"))}
        settings = validate(
            TrainSettings,
            apply_overrides(self.base, dict(overrides) | own, TrainSettings),
            f"{self.settings.base}, {trial.cell}",
        )
        extra = tuple(
            other.model_copy(update={"path": storage.absolute(other.path)}) for other in settings.evaluation.extra_datasets
        )
        # A sweep chooses on its validation split and tests by itself, on the split that a run would test on.
        test_split = None if trial.phase == "search" else settings.evaluation.test_split
        splits = {"split": test_split or settings.evaluation.split, "test_split": None}
        absolute = {
            "data": settings.data.model_copy(update={"path": storage.absolute(settings.data.path)}),
            "evaluation": settings.evaluation.model_copy(update={"extra_datasets": extra} | splits),
        }
        # Tune's loggers write events; a trial's own would duplicate them.
        return settings.model_copy(update=absolute | {"tensorboard": settings.tensorboard or False})

    @cached_property
    def score(self) -> list[str]:
        """The metrics whose mean is the score. Raises `UserError` for one that the runs do not have."""
        data = self._held_out(self.build(self.example(self.cells[0])))
        names = [name for held_out in data for name in metric_names(held_out)]
        if self.settings.score is None:
            return [f"retrieval/{data[0].dataset}/mean_recall@{min(data[0].settings.recall_at)}"]
        for name in [*self.settings.score, *(self.settings.metrics or [])]:
            if name not in names:
                key = "score" if name in self.settings.score else "metrics"
                raise UserError(key, f"'{name}' is not a metric of these runs", f"choose from: {', '.join(names)}")
        return self.settings.score

    @property
    def shown(self) -> list[str]:
        """Metrics of the report's tables, those of the score first."""
        if self.settings.metrics is not None:
            return list(dict.fromkeys([*self.score, *self.settings.metrics]))
        names = [name for data in self._held_out(self.build(self.example(self.cells[0]))) for name in metric_names(data)]
        main = [name for name in names if name.endswith("/top1") or "/mean_recall@" in name]
        return list(dict.fromkeys([*self.score, *main]))

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
        groups: dict[str, TrainSettings] = {}
        for cell in self.cells:
            for phase in ("search", "final") if self.settings.space else ("final",):
                settings = self.build(self.example(cell, phase))
                tree = settings.model_dump(mode="json", include={"data", "image_tower", "text_tower", "evaluation"})
                tree["data"] = tree["data"]["path"]
                tree["evaluation"] = [tree["evaluation"][key] for key in ("templates", "labels", "extra_datasets")]
                groups.setdefault(digest(tree), settings)
        return list(groups.values())

    def example(self, cell: Cell, phase: Any = None, params: Mapping[str, Any] | None = None, seed: int | None = None) -> Trial:
        """An example trial of a cell, for what all its trials share."""
        phase = phase or ("search" if self.settings.space else "final")
        if seed is None:
            seed = self.settings.search_seed if phase == "search" else self.settings.seeds[0]
        return Trial(cell.label, phase, 0, seed, dict(params or {}), {}, cell.slug)

    def _cell(self, label: str) -> Cell:
        return next(cell for cell in self.cells if cell.label == label)

    def _held_out(self, settings: TrainSettings) -> list[HeldOut]:
        pairs = held_out_data(settings, self.prepared[str(settings.data.path)])
        self.prepared |= {str(prepared.path): prepared for prepared, _ in pairs}
        return [data for _, data in pairs]

    def _check(self, cell: Cell) -> None:
        """Check data, splits, budget, and both ends of every range: a mistake here affects all trials of the cell."""
        trial = self.example(cell)
        path = str(self._build_without_budget(trial).data.path)
        if path not in self.prepared:
            self.prepared[path] = Prepared.open(path)
            self.datasets.append(self._describe(self.prepared[path], cell))
        settings = self.build(trial)
        tree = settings.model_dump(mode="json")
        for params in corners(self.settings.space, tree):
            self.build(self.example(cell, params=params))
        for phase in ("search", "final") if self.settings.space else ("final",):
            example = self.build(self.example(cell, phase))
            steps = make_order(example, self.prepared[path]).steps_per_epoch * example.epochs
            if warning := warmup_warning(example.schedule.warmup_steps, steps, "overrides.schedule.warmup_steps"):
                self.warnings.setdefault(warning)
            check_metric(example, self._held_out(example))
            example.optimizer.check()
        if settings.data.fraction < 1:  # each seed draws a different fraction, and one of them may be too small
            for seed in self.settings.seeds:
                make_order(self.build(self.example(cell, "final", seed=seed)), self.prepared[path])

    def _describe(self, prepared: Prepared, cell: Cell) -> dict[str, Any]:
        """What the report says about a dataset. Raises `UserError` if it has no split to choose on."""
        settings, test = (self.build(self.example(cell, phase)) for phase in ("search", "final"))
        ids = prepared.split_ids(settings.data.split_seed, settings.data.validation)
        if self.settings.space and self.settings.validation not in ids:
            raise UserError(
                "validation",
                f"{prepared.path} has no split '{self.settings.validation}' to choose points on, but {', '.join(ids)}",
                "hold one out with overrides.data.validation=0.15, or prepare the data with splits.validation",
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
            settings = self._build_without_budget(self.example(self._cell(trial.cell), trial.phase, seed=trial.seed))
            order = make_order(settings, self.prepared[str(settings.data.path)])
            self._epochs[key] = math.ceil(budget.samples / (order.steps_per_epoch * settings.global_batch_size))
        return {"epochs": self._epochs[key]}


def _read_base(base: Path) -> dict[str, Any]:
    """The training config that every trial starts from. Raises `UserError` if there is none, or it is a sweep itself."""
    file = find_config(base, "training")
    if not file.is_file():
        file = find_shipped(base, "tuning") or file
    if not file.is_file():
        names = {path.stem: short_name(path) for path in shipped("training")}
        near = [names[stem] for stem in alike(base.stem, names)[:1]]
        what = "is a folder" if file.is_dir() else "no such file"
        remedy = f"did you mean base={near[0]}?" if near else f"give a training config, such as {names['openmoji']}"
        raise UserError("base", f"{base}: {what}", remedy)
    tree = read_yaml(file)
    of_sweep = [key for key in tree if key in SweepSettings.model_fields and key not in TrainSettings.model_fields]
    if "base" in of_sweep and len(of_sweep) > 1:
        own = short_name(Path(read_config(file, SweepSettings)["base"]))
        problem = f"{short_name(file)} is a sweep ({', '.join(of_sweep)}), and trials start from a training config"
        raise UserError(
            "base", problem, f"pass that sweep's own base, base={own}, or run it: python -m tuning {short_name(file)}"
        )
    if not {"image_tower", "text_tower"} <= (read := read_config(file, TrainSettings)).keys():
        problem = f"{short_name(file)} is not a training config: it has no image_tower and text_tower"
        raise UserError("base", problem, f"give one, such as {short_name(shipped('training')[0])}")
    return read
