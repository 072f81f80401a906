"""`raylign status RUN|STORAGE`: what a run does, or all runs of a folder, from the files alone, on any machine that sees them.

Of what is in a store it reads copies; whether a process works on a run is then told by its lease.
"""

import argparse
import fcntl
import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from evaluation.reporting.number_format import count, duration
from pipelines.io import lease, storage
from pipelines.io.retry import shown_place
from pipelines.program import interrupts, yaml_text
from pipelines.program.causes import of_storage
from pipelines.program.cli import Parser, refused
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.path_keys import LOCK, place_argument
from pipelines.program.ray_internals import SNAPSHOT
from training.checkpoint_registry import KEPT_LIST, NEWEST, newest_step
from training.diagnosis import Chances, Finding, diagnose
from training.metrics_file import read_metrics
from training.run_store import looked_at
from training.sessions import RESTARTS, SESSIONS, history, last_report

_RECENT = 20  # lines of metrics.jsonl from which the speed is taken
_METRICS, _RESULT, _SWEEP, _CONFIG = "metrics.jsonl", "result.json", "sweep.json", "config.yaml"
_READ = {SESSIONS, RESTARTS, _METRICS, _RESULT, _SWEEP, _CONFIG, NEWEST, KEPT_LIST, SNAPSHOT, LOCK}


@dataclass(frozen=True)
class Status:
    """A run as its files show it. What is not known is None."""

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
    findings: list[Finding]


def status_of(place: Path | str) -> Status:
    """A run's status. Raises `UserError` if there is no run."""
    with _files_of(place) as (folder, at_work):
        if not is_run(folder):
            problem = "no such folder" if isinstance(place, Path) and not place.is_dir() else "no run"
            raise UserError(shown_place(place), problem, "give a run's folder, or one with runs")
        return _status(folder, folder in at_work([folder]))


def _status(folder: Path, works: bool) -> Status:
    lines, events = read_metrics(folder / _METRICS), read_metrics(folder / SESSIONS)
    finished = (folder / _RESULT).exists()
    state, why = _state(events, finished, works)
    last = lines[-1] if lines else {}
    total = next((event["total"] for event in reversed(events) if event["event"] == "start"), None)
    said = max([time for time in (last_report(lines), *(event["time"] for event in events[-1:])) if time], default=None)
    rate = _seconds_a_step(lines)
    left = None if rate is None or total is None or finished else max(0, total - last["step"]) * rate
    return Status(
        state,
        why,
        last.get("step", 0),
        json.loads((folder / _RESULT).read_text())["step"] if finished else total,
        newest_step(folder),
        last.get("samples_per_second"),
        last.get("data_wait"),
        left,
        said,
        history(folder, time.time() if works else None),
        _findings(folder, lines, events, finished),
    )


