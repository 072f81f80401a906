"""What schedules came to: a CSV file with a line for each fault, to which sessions add, and the tables of it."""

import csv
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.chaos.checks import Outcome
from tests.chaos.schedule import KINDS, PHASES

Line = dict[str, str]

EXACT, BROKEN, ABSENT = "exact", "broken", "did not come"
COLUMNS = (
    "schedule",
    "fault",
    "phase",
    "workers",
    "objective",
    "outcome",
    "starts",
    "lost_steps",
    "seconds_to_recover",
    "repeated_samples",
    "skipped_samples",
    "seconds",  # of the whole run
    "problem",
)


def read(*files: Path) -> list[Line]:
    """The lines of the newest run of each schedule, also of files of an earlier version, which had fewer columns."""
    runs: dict[str, list[Line]] = {}
    for file in files:
        last = None
        if file.exists():
            with file.open(newline="", encoding="utf-8") as lines:
                for line in csv.DictReader(lines):
                    key = line["schedule"], line["starts"], line.get("seconds")
                    if key != last:
                        runs[line["schedule"]] = []
                    if line["outcome"] == EXACT:  # which an earlier version did not count
                        line = {"repeated_samples": "0", "skipped_samples": "0"} | {k: v for k, v in line.items() if v}
                    runs[line["schedule"]].append(line)
                    last = key
    return [line for lines in runs.values() for line in lines]


def done(file: Path) -> set[str]:
    """The texts of the schedules that have ended as they must."""
    return {line["schedule"] for line in read(file) if line["outcome"] != BROKEN}


def add(outcome: Outcome, file: Path) -> None:
    """Add a line for each fault of a schedule that has run. The file is whole at any time."""
    lines = read(file)
    lines = [line for line in lines if line["schedule"] != str(outcome.schedule)] + lines_of(outcome)
    aside = file.with_name(f"{file.name}.partial")
    with aside.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, COLUMNS, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    aside.replace(file)


def lines_of(outcome: Outcome) -> list[Line]:
    """A line for each fault of its schedule."""
    schedule, came = outcome.schedule, {injected.number: injected for injected in outcome.injected}
    lines = []
    for number, fault in enumerate(schedule.faults):
        line = {"schedule": str(schedule), "fault": fault.kind, "phase": fault.phase}
        line |= {"workers": schedule.workers, "objective": schedule.objective, "starts": str(outcome.starts)}
        line |= {"seconds": f"{outcome.seconds:.0f}", "problem": outcome.broken.partition("\n")[0][:200]}
        line["outcome"] = BROKEN if outcome.broken else EXACT if number in came else ABSENT
        if outcome.samples is not None:
            line["repeated_samples"], line["skipped_samples"] = map(str, outcome.samples)
        if number in came:
            line["lost_steps"] = str(came[number].lost)
            seconds = came[number].seconds
            line["seconds_to_recover"] = "" if seconds is None else f"{seconds:.1f}"
        lines.append(line)
    return lines


def table(lines: list[Line]) -> str:
    """By kind of fault and by phase: how often, how the runs ended, lost steps, samples, and seconds until the next new step."""
    schedules = {line["schedule"] for line in lines}
    bad = {line["schedule"] for line in lines if line["outcome"] == BROKEN}
    came = [line for line in lines if line["outcome"] != ABSENT]
    head = f"{len(schedules)} schedules with {len(came)} faults; {len(bad)} did not end as undisturbed."
    return "\n\n".join([head, _by("fault", KINDS, came), _by("phase", PHASES, came)])


def _by(column: str, order: Iterable[str], lines: list[Line]) -> str:
    names = [column, "times", "as undisturbed", "lost steps, median", "most", "samples repeated", "skipped"]
    names += ["seconds to recover, median", "most"]
    rows = [names, ["---" for _ in names]]
    for name in order:
        of = [line for line in lines if line[column] == name]
        if of:
            lost, seconds = _numbers(of, "lost_steps"), _numbers(of, "seconds_to_recover")
            row = [name, str(len(of)), str(sum(line["outcome"] == EXACT for line in of))]
            row += [_told(statistics.median, lost), _told(max, lost)]
            row += [_told(sum, _numbers(of, f"{what}_samples")) for what in ("repeated", "skipped")]
            rows.append([*row, _told(statistics.median, seconds), _told(max, seconds)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _numbers(lines: list[Line], column: str) -> list[float]:
    return [float(line[column]) for line in lines if line.get(column)]


def _told(what: Callable[[list[float]], float], numbers: list[float]) -> str:
    return f"{what(numbers):.0f}" if numbers else ""
