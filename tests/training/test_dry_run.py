"""The driver finds what cannot work before any worker starts, and before a cluster where it can: one line, and no folder left."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from pipelines.program import cluster
from pipelines.program.cli import run_program
from pipelines.program.errors import UserError
from tests.refusals import refused
from tests.training.squares import planner, write_root
from training import plan as planning
from training.__main__ import _run
from training.config import TrainSettings
from training.dry_run import check_build
from training.encoder import DualEncoder
from training.objectives.clip import Clip
from training.plan import Plan
from training.resources import Cluster

LOCKED_TEXT = "text_tower={name: huggingface, weights: TEXT, max_tokens: 8, mode: locked}"
SMALL = {"image_tower": {"name": "conv", "image_size": 16, "channels": [8, 16]}, "text_tower": {"name": "bag", "width": 16}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rehearsal")
    write_root(root)
    return root


@pytest.fixture(scope="module")
def plan_of(root: Path) -> Callable[..., Plan]:
    """Two towers that train; `locked` has features instead."""
    make = planner(root)
    return lambda locked=False, **overrides: make(**({} if locked else SMALL) | overrides)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[DualEncoder], None]], None]:
    """A function that makes every encoder built from now on pass through `alter`."""

    def change(alter: Callable[[DualEncoder], None]) -> None:
        build = planning.build_encoder

        def altered(*arguments: Any) -> DualEncoder:
            encoder = build(*arguments)
            alter(encoder)
            return encoder

        monkeypatch.setattr(planning, "build_encoder", altered)

    return change


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("overrides", [{}, {"accumulate": 2}, {"precision": "bf16"}, {"resources__num_workers": 2}], ids=str)
def test_what_works_is_not_refused(plan_of: Callable[..., Plan], locked: bool, overrides: dict[str, Any]) -> None:
    check_build(plan_of(locked, **overrides))


def test_a_parameter_without_a_gradient_is_named_where_there_are_several_workers(
    plan_of: Callable[..., Plan], built: Callable
) -> None:
    built(lambda encoder: encoder.text_tower.register_parameter("spare", nn.Parameter(torch.zeros(3))))
    check_build(plan_of())
    with refused("resources.num_workers", "text_tower.spare", remedy="resources.num_workers=1"):
        check_build(plan_of(resources__num_workers=2))


def test_a_network_that_cannot_be_built_is_told_in_one_line(plan_of: Callable[..., Plan], built: Callable) -> None:
    """Such as FSMT of transformers, whose encoder lacks what all others have: each library raises its own errors."""
    plan = plan_of()
    built(lambda encoder: encoder.text_tower.get_input_embeddings())
    with refused("", "run", "get_input_embeddings", remedy="--verbose"):
        check_build(plan)


class Noise(nn.Module):
    """Random in eval mode too."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows + torch.randn_like(rows)


@pytest.mark.parametrize("key", ["image", "text"])
def test_a_random_embedding_is_refused(plan_of: Callable[..., Plan], built: Callable, key: str) -> None:
    def add_noise(encoder: DualEncoder) -> None:
        setattr(encoder, f"{key}_head", nn.Sequential(getattr(encoder, f"{key}_head"), Noise()))

    built(add_noise)
    with refused(f"{key}_tower", remedy=f"{key}_head"):
        check_build(plan_of())


def test_what_a_step_raises_is_one_line(plan_of: Callable[..., Plan], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Clip, *_: Any) -> None:
        raise KeyError("no_such_column\nand more")

    monkeypatch.setattr(Clip, "forward", fails)
    with refused(str(root / "squares"), "KeyError", "no_such_column", remedy="--verbose"):
        check_build(plan_of())


def test_the_trial_step_changes_no_weights(plan_of: Callable[..., Plan]) -> None:
    """The weights that workers start from are those of a run without it."""
    plan = plan_of()
    before = plan.build()[0].state_dict()
    check_build(plan)
    assert all(torch.equal(tensor, before[name]) for name, tensor in plan.build()[0].state_dict().items())


