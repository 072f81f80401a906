"""What happens to a run: a mode, an objective, and faults, each at a phase of a step."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tests.training.undisturbed import OBJECTIVES

STEPS, STEPS_PER_EPOCH = 18, 3  # 22 usable pairs of squares in batches of 7, six epochs
EVERY = 3  # steps between checkpoints
EVALUATED = (6, 12, 18)

# Where a fault may come, and at which steps.
PHASES = {
    "read": range(1, STEPS + 1),
    "forward": range(1, STEPS + 1),
    "backward": range(1, STEPS + 1),
    "optimizer": range(1, STEPS + 1),
    "report": [step for step in range(1, STEPS + 1) if step % EVERY],
    "evaluation": EVALUATED,
    "checkpoint": range(EVERY, STEPS + 1, EVERY),
    "upload": range(EVERY, STEPS + 1, EVERY),
    "end": [STEPS],
}
RANK_0 = ("checkpoint", "upload")  # phases of one worker

KINDS = {
    "kill-worker": "kill -9 of a worker",
    "stop-worker": "a worker stands still for seconds (SIGSTOP, SIGCONT)",
    "kill-node": "kill -9 of a worker's raylet and all it runs; another node comes",
    "notice": "a notice for a worker's node, which is killed a minute later or at the run's end; another node comes",
    "add-node": "a node comes",
    "kill-driver": "kill -9 of the program; the same command again",
    "kill-head": "kill -9 of the cluster's head; a new cluster, the same command again",
    "cut-checkpoint": "kill -9 of the program, and a file of the newest checkpoint is cut; the same command again",
    "flip-checkpoint": "the same, with one bit flipped",
    "full-disk": "the disk of the run's folder is full for seconds",
}


@dataclass(frozen=True)
class Fault:
    """`kind@phase:step:rank`; the rank is taken modulo the number of workers at that time."""

    kind: str
    phase: str
    step: int
    rank: int

    def __str__(self) -> str:
        return f"{self.kind}@{self.phase}:{self.step}:{self.rank}"


@dataclass(frozen=True)
class Schedule:
    """`workers/objective/fault,fault,...`; workers: 2, or 1-3 for a range."""

    workers: str
    objective: str
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        return f"{self.workers}/{self.objective}/{','.join(map(str, self.faults))}"

    def shorter(self) -> Iterator["Schedule"]:
        """The schedules with one fault less."""
        for index in range(len(self.faults)):
            yield replace(self, faults=self.faults[:index] + self.faults[index + 1 :])


def drawn(seed: int, kinds: list[str]) -> Schedule:
    """Two to four faults in the order of their steps, of these kinds."""
    chance = random.Random(seed)
    faults = []
    for _ in range(chance.randint(2, 4)):
        phase = chance.choice(list(PHASES))
        rank = 0 if phase in RANK_0 else chance.randrange(3)
        faults.append(Fault(chance.choice(kinds), phase, chance.choice(list(PHASES[phase])), rank))
    order = list(PHASES)
    faults.sort(key=lambda fault: (fault.step, order.index(fault.phase)))
    return Schedule(chance.choice(["2", "1-3"]), chance.choice(list(OBJECTIVES)), tuple(faults))


def parsed(text: str) -> Schedule:
    """A schedule from its text. Raises `ValueError` for another text."""
    workers, objective, faults = text.split("/")
    found = [re.fullmatch(r"([a-z-]+)@([a-z]+):(\d+):(\d+)", fault) for fault in faults.split(",") if fault]
    if not all(match and match[1] in KINDS and match[2] in PHASES for match in found) or objective not in OBJECTIVES:
        raise ValueError(f"{text} is no schedule")
    return Schedule(workers, objective, tuple(Fault(m[1], m[2], int(m[3]), int(m[4])) for m in found if m))
