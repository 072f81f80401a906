"""Scores the best checkpoint once, after training, on the split that `evaluation.test_split` names.

`checkpoint.best` chooses among the run's evaluations of `evaluation.split`. The test split plays no part in that: it is embedded
after the choice, by the same code as in every evaluation, and its scores are written to `RUN/test.json`.
"""

import json
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
from training.checkpoint_registry import TESTED, put
from training.held_out import merged_scores
from training.plan import Plan
from training.pulse import Pulse
from training.ray_train import run_workers
from training.ray_worker import this_worker
from training.run_store import RunStore, kept, store_of
from training.validation import embed_held_out

_ASIDE = "testing"  # folder of Ray Train's own files


def run_final_test(plan: Plan, folder: Path, data_cpus: float, display: Display) -> dict[str, Any]:
    """The content of `test.json`: from an earlier call, or computed by the run's workers now. Raises `UserError`."""
    place, metric = folder / TESTED, plan.settings.checkpoint.best
    if place.exists():
        return json.loads(place.read_text(encoding="utf-8"))
    if not (folder / "best").exists():
        problem = f"'{metric}' never had a value in {folder}, so no checkpoint was chosen"
        raise UserError("checkpoint.best", problem, "name another metric, and another name= for the run")
    aside = folder / _ASIDE
    config = {"plan": plan, "data_cpus": data_cpus, "folder": folder, "store": store_of(folder)}
    content = run_workers(_test_worker, config, plan.settings.resources, aside, display)
    shutil.rmtree(aside, ignore_errors=True)
    put(place, json.dumps(content, indent=1))
    kept(folder, TESTED)
    return content


def _test_worker(config: dict[str, Any]) -> dict[str, Any]:
    """The function that each Ray Train worker runs."""
    configure_data()
    store: RunStore | None = config["store"]
    folder = config["folder"] if store is None else store.opened("best").parent
    worker = this_worker(config["data_cpus"])
    with Pulse(config["folder"] / _ASIDE, worker):
        return score_chosen(config["plan"], folder, worker)


def score_chosen(plan: Plan, folder: Path, worker: Worker) -> dict[str, Any]:
    """Scores of `best/` on the test split, and how that checkpoint was chosen; the same on every worker."""
    assert plan.test is not None
    _, state = build_state(plan, worker, folder / "best")
    load_checkpoint(folder / "best", state, plan)
    rows = embed_held_out(state.evaluated, plan, plan.test, worker)
    scores = score(plan.test.data, rows.images, rows.texts, rows.prompts)
    return {
        "split": plan.settings.evaluation.test_split,
        "samples": len(plan.test.data.sample_ids),
        "chosen_on": plan.settings.evaluation.split,
        **json.loads((folder / "best" / "best.json").read_text(encoding="utf-8")),  # metric, its value there, step
        **merged_scores([scores]),
    }
