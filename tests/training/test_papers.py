"""Presets of the papers' recipes: each describes itself, fits the cluster that it names, and takes a real step at toy size."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.dataset.prepared import Prepared
from pipelines.dataset.tokenizer import train_tokenizer
from pipelines.program.settings import load, parse_overrides
from tests.refusals import refused
from tests.training.one_step import one_step
from training.config import TrainSettings
from training.resources import Cluster, plan_resources

FOLDER = Path(__file__).parent.parent.parent / "training" / "configs" / "papers"
PRESETS = sorted(FOLDER.glob("*.yaml"))
every_preset = pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)


def comment(path: Path, pattern: str) -> tuple[float, ...]:
    """The numbers of the one comment line that matches."""
    (found,) = re.findall(rf"^# {pattern}$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return tuple(map(float, found))


def test_there_is_a_preset_of_every_recipe() -> None:
    both = {f"{name}-{data}" for name in ("clip", "slip", "declip", "uniclip", "mcd", "psd") for data in ("cc3m", "yfcc15m")}
    assert {path.stem for path in PRESETS} == both | {"clip-ping-coco-cc3m", "a-clip-ping-coco-cc3m", "cyclip-cc3m"}


@every_preset
def test_a_preset_is_named_as_its_file_and_does_not_pretend_to_have_been_run(path: Path) -> None:
    settings = load(TrainSettings, path)
    assert settings.name == path.stem and path.stem.startswith(f"{settings.objective.name}-")
    second = path.read_text(encoding="utf-8").split("\n")[1]
    assert "never run here at full size" in second and f"{settings.resources.num_workers} GPU" in second.replace("one", "1")
    assert f" {settings.epochs} epochs " in second


@every_preset
def test_a_preset_fits_its_cluster_and_not_one_with_a_gpu_less(path: Path) -> None:
    nodes, gpus, _, cpus = comment(path, r"cluster: (\d+) nodes?(?:, each)? with (\d+) A100 of (\d+) GB and (\d+) CPUs")
    wanted = load(TrainSettings, path).resources
    assert plan_resources(wanted, True, Cluster(nodes * cpus, nodes * gpus)) >= wanted.data_cpus
    with refused("resources", f"{wanted.num_workers} GPUs", remedy="resources.use_gpu=false"):
        plan_resources(wanted, True, Cluster(nodes * cpus, nodes * gpus - 1))


BUILT: dict[str, float] = {}  # by settings: presets share towers


def millions(tower: Any, *vocabulary_size: int) -> float:
    """Parameters of a tower."""
    key = repr(tower)
    if key not in BUILT:
        with torch.device("meta"):  # shapes without numbers
            network = tower.build(*vocabulary_size)
        BUILT[key] = round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1)
    return BUILT[key]


@every_preset
def test_towers_have_as_many_parameters_as_the_preset_says(path: Path) -> None:
    settings = load(TrainSettings, path)
    assert settings.text_tower.weights_name() is None
    found = [millions(settings.image_tower), millions(settings.text_tower, settings.text_tower.vocabulary_size)]
    assert tuple(found) == comment(path, r"parameters: ([\d.]+) M in the image tower, ([\d.]+) M in the text tower")


@every_preset
def test_further_data_that_a_preset_offers_to_score_loads(path: Path) -> None:
    (offered,) = re.findall(r"(evaluation\.extra_datasets='.*?')", path.read_text(encoding="utf-8"))
    also = load(TrainSettings, path, parse_overrides(shlex.split(offered))).evaluation.extra_datasets
    assert Path("data/imagenet") in [Path(str(other.path)) for other in also]


@pytest.fixture(scope="module")
def toy(tiny_dataset: Prepared) -> dict[str, Any]:
    """Overrides that make any preset small. Only sizes change: networks, objective, optimizer and schedule stay of their kind."""
    return {
        "data.path": str(tiny_dataset.path),
        "image_tower.image_size": 32,
        "text_tower.layers": 1,
        "text_tower.width": 16,
        "text_tower.heads": 2,
        "text_tower.vocabulary_size": 300,
        "embed_dim": 16,
        "epochs": 1,
        "global_batch_size": tiny_dataset.manifest["splits"]["train"],
        "precision": "bf16",  # CPUs have no fp16
        "resources": {"num_workers": 1, "use_gpu": False, "data_cpus": 1},
    }


_SMALL = {
    "slip": {"objective.hidden": 32, "objective.width": 8},
    "declip": {"objective.hidden": 32, "objective.queue": 64},
}


@pytest.fixture(scope="module")
def encoders(tiny_dataset: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Frozen encoders from disk: no hub."""
    import timm
    from transformers import DistilBertConfig, DistilBertModel

    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "image.pth")
    tokenizer = train_tokenizer(tiny_dataset.texts().to_pylist(), 100, 8)
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 8}
    DistilBertModel(DistilBertConfig(**sizes, vocab_size=tokenizer.vocabulary_size)).save_pretrained(folder / "text")
    (folder / "text" / "tokenizer.json").write_text(tokenizer.json, encoding="utf-8")
    image = {"name": "timm", "model": "test_resnet", "weights": str(folder / "image.pth"), "image_size": 32}
    return {"image_encoder": image, "text_encoder": {"name": "huggingface", "weights": str(folder / "text"), "max_tokens": 8}}


