"""A sweep, resolved: what every trial trains, on which data, by which score; and all mistakes that its trials would share.

Nothing here starts Ray.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from evaluation.suite import HeldOut, held_out
from pipelines.prepared import Prepared
from pipelines.settings import UserError, apply_overrides, digest, read_yaml, validate
from training.config import TrainSettings
from training.plan import make_order
from tuning.config import SweepSettings
from tuning.results import dataset_of
from tuning.space import corners
from tuning.trials import Cell, Folder, Trial, cells_of


class SweepPlan:
    """Raises `UserError` for a mistake in the sweep file, its base, or the data, before anything starts."""

    def __init__(self, settings: SweepSettings):
        self.settings, self.cells = settings, cells_of(settings)
        self.folder = Folder((settings.storage / settings.name).absolute())
        self.base = read_yaml(settings.base)
        self.budgets: dict[str, dict[str, Any]] = {cell.label: {} for cell in self.cells}
        self.prepared: dict[str, Prepared] = {}
        self.datasets: list[dict[str, Any]] = []
        for cell in self.cells:
            self._check(cell)

    def overrides(self, trial: Trial) -> dict[str, Any]:
        """Of the base config, as the trial's command has them."""
        return trial.overrides(self.settings, self._cell(trial.cell), self.budgets[trial.cell])

    def build(self, trial: Trial) -> TrainSettings:
        """The training config of a trial, with absolute paths: it runs in another process, perhaps on another machine."""
        given = {"name": trial.name, "storage": str(self.folder.path / "trials")}
        settings = validate(
            TrainSettings,
            apply_overrides(self.base, self.overrides(trial) | given, TrainSettings),
            f"{self.settings.base}, {trial.cell}",
        )
        path = {"path": settings.data.path.absolute()}
        # Tune's loggers write events; a trial's own would be the same again.
        return settings.model_copy(
            update={"data": settings.data.model_copy(update=path), "tensorboard": settings.tensorboard or False}
        )

    @cached_property
    def score(self) -> list[str]:
        """The metrics whose mean counts. Raises `UserError` for one that the runs do not have."""
        data = self._held_out(self.build(self.example(self.cells[0])))
        known = metrics_of(data)
        if self.settings.score is None:
            k = min(data.settings.recall_at)
            return [f"retrieval/{data.dataset}/mean_recall@{k}"]
        for name in [*self.settings.score, *(self.settings.metrics or [])]:
            if name not in known:
                raise UserError(f"score: '{name}' is no metric of these runs; they have: {', '.join(known)}")
        return self.settings.score

    @property
    def shown(self) -> list[str]:
        """Metrics of the report's tables, those of the score first."""
        if self.settings.metrics is not None:
            return list(dict.fromkeys([*self.score, *self.settings.metrics]))
        data = self._held_out(self.build(self.example(self.cells[0])))
        ks = data.settings.recall_at
        more = [f"retrieval/{data.dataset}/{way}_recall@{k}" for k in (min(ks),) for way in ("image_to_text", "text_to_image")]
        more += [f"retrieval/{data.dataset}/mean_recall@{max(ks)}"]
        more += [f"zero_shot/{data.dataset}_{label}/top1" for label in data.classes]
        return list(dict.fromkeys([*self.score, *more]))

    def identity(self) -> dict[str, Any]:
        """What must not change when a sweep goes on."""
        prints = {path: prepared.fingerprint for path, prepared in self.prepared.items()}
        return {"sweep": self.settings.identity(), "base": self.base, "data": prints}

    def trees(self) -> list[dict[str, Any]]:
        """Each cell's config, for the conditions of the space."""
        return [self.build(self.example(cell)).model_dump(mode="json") for cell in self.cells]

    def groups(self) -> list[TrainSettings]:
        """Configs that stand for all: one for each set of features that has to be cached."""
        found: dict[str, TrainSettings] = {}
        for cell in self.cells:
            for phase in ("search", "final") if self.settings.space else ("final",):
                settings = self.build(self.example(cell, phase))
                tree = settings.model_dump(mode="json", include={"data", "image_tower", "text_tower", "evaluation"})
                tree["data"], tree["evaluation"] = tree["data"]["path"], [tree["evaluation"][k] for k in ("templates", "labels")]
                found.setdefault(digest(tree), settings)
        return list(found.values())

    def example(self, cell: Cell, phase: Any = None, params: Mapping[str, Any] | None = None) -> Trial:
        """A trial of a cell, for what all its trials share."""
        phase = phase or ("search" if self.settings.space else "final")
        seed = self.settings.search_seed if phase == "search" else self.settings.seeds[0]
        return Trial(cell.label, phase, 0, seed, dict(params or {}), {}, cell.slug)

    def _cell(self, label: str) -> Cell:
        return next(cell for cell in self.cells if cell.label == label)

    def _held_out(self, settings: TrainSettings) -> HeldOut:
        prepared = self.prepared[str(settings.data.path)]
        return held_out(prepared, settings.evaluation, settings.data.split_seed, settings.data.validation)

    def _check(self, cell: Cell) -> None:
        """Data, splits, budget, and both ends of every range: what is wrong here is wrong for all trials of the cell."""
        settings = self.build(self.example(cell))
        path = str(settings.data.path)
        if path not in self.prepared:
            prepared = self.prepared[path] = Prepared.open(path)
            ids = prepared.split_ids(settings.data.split_seed, settings.data.validation)
            if self.settings.space and self.settings.validation not in ids:
                raise UserError(
                    f"validation: {path} has no split '{self.settings.validation}' to choose on, but {', '.join(ids)}; hold one "
                    "out with overrides: {data.validation: 0.15}, or prepare the data with splits.validation"
                )
            test = self.build(self.example(cell, "final")).evaluation.split
            sizes = [len(ids.get(name, ())) for name in (settings.data.split, self.settings.validation, test)]
            self.datasets.append(dataset_of(prepared, *sizes))
        self.budgets[cell.label] = self._budget(settings)
        tree = settings.model_dump(mode="json")
        for params in corners(self.settings.dimensions(), tree):
            self.build(self.example(cell, params=params))
        for phase in ("search", "final") if self.settings.space else ("final",):
            tried = self.build(self.example(cell, phase))
            make_order(tried, self.prepared[path])
            self._held_out(tried)

    def _budget(self, settings: TrainSettings) -> dict[str, Any]:
        budget = self.settings.budget
        if budget.minutes is not None:
            return {"max_minutes": budget.minutes}
        if budget.epochs is not None:
            return {"epochs": budget.epochs}
        if budget.samples is None:
            return {}
        order = make_order(settings, self.prepared[str(settings.data.path)])
        return {"epochs": math.ceil(budget.samples / (order.steps_per_epoch * settings.global_batch_size))}


def metrics_of(data: HeldOut) -> list[str]:
    """Names of all scores of a held-out split."""
    ways = ("image_to_text", "text_to_image", "mean")
    names = [f"retrieval/{data.dataset}/{way}_recall@{k}" for way in ways for k in data.settings.recall_at]
    return names + [f"zero_shot/{data.dataset}_{label}/{m}" for label in data.classes for m in ("top1", "top5", "mean_per_class")]