def _findings(folder: Path, lines: list[dict[str, Any]], events: list[dict[str, Any]], finished: bool) -> list[Finding]:
    """Those of the result, or of what there is so far."""
    if finished and (kept := json.loads((folder / _RESULT).read_text(encoding="utf-8")).get("findings")) is not None:
        return [Finding(**finding) for finding in kept]
    config = yaml_text.parse((folder / _CONFIG).read_text(encoding="utf-8")) if (folder / _CONFIG).exists() else {}
    chances: Chances = next((event["chances"] for event in reversed(events) if "chances" in event), {})
    return diagnose(lines, config, chances, finished)


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a run that has begun."""
    return any((folder / name).exists() for name in (SESSIONS, _METRICS, _RESULT)) and not _is_sweep(folder)


def _is_sweep(folder: Path) -> bool:
    return (folder / _SWEEP).exists()


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


_AtWork = Callable[[Sequence[Path]], Collection[Path]]


@contextmanager
def _files_of(place: Path | str) -> Iterator[tuple[Path, _AtWork]]:
    """A folder with the files of a run or of runs, and a function that says on which of them a process works."""
    if isinstance(place, Path):
        yield place, _working
        return
    with looked_at(place, _READ) as folder:

        def at_work(runs: Sequence[Path]) -> list[Path]:
            leases: dict[Path | str, Path] = {
                f"{place}/{(run / LOCK).relative_to(folder)}": run for run in runs if (run / LOCK).exists()
            }
            return [leases[uri] for uri in lease.held({uri: run / LOCK for uri, run in leases.items()})]

        yield folder, at_work


def _working(runs: Sequence[Path]) -> list[Path]:
    """On a disk, which other machines may share: their locks need not be seen here, but their leases are."""
    locked = {run for run in runs if _locked(run)}
    others: dict[Path | str, Path] = {run / LOCK: run / LOCK for run in runs if run not in locked and (run / LOCK).exists()}
    leases = lease.held(others)
    return [run for run in runs if run in locked or run / LOCK in leases]


def _locked(folder: Path) -> bool:
    """Whether a process of this machine works on the run."""
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


def described(status: Status, now: float, price: float | None = None) -> list[tuple[str, str]]:
    """Names and values for people. `price`: of an hour of one worker."""
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
    facts += [("finding", f"{finding}") for finding in status.findings]
    spent = ", ".join(f"{name} {duration(seconds)}" for name, seconds in costs["seconds"].items())
    facts.append(("sessions", f"{costs['sessions']:,}" + (f": {spent}" if spent else "")))
    facts.append(("steps done again", f"{costs['redone_steps']:,}"))
    paid = "" if price is None else f", {costs['worker_hours'] * price:,.2f} at {price:g} each"
    facts.append(("cost", f"{costs['gpu_hours']:.2f} GPU hours, {costs['worker_hours']:.2f} hours of workers{paid}"))
    return facts


def _steps(status: Status) -> str:
    return f"{status.step:,}" + ("" if not status.total else f" of {status.total:,} ({status.step / status.total:.0%})")


def _workers(start: dict[str, Any]) -> str:
    gpus = f" with {count(start['gpus'], 'GPU')}" if start["gpus"] else ""
    return f"{start['workers']}{gpus} from {_clock(start['time'])}, step {start['step']:,}, on {', '.join(start['nodes'])}"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _row(name: str, status: Status, price: float | None) -> list[str]:
    numbers = [str(number) for number, _ in groupby(start["workers"] for start in status.costs["workers"])]
    speed = "" if status.samples_per_second is None else f"{status.samples_per_second:,.0f}"
    left = "" if status.seconds_left is None or status.state == "finished" else duration(status.seconds_left)
    restarts, hours = f"{len(status.costs['restarts'])}", f"{status.costs['gpu_hours']:.2f}"
    paid = [] if price is None else [f"{status.costs['worker_hours'] * price:,.2f}"]
    return [name, status.state, _steps(status), speed, left, " ".join(numbers[-4:]), restarts, hours, *paid]


def main(arguments: Sequence[str], prog: str = "python -m training.status") -> int:
    """Print the status of a run, or of all runs in a folder. Exit code 0, or 2 with one line that says what is wrong."""
    parser = Parser(prog=prog, description="What a run does, or all runs of a folder, from their files alone.")
    parser.add_argument(
        "place",
        type=place_argument,
        metavar="RUN|STORAGE",
        help="a run, such as runs/demo or s3://bucket/runs/demo, or a folder with runs",
    )
    parser.add_argument("--price", type=float, metavar="PRICE", help="of an hour of one worker, for the cost in money")
    options: argparse.Namespace = parser.parse_args(arguments)
    display = Display()
    with interrupts.handled():
        try:
            _show(options.place, options.price, display)
        except UserError as error:
            return refused(error)
        except OSError as error:
            if (told := of_storage(error)) is None:
                raise
            return refused(told)
    return 0


def _show(place: Path | str, price: float | None, display: Display) -> None:
    with _files_of(place) as (folder, at_work):
        _show_files(place, folder, at_work, price, display)


def _show_files(place: Path | str, folder: Path, at_work: _AtWork, price: float | None, display: Display) -> None:
    if is_run(folder):
        display.line(shown_place(place))
        for name, value in described(_status(folder, bool(at_work([folder]))), time.time(), price):
            display.line(f"  {name:<16} {value}")
        return
    runs = sorted(path for path in folder.iterdir() if is_run(path)) if folder.is_dir() else []
    if not runs:
        known = isinstance(place, str) or place.is_dir()
        trials = shown_place(storage.join(place, "trials"))
        remedy = f"give {trials}, which has its trials" if _is_sweep(folder) else "give a run's folder, or one with runs"
        raise UserError(shown_place(place), "holds no run" if known else "no such folder", remedy)
    busy = at_work(runs)
    header = [
        "run",
        "state",
        "step",
        "samples/s",
        "left",
        "workers",
        "restarts",
        "GPU hours",
        *([] if price is None else ["cost"]),
    ]
    display.table(shown_place(place), header, [_row(run.name, _status(run, run in busy), price) for run in runs])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
