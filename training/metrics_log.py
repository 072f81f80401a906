"""`metrics.jsonl`: one line a report, written by Ray Train's controller, read by the display and the report.

After a restart steps come again; the lines from that step on are replaced, so the file always is one run's history.
"""

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import ray.train

from evaluation.suite import mean_recalls
from pipelines.causes import cause_of, first_cause
from pipelines.settings import UserError
from training.checkpoint import keep_snapshot, newest_checkpoint
from training.metrics_file import UNUSABLE, UNUSABLE_ROWS, read_metrics


class MetricsLog:
    """Appends lines; a step that is not after the last one drops what it replaces."""

    def __init__(self, path: Path):
        self._path = path
        lines = read_metrics(path)
        self._last = max((line["step"] for line in lines), default=-1)
        if path.exists() and not path.read_text(encoding="utf-8").endswith("\n"):
            self._rewrite(lines)  # a process died while writing the last line

    def append(self, metrics: dict[str, Any]) -> None:
        """One line, readable at once."""
        if metrics["step"] <= self._last:
            self._rewrite([line for line in read_metrics(self._path) if line["step"] < metrics["step"]])
        self._last = metrics["step"]
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def _rewrite(self, lines: list[dict[str, Any]]) -> None:
        aside = self._path.with_name(f"{self._path.name}.partial-{os.getpid()}")
        aside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        aside.rename(self._path)


class Recorder(ray.train.UserCallback):
    """Writes what workers report: metrics.jsonl, TensorBoard events, restarts, and a copy of the best checkpoint."""

    def __init__(self, run: Path, best: str | None, mode: str, tensorboard: bool):
        self._run, self._best, self._mode, self._tensorboard = run, best, mode, tensorboard
        self._log: MetricsLog | None = None
        self._writer: Any = None
        self._unusable: set[int] | None = None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called in the controller once all workers have reported."""
        line = self.write(*metrics)
        if checkpoint is not None:
            keep_snapshot(self._run)
            self.keep_best(line, checkpoint)

    def write(self, metrics: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
        """One line of metrics.jsonl from rank 0's report, and its events; all workers' unusable rows. Returns the line."""
        self._list_unusable([row for report in (metrics, *others) for row in report.get(UNUSABLE_ROWS, [])])
        line = {key: value for key, value in metrics.items() if key != UNUSABLE_ROWS} | {"time": round(time.time(), 3)}
        self._log = self._log or MetricsLog(self._run / "metrics.jsonl")
        self._log.append(line)
        if self._tensorboard:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self._run / "tensorboard"), purge_step=line["step"])
            for name, value in line.items():
                self._writer.add_scalar(name, value, line["step"])
            self._writer.flush()
        return line

    def _list_unusable(self, rows: list[list[Any]]) -> None:
        """Each row once, however often epochs and restarts come past it."""
        path = self._run / UNUSABLE
        if not rows:
            return
        if self._unusable is None:
            self._unusable = {line["sample_id"] for line in read_metrics(path)}
        with path.open("a", encoding="utf-8") as file:
            for sample_id, reason in rows:
                if sample_id not in self._unusable:
                    self._unusable.add(sample_id)
                    file.write(json.dumps({"sample_id": sample_id, "reason": reason}) + "\n")

    def catch_up(self) -> None:
        """What a process that died left undone: a best checkpoint between two names, or a better one not copied yet."""
        if self._best is None:
            return
        best, old = self._run / "best", self._run / "best.old"
        if old.exists() and not best.exists():
            old.rename(best)
        try:
            newest = newest_checkpoint(self._run)
            metrics = json.loads((newest / "checkpoint.json").read_text(encoding="utf-8"))["metrics"]
        except (UserError, OSError):  # there is none yet
            return
        self.keep_best(metrics, ray.train.Checkpoint.from_directory(newest))

    def keep_best(self, line: dict[str, Any], checkpoint: Any) -> None:
        """Copy a better checkpoint aside and rename, so that `best` is always whole."""
        found = line | mean_recalls(line)
        if self._best is None or not math.isfinite(found.get(self._best, math.nan)):
            return
        value, step = found[self._best], line["step"]
        note = self._run / "best" / "best.json"
        before = json.loads(note.read_text())["value"] if note.exists() else None
        if before is not None and (value <= before if self._mode == "max" else value >= before):
            return
        aside, old = self._run / "best.partial", self._run / "best.old"
        for left in (aside, old):
            shutil.rmtree(left, ignore_errors=True)
        checkpoint.to_directory(str(aside))
        (aside / "best.json").write_text(json.dumps({"metric": self._best, "value": value, "step": step}))
        if (self._run / "best").exists():
            (self._run / "best").rename(old)
        aside.rename(self._run / "best")
        shutil.rmtree(old, ignore_errors=True)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called in the controller before it restarts workers."""
        with (self._run / "restarts.jsonl").open("a", encoding="utf-8") as file:
            errors = {rank: cause_of(error) for rank, error in worker_exceptions.items()}
            line = {"time": round(time.time(), 3), "cause": first_cause(worker_exceptions), "workers": errors}
            file.write(json.dumps(line) + "\n")
