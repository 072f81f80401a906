"""`sessions.jsonl` in a run's folder: what became of each call of its command, and the run's costs over all of them.

Each line has a `time` and an `event`; the driver writes it at once, so that also what a killed one spent is known:

    start      a call begins: `total` steps; `seen` is the time of the last report of earlier calls; `chances` (held_out.py)
    phase      `name` begins: start, features, training, test, report
    workers    they have begun to train at `step`, on `nodes`; so many steps, `redone`, had been done before
    waiting    `text` says what for; empty: no longer
    stall      `text` says what hung (doctor.py)
    end        `state` finished, stopped or failed, and the `cause`
"""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipelines.program.causes import cause_of
from training.metrics_file import append_lines, read_metrics
from training.run_store import appended

SESSIONS = "sessions.jsonl"
RESTARTS = "restarts.jsonl"  # whenever workers are started again; the controller writes it (metrics_log.py)
_lock = threading.Lock()  # the driver's threads write too


def note(folder: Path, event: str, **values: Any) -> None:
    """Write a line. Raises `OSError`."""
    _write(folder, [_line(event, values)])


def _line(event: str, values: dict[str, Any]) -> dict[str, Any]:
    return {"time": round(time.time(), 3), "event": event, **values}


def _write(folder: Path, lines: list[dict[str, Any]]) -> None:
    with _lock:
        append_lines(folder / SESSIONS, lines)
        appended(folder, SESSIONS)


class Session:
    """A context in which a driver works on a run: notes its start, its phases and how it ends."""

    def __init__(self, folder: Path, total: int, held_back: bool, chances: Mapping[str, Sequence[float]] | None = None):
        """`held_back`: an earlier run is still in the folder, and nothing is written before `release`."""
        self._folder, self._total, self._chances = folder, total, chances or {}
        self._held: list[dict[str, Any]] | None = [] if held_back else None

    def __enter__(self) -> "Session":
        seen = None if self._held is not None else last_report(read_metrics(self._folder / "metrics.jsonl"))
        self._note("start", total=self._total, seen=seen, chances=self._chances)
        self.phase("start")
        return self

    def phase(self, name: str) -> None:
        """A phase begins, and with it the one before has ended."""
        self._note("phase", name=name)

    def release(self) -> None:
        """The folder is this run's now: write what was held back."""
        held, self._held = self._held or [], None
        _write(self._folder, held)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if error is None:
            self._note("end", state="finished")
            return
        stopped = not isinstance(error, Exception)
        try:
            self._note("end", state="stopped" if stopped else "failed", cause="" if stopped else cause_of(error))
        except OSError:  # a full disk, perhaps the reason why it ends
            return

    def _note(self, event: str, **values: Any) -> None:
        if self._held is None:
            note(self._folder, event, **values)
        else:
            self._held.append(_line(event, values))


def last_report(lines: list[dict[str, Any]]) -> float | None:
    """When the last line of metrics.jsonl was written, in seconds since 1970; None if there is none."""
    return lines[-1].get("time") if lines else None


def history(folder: Path, now: float | None = None) -> dict[str, Any]:
    """A run's costs over all its sessions; what a killed one did after its last line or report is not known.

    Args:
        now: a session that has no end goes on until then; None: it has been killed.

    Returns:
        sessions: their number. seconds: wall time by phase.
        restarts: time, kind and cause of each. stalls: time and text of each.
        redone_steps: done more than once.
        workers: for each start of workers `time`, `step`, `workers`, `gpus`, `nodes`. nodes: all that took part.
        worker_hours, gpu_hours: of training.
    """
    events = read_metrics(folder / SESSIONS)
    told = ("time", "kind", "cause")
    restarts = [
        {name: line[name] for name in told if name in line} for line in read_metrics(folder / RESTARTS) if "cause" in line
    ]
    last = now or max([last_report(read_metrics(folder / "metrics.jsonl")) or 0, *(event["time"] for event in events[-1:])])
    seconds: dict[str, float] = {}
    for phase, until in _spans(events, ("phase",), last):
        seconds[phase["name"]] = round(seconds.get(phase["name"], 0) + until - phase["time"], 1)
    starts = [event for event in events if event["event"] == "workers"]
    worker_hours = gpu_hours = 0.0
    for start, until in _spans(events, ("workers", "phase"), last):
        if start["event"] == "workers":
            lost = [line["time"] for line in restarts if start["time"] < line["time"] < until]
            hours = (min([until, *lost]) - start["time"]) / 3600
            worker_hours += hours * start["workers"]
            gpu_hours += hours * start["gpus"]
    return {
        "sessions": sum(event["event"] == "start" for event in events),
        "seconds": seconds,
        "restarts": restarts,
        "stalls": [{"time": event["time"], "text": event["text"]} for event in events if event["event"] == "stall"],
        "redone_steps": sum(start["redone"] for start in starts),
        "workers": [{name: start[name] for name in ("time", "step", "workers", "gpus", "nodes")} for start in starts],
        "nodes": sorted({node for start in starts for node in start["nodes"]}),
        "worker_hours": round(worker_hours, 4),
        "gpu_hours": round(gpu_hours, 4),
    }


def _spans(events: list[dict[str, Any]], kinds: Iterable[str], last: float) -> list[tuple[dict[str, Any], float]]:
    """Events of these kinds, each with the time of the next one or of the session's end."""
    marks = [event for event in events if event["event"] in (*kinds, "start", "end")]
    spans = []
    for event, after in pairwise([*marks, {"event": "now", "time": last}]):
        if event["event"] in kinds:
            until = after["time"]
            if after["event"] == "start":  # this session was killed
                before = max(line["time"] for line in events if line["time"] < after["time"])
                until = max(before, after["seen"] or 0)
            spans.append((event, max(until, event["time"])))
    return spans
