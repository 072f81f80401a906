"""`raylign status RUN|STORAGE`: what a run does, or all runs of a folder, from the files alone, on any machine that sees them."""

import argparse
import fcntl
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from evaluation.reporting.number_format import count, duration
from pipelines.program import interrupts
from pipelines.program.cli import Parser, refused
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.path_keys import LOCK
from training.checkpoint_registry import newest_step
from training.metrics_file import read_metrics
from training.sessions import SESSIONS, history, last_report

_RECENT = 20  # lines of metrics.jsonl from which the speed is taken


@dataclass(frozen=True)
class Status:
    """A run as its files show it. What is not known is None."""

    folder: Path
    state: str  # running, waiting, stopped, failed, finished
    why: str  # it waits or has failed
    step: int  # of the last report
    total: int | None
    kept: int | None  # step of the newest checkpoint
    samples_per_second: float | None
    data_wait: float | None
    seconds_left: float | None  # of training, without evaluations to come
    said: float | None  # when the last line was written, in seconds since 1970
    costs: dict[str, Any]  # see training.sessions.history


def status_of(folder: Path) -> Status:
    """A run's status. Raises `UserError` if the folder holds no run."""
    if not is_run(folder):
        raise UserError(str(folder), "no run" if folder.is_dir() else "no such folder", "give a run's folder, or one with runs")
    lines, events = read_metrics(folder / "metrics.jsonl"), read_metrics(folder / SESSIONS)
    finished, works = (folder / "result.json").exists(), _locked(folder)
    state, why = _state(events, finished, works)
    last = lines[-1] if lines else {}
    total = next((event["total"] for event in reversed(events) if event["event"] == "start"), None)
    said = max([time for time in (last_report(lines), *(event["time"] for event in events[-1:])) if time], default=None)
    rate = _seconds_a_step(lines)
    left = None if rate is None or total is None or finished else max(0, total - last["step"]) * rate
    return Status(
        folder,
        state,
        why,
        last.get("step", 0),
        json.loads((folder / "result.json").read_text())["step"] if finished else total,
        newest_step(folder),
        last.get("samples_per_second"),
        last.get("data_wait"),
        left,
        said,
        history(folder, time.time() if works else None),
    )


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a run that has begun."""
    return any((folder / name).exists() for name in (SESSIONS, "metrics.jsonl", "result.json")) and not _is_sweep(folder)


def _is_sweep(folder: Path) -> bool:
    return (folder / "sweep.json").exists()


def _state(events: list[dict[str, Any]], finished: bool, works: bool) -> tuple[str, str]:
    last = events[-1] if events else {}
    if works:
        told = [event for event in events if event["event"] in ("waiting", "workers", "start")]
        waits = told[-1].get("text") if told else None
        return ("waiting", waits) if waits else ("running", "")
    if finished:
        return "finished", ""
    if last.get("event") == "end":
        return last["state"], last.get("cause", "")
    return "failed", "its process ended without a word: killed, or with its machine"


def _locked(folder: Path) -> bool:
    """Whether a process works on the run."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _seconds_a_step(lines: list[dict[str, Any]]) -> float | None:
    """Of late, without the time of restarts."""
    recent = [line for line in lines[-_RECENT:] if "seconds" in line]
    steps = recent[-1]["step"] - recent[0]["step"] if recent else 0
    return (recent[-1]["seconds"] - recent[0]["seconds"]) / steps if steps > 0 else None


def described(status: Status, now: float) -> list[tuple[str, str]]:
    """Names and values for people."""
    costs = status.costs
    facts = [("state", status.state + (f": {status.why}" if status.why else ""))]
    if status.said is not None and status.state != "finished":
        facts.append(("last word", f"{duration(max(0.0, now - status.said))} ago"))
    facts.append(("step", _steps(status) + ("" if status.kept is None else f"; {status.kept:,} is in the newest checkpoint")))
    if status.samples_per_second is not None:
        facts.append(("speed", f"{status.samples_per_second:,.0f} samples/s, data wait {status.data_wait or 0:.0%}"))
    if status.seconds_left is not None:
        facts.append(("time left", duration(status.seconds_left)))
    facts += [("workers", _workers(start)) for start in costs["workers"]]
    facts += [
        ("restart", f"{_clock(line['time'])}, {line.get('kind', 'failure')}: {line['cause']}") for line in costs["restarts"]
    ]
    told = {line["cause"] for line in costs["restarts"]}
    facts += [("hung", f"{_clock(line['time'])}: {line['text']}") for line in costs["stalls"] if line["text"] not in told]
    spent = ", ".join(f"{name} {duration(seconds)}" for name, seconds in costs["seconds"].items())
    facts.append(("sessions", f"{costs['sessions']:,}" + (f": {spent}" if spent else "")))
    facts.append(("steps done again", f"{costs['redone_steps']:,}"))
    facts.append(("cost", f"{costs['gpu_hours']:.2f} GPU hours, {costs['worker_hours']:.2f} hours of workers"))
    return facts


def _steps(status: Status) -> str:
    return f"{status.step:,}" + ("" if not status.total else f" of {status.total:,} ({status.step / status.total:.0%})")


def _workers(start: dict[str, Any]) -> str:
    gpus = f" with {count(start['gpus'], 'GPU')}" if start["gpus"] else ""
    return f"{start['workers']}{gpus} from {_clock(start['time'])}, step {start['step']:,}, on {', '.join(start['nodes'])}"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _row(status: Status) -> list[str]:
    numbers = [str(number) for number, _ in groupby(start["workers"] for start in status.costs["workers"])]
    speed = "" if status.samples_per_second is None else f"{status.samples_per_second:,.0f}"
    left = "" if status.seconds_left is None or status.state == "finished" else duration(status.seconds_left)
    restarts, hours = f"{len(status.costs['restarts'])}", f"{status.costs['gpu_hours']:.2f}"
    return [status.folder.name, status.state, _steps(status), speed, left, " ".join(numbers[-4:]), restarts, hours]


def main(arguments: Sequence[str], prog: str = "python -m training.status") -> int:
    """Print the status of a run, or of all runs in a folder. Exit code 0, or 2 with one line that says what is wrong."""
    parser = Parser(prog=prog, description="What a run does, or all runs of a folder, from their files alone.")
    parser.add_argument("place", type=Path, metavar="RUN|STORAGE", help="a run's folder, such as runs/demo, or one with runs")
    options: argparse.Namespace = parser.parse_args(arguments)
    display = Display()
    with interrupts.handled():
        try:
            _show(options.place, display)
        except UserError as error:
            return refused(error)
    return 0


def _show(place: Path, display: Display) -> None:
    runs = [place] if is_run(place) or not place.is_dir() else sorted(path for path in place.iterdir() if is_run(path))
    if not runs:
        remedy = f"give {place / 'trials'}, which has its trials" if _is_sweep(place) else "give a run's folder, or one with runs"
        raise UserError(str(place), "holds no run", remedy)
    if runs == [place]:
        display.line(str(place))
        for name, value in described(status_of(place), time.time()):
            display.line(f"  {name:<16} {value}")
    else:
        header = ["run", "state", "step", "samples/s", "left", "workers", "restarts", "GPU hours"]
        display.table(str(place), header, [_row(status_of(run)) for run in runs])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
