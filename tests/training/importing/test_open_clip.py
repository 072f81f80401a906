"""open_clip's command lines as configs: the commonest ones are imported, prepared and take a step; no argument is dropped."""

import argparse
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import open_clip_train.params
import pytest
import torch

from benchmarks.docs import with_arguments
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.prepare import prepare
from pipelines.program import yaml_text
from pipelines.program.settings import apply_overrides, validate
from raylign.__main__ import main
from tests.conftest import QUIET, png
from tests.refusals import refused
from tests.training.one_step import one_step
from training.config import TrainSettings
from training.importing.arguments import ARGUMENTS
from training.importing.open_clip import imported

ROOT = Path(__file__).parents[3]
MODEL, ROWS = "raylign-imported", 24


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data as open_clip reads them, a small model in its lists, and a checkpoint of its training."""
    folder = tmp_path_factory.mktemp("open_clip")
    lines = ["filepath\ttitle"]
    with tarfile.open(folder / "0.tar", "w") as tar:
        for i in range(ROWS):
            content = png(np.random.default_rng(i).integers(0, 256, (40, 48, 3), dtype=np.uint8))
            (folder / f"{i}.png").write_bytes(content)
            lines.append(f"{folder / f'{i}.png'}\tA thing of kind {i}")
            for name, member in ((f"{i}.png", content), (f"{i}.txt", f"A thing of kind {i}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (folder / f"{MODEL}.json").write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder / f"{MODEL}.json")
    torch.manual_seed(0)
    model: Any = open_clip.create_model(MODEL, load_weights=False)
    with torch.no_grad():
        model.logit_scale.fill_(np.log(25))
    torch.save({"epoch": 2, "state_dict": model.state_dict(), "optimizer": {}}, folder / "epoch_2.pt")
    return folder


def trees(files: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {name: yaml_text.parse(text) for name, text in files.items()}


WEBDATASET = "--train-data FOLDER/0.tar --train-num-samples 2905954 --dataset-type webdataset"
CSV = "--train-data FOLDER/pairs.csv --csv-img-key filepath --csv-caption-key title"
USUAL = f"--model {MODEL} --batch-size 8 --epochs 1 --warmup 1 --device cpu --precision fp32"
COMMON = {
    "cc3m": f"torchrun --nproc_per_node 1 -m open_clip_train.main {WEBDATASET} {USUAL} --lr 1e-3 --local-loss --gather-with-grad",
    "csv": f"python -m open_clip_train.main {CSV} {USUAL} --report-to tensorboard",
    "siglip": f"{WEBDATASET} {USUAL} --siglip",
    "finetune": f"python -m open_clip_train.main {CSV} {USUAL} --pretrained FOLDER/epoch_2.pt --lr 1e-5 --lock-text",
    "distill": f"{CSV} {USUAL} --distill-model {MODEL} --distill-pretrained FOLDER/epoch_2.pt",
}


@pytest.fixture(scope="module")
def prepared(ray_session: None, files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Datasets by the kind of source, prepared as the imported configs say, with a larger held-out share of so few rows."""
    found = {}
    for kind, case in (("webdataset", "cc3m"), ("table", "csv")):
        tree = trees(imported(COMMON[case].replace("FOLDER", str(files))))["prepare.yaml"]
        assert tree["source"]["name"] == kind
        output = tmp_path_factory.mktemp("prepared") / kind
        prepare(validate(PrepareSettings, tree | {"output": str(output), "splits": {"test": 1 / 3}}, kind), QUIET)
        found[kind] = output
    return found


@pytest.mark.parametrize("case", COMMON)
def test_the_commonest_command_lines_take_a_step(case: str, files: Path, prepared: dict[str, Path], tmp_path: Path) -> None:
    both = trees(imported(COMMON[case].replace("FOLDER", str(files))))
    keys = {"data.path": str(prepared[both["prepare.yaml"]["source"]["name"]]), "global_batch_size": 16}
    settings = validate(TrainSettings, apply_overrides(both["train.yaml"], keys, TrainSettings), case)
    plan, metrics, _ = one_step(settings, tmp_path)
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    objective: Any = plan.settings.objective
    assert (objective.name, objective.mask_false_negatives) == (
        {"siglip": "siglip", "distill": "distill"}.get(case, "clip"),
        False,
    )
    begun = {"siglip": 0.1, "finetune": 1 / 25}.get(case, 0.07)
    assert objective.temperature == pytest.approx(begun)
    if case == "distill":
        assert objective.teacher_temperature == pytest.approx(1 / 25) and objective.live
        assert (objective.relation, objective.contrastive, objective.feature, objective.interactive) == (1, 1, 0, 0)
    if case == "finetune":
        assert (settings.text_tower.mode, settings.image_tower.mode) == ("frozen", "trainable")