@every_preset
def test_one_step_at_toy_size(
    path: Path, toy: dict[str, Any], encoders: dict[str, Any], tiny_dataset: Prepared, tmp_path: Path
) -> None:
    step_at_toy_size(path, [], toy, encoders, tiny_dataset, tmp_path)


ABLATION = dict(re.findall(r"^#   ([a-e]): (.*)$", (FOLDER / "mcd-yfcc15m.yaml").read_text(encoding="utf-8"), flags=re.MULTILINE))


def test_the_five_rows_of_mcds_ablation_differ_by_one_part_after_another() -> None:
    found = {
        row: load(TrainSettings, FOLDER / "mcd-yfcc15m.yaml", parse_overrides(shlex.split(text)))
        for row, text in ABLATION.items()
    }
    assert list(found) == list("abcde")
    assert found["b"].objective.name == "uniclip" and found["b"].heads[0].name == "augmented"
    weights = {row: (s.objective.positive, s.objective.negative, s.objective.noisy) for row, s in found.items() if row != "b"}
    assert weights == {"a": (0, 0, 0), "c": (1, 0, 0), "d": (1, 1, 0), "e": (1, 1, 1)}
    assert not found["a"].objective.distils and found["a"].objective.progress == 0
    # Apart from the objective each is the preset, and the last row is the preset itself.
    rest = [s.model_dump(mode="json", exclude={"objective"}) for s in found.values()]
    assert all(tree == rest[0] for tree in rest)
    assert found["e"] == load(TrainSettings, FOLDER / "mcd-yfcc15m.yaml")


@pytest.mark.parametrize("row", ABLATION)
def test_a_row_of_the_ablation_takes_a_step_at_toy_size(
    row: str, toy: dict[str, Any], encoders: dict[str, Any], tiny_dataset: Prepared, tmp_path: Path
) -> None:
    step_at_toy_size(FOLDER / "mcd-yfcc15m.yaml", shlex.split(ABLATION[row]), toy, encoders, tiny_dataset, tmp_path)


def test_uniclip_with_a_plain_head_takes_a_step_at_toy_size(
    toy: dict[str, Any], encoders: dict[str, Any], tiny_dataset: Prepared, tmp_path: Path
) -> None:
    overrides = ["objective.codes=false"]
    assert load(TrainSettings, FOLDER / "uniclip-yfcc15m.yaml", parse_overrides(overrides)).heads[0].name == "linear"
    step_at_toy_size(FOLDER / "uniclip-yfcc15m.yaml", overrides, toy, encoders, tiny_dataset, tmp_path)


def test_slips_own_baseline_is_its_towers_and_length() -> None:
    """The overrides that clip-yfcc15m.yaml suggests, against the preset whose baseline they make."""
    text = (FOLDER / "clip-yfcc15m.yaml").read_text(encoding="utf-8")
    (offered,) = re.findall(r"^#   (image_tower.*)$", text, flags=re.MULTILINE)
    found = load(TrainSettings, FOLDER / "clip-yfcc15m.yaml", parse_overrides(shlex.split(offered)))
    slip = load(TrainSettings, FOLDER / "slip-yfcc15m.yaml")
    for key in ("data", "image_tower", "text_tower", "embed_dim", "schedule", "epochs", "global_batch_size", "precision"):
        assert getattr(found, key) == getattr(slip, key), key
    assert (found.optimizer.lr, found.optimizer.weight_decay) == (5e-4, 0.5)


def step_at_toy_size(
    path: Path, given: list[str], toy: dict[str, Any], encoders: dict[str, Any], tiny_dataset: Prepared, tmp_path: Path
) -> None:
    """A real optimizer step, whose gradient reaches every parameter that trains. `given`: overrides of the preset."""
    full = load(TrainSettings, path, parse_overrides(given))
    vit = full.image_tower.model.startswith("vit_")
    # A ResNet's branches start at zero, so their first layers would get no gradient in the first step.
    options = {"embed_dim": 16, "depth": 1, "num_heads": 2} if vit else {"zero_init_last": False}
    overrides = toy | {"image_tower.options": options} | _SMALL.get(full.objective.name, {})
    if full.frozen_encoders is not None:
        overrides["frozen_encoders"] = encoders
    settings = load(TrainSettings, path, parse_overrides(given) | overrides)
    _, metrics, state = one_step(settings, tmp_path)
    assert metrics["loss"] == pytest.approx(metrics["loss"]) and 0 < metrics["grad_norm"] < float("inf")
    start = full.schedule.start_lr or full.optimizer.lr / full.schedule.warmup_steps
    assert metrics["lr"] == pytest.approx(start)
    trained = {**dict(state.encoder.named_parameters()), **dict(state.objective.named_parameters(prefix="objective"))}
    assert len(trained) > 20
    for name, parameter in trained.items():
        assert parameter.requires_grad and parameter.grad is not None, name
        # The queue of A-CLIP-PING is empty at first, so the head for neighbours gets no gradient.
        idle = full.objective.name == "a-clip-ping" and name.startswith("objective.") and not name.startswith("objective.scale.")
        assert bool(parameter.grad.isfinite().all()) and bool(parameter.grad.any()) is not idle, name
