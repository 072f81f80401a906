"""Images a second into a training worker: ours, torch's DataLoader, webdataset, open_clip's loader, and the bare decoding loop.

    python -m benchmarks.ingest            # about 35 minutes on 2 cores; some 1 GB in data/ingest-bench

Everybody reads the same generated JPEGs (`ingest_corpus.py`) on the same cores and delivers batches into one process that
touches every byte and runs no model (`ingest_peers.py`). Each contender runs in a process of its own, twice a round: as fast as
it can, and into a consumer that is busy with each batch for as long as the limit takes to decode one. `--profile` only takes
our own time apart.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.ingest_corpus import Corpus, generate, prepare_ways
from benchmarks.ingest_peers import CONTENDERS, LIMITS, OURS, Job, limit
from benchmarks.ingest_profile import profile
from benchmarks.process_tree import Sampled
from benchmarks.runs import machine
from pipelines.dataset.tokenizer import train_tokenizer
from pipelines.program import cluster
from pipelines.program.display import Display

FOLDER = Path("data/ingest-bench")
RESULT = Path("docs/benchmarks/ingest.md")
WORDS = "## What this says"  # written by hand, from here to the end of the page
UNCOUNTED = 8  # first batches: processes start, and make some ahead
# Batches that are asked for and never waited for: at the last one that counts, as many are under way as at the first. Were the
# last one really the last, what had been made before the first would pass for speed.
BEYOND = 12
PACKAGES = ("ray", "torch", "webdataset", "open_clip_torch", "pillow", "cykooz-resizer")


def make_job(told: argparse.Namespace, beyond: int = 0) -> Job:
    """The job, with so many more batches, and a tokenizer of the corpus's captions."""
    corpus = Corpus(told.folder)
    tokenizer = train_tokenizer([member.caption for member in corpus.members], 2000, 32)
    return Job(corpus, tokenizer, told.steps + beyond, told.batch, told.size, told.cores)


def child(told: argparse.Namespace) -> dict[str, Any]:
    """One contender in this fresh process: when each batch was asked for, and when it came."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: told.cores])
    job = make_job(told, 0 if told.child in LIMITS else BEYOND)
    if told.child in LIMITS:
        start = time.monotonic()
        return {"rate": limit(job, LIMITS[told.child]), "start": start, "end": time.monotonic()}
    if told.child in OURS:
        cluster.start(cpus=told.cores)
    start = time.monotonic()
    asked, came = [], []
    batches = CONTENDERS[told.child](job)
    with _Store(told.child in OURS) as store:
        for _ in range(told.steps):
            asked.append(time.monotonic())
            image, text = next(batches)
            came.append(time.monotonic())
            assert tuple(image.shape) == (told.batch, 3, told.size, told.size) and tuple(text.shape) == (told.batch, 32)
            image.numpy().reshape(-1).view(np.uint64).sum()  # every byte of it
            time.sleep(told.busy)
    if told.child in OURS:  # to the end: a loop of Ray Data's that still runs when Ray ends makes its process end with 1
        for _ in batches:
            pass
    return {"start": start, "asked": asked, "came": came, "store": store.peak / 2**20, "spilled": store.spilled / 2**20}


class _Store:
    """The most bytes that lay in Ray's object store at once, and those that it wrote to disk."""

    def __init__(self, there: bool):
        self.peak = self.spilled = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._there = there

    def __enter__(self) -> "_Store":
        if self._there:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._there:
            self._thread.join()

    def _run(self) -> None:
        import ray
        from ray._private.internal_api import get_memory_info_reply, get_state_from_address

        state = get_state_from_address(ray.get_runtime_context().gcs_address)
        while not self._over.wait(0.5):
            stats = get_memory_info_reply(state).store_stats
            self.peak = max(self.peak, stats.object_store_bytes_used)
            self.spilled = stats.spilled_bytes_total


