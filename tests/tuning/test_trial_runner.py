"""A trial in this process, interrupted: it resumes from its newest intact checkpoint, and its outcome says what was damaged."""

import json
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from tests.training.squares import BATCH, BEST, STEPS, tree_of, write_root
from training.checkpoint_registry import NEWEST
from tuning.trial_runner import run_trial
from tuning.trials import Folder, Trial


@pytest.mark.filterwarnings("ignore:`(report|get_session)` is meant to only be called")
def test_a_trials_damaged_checkpoint_is_named_in_its_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_root(tmp_path)
    folder = Folder(tmp_path / "sweep")
    trial = Trial("all", "final", 0, 0, {}, {}, "all")
    folder.begin(trial)
    config: dict[str, Any] = {
        **{"name": trial.name, "tree": tree_of(tmp_path) | {"name": trial.name, "storage": str(folder.path / "trials")}},
        **{"inline": True, "data_cpus": 1, "score": [BEST], "items": False, "storage": str(folder.path)},
    }

    def die(values: dict[str, Any]) -> None:
        raise KeyboardInterrupt  # which no outcome records, as a killed process

    with monkeypatch.context() as patched:
        patched.setattr(tune, "report", die)
        with pytest.raises(KeyboardInterrupt):
            run_trial(config)
    place = folder.of(trial.name)
    assert folder.ended(trial.name) is None
    saved = [place / name for name in json.loads((place / NEWEST).read_text())]
    weights = saved[-1] / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    run_trial(config)
    outcome = folder.ended(trial.name)
    assert outcome is not None and outcome.status == "finished" and outcome.samples == STEPS * BATCH
    assert saved[-1].name in outcome.reason and "state.safetensors" in outcome.reason
