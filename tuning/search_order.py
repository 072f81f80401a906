"""The order of trials: which comes next is a function of the sweep and of the outcomes so far. No Ray.

Cells take turns; within a cell each point waits for the results it is chosen from (`tuning.optuna_points`). When all points of
a cell have ended, the best by the validation score is trained with each of the seeds. A sweep that resumes, after a kill or
with more cells, trials or seeds, repeats the same sequence: trials with an outcome are skipped, the others are handed out.
"""

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from tuning.config import SweepSettings
from tuning.optuna_points import Points
from tuning.trials import Cell, Folder, Outcome, Trial, result_of_point, score_of

Key = TypeVar("Key")


class Schedule:
    """Hands out trials and records their outcomes.

    Args:
        trees: each cell's resolved training config.
        score: the metrics whose mean is the score.
    """

    def __init__(
        self,
        settings: SweepSettings,
        cells: Sequence[Cell],
        trees: Sequence[Mapping[str, Any]],
        score: Sequence[str],
        folder: Folder,
    ):
        self._settings, self._cells, self._score, self._folder = settings, list(cells), score, folder
        self._points = [Points(settings, cell.label, tree) for cell, tree in zip(cells, trees, strict=True)]
        self._asked: list[list[Trial]] = [[] for _ in cells]
        self.outcomes: dict[str, Outcome] = {}  # by name, of all trials that have ended
        self.seen: dict[str, Trial] = {}  # by name, of all trials that were handed out or skipped
        self._finals: deque[Trial] = deque()
        self._open: dict[str, Trial] = {}
        self._cost = getattr(settings.sampler, "cost", None)
        for index in range(len(cells)):
            self._queue_seeds(index)  # of cells without a search

    @property
    def planned(self) -> dict[str, int]:
        """Number of trials of each phase, if no cell fails."""
        return {"search": sum(p.total for p in self._points), "final": len(self._cells) * len(self._settings.seeds)}

    @property
    def done(self) -> bool:
        """Whether there is nothing left to hand out or wait for."""
        return (
            not self._open and not self._finals and all(len(a) == p.total for a, p in zip(self._asked, self._points, strict=True))
        )

    def next(self) -> Trial | None:
        """A trial to run now; None if all wait for results, or all are done."""
        while True:
            trial = self._finals.popleft() if self._finals else self._point()
            if trial is None:
                return None
            outcome = self._folder.ended(trial.name)
            self._open[trial.name] = self.seen[trial.name] = trial
            if outcome is None:
                return trial
            self.ended(trial.name, outcome)

    def ended(self, name: str, outcome: Outcome) -> None:
        """Record the outcome of a trial that `next` handed out."""
        trial = self._open.pop(name)
        self.outcomes[name] = outcome
        if trial.phase == "search":
            index = next(i for i, cell in enumerate(self._cells) if cell.label == trial.cell)
            curve = self._folder.curve(name)
            self._points[index].tell(trial.point, result_of_point(outcome, curve, self._score, self._cost))
            self._queue_seeds(index)

    def _point(self) -> Trial | None:
        """The next point of the ready cell with the fewest points so far."""
        ready = [i for i, points in enumerate(self._points) if points.ready()]
        if not ready:
            return None
        index = min(ready, key=lambda i: len(self._asked[i]))
        cell, number = self._cells[index], len(self._asked[index])
        begun = self._folder.begun(Trial(cell.label, "search", number, 0, {}, {}, cell.slug).name)
        params, asked = self._points[index].ask(None if begun is None else begun["asked"])
        params = params if begun is None else begun["params"]
        trial = Trial(cell.label, "search", number, self._settings.search_seed, params, asked, cell.slug)
        self._asked[index].append(trial)
        return trial

    def _queue_seeds(self, index: int) -> None:
        """Once all points of a cell have ended: its best one, with each seed."""
        cell, asked = self._cells[index], self._asked[index]
        if len(asked) < self._points[index].total or any(trial.name not in self.outcomes for trial in asked):
            return
        best = self._best(asked) if asked else Trial(cell.label, "search", 0, 0, {}, {}, cell.slug)
        if best is not None:
            for seed in self._settings.seeds:
                self._finals.append(Trial(cell.label, "final", best.point, seed, best.params, {}, cell.slug))

    def _best(self, trials: Sequence[Trial]) -> Trial | None:
        """The finished point with the best score, the first of equals; None if none finished."""
        scores = {trial.point: score for trial in trials if (score := self._score_of(trial)) is not None}
        return next(trial for trial in trials if trial.point == self.pick(scores)) if scores else None

    def _score_of(self, trial: Trial) -> float | None:
        """The score of a trial that finished; None for others."""
        outcome = self.outcomes.get(trial.name)
        if outcome is None or outcome.status != "finished":
            return None
        score = score_of(outcome.metrics, self._score)
        return score if math.isfinite(score) else None

    def pick(self, scores: Mapping[Key, float]) -> Key:
        """The key with the best score, the first of equals."""
        sign = 1 if self._settings.mode == "max" else -1
        return max(scores, key=lambda key: sign * scores[key])

    def best_scores(self) -> dict[str, float]:
        """Each cell's best validation score so far."""
        best = {}
        for cell, asked in zip(self._cells, self._asked, strict=True):
            scores = {trial.point: score for trial in asked if (score := self._score_of(trial)) is not None}
            if scores:
                best[cell.label] = scores[self.pick(scores)]
        return best

    def test_scores(self) -> dict[str, list[float]]:
        """Each cell's scores of the final runs so far, of points that are still the best."""
        scores: dict[str, list[float]] = {}
        for trial in list(self.seen.values()):
            if trial.phase == "final" and (score := self._score_of(trial)) is not None:
                scores.setdefault(trial.cell, []).append(score)
        return scores

    def counts(self) -> dict[str, tuple[int, int, int, int]]:
        """For each cell: points ended and planned, seeds ended and planned."""
        ended = Counter((self.seen[name].cell, self.seen[name].phase) for name in self.outcomes)
        return {
            cell.label: (ended[cell.label, "search"], points.total, ended[cell.label, "final"], len(self._settings.seeds))
            for cell, points in zip(self._cells, self._points, strict=True)
        }
