"""What happens to a run: its workers, objective and storage, and faults, each at a phase of a step."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tests.training.undisturbed import OBJECTIVES

STEPS = 18
BATCHES = {"declip": 11}  # of 24 pairs of squares, two of them unusable; its head normalises over the batch
BATCH = 7  # of the others, which no number of workers but 1 divides
EVERY = 3  # steps between checkpoints
EVALUATED = (6, 12, 18)  # whole epochs at either size
WORKERS = ("2", "1-3")

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
    "freeze-worker": "a worker stands still for ever (SIGSTOP)",
    "freeze-task": "so do the processes that read",
    "full-disk": "the disk of the run's folder is full for seconds",
    "store-fails": "for seconds, the store fails every request, or resets its connection",
    "store-stalls": "for seconds, the store takes seconds for every answer",
    "store-is-mute": "for half a minute, the store answers nothing",
}
STORAGES = {"disk": {"full-disk"}, "s3": {"store-fails", "store-stalls", "store-is-mute"}}  # and the kinds that only one can have


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
    """`workers/objective/storage/fault,fault,...`, or without a storage for a disk; workers: 2, or 1-3 for a range."""

    workers: str
    objective: str
    storage: str
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        storage = "" if self.storage == "disk" else f"{self.storage}/"
        return f"{self.workers}/{self.objective}/{storage}{','.join(map(str, self.faults))}"

    @property
    def fixed(self) -> bool:
        """Whether the number of workers never changes, so that nothing is rounded in another way."""
        return self.workers != "1-3"

    def has(self, *kinds: str) -> bool:
        """Whether one of its faults is of these kinds."""
        return any(fault.kind in kinds for fault in self.faults)

    def shorter(self) -> Iterator["Schedule"]:
        """The schedules with one fault less."""
        for index in range(len(self.faults)):
            yield replace(self, faults=self.faults[:index] + self.faults[index + 1 :])


def drawn(seed: int, kinds: list[str]) -> Schedule:
    """One to three faults in the order of their steps, of these kinds."""
    chance = random.Random(seed)
    possible = {storage: [kind for kind in kinds if _possible(kind, storage)] for storage in STORAGES}
    storage = chance.choice([storage for storage in STORAGES if possible[storage]])
    faults = []
    for _ in range(chance.randint(1, 3)):
        kind = chance.choice(possible[storage])
        phase = chance.choice(list(PHASES)) if kind != "freeze-task" else "read"
        step = chance.choice(list(PHASES[phase])) if kind != "freeze-task" else 1  # later, all has been read ahead
        faults.append(Fault(kind, phase, step, 0 if phase in RANK_0 else chance.randrange(3)))
    order = list(PHASES)
    faults.sort(key=lambda fault: (fault.step, order.index(fault.phase)))
    return Schedule(chance.choice(WORKERS), chance.choice(list(OBJECTIVES)), storage, tuple(faults))


def _possible(kind: str, storage: str) -> bool:
    return all(kind not in own for other, own in STORAGES.items() if other != storage)


def parsed(text: str) -> Schedule:
    """A schedule from its text. Raises `ValueError` for another text."""
    workers, objective, *of, faults = text.split("/")
    storage = of[0] if len(of) == 1 else "disk"
    found = [re.fullmatch(r"([a-z0-9-]+)@([a-z]+):(\d+):(\d+)", fault) for fault in faults.split(",") if fault]
    known = workers in WORKERS and objective in OBJECTIVES and storage in STORAGES and len(of) < 2
    if not known or not all(m and _possible(m[1], storage) and m[1] in KINDS and m[2] in PHASES for m in found):
        raise ValueError(f"{text} is no schedule")
    return Schedule(workers, objective, storage, tuple(Fault(m[1], m[2], int(m[3]), int(m[4])) for m in found if m))
