"""The mistakes a newcomer makes: each one line that names the key or the file and the way out, exit code 2, no traceback."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.__main__ import _run as run_pipelines
from pipelines.cli import run_program
from pipelines.config import PrepareSettings
from pipelines.prepared import Prepared
from pipelines.settings import load, parse_overrides
from training.__main__ import _run as run_training
from training.config import TrainSettings
from tuning.__main__ import _run as run_tuning
from tuning.config import SweepSettings
from tuning.plan import SweepPlan

ROOT = Path(__file__).parent.parent
OPENMOJI = "training/configs/openmoji.yaml"
SCRATCH = "training/configs/from-scratch.yaml"


@pytest.fixture
def mistake(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a program in this process; it must fail with exit code 2 and one line, which is returned."""
    monkeypatch.chdir(ROOT)

    def run(program: str, *arguments: str) -> str:
        if program == "pipelines":
            code = run_program(program, "", PrepareSettings, run_pipelines, arguments)
        elif program == "tuning":
            code = run_program(program, "", SweepSettings, run_tuning, arguments)
        else:
            code = run_program(program, "", TrainSettings, run_training, arguments)
        said = capfd.readouterr().err.strip()
        assert code == 2, said
        assert said.startswith("error: ") and "\n" not in said and "Traceback" not in said
        return said

    return run


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([OPENMOJI, "optimiser.lr=1"], ["optimiser", "did you mean 'optimizer'"]),
        ([OPENMOJI, "image_tower.wieghts=x"], ["image_tower.wieghts", "did you mean 'weights'"]),
        ([OPENMOJI, "epochs=ten"], ["epochs", "'ten'", "integer"]),
        ([OPENMOJI, "objective.name=clipp"], ["objective.name", "'clipp'", "clip"]),
        ([OPENMOJI, "image_tower.name=resnet"], ["image_tower.name", "'resnet'", "conv, huggingface, open_clip, run, timm"]),
        ([OPENMOJI, "optimizer.name=adamww"], ["optimizer.name", "adamww", "adamw"]),
        (["training/configs/nope.yaml"], ["training/configs/nope.yaml", "no such file", OPENMOJI]),
        ([OPENMOJI, "data.path=nowhere"], ["data.path", "nowhere", "python -m pipelines"]),
        ([SCRATCH, "global_batch_size=100000"], ["global_batch_size", "100000", "global_batch_size=7"]),
        ([SCRATCH, "global_batch_size=30", "accumulate=4"], ["global_batch_size", "30", "4", "32"]),
        ([SCRATCH, "evaluation.split=dev"], ["evaluation.split", "'dev'", "train, test"]),
        ([SCRATCH, "evaluation.labels=[colour]"], ["evaluation.labels", "'colour'", "group, subgroup"]),
        ([SCRATCH, "evaluation.split=train"], ["evaluation.split", "hold another split out"]),
        ([SCRATCH, "resources.num_workers=2"], ["2 workers x 1 CPU + 1", "= 3 CPUs", "has 2", "resources.cpus_per_worker=0.5"]),
        ([SCRATCH, "resources.use_gpu=true"], ["1 workers x 1 GPU", "has 0", "resources.use_gpu=false"]),
        ([SCRATCH, "checkpoint.best=accuracy"], ["checkpoint.best", "'accuracy'", "zero_shot/openmoji_group/top1"]),
        ([SCRATCH, "precision=fp16"], ["precision", "fp16", "bf16"]),
        ([SCRATCH, "name=../x"], ["name", "'../x'"]),
        ([OPENMOJI, "image_tower.weights=/no/such.pth"], ["image_tower.weights", "/no/such.pth"]),
        ([OPENMOJI, "text_tower.weights=package:no_such_package/x"], ["text_tower.weights", "no_such_package"]),
        ([SCRATCH, "image_tower.mode=locked"], ["image_tower.mode", "locked", "image_tower.mode=trainable"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and "=" in value[-1] else None,
)
def test_training(
    arguments: list[str], named: list[str], mistake: Callable[..., str], tiny_dataset: Prepared, tmp_path: Path
) -> None:
    small = [] if any(a.startswith("global_batch_size") for a in arguments) else ["global_batch_size=8"]
    path = [] if any(a.startswith("data.path") for a in arguments) else [f"data.path={tiny_dataset.path}"]
    said = mistake("training", arguments[0], f"storage={tmp_path}", *small, *path, *arguments[1:])
    for part in named:
        assert part in said
    assert not list(tmp_path.iterdir()), "a run that never began leaves no folder"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["sede=[1]"], ["sede", "did you mean 'seeds'"]),
        (["sampler.name=bayes"], ["sampler.name", "'bayes'", "cmaes, grid, random, tpe"]),
        (["grid.optimizer.name=[adamw,adamx]"], ["clip, adamx: optimizer.name", "did you mean adamax"]),
        (["grid.objective.name=[]"], ["grid", "'objective.name' has no values"]),
        (["grid.objektive.name=[clip]"], ["objektive", "did you mean 'objective'"]),
        (["space.optimizer.learning_rate={low: 1, high: 2}"], ["optimizer.learning_rate", "unknown key"]),
        (["space.objective.temperature={low: 2, high: 1}"], ["space.objective.temperature", "low: 2 is not below high: 1"]),
        (["space.optimizer.name={choices: [adam]}"], ["space.optimizer.name", "axis of the grid"]),
        (["overrides.data.validation=null"], ["validation", "train, test", "data.validation: 0.15"]),
        (["score=[accuracy]"], ["score", "'accuracy'", "zero_shot/openmoji_group/top1"]),
        (["budget.minutes=1"], ["budget", "one of epochs, samples and minutes"]),
        (["concurrency=3"], ["concurrency", "3 trials x (1 worker x 1 CPU)", "2 fit"]),
        (["overrides.resources.num_workers=4"], ["4 workers x 1 CPU", "has 2"]),
        (["loggers=[mlflow]"], ["loggers", "mlflow", "raylign[mlflow]"]),
        (["seeds=[1,1]"], ["seeds", "twice"]),
        (["scheduler.name=hyperband"], ["scheduler.name", "hyperband", "sampler.name=random"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and "=" in value[-1] else None,
)
def test_tuning(
    arguments: list[str], named: list[str], mistake: Callable[..., str], tiny_dataset: Prepared, tmp_path: Path
) -> None:
    small = [f"storage={tmp_path}", f"overrides.data.path={tiny_dataset.path}", "overrides.global_batch_size=16"]
    said = mistake("tuning", "tuning/sweeps/smoke.yaml", *small, *arguments)
    for part in named:
        assert part in said
    assert not list(tmp_path.iterdir()), "a sweep that never began leaves no folder"


def test_a_sweep_of_another_kind_is_not_mixed_in(mistake: Callable[..., str], tiny_dataset: Prepared, tmp_path: Path) -> None:
    """Told by the key that differs; here the folder is one that a killed sweep would have left."""
    small = [f"storage={tmp_path}", f"overrides.data.path={tiny_dataset.path}", "overrides.global_batch_size=16"]
    settings = load(SweepSettings, ROOT / "tuning/sweeps/smoke.yaml", parse_overrides(small))
    (tmp_path / "smoke-sweep").mkdir()
    identity = SweepPlan(settings).identity()
    (tmp_path / "smoke-sweep" / "sweep.json").write_text(json.dumps({"identity": identity}))
    said = mistake("tuning", "tuning/sweeps/smoke.yaml", *small, "budget.epochs=11", "seeds=[4,5]")
    assert (
        "sweep.budget.epochs: 10 -> 11" in said and "overwrite=true" in said and "seeds" not in said.split("(")[1].split(")")[0]
    )


def test_a_caption_file_without_a_picture(mistake: Callable[..., str], folder_of: Callable) -> None:
    folder = folder_of({"cat.png": b"x", "cat.txt": "a cat", "dog.txt": "a dog"})
    said = mistake("pipelines", "pipelines/configs/tuxpaint.yaml", f"source.path={folder}", "source.unpaired=error")
    assert str(folder / "dog.txt") in said and "source.unpaired=reject" in said


def test_an_empty_folder(mistake: Callable[..., str], tmp_path: Path) -> None:
    said = mistake("pipelines", "pipelines/configs/tuxpaint.yaml", f"source.path={tmp_path}", f"output={tmp_path}/out")
    assert "source.path" in said and "no pictures" in said and str(tmp_path) in said


def test_another_config_refuses_to_overwrite(mistake: Callable[..., str], tiny_dataset: Prepared) -> None:
    said = mistake("pipelines", "pipelines/configs/openmoji.yaml", f"output={tiny_dataset.path}")
    assert "source.limit: 96 -> None" in said and "overwrite=true" in said
