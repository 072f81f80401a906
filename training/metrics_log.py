"""Writes `metrics.jsonl`, one line per report, in Ray Train's controller; the display and the page read it (metrics_file.py).

After a restart steps are repeated, and the lines from that step on are replaced, so the file is always the history of one run.
Failed writes are retried up to `resources.max_failures` times, while the workers wait.
"""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray.train

from evaluation.metrics import mean_recalls
from pipelines.program.causes import cause_of
from pipelines.program.errors import UserError
from pipelines.program.ray_internals import SNAPSHOT
from training.checkpoint_registry import ABOUT, KEPT_LIST, damage, keep_snapshot, newest_checkpoint, seal
from training.dashboard import Gauges
from training.metrics_file import UNUSABLE, UNUSABLE_ROWS, append_lines, read_metrics
from training.pulse import told_why
from training.run_store import appended, fetched, kept, store_of
from training.sessions import RESTARTS

_FIRST_WAIT = 2.0  # seconds before the second attempt; doubles with every further one
_LONGEST_WAIT = 60.0


class MetricsLog:
    """Appends lines. A line whose step is not after the last one replaces the lines from that step on."""

    def __init__(self, path: Path):
        self._path = path
        lines = read_metrics(path)
        self._last = max((line["step"] for line in lines), default=-1)

    def append(self, metrics: dict[str, Any]) -> None:
        """Append one line and flush it. After an `OSError` the same call may be repeated."""
        if metrics["step"] <= self._last:
            self._rewrite([line for line in read_metrics(self._path) if line["step"] < metrics["step"]])
        self._last = metrics["step"]
        append_lines(self._path, [metrics])

    def _rewrite(self, lines: list[dict[str, Any]]) -> None:
        aside = self._path.with_name(f"{self._path.name}.partial-{os.getpid()}")
        aside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        aside.rename(self._path)