def test_numbers_become_keys(files: Path) -> None:
    """Of one GPU in open_clip, of all workers here."""
    command = f"torchrun --nnodes 2 --nproc_per_node=4 -m open_clip_train.main {WEBDATASET.replace('FOLDER', str(files))} "
    command += "--model ViT-B-16 --batch-size 64 --accum-freq 2 --workers 3 --wd 0.3 --beta2 0.95 --grad-clip-norm 2 --seed 5 "
    command += (
        "--precision amp_bf16 --warmup 500 --aug-cfg scale='(0.4, 1.0)' re_prob=0.3 --name 'a b' --logs /runs --val-frequency 3"
    )
    settings = validate(TrainSettings, trees(imported(command))["train.yaml"], "numbers")
    assert (settings.global_batch_size, settings.accumulate) == (64 * 2 * 8, 2)
    assert (settings.resources.num_workers, settings.resources.data_cpus, settings.resources.use_gpu) == (8, 24, True)
    optimizer, schedule = settings.optimizer, settings.schedule
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adamw", 5e-4, 0.3)
    assert optimizer.options == {"betas": [0.9, 0.95], "eps": 1e-6}
    assert (schedule.name, schedule.warmup_steps, schedule.final_lr) == ("cosine", 500, 0)
    assert (settings.clip_norm, settings.seed, settings.precision, settings.name) == (2, 5, "bf16", "a-b")
    augment = settings.data.augment
    assert augment is not None and (augment.crop_scale, augment.flip) == ((0.4, 1.0), False)
    assert (str(settings.storage), settings.evaluation.every_epochs, settings.embed_dim) == ("/runs", 3, 512)
    assert "--aug-cfg re_prob=0.3" in imported(command)["train.yaml"]


def test_what_is_locked_is_frozen_by_blocks() -> None:
    """open_clip's last N groups are the projection, the last block with its norm, and the blocks before that."""
    given = "--train-data a.tar --model ViT-B-32 --grad-checkpointing --lock-text "
    tree = trees(imported(given + "--lock-image --lock-image-unlocked-groups 3"))["train.yaml"]
    settings = validate(TrainSettings, tree, "locked")
    assert (settings.image_tower.frozen_blocks, settings.image_tower.mode, settings.image_tower.recompute) == (
        10,
        "trainable",
        True,
    )
    assert (settings.text_tower.mode, settings.text_tower.recompute) == ("frozen", False)
    tree = trees(imported(given + "--lock-text-unlocked-layers 13"))["train.yaml"]
    assert tree["text_tower"] == {"frozen_blocks": 0, "recompute": True} and tree["image_tower"] == {"recompute": True}
    tree = trees(imported(given.replace("ViT-B-32", "RN50") + "--lock-image --lock-image-unlocked-groups 1"))["train.yaml"]
    assert tree["image_tower"] == {"mode": "frozen"}


def test_several_sources_and_scored_data(files: Path) -> None:
    given = f"--train-data 'pipe:aws s3 cp s3://b/{{0..3}}.tar -::{files}/0.tar' --dataset-resampled "
    given += f"--train-data-upsampling-factors 2::1 --val-data {files}/pairs.csv --imagenet-val /in --model ViT-B-32"
    found = trees(imported(given))
    assert set(found) == {"prepare.yaml", "prepare-val.yaml", "prepare-imagenet.yaml", "train.yaml"}
    parts = found["prepare.yaml"]["source"]["sources"]
    assert [part["weight"] for part in parts] == [2, 1] and parts[0]["source"]["paths"] == "s3://b/{0..3}.tar"
    extra = validate(TrainSettings, found["train.yaml"], "extra").evaluation.extra_datasets
    assert [str(data.path) for data in extra] == [found[f"prepare-{name}.yaml"]["output"] for name in ("val", "imagenet")]


VALUES = {"--dataset-type": "webdataset", "--lr-scheduler": "const-cooldown", "--opt": "timm/lamb", "--precision": "bf16"}
VALUES |= {"--train-data": "a.tar", "--model": "ViT-B-32", "--report-to": "wandb", "--val-data": "v.tar", "--resume": "latest"}
VALUES |= {"--train-data-upsampling-factors": "2", "--pretrained": "laion2b_s34b_b79k", "--image-interpolation": "bicubic"}
VALUES |= {
    "--image-resize-mode": "squash",
    "--remote-sync-protocol": "s3",
    "--remote-sync": "s3://b/runs",
    "--distill-model": "RN50",
}
VALUES |= {"--distill-pretrained": "cc12m", "--device": "cuda:0", "--aug-cfg": "scale='(0.5, 1.0)'"}


@pytest.mark.parametrize("argument", ARGUMENTS, ids=lambda argument: argument.name)
def test_no_argument_is_dropped(argument: Any) -> None:
    """Each stands in the configs, wherever else it is."""
    value = VALUES.get(
        argument.name, {"flag": "", "whole": "3", "number": "0.5", "numbers": "0.5", "pairs": ""}.get(argument.kind, "x")
    )
    given = {"--train-data": "a.tar", "--model": "ViT-B-32", "--lr": "1e-3", "--warmup": "3"} | {argument.name: value}
    texts = imported(" ".join(f"{name} {value}" for name, value in given.items()))
    assert any(argument.name in re.split("[,:.]? |[,:.]?\n", words) for words in texts.values())


