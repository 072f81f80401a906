"""Memory of a sweep's driver over its trials, which must not grow with their number: Ray's issue 64231 tells of 300 KB a trial.

    python -m benchmarks.sweep_memory --trials 2000             # trials that report as real ones do, and do not train
    python -m benchmarks.sweep_memory --trials 200 --train      # trials that train one epoch
    python -m benchmarks.sweep_memory --trials 300 --where      # where the driver's Python objects were made

The sweep is a real one, of OpenMoji's first 160 emojis with locked towers, in a cell with points drawn at random. The driver's
resident memory is read after every ten trials or more. Writing the tables and the page takes more at once, the more the longer
they are, and the process keeps it: the growth as a whole, and the slope of the second half, contain that; the median does not.
"""

import argparse
import gc
import json
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import ray  # noqa: F401  brings psutil along
import yaml

from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.prepare import prepare
from pipelines.program.display import Display
from pipelines.program.settings import load
from tuning import trainable
from tuning.config import SweepSettings
from tuning.sweep import sweep

import psutil  # isort: skip  # which Ray brings along

ROOT = Path(__file__).parents[1]
QUIET = Display(quiet=True)
REPORTS, SCORES = 3, 30  # of a trial that does not train


def report_only(config: dict[str, Any]) -> None:
    """In place of a trial: what the driver sees of one, evaluations, curve and outcome, without its training."""
    from ray import tune

    from training.metrics_file import append_lines
    from tuning.trial_runner import values_for_tune
    from tuning.trials import Outcome, end

    folder, score = Path(config["place"]), config["score"][0]
    scores = {score: 10.0} | {f"zero_shot/other_{i}/top1": 10.0 for i in range(SCORES - 1)}
    for step in range(1, REPORTS + 1):
        line = {"step": step, "epoch": step, "samples": 32 * step, "seconds": 0.1 * step, "loss": 1.0, "peak_memory_gib": 0.1}
        append_lines(folder / "metrics.jsonl", [line | scores])
        values = values_for_tune(line | scores, config, REPORTS)
        tune.report(values)
    (folder / "result.json").write_text(json.dumps({"baselines": {}, "sample_sizes": {}}))
    end(folder, Outcome("finished", metrics=scores, epochs=REPORTS, samples=32.0 * REPORTS, seconds=0.3, loss=1.0))


class Reader:
    """A context in which a thread reads this process's memory whenever ten more trials have ended."""

    def __init__(self, trials: Path, where: int):
        self._trials, self._where, self._over = trials, where, threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.read: list[tuple[int, float]] = []  # trials that have ended, MiB
        self.made: list[str] = []

    def __enter__(self) -> "Reader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _read(self) -> None:
        process, first = psutil.Process(), None
        while not self._over.wait(0.5):
            ended = sum(1 for _ in self._trials.glob("*/outcome.json"))
            if self.read and ended < self.read[-1][0] + 10:
                continue
            gc.collect()
            self.read.append((ended, process.memory_info().rss / 2**20))
            print(f"{ended} trials: {self.read[-1][1]:.1f} MiB", flush=True)
            if self._where and first is None and ended >= self._where // 3:
                first = tracemalloc.take_snapshot()
            elif self._where and first is not None and not self.made and ended >= self._where - 20:
                grown = tracemalloc.take_snapshot().compare_to(first, "traceback")
                self.made = ["\n".join([str(entry), *entry.traceback.format()]) for entry in grown[:25]]


def growth(read: list[tuple[int, float]]) -> tuple[float, float, float, float]:
    """KiB a trial: over all, over the second half, between readings in the median; and MiB of all steps above 2 MiB."""
    trials, memory = np.array([reading for reading in read if reading[0]]).T
    parts, half = np.diff(memory), trials >= trials[-1] / 2
    whole = 1024 * (memory[-1] - memory[0]) / (trials[-1] - trials[0])
    second = 1024 * np.polyfit(trials[half], memory[half], 1)[0]
    return float(whole), float(second), float(np.median(parts * 1024 / np.diff(trials))), float(parts[parts > 2].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of a sweep's driver over its trials.")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--where", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        tree: dict[str, Any] = {"source": {"name": "openmoji", "limit": 160}, "output": Path(home) / "data"}
        prepare(PrepareSettings.model_validate(tree | {"image": {"size": 64, "format": "png"}, "splits": {"test": 0.2}}), QUIET)
        overrides = {"data.path": f"{home}/data", "data.validation": 0.2, "image_tower.image_size": 64}
        overrides |= {"global_batch_size": 32, "evaluation.every_epochs": 1}
        config: dict[str, Any] = {"name": "memory", "storage": home, "base": str(ROOT / "training/configs/openmoji.yaml")}
        config |= {"overrides": overrides, "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}}}
        config |= {"sampler": {"name": "random"}, "trials": options.trials - 1, "seeds": [0], "budget": {"epochs": 1}}
        (Path(home) / "sweep.yaml").write_text(yaml.safe_dump(config))
        if not options.train:
            trainable.run_trial = report_only
        if options.where:
            tracemalloc.start(12)
        started = time.monotonic()
        with Reader(Path(home) / "memory" / "trials", options.trials if options.where else 0) as reader:
            sweep(load(SweepSettings, Path(home) / "sweep.yaml"), QUIET, "")
        seconds = time.monotonic() - started
    whole, second, median, steps = growth(reader.read)
    print(f"{options.trials} trials in {seconds:.0f} s; from {reader.read[1][1]:.0f} to {reader.read[-1][1]:.0f} MiB")
    print(f"KiB a trial: {whole:.1f} over all, {second:.1f} in the second half, {median:.1f} between readings in the median")
    print(f"{steps:.0f} MiB came in steps of more than 2 MiB")
    print("\n\n".join(reader.made))


if __name__ == "__main__":
    main()
