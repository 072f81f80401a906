"""python -m tests.chaos [--seed S] [--schedules N] [--schedule TEXT] [--kinds K,K] [--record FILE.csv]

Runs N schedules, from a seed on, or the one that is given. If one fails, the shortest that still fails is printed as a command.
"""

import argparse
import csv
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from tests.chaos.schedule import KINDS, Schedule, drawn, parsed
from tests.chaos.simulation import Outcome, Simulator

COLUMNS = ("schedule", "fault", "phase", "workers", "objective", "outcome", "starts", "lost_steps", "seconds_to_recover")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schedules", type=int, default=1)
    parser.add_argument("--schedule", help="one schedule, as a failing one is printed")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of faults, of {', '.join(KINDS)}")
    parser.add_argument("--record", type=Path, help="a CSV file to which a line is added for each fault")
    given = parser.parse_args()
    kinds = given.kinds.split(",")
    schedules = [parsed(given.schedule)] if given.schedule else [drawn(given.seed + i, kinds) for i in range(given.schedules)]
    home = Path(tempfile.mkdtemp(prefix="chaos-"))
    small = small_disk(home / "small") if any(f.kind == "full-disk" for s in schedules for f in s.faults) else None
    outcomes, failed = [], False
    try:
        with Simulator(home / "runs", small) as simulator:
            for number, schedule in enumerate(schedules):
                print(f"{given.seed + number}: {schedule}", flush=True)
                outcome = simulator.run(schedule, f"s{number}")
                outcomes.append(outcome)
                print(f"    {said(outcome)}", flush=True)
                if given.record:
                    record(outcome, given.record)
                if outcome.broken:
                    failed = True
                    print(f"    {outcome.broken}")
                    print(f"    python -m tests.chaos --schedule '{shortest(schedule, simulator, f's{number}')}'", flush=True)
    finally:
        if small is not None:
            subprocess.run(["umount", "-l", str(small)], check=False)
        if not failed:
            shutil.rmtree(home, ignore_errors=True)
    print(table(outcomes))
    return 1 if failed else 0


def small_disk(folder: Path) -> Path | None:
    """A file system of 64 MB in memory, if this user may mount one."""
    folder.mkdir()
    with suppress(OSError):
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True).returncode == 0:
            return folder
    print("no small disk can be mounted here: full-disk does nothing")
    return None


def said(outcome: Outcome) -> str:
    parts = [
        f"{injected.fault}: {injected.lost} steps again" + (f", {injected.seconds:.0f} s" if injected.seconds is not None else "")
        for injected in outcome.injected
    ]
    state = "BROKEN" if outcome.broken else "as undisturbed"
    return f"{state} in {outcome.seconds:.0f} s and {outcome.starts} starts; " + "; ".join(parts)


def shortest(schedule: Schedule, simulator: Simulator, name: str) -> Schedule:
    """The schedule without the faults that are not needed for its failure."""
    for number, shorter in enumerate(schedule.shorter()):
        if shorter.faults and simulator.run(shorter, f"{name}-{number}").broken:
            return shortest(shorter, simulator, f"{name}-{number}")
    return schedule


def record(outcome: Outcome, file: Path) -> None:
    """Add a line for each fault that came."""
    new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        if new:
            writer.writerow(COLUMNS)
        for injected in outcome.injected:
            fault, schedule = injected.fault, outcome.schedule
            state = "broken" if outcome.broken else "exact"
            seconds = "" if injected.seconds is None else f"{injected.seconds:.1f}"
            row = [str(schedule), fault.kind, fault.phase, schedule.workers, schedule.objective, state, outcome.starts]
            writer.writerow([*row, injected.lost, seconds])


def table(outcomes: list[Outcome]) -> str:
    """By kind of fault: how often it came, lost steps, and seconds until the next new step, as median and worst."""
    lines = [f"{'fault':<16}{'times':>6}{'broken':>8}{'lost steps':>12}{'seconds, median':>17}{'worst':>7}"]
    for kind in KINDS:
        came = [(i, o) for o in outcomes for i in o.injected if i.fault.kind == kind]
        if not came:
            continue
        seconds = [i.seconds for i, _ in came if i.seconds is not None]
        lost = [i.lost for i, _ in came]
        times = f"{statistics.median(seconds):>17.0f}{max(seconds):>7.0f}" if seconds else f"{'-':>17}{'-':>7}"
        lines.append(
            f"{kind:<16}{len(came):>6}{sum(bool(o.broken) for _, o in came):>8}{f'{min(lost)} to {max(lost)}':>12}{times}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