@pytest.mark.parametrize(
    ("overrides", "named"),  # the key first
    [
        (["global_batch_size=3", "accumulate=4"], ["global_batch_size", "3", "4"]),
        (["global_batch_size=100"], ["global_batch_size", "100", "24"]),
        (["resources.use_gpu=true"], ["resources", "resources.use_gpu=false"]),
        (["resources.num_workers=8"], ["resources", "resources.num_workers=1"]),
        (["name=changed", "epochs=9"], ["name", "epochs", "overwrite=true"]),
        (["checkpoint.best=accuracy"], ["checkpoint.best", "'accuracy'", "loss"]),
        (["image_tower={name: timm, model: test_resnet, weights: /no/such.pth, image_size: 32}"], ["image_tower.weights"]),
        (["image_tower={name: timm, model: test_resnet, weights: TEXT/config.json, image_size: 32}"], ["image_tower.weights"]),
        (["text_tower={name: huggingface, weights: TEXT, max_tokens: 9}"], ["text_tower.max_tokens", "max_tokens=8"]),
        (["text_tower={name: huggingface, weights: some/where/else, max_tokens: 8}"], ["text_tower.weights", "some/where/else"]),
        (["text_tower={name: huggingface, weights: /none, max_tokens: 8, mode: locked}"], ["text_tower.weights", "/none"]),
        # Locked towers, whose features the cluster computes, and a tower that trains beside one.
        (
            ["image_tower={name: timm, model: test_resnet, weights: TEXT/model.safetensors, mode: locked}"],
            ["image_tower.weights"],
        ),
        (["image_tower={name: timm, model: test_vit, weights: IMAGE, mode: locked}"], ["image_tower.weights", "image.pth"]),
        (
            ["image_tower={name: timm, model: no_such_model, weights: IMAGE, mode: locked}"],
            ["image_tower.model", "no_such_model"],
        ),
        (["text_tower={name: huggingface, weights: TEXT/.., max_tokens: 8, mode: locked}"], ["text_tower.weights"]),
        (["image_tower={name: timm, model: test_vit, weights: IMAGE}", LOCKED_TEXT], ["image_tower.weights", "image.pth"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and "=" in value[-1] else None,
)
def test_what_needs_no_cluster_is_told_before_one_starts(
    overrides: list[str],
    named: list[str],
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(cluster, "start", start)
    monkeypatch.setattr("training.run.expected_cluster", lambda: Cluster(2, 0))
    config, runs = tmp_path / "run.yaml", tmp_path / "runs"
    tree = SMALL | {"name": "run", "storage": str(runs), "data": {"path": str(root / "squares")}, "embed_dim": 8, "epochs": 2}
    tree |= {"global_batch_size": 8, "tensorboard": False}
    config.write_text(yaml.safe_dump(tree))
    changed = runs / "changed"
    if "name=changed" in overrides:
        changed.mkdir(parents=True)
        (changed / ".lock").touch()
        (changed / "config.yaml").write_text(yaml.safe_dump(tree | {"name": "changed"}))
    given = [value.replace("TEXT", str(root / "text")).replace("IMAGE", str(root / "image.pth")) for value in overrides]
    assert run_program("training", "", TrainSettings, _run, [str(config), *given]) == 2
    printed = capfd.readouterr().err.strip()
    assert printed.startswith(f"error: {named[0]}: ") and "\n" not in printed
    for part in named:
        assert part in printed
    assert not runs.exists() or [path.name for path in runs.iterdir()] in ([], ["changed"])


@pytest.fixture
def replacing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> Callable[..., tuple[int, str, dict[str, str]]]:
    """Start a run that is to replace an earlier one: its exit code, its last line, and the content of all files after it."""
    monkeypatch.setattr(cluster, "start", lambda *_: None)
    monkeypatch.setattr("training.run.expected_cluster", lambda: Cluster(2, 0))
    monkeypatch.setattr("training.run.current_cluster", lambda: Cluster(2, 0))
    monkeypatch.setattr("training.run.check_driver", lambda *_: None)
    run = tmp_path / "runs" / "run"
    for name in ("config.yaml", "result.json", "checkpoint_00000006/state.safetensors", "towers/image_tower/x", ".lock"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("old")
    tree = SMALL | {"name": "run", "storage": str(run.parent), "data": {"path": str(root / "squares")}, "embed_dim": 8}
    tree |= {"epochs": 2, "global_batch_size": 8, "tensorboard": False, "overwrite": True}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))

    def start(*overrides: str) -> tuple[int, str, dict[str, str]]:
        code = run_program("training", "", TrainSettings, _run, [str(tmp_path / "run.yaml"), *overrides])
        files = {str(path.relative_to(run)): path.read_text() for path in run.rglob("*") if path.is_file()}
        return code, capfd.readouterr().err.strip(), files

    return start


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["checkpoint.best=accuracy"], "checkpoint.best"),
        (["optimizer.options={beta: 1}"], "optimizer.options"),
        (["resources.num_workers=8"], "resources"),
        (["evaluation.split=dev"], "evaluation.split"),
        (["image_tower={name: timm, model: test_resnet, weights: /no/such.pth, image_size: 32}"], "image_tower.weights"),
        (["image_tower={name: timm, model: test_resnet, image_size: 32}", "accumulate=2"], "accumulate"),  # of the rehearsal
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_mistake_does_not_cost_the_run_that_was_to_be_replaced(
    overrides: list[str], named: str, replacing: Callable[..., tuple[int, str, dict[str, str]]]
) -> None:
    code, printed, files = replacing(*overrides)
    assert code == 2 and printed.startswith(f"error: {named}") and "\n" not in printed
    assert set(files) >= {"result.json", "checkpoint_00000006/state.safetensors", "towers/image_tower/x"}
    assert {content for name, content in files.items() if name != ".lock"} == {"old"}


def test_nothing_of_a_run_that_is_replaced_is_left(
    replacing: Callable[..., tuple[int, str, dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*_: Any) -> None:
        raise UserError("", "training begins")

    monkeypatch.setattr("training.ray_train.fit", fit)
    code, printed, files = replacing()
    assert (code, printed) == (2, "error: training begins")
    assert set(files) == {".lock", "config.yaml", "sessions.jsonl"} and "old" not in files.values()


def test_the_first_line_is_printed_before_torch_is_imported(tmp_path: Path) -> None:
    """The import takes seconds, in which a user should not wonder whether anything happens."""
    program = (
        "import builtins, json, runpy, sys\n"
        "printed = []\n"
        "builtins.print = lambda *words, **_: printed.append([*map(str, words), 'torch' in sys.modules])\n"
        "sys.argv = ['training', 'nowhere.yaml']\n"
        "try:\n    runpy.run_module('training', run_name='__main__')\n"
        "except SystemExit:\n    sys.stdout.write(json.dumps(printed))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)[0] == ["training: loading", False]
