"""Every YAML that comes along loads, and its first two lines tell a reader how to run it and what it costs."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from pipelines.program.settings import apply_overrides, load, read_config, read_yaml, validate

ROOT = Path(__file__).parent.parent
MODELS = {
    "pipelines": "pipelines.prepare.config:PrepareSettings",
    "features": "training.features:FeatureSettings",
    "training": "training.config:TrainSettings",
    "evaluation": "evaluation.config:EvaluateSettings",
    "tuning": "tuning.config:SweepSettings",
}
RECIPES = sorted(
    path.relative_to(ROOT)
    for package in ("pipelines", "training", "evaluation", "tuning")
    for folder in ("configs", "sweeps")
    for path in (ROOT / package / folder).rglob("*.y*ml")
)


def kind(path: Path) -> str:
    """What a recipe is for: its package, or stored features."""
    return "features" if path.parts[0] == "pipelines" and "dataset" in read_yaml(ROOT / path) else path.parts[0]


def test_every_program_has_a_recipe() -> None:
    assert {kind(path) for path in RECIPES} == set(MODELS)


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_a_recipe_loads(path: Path) -> None:
    module, name = MODELS[kind(path)].split(":")
    settings = load(getattr(importlib.import_module(module), name), ROOT / path)
    assert settings.digest()


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_a_recipe_begins_with_its_command_and_what_it_costs(path: Path) -> None:
    first, second = (ROOT / path).read_text(encoding="utf-8").split("\n")[:2]
    assert first == f"# python -m {path.parts[0]} {path}"
    assert second.startswith("# ") and len(second.split()) > 5


@pytest.mark.parametrize("path", [p for p in RECIPES if p.parts[0] == "tuning"], ids=str)
def test_every_trial_of_a_sweep_is_a_config_that_loads(path: Path) -> None:
    """A grid over a key that does not exist would be found out after the first hours."""
    from training.config import TrainSettings
    from tuning.config import SweepSettings
    from tuning.optuna_points import corners

    sweep = load(SweepSettings, ROOT / path)
    base = read_config(ROOT / sweep.base, TrainSettings)

    def validated(overrides: dict[str, Any]) -> TrainSettings:
        """As `load` does it, but for reading the same file every time."""
        return validate(TrainSettings, apply_overrides(base, overrides, TrainSettings), str(path))

    for cell in sweep.cells():
        tree = validated(sweep.overrides | cell).model_dump(mode="json")
        for seed in [sweep.search_seed, *sweep.seeds]:
            assert validated(sweep.overrides | cell | dict.fromkeys(sweep.seed_keys, seed)).seed == seed
        for point in corners(sweep.space, tree):
            validated(sweep.overrides | cell | point)


def test_what_training_reads_is_what_preparing_writes() -> None:
    """Each training recipe's dataset is the output of a recipe that comes along."""
    from pipelines.prepare.config import PrepareSettings
    from training.config import TrainSettings
    from training.features import FeatureSettings
    from tuning.config import SweepSettings

    outputs = {load(PrepareSettings, ROOT / p).output for p in RECIPES if kind(p) == "pipelines"}
    for path in RECIPES:
        if kind(path) == "features":
            assert load(FeatureSettings, ROOT / path).dataset in outputs, path
        if path.parts[0] == "training":
            assert load(TrainSettings, ROOT / path).data.path in outputs, path
        if path.parts[0] == "tuning":
            sweep = load(SweepSettings, ROOT / path)
            settings = load(TrainSettings, ROOT / sweep.base, sweep.overrides)
            assert {settings.data.path, *(other.path for other in settings.evaluation.extra_datasets)} <= outputs, path
