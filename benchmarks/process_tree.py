"""What a program and its descendants use, sampled from the kernel's tables: CPU seconds, and memory with shared pages once."""

import os
import threading
import time
from pathlib import Path

import numpy as np

_EVERY = 1.0  # seconds; reading the memory of a process holds it up
_TICKS = os.sysconf("SC_CLK_TCK")


class Sampled:
    """Samples of a process and its descendants, from entering the context to leaving it."""

    def __init__(self, pid: int):
        self._pid = pid
        self._cpu: dict[int, float] = {}  # of every process ever seen, so that those that ended still count
        self._names: dict[int, str] = {}  # the newest of each: Ray's workers are named after what they did last
        self._times: list[float] = []  # time.monotonic, which all processes share
        self._totals: list[float] = []
        self.peak_mib = 0.0  # of the tree's memory; a page that n processes share counts 1/n in each
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Sampled":
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def cpu_between(self, start: float, end: float) -> float:
        """CPU seconds of the tree between two moments of `time.monotonic`."""
        at_start, at_end = np.interp([start, end], self._times, self._totals)
        return float(at_end - at_start)

    def cpu_so_far(self) -> dict[int, float]:
        """CPU seconds of each process, by its id."""
        return dict(self._cpu)

    def cpu_by_name(self, before: dict[int, float]) -> dict[str, float]:
        """CPU seconds since then of the processes of each name."""
        found: dict[str, float] = {}
        for pid, seconds in self._cpu.items():
            found[self._names[pid]] = found.get(self._names[pid], 0.0) + seconds - before.get(pid, 0.0)
        return found

    def _run(self) -> None:
        while not self._over.wait(_EVERY):
            self._sample()

    def _sample(self) -> None:
        tree = _descendants(self._pid)
        self._cpu |= {pid: seconds for pid, (seconds, _) in tree.items()}
        self._names |= {pid: name for pid, (_, name) in tree.items() if name != "ray::IDLE" or pid not in self._names}
        self._times.append(time.monotonic())
        self._totals.append(sum(self._cpu.values()))
        self.peak_mib = max(self.peak_mib, sum(map(_mib, tree)))


def _descendants(root: int) -> dict[int, tuple[float, str]]:
    """CPU seconds and name of each process of the tree."""
    parents, found = {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text()
        except OSError:  # it has ended
            continue
        head, _, rest = stat.rpartition(")")  # a program's name may hold anything
        fields = rest.split()  # from the state on
        parents[int(folder.name)] = int(fields[1])
        found[int(folder.name)] = (int(fields[11]) + int(fields[12])) / _TICKS, head.partition("(")[2]
    tree = {}
    for pid in parents:
        ancestor = pid
        while ancestor not in (root, 0):
            ancestor = parents.get(ancestor, 0)
        if ancestor == root:
            tree[pid] = found[pid]
    return tree


def _mib(pid: int) -> float:
    try:
        lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
