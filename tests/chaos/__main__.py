"""python -m tests.chaos [--seed S] [--schedules N] [--schedule TEXT] [--kinds K,K] [--record FILE.csv], or --table FILE.csv ...

Runs N schedules, from a seed on, or those that are given. If one fails, the shortest that still fails is printed as a command.
With the same --record, schedules that have ended well before are left out, so many of them may be run over several sessions.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from tests.chaos import records
from tests.chaos.checks import Outcome
from tests.chaos.schedule import KINDS, Schedule, drawn, parsed
from tests.chaos.simulation import Simulator
from tests.object_store import object_store


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schedules", type=int, default=1)
    parser.add_argument("--schedule", nargs="+", help="schedules, as a failing one is printed")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of faults, of {', '.join(KINDS)}")
    parser.add_argument("--record", type=Path, help="a CSV file to which a line is added for each fault")
    parser.add_argument("--no-shrinking", action="store_true", help="look for no shorter schedule that fails")
    parser.add_argument("--table", type=Path, nargs="+", help="only print the tables of what such files record")
    given = parser.parse_args()
    if given.table:
        print(records.table(records.read(*given.table)))
        return 0
    kinds = given.kinds.split(",")
    schedules = {f"seed {given.seed + i}": drawn(given.seed + i, kinds) for i in range(given.schedules)}
    if given.schedule:
        schedules = {f"given {number}": parsed(text) for number, text in enumerate(given.schedule)}
    elif given.record:
        done = records.done(given.record)
        schedules = {name: schedule for name, schedule in schedules.items() if str(schedule) not in done}
    return run(schedules, given.record, shrinking=not given.no_shrinking)


def run(schedules: dict[str, Schedule], record: Path | None = None, shrinking: bool = True) -> int:
    """Run schedules, and tell what became of them. Returns 0 if all ended well."""
    home = Path(tempfile.mkdtemp(prefix="chaos-"))
    lines, failed = [], False
    with ExitStack() as stack:
        small, store = None, None
        if any(schedule.has("full-disk") for schedule in schedules.values()):
            small = stack.enter_context(small_disk(home / "small"))
        if any(schedule.storage == "s3" for schedule in schedules.values()):
            store = stack.enter_context(object_store())
        simulator = stack.enter_context(Simulator(home / "runs", small, store))
        for number, (name, schedule) in enumerate(schedules.items()):
            print(f"{name}: {schedule}", flush=True)
            outcome = simulator.run(schedule, f"s{number}")
            lines += records.lines_of(outcome)
            print(f"    {said(outcome)}", flush=True)
            if record:
                records.add(outcome, record)
            if outcome.broken:
                failed = True
                print(f"    {outcome.broken}", flush=True)
                worst = shortest(schedule, simulator, f"s{number}") if shrinking else schedule
                print(f"    python -m tests.chaos --schedule '{worst}'", flush=True)
    if not failed:
        shutil.rmtree(home, ignore_errors=True)
    print(records.table(lines))
    return 1 if failed else 0


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of 64 MB in memory, if this user may mount one."""
    folder.mkdir()
    mounted = False
    with suppress(OSError):
        command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    if not mounted:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


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


if __name__ == "__main__":
    sys.exit(main())