class Recorder(ray.train.UserCallback):
    """Writes what workers report: metrics.jsonl, TensorBoard events, restarts, and a copy of the best checkpoint.

    An error here would end Ray Train's controller and with it the run, so it is raised only after `max_failures` retries.
    """

    def __init__(self, run: Path, best: str | None, mode: str, tensorboard: bool, max_failures: int = 0):
        self._run, self._best, self._mode, self._tensorboard = run, best, mode, tensorboard
        self._max_failures = max_failures
        self._log: MetricsLog | None = None
        self._writer: Any = None
        self._unusable: set[int] | None = None
        self._gauges: Gauges | None = None  # made in the controller

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called in the controller once all workers have reported."""
        line = self.write(*metrics)
        self._gauges = self._gauges or Gauges(self._run.name)
        self._gauges.show(line)
        if checkpoint is not None:
            self._retried("the list of checkpoints", self._keep_list)
            self.keep_best(line, checkpoint)

    def _keep_list(self) -> None:
        fetched(self._run, SNAPSHOT)
        keep_snapshot(self._run)
        kept(self._run, KEPT_LIST)

    def _retried(self, what: str, work: Callable[[], Any]) -> None:
        """Call `work`, and again after an `OSError`; repeating it must not write anything twice."""
        failures = 0
        while True:
            try:
                work()
                return
            except OSError as error:
                failures += 1
                if 0 <= self._max_failures < failures:
                    tries = "once" if failures == 1 else f"{failures} times"
                    raise OSError(error.errno, f"{what} of {self._run} could not be written, tried {tries} ({error})") from error
                print(f"{what} of {self._run} could not be written, trying again ({error})", file=sys.stderr)
                # The delay does not change any result.
                time.sleep(min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (failures - 1)))

    def write(self, metrics: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
        """Write rank 0's report as a line and events, and all workers' unusable rows. Returns the line."""
        rows = [row for report in (metrics, *others) for row in report.get(UNUSABLE_ROWS, [])]
        self._retried(UNUSABLE, lambda: self._list_unusable(rows))
        line = {key: value for key, value in metrics.items() if key != UNUSABLE_ROWS} | {"time": round(time.time(), 3)}
        self._retried("metrics.jsonl", lambda: self._append(line))
        if self._tensorboard:
            self._retried("tensorboard", lambda: self._add_events(line))
        return line

    def _append(self, line: dict[str, Any]) -> None:
        self._log = self._log or MetricsLog(self._run / "metrics.jsonl")
        self._log.append(line)
        appended(self._run, "metrics.jsonl")

    def _add_events(self, line: dict[str, Any]) -> None:
        writer, self._writer = self._writer, None  # after an error, a new writer removes what was written for this step
        if writer is None:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(self._run / "tensorboard"), purge_step=line["step"])
        for name, value in line.items():
            writer.add_scalar(name, value, line["step"])
        writer.flush()
        self._writer = writer

    def _list_unusable(self, rows: list[list[Any]]) -> None:
        """Write each row once, in however many epochs and restarts it occurs."""
        path = self._run / UNUSABLE
        if not rows:
            return
        if self._unusable is None:
            self._unusable = {line["sample_id"] for line in read_metrics(path)}
        written, self._unusable = self._unusable, None  # after an error they are read again
        new = {sample_id: reason for sample_id, reason in rows if sample_id not in written}
        append_lines(path, [{"sample_id": sample_id, "reason": reason} for sample_id, reason in new.items()])
        appended(self._run, UNUSABLE)
        self._unusable = written | new.keys()

    def catch_up(self) -> None:
        """Finish the work of a process that died.

        A checkpoint without its line (Ray Train lists it before it calls us), a half-renamed best one, a better one not copied.
        """
        try:
            newest = newest_checkpoint(self._run)
            metrics = json.loads((newest / ABOUT).read_text(encoding="utf-8"))["metrics"]
        except (UserError, OSError):  # there is none yet
            metrics = None
        if metrics is not None and all(line["step"] != metrics["step"] for line in read_metrics(self._run / "metrics.jsonl")):
            self.write(metrics)
        if self._best is None:
            return
        best, old = self._run / "best", self._run / "best.old"
        if old.exists() and not best.exists():
            old.rename(best)
        if best.exists() and (what := damage(best)) is not None:
            remedy = "copy it again, or delete it: then the best from here on is kept"
            raise UserError("checkpoint.best", f"{best} is damaged: {what}", remedy)
        if metrics is not None:
            self.keep_best(metrics, ray.train.Checkpoint.from_directory(newest))

    def keep_best(self, line: dict[str, Any], checkpoint: Any) -> None:
        """Copy a better checkpoint under a temporary name and rename it, so that `best` is always complete."""
        value = (line | mean_recalls(line)).get(self._best or "", math.nan)
        if math.isfinite(value):
            self._retried("best", lambda: self._copy_better(value, line["step"], checkpoint))

    def _copy_better(self, value: float, step: int, checkpoint: Any) -> None:
        note = self._run / "best" / "best.json"
        before = json.loads(note.read_text())["value"] if note.exists() else None
        if before is not None and (value <= before if self._mode == "max" else value >= before):
            return
        aside, old = self._run / "best.partial", self._run / "best.old"
        for leftover in (aside, old):
            shutil.rmtree(leftover, ignore_errors=True)
        if (store := store_of(self._run)) is not None:
            shutil.copytree(store.opened(Path(checkpoint.path).name), aside)
        else:
            checkpoint.to_directory(str(aside))
        (aside / "best.json").write_text(json.dumps({"metric": self._best, "value": value, "step": step}))
        seal(aside)
        if (self._run / "best").exists():
            (self._run / "best").rename(old)
        aside.rename(self._run / "best")
        shutil.rmtree(old, ignore_errors=True)
        kept(self._run, "best")

    def note_restart(self, kind: str, cause: str, errors: Mapping[int, BaseException], step: int | None) -> None:
        """Called in the controller before it restarts workers; `step`: the last one that was reported."""
        line = {"time": round(time.time(), 3), "kind": kind, "cause": told_why(self._run) or cause, "step": step}
        line |= {"workers": {rank: cause_of(error) for rank, error in errors.items()}}
        self._retried(RESTARTS, lambda: append_lines(self._run / RESTARTS, [line]))
        appended(self._run, RESTARTS)