def test_the_arguments_are_open_clips_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the release that is installed: names, kinds and defaults."""
    parsers: list[argparse.ArgumentParser] = []
    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda self, *a: (parsers.append(self), parse(self, *a))[1])
    defaults = vars(open_clip_train.params.parse_args(["--opt", "timm/lamb"]))
    ours = {argument.name: argument for argument in ARGUMENTS}
    theirs = {action.option_strings[0]: action for action in parsers[0]._actions if action.dest != "help"}
    assert theirs.keys() == ours.keys()
    for name, action in theirs.items():
        argument = ours[name]
        if argument.kind == "flag":
            assert action.nargs == 0, name
            continue
        assert (action.nargs in ("+", "*")) == (argument.kind in ("numbers", "pairs")), name
        whole = {int: "whole", float: "number"}.get(action.type, "text")
        assert argument.kind in ("numbers", "pairs") or argument.kind == whole, name
        if name not in ("--lr", "--opt", "--aug-cfg"):
            assert argument.default == defaults[action.dest], name
    for model in ("ViT-B-32", "RN50"):
        chosen = open_clip_train.params.parse_args(["--model", model])
        tree = trees(imported(f"--train-data a.tar --model {model}"))["train.yaml"]["optimizer"]
        assert tree["lr"] == chosen.lr and tree["options"] == {"betas": [chosen.beta1, chosen.beta2], "eps": chosen.eps}


def test_the_page_lists_every_argument() -> None:
    page = (ROOT / "docs" / "open_clip.md").read_text(encoding="utf-8")
    assert with_arguments(page) == page, "run make docs"
    assert with_arguments(page.replace("`--siglip`", "`--sigmoid`")) == page


@pytest.mark.parametrize(
    ("launcher", "workers"),
    [
        ("", 1),
        ("CUDA_VISIBLE_DEVICES=0 python -m open_clip_train.main", 1),
        ("cd open_clip/src && torchrun --nproc_per_node 4 -m training.main", 4),
        ("srun --ntasks 6 python -u src/open_clip_train/main.py", 6),
        ("python -m torch.distributed.launch --nnodes=2 --nproc-per-node=3 -m open_clip_train.main", 6),
    ],
)
def test_launchers_say_the_number_of_workers(launcher: str, workers: int) -> None:
    tree = trees(imported(f"{launcher} --train-data a.tar --model ViT-B-32 --batch-size 10"))["train.yaml"]
    assert (tree["resources"]["num_workers"], tree["global_batch_size"]) == (workers, 10 * workers)


def test_what_cannot_be_imported_is_named() -> None:
    with refused("ARGUMENTS", "srun", remedy="--gpus"):
        imported("srun python -m open_clip_train.main --train-data a.tar")
    with refused("ARGUMENTS", "gpu", remedy="--gpus"):
        imported("torchrun --nproc_per_node=gpu -m open_clip_train.main --train-data a.tar")
    assert (
        "num_workers: 3" in imported("srun python -m open_clip_train.main --train-data a.tar --model ViT-B-32", 3)["train.yaml"]
    )
    with refused("ARGUMENTS", "--learning-rate"):
        imported("--train-data a.tar --learning-rate 3")
    with refused("--train-data", remedy="data"):
        imported("--dataset-type synthetic")
    with refused("--train-data", "pipe:cat"):
        imported("--train-data 'pipe:cat a.tar' --dataset-type webdataset")
    with refused("start.model", "ViT-B/32", remedy="ViT-B-32"):
        imported("--train-data a.tar --model ViT-B/32")
    with refused("--lr", "lamb"):
        imported("--train-data a.tar --opt timm/lamb")
    text = imported("--train-data a.tar --model roberta-ViT-B-32")["train.yaml"]
    assert "--model: roberta-ViT-B-32" in text
    # open_clip only warns; the weights were trained with another activation than this name has.
    text = imported("--train-data a.tar --model ViT-B-32 --pretrained openai")["train.yaml"]
    assert yaml_text.parse(text)["start"]["model"] == "ViT-B-32-quickgelu" and "QuickGELU" in text


def test_the_command_prints_or_writes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["import", "open_clip", "--train-data a.tar --model ViT-B-32"]
    assert main(command) == 0
    assert "# --- prepare.yaml ---" in capsys.readouterr().out
    assert main([*command, "--output", str(tmp_path / "new")]) == 0
    assert f"raylign train {tmp_path / 'new' / 'train.yaml'}" in capsys.readouterr().out
    for model, name in ((PrepareSettings, "prepare.yaml"), (TrainSettings, "train.yaml")):
        validate(model, yaml_text.parse((tmp_path / "new" / name).read_text()), name)
    assert main([*command, "--output", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.startswith("error: --output: ")