def run(name: str, told: argparse.Namespace, busy: float = 0.0) -> dict[str, float]:
    """Figures of one contender's run."""
    command = [sys.executable, "-m", "benchmarks.ingest", "--child", name, "--busy", str(busy), "--folder", str(told.folder)]
    for key in ("batch", "size", "cores", "steps"):
        command += [f"--{key}", str(getattr(told, key))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with Sampled(process.pid) as tree:
        answer, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{name}: {errors[-2000:]}")
    found = json.loads(answer.splitlines()[-1])
    if name in LIMITS:
        cpu = tree.cpu_between(found["start"], found["end"]) / (told.steps * told.batch)
        return {"rate": found["rate"], "cpu": 1000 * cpu, "memory": tree.peak_mib}
    came, asked = np.asarray(found["came"]), np.asarray(found["asked"])
    since, last = came[UNCOUNTED - 1], came[-1]
    images = (told.steps - UNCOUNTED) * told.batch
    return {
        "rate": images / (last - since),
        "total_rate": told.steps * told.batch / (last - found["start"]),
        "first": came[0] - found["start"],
        "wait": float((came - asked)[UNCOUNTED:].sum() / (last - since)),
        "cpu": 1000 * tree.cpu_between(since, last) / images,
        "memory": tree.peak_mib,
        "store": found["store"],
        "spilled": found["spilled"],
    }


def rounds(told: argparse.Namespace, display: Display) -> dict[str, list[dict[str, float]]]:
    """Figures of every contender, one a round. Who begins changes from round to round."""
    names = [*LIMITS, *CONTENDERS]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with display.task("runs", told.repeats * (len(names) + len(CONTENDERS))) as task:
        done = 0
        for turn in range(told.repeats):
            shift = turn * len(names) // told.repeats
            for name in names[shift:] + names[:shift]:
                Corpus(told.folder).warm()
                found[name].append(run(name, told))
                task.update(done := done + 1, f"{name} {found[name][-1]['rate']:.0f}/s")
            busy = told.batch / found[next(iter(LIMITS))][turn]["rate"]
            for name in list(CONTENDERS)[shift:] + list(CONTENDERS)[:shift]:
                found[name][turn]["wait"] = run(name, told, busy)["wait"]
                task.update(done := done + 1, f"{name} waits {found[name][turn]['wait']:.0%}")
    return found


def page(found: dict[str, list[dict[str, float]]], told: argparse.Namespace) -> list[str]:
    """The tables."""
    names = [*LIMITS, *CONTENDERS]
    peers = [name for name in CONTENDERS if name not in OURS]

    def cell(name: str, key: str, form: Callable[[float], str]) -> str:
        values = [run[key] for run in found[name] if key in run]
        if not values:
            return "-"
        middle, low, high = form(statistics.median(values)), form(min(values)), form(max(values))
        return middle if low == high else f"{middle} ({low} to {high})"

    def ratio(name: str, others: Sequence[str]) -> str:
        """To the best of the others, round by round."""
        values = [mine["rate"] / max(found[o][turn]["rate"] for o in others) for turn, mine in enumerate(found[name])]
        return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    members = Corpus(told.folder).members
    kib = statistics.mean(member.length for member in members) / 1024
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    lines = [
        "# Images into a training worker",
        "",
        f"`{told.command}`; {machine()}; {versions}.",
        f"{len(members):,} JPEGs of 256 to 512 pixels, {kib:.0f} KiB on average, read from memory; {told.steps} batches of",
        f"{told.batch} views of {told.size} pixels and 32 tokens, {told.cores} cores; median (range) of {told.repeats} rounds;",
        f"ratios are taken within a round. Speed: from batch {UNCOUNTED} to the last, with more behind it. With start: from",
        "nothing (ours: from a process that has joined Ray) to the last. Waits: share of its time that a consumer waits which is",
        "busy with each batch for as long as drafted bare Pillow takes for one. CPU: of all processes. Memory: their peak,",
        "shared pages once.",
        "",
        "| | images/s | of bare Pillow, drafted | of bare Pillow | of the best peer | images/s with start | first batch "
        "| waits | CPU an image | memory | object store |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        row = [name, cell(name, "rate", "{:,.0f}".format)]
        row += [ratio(name, [bound]) for bound in LIMITS]
        row.append(ratio(name, peers) if name in CONTENDERS else "-")
        row += [cell(name, "total_rate", "{:,.0f}".format), cell(name, "first", "{:.1f} s".format)]
        row += [
            cell(name, "wait", "{:.1%}".format),
            cell(name, "cpu", "{:.2f} ms".format),
            cell(name, "memory", "{:,.0f} MiB".format),
        ]
        row.append(cell(name, "store", "{:,.0f} MiB".format) if name in OURS else "-")
        lines.append(f"| {' | '.join(row)} |")
    spilled = max(run["spilled"] for name in OURS for run in found[name])
    return [*lines, "", f"Spilled from the object store to disk: {spilled:,.0f} MiB."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of all contenders")
    parser.add_argument("--size", type=int, default=224, help="pixels of a view")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=40, help="batches of a run")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--profile", action="store_true", help="only take our own time apart, and print it")
    parser.add_argument("--folder", type=Path, help="of the corpus; by default one in data/ingest-bench")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--busy", type=float, default=0.0, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.steps <= UNCOUNTED:
        parser.error(f"--steps: {told.steps} is too few; the first {UNCOUNTED} are not counted")
    told.folder = (told.folder or FOLDER / str(told.images)).absolute()
    if told.child:
        print(json.dumps(child(told)))
        return
    told.command = " ".join(["python -m benchmarks.ingest", *sys.argv[1:]])
    display = Display()
    prepare_ways(generate(told.folder, told.images), told.cores, display)
    ray.shutdown()
    if told.profile:
        print("\n".join(profile(make_job(told))))
        return
    lines = page(rounds(told, display), told)
    kept = RESULT.read_text(encoding="utf-8").partition(WORDS) if RESULT.exists() else ("", "", "")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text("\n".join([*lines, "", WORDS]) + (kept[2] or "\n"), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
