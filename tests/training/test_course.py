"""The course project's preset: its learning rates, and one real step at toy size under each of its losses and optimizers."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.dataset.prepared import Prepared
from pipelines.dataset.tokenizer import train_tokenizer
from pipelines.program.settings import load, parse_overrides
from tests.training.one_step import one_step as take_one_step
from training.config import TrainSettings
from training.tensor_tree import load_tree

PRESET = Path(__file__).parent.parent.parent / "training" / "configs" / "course.yaml"
# The overrides that the comments of the preset suggest.
OFFERED = [shlex.split(text)[0] for text in re.findall(r"^# +((?:objective|optimizer)='.*')$", PRESET.read_text(), re.M)]
TOKENS = 30


@pytest.fixture(scope="module")
def toy(tiny_dataset: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Overrides that make the preset small: untrained towers of the same kinds, and one batch an epoch."""
    from transformers import DistilBertConfig, DistilBertModel

    folder = tmp_path_factory.mktemp("distilbert")
    captions = [text for texts in tiny_dataset.table("captions")["captions"].to_pylist() for text in texts]
    tokenizer = train_tokenizer(captions, 300, TOKENS)
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 32}
    torch.manual_seed(0)
    DistilBertModel(DistilBertConfig(**sizes, vocab_size=tokenizer.vocabulary_size)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer.json, encoding="utf-8")
    return {
        "data.path": str(tiny_dataset.path),
        "image_tower.model": "test_resnet",
        "image_tower.weights": None,
        "image_tower.image_size": 32,
        "text_tower.weights": str(folder),
        "precision": "bf16",
        "resources.use_gpu": False,
        "global_batch_size": tiny_dataset.manifest["splits"]["train"],
        "epochs": 1,
    }


@pytest.fixture(scope="module")
def one_step(toy: dict[str, Any], tiny_dataset: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """A function from overrides to the settings, the step's metrics, and the weights before and after it."""

    def run(*overrides: str) -> tuple[TrainSettings, dict[str, float], dict, dict]:
        settings = load(TrainSettings, PRESET, toy | parse_overrides(overrides))
        folder = tmp_path_factory.mktemp("checkpoint")
        plan, metrics, _ = take_one_step(settings, folder)
        before = plan.build()[0].state_dict()
        return settings, metrics, before, load_tree(folder, "state")["encoder"]

    return run


def test_the_learning_rates_are_the_courses() -> None:
    """100,000 pairs in batches of 128: 781 steps an epoch. Values worked by hand."""
    settings = load(TrainSettings, PRESET)
    steps, total = 781, 781 * 30

    def at(step: int) -> float:
        return settings.schedule.lr_at(step, steps, total, settings.optimizer.lr)

    stairs = [1e-5, 4.8e-5, 8.6e-5, 1.24e-4, 1.62e-4]
    assert [at(step) for step in range(500)] == pytest.approx([stairs[step // 100] for step in range(500)], rel=1e-9)
    assert {at(step) for step in range(500, steps)} == {2e-4}
    for epoch, rate in ((1, 1.99454929e-4), (15, 1.005e-4), (29, 1.54507e-6)):
        epoch_rates = {at(step) for step in range(epoch * steps, (epoch + 1) * steps)}
        assert len(epoch_rates) == 1 and epoch_rates.pop() == pytest.approx(rate, rel=1e-5)


def test_the_preset_names_four_other_losses_and_two_other_optimizers() -> None:
    found = [load(TrainSettings, PRESET, parse_overrides([text])) for text in OFFERED]
    assert {s.objective.hinge for s in found if s.objective.name == "sogclr"} == {None, 1.0}
    assert {s.objective.name for s in found} == {"clip", "sogclr", "cyclip", "vicreg", "onlineclr"}
    assert {s.optimizer.name for s in found} == {"adamw", "sgd", "adam"}
    # An override of one part leaves the rest of the recipe alone.
    assert {(s.optimizer.lr, s.optimizer.weight_decay) for s in found} == {(2e-4, 0.02)}
    assert {s.objective.temperature for s in found if hasattr(s.objective, "temperature")} == {0.01}
    assert not any(getattr(s.objective, "learn_temperature", False) for s in [load(TrainSettings, PRESET), *found])


@pytest.mark.parametrize("override", ["", *OFFERED], ids=lambda text: "-".join(re.findall(r"name: (\w+)", text)) or "as it is")
def test_one_step_at_toy_size(one_step: Callable, override: str) -> None:
    settings, metrics, before, after = one_step(*filter(None, [override]))
    assert metrics["lr"] == pytest.approx(1e-5) and metrics["samples"] == settings.global_batch_size
    assert metrics["grad_norm"] > 0
    assert metrics.get("temperature", 0.01) == pytest.approx(0.01)
    for part in ("image_tower.network", "text_tower.network", "image_head", "text_head"):
        moved = [not torch.equal(before[name], after[name]) for name in before if name.startswith(part)]
        assert moved and any(moved), part


def test_a_caption_is_its_first_token(toy: dict[str, Any]) -> None:
    from transformers import DistilBertModel

    settings = load(TrainSettings, PRESET, toy)
    tokenizer = settings.text_tower.tokenizer(list)
    ids, mask = (torch.from_numpy(a) for a in tokenizer(["a red apple", "apple"]))
    assert ids.shape == (2, TOKENS)
    states = DistilBertModel.from_pretrained(toy["text_tower.weights"]).eval()(input_ids=ids, attention_mask=mask)
    tower = settings.text_tower.build(tokenizer.vocabulary_size).eval()
    torch.testing.assert_close(tower(ids, mask), states.last_hidden_state[:, 0])
