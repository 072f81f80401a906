"""The best checkpoint, scored once: if `evaluation.test_split` names a split, after training and before the result.

`checkpoint.best` chooses among the run's evaluations of `evaluation.split`. The test split plays no part in that: it is embedded
after the choice, by the same code as in every evaluation, and its scores are written to `RUN/test.json`.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from evaluation.suite import score
from pipelines.dataset.stream import Worker
from pipelines.program.cluster import configure_data
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from training.build import build_state
from training.checkpoint import load_checkpoint
from training.held_out import merged
from training.loop import this_worker
from training.plan import Plan
from training.ray_train import run_workers
from training.validation import embed_held_out

_FILE = "test.json"


def test_chosen(plan: Plan, folder: Path, data_cpus: float, display: Display) -> dict[str, Any]:
    """The content of `test.json`: from an earlier call, or computed by the run's workers now. Raises `UserError`."""
    place = folder / _FILE
    if place.exists():
        return json.loads(place.read_text(encoding="utf-8"))
    if not (folder / "best").exists():
        raise UserError(f"checkpoint.best: '{plan.settings.checkpoint.best}' was never a number, so no checkpoint was chosen")
    aside = folder / "testing"  # Ray Train's own files
    config = {"plan": plan, "data_cpus": data_cpus, "folder": folder}
    found = run_workers(_test_worker, config, plan.settings.resources, aside, display)
    shutil.rmtree(aside, ignore_errors=True)
    partial = folder / f"{_FILE}.partial-{os.getpid()}"
    partial.write_text(json.dumps(found, indent=1), encoding="utf-8")
    partial.rename(place)
    return found


def _test_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs."""
    configure_data()
    return score_chosen(config["plan"], config["folder"], this_worker(config["data_cpus"]))


def score_chosen(plan: Plan, folder: Path, worker: Worker) -> dict[str, Any]:
    """Scores of `best/` on the test split, and how it was chosen; the same on every worker."""
    assert plan.test is not None
    encoder, state = build_state(plan, worker, folder / "best")
    load_checkpoint(folder / "best", state, plan, worker.device)
    rows = embed_held_out(encoder, plan, plan.test, worker)
    scores = score(plan.test.data, rows.images, rows.texts, rows.prompts)
    return {
        "split": plan.settings.evaluation.test_split,
        "samples": len(plan.test.data.sample_ids),
        "chosen_on": plan.settings.evaluation.split,
        **json.loads((folder / "best" / "best.json").read_text(encoding="utf-8")),  # metric, its value there, step
        **merged([scores]),
    }
