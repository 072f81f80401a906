"""Many small training runs in one process: the same plan, loop and scores as `python -m training`, without its cluster.

Where both towers are locked a run is seconds of arithmetic, and starting a Ray Train worker would be most of its time.
"""

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

import training.plan
from evaluation.metrics import mean_recalls
from pipelines.dataset.stream import Worker
from pipelines.features.pool import Pool
from pipelines.program import cluster
from pipelines.program.display import Display
from pipelines.program.settings import load
from training.config import TrainSettings
from training.loop import train
from training.plan import Plan


def plan_of(config: Path, overrides: dict[str, Any], display: Display) -> Plan:
    """The plan of a run; features of locked towers are computed in the cluster where they are not cached yet."""
    settings = load(TrainSettings, config, overrides)
    cluster.start(display.verbose)
    return training.plan.plan_of(settings, Pool(os.cpu_count() or 1), display)


def worker() -> Worker:
    """This process as the only worker."""
    return Worker(0, 1, torch.device("cpu"), 1.0)


def score(plan: Plan) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Train to the end: the last scores, in percent, and every reported line. Raises where training failed."""
    lines: list[dict[str, Any]] = []
    ended = train(plan, worker(), lambda metrics, save: lines.append(metrics))
    if "failed" in ended:
        raise RuntimeError(f"{plan.settings.name}: {ended['failed']}")
    return lines[-1] | mean_recalls(lines[-1]), lines


def machine() -> str:
    """What the figures were measured on, in words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return f"{os.cpu_count()} cores, {model}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
