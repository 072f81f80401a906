"""Each diagnosis is made of figures that show it and of none that do not; real runs on squares that are made ill say theirs."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.suite import HeldOut
from tests.training.inline_runs import train
from training.diagnosis import diagnose
from training.held_out import HeldOutEmbeddings, chances_of
from training.held_out_figures import held_out_loss
from training.metrics_file import read_metrics
from training.plan import Plan

CONFIG: dict[str, Any] = {
    "objective": {"name": "clip", "temperature": 0.07, "learn_temperature": True, "max_scale": 100.0},
    "optimizer": {"lr": 1e-3, "weight_decay": 0.05},
    "schedule": {"warmup_steps": 20},
    "checkpoint": {"best": None, "mode": "max"},
    "resources": {"data_cpus": 3},
    "image_tower": {"mode": "trainable"},
    "text_tower": {"mode": "trainable"},
    "epochs": 10,
    "global_batch_size": 128,
    "precision": "fp32",
}
SCORE = "retrieval/squares/{}_recall@1"
CHANCES = {"retrieval/squares/mean_recall@1": (0.25, 400)}
EPOCHS, LINES = 10, 5  # lines an epoch, the last with the evaluation
Curve = Callable[[float], float]  # of the share of the run that is done


def made(**curves: Curve) -> list[dict[str, Any]]:
    """A run that is well, with flat ends: all falls and rises are over after half of it. `curves` replace some figures."""
    usual: dict[str, Curve] = {
        "loss": lambda t: 1 + 3 * math.exp(-8 * t),
        "held_out_loss": lambda t: 2 + 2 * math.exp(-8 * t),
        "score": lambda t: 30 - 29 * math.exp(-8 * t),
        "spread_images": lambda t: 0.8,
        "spread_texts": lambda t: 0.7,
        "rank_images": lambda t: 60.0,
        "rank_texts": lambda t: 50.0,
        "temperature": lambda t: 0.07 - 0.03 * t,
        "grad_norm": lambda t: 1.0,
        "data_wait": lambda t: 0.05,
        "skipped": lambda t: 0,
        "lr": lambda t: 1e-3 * (1 - t),
    }
    lines = []
    for i in range(1, EPOCHS * LINES + 1):
        t = i / (EPOCHS * LINES)
        at = {name: curve(t) for name, curve in (usual | curves).items()}
        line = {"step": 10 * i, "epoch": i / LINES, "samples": 1280 * i, "samples_per_second": 500.0}
        often = ("loss", "temperature", "grad_norm", "data_wait", "skipped", "lr")
        line |= {name: at[name] for name in often if math.isfinite(at[name])}
        if i % LINES == 0:
            line |= {name: at[name] for name in at if name not in (*often, "score")}
            line |= {SCORE.format(way): at["score"] for way in ("image_to_text", "text_to_image")}
        lines.append(line)
    return lines


def kinds(lines: list[dict[str, Any]], finished: bool = True, **changes: Any) -> list[str]:
    return [finding.kind for finding in diagnose(lines, CONFIG | changes, CHANCES, finished)]


def rising(t: float) -> float:
    """A held-out loss that is lowest after four tenths."""
    return 2 + abs(t - 0.4)


ILL: dict[str, dict[str, Curve]] = {
    "held-out loss turns": {"held_out_loss": rising},
    "score turns": {"score": lambda t: 30 - 40 * abs(t - 0.4)},
    "loss turns": {"loss": lambda t: 1 + 3 * abs(t - 0.4), "held_out_loss": rising, "grad_norm": lambda t: 1 + 5 * t},
    "steps are skipped": {"skipped": lambda t: round(20 * t)},
    "images are alike": {"spread_images": lambda t: 0.8 if t < 0.5 else 0.001},
    "texts have few directions": {"rank_texts": lambda t: 50 if t < 0.5 else 5},
    "loss of equal rows": {"loss": lambda t: math.log(128) + 0.001},
    "score is chance": {"score": lambda t: 0.3},
    "at the bound": {"temperature": lambda t: max(0.01, 0.07 - 0.1 * t)},
    "waits": {"data_wait": lambda t: 0.4},
    "falls": {"held_out_loss": lambda t: 4 - t, "score": lambda t: 10 * t},
}
SAYS = {
    "held-out loss turns": "overfitting",
    "score turns": "overfitting",
    "loss turns": "divergence",
    "steps are skipped": "divergence",
    "images are alike": "collapse",
    "texts have few directions": "collapse",
    "loss of equal rows": "collapse",
    "score is chance": "nothing learned",
    "at the bound": "saturated temperature",
    "waits": "idle input",
    "falls": "more epochs",
}


def test_of_a_run_that_is_well_nothing_is_said() -> None:
    assert kinds(made()) == []
    noise = np.random.default_rng(0)
    wobbling = made(
        loss=lambda t: (1 + 3 * math.exp(-8 * t)) * noise.normal(1, 0.1),
        held_out_loss=lambda t: (2 + 2 * math.exp(-8 * t)) * noise.normal(1, 0.015),
        score=lambda t: 30 - 29 * math.exp(-8 * t) + noise.normal(0, 1.0),
    )
    assert kinds(wobbling) == []


@pytest.mark.parametrize("name", SAYS)
def test_each_illness_is_named_alone(name: str) -> None:
    assert kinds(made(**ILL[name])) == [SAYS[name]]


@pytest.mark.parametrize("name", SAYS)
def test_nothing_is_said_of_too_few_figures(name: str) -> None:
    """Of an epoch and a half; a lost step needs no others to be lost."""
    few = made(**ILL[name])[: LINES * 3 // 2]
    assert kinds(few, finished=False) == (["divergence"] if name == "steps are skipped" else [])


def test_the_evidence_has_its_figures_and_the_advice_the_keys_with_their_values() -> None:
    (found,) = diagnose(made(held_out_loss=rising), CONFIG, CHANCES, True)
    for figure in ("epoch 4", "from 2 to 2.6"):
        assert figure in found.evidence
    assert "epochs (now 10)" in found.advice and "checkpoint.best=retrieval/squares/mean_recall" in found.advice
    chosen = CONFIG | {"checkpoint": {"best": "held_out_loss", "mode": "min"}}
    (found,) = diagnose(made(held_out_loss=rising), chosen, CHANCES, True)
    assert "best/ is of epoch 4" in found.evidence and "checkpoint.best" not in found.advice
    (found,) = diagnose(made(data_wait=lambda t: 0.4), CONFIG, CHANCES, True)
    assert "40%" in found.evidence and "resources.data_cpus (now 3)" in found.advice


def test_what_looks_ill_and_is_not() -> None:
    """A temperature that begins at its bound, an objective whose loss rises by design, fp16's first steps, no end."""
    assert kinds(made(temperature=lambda t: 0.01)) == []
    assert kinds(made(loss=lambda t: 1 + 3 * t, grad_norm=lambda t: 1 + 5 * t)) == []
    assert kinds(made(skipped=lambda t: 12), precision="fp16") == []
    assert kinds(made(**ILL["falls"]), finished=False) == []
    alike = made(**ILL["loss of equal rows"])
    assert kinds(alike, objective={"name": "siglip"}) == []


def test_the_held_out_loss_is_clips_over_batches_of_one_size(plan_of: Callable[..., Plan]) -> None:
    """Against a plain double loop, with a batch that does not divide the pairs and two images with the same caption."""
    data: HeldOut = plan_of().held_out
    assert len(data.sample_ids) == len(data.texts) == 10
    data.text_ids[3] = data.text_ids[7]
    draw = np.random.default_rng(1)
    images, texts = (draw.normal(size=(10, 6)).astype(np.float32) for _ in range(2))
    images, texts = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, texts))
    rows = HeldOutEmbeddings(images, texts, texts[:0])
    for batch in (4, 10, 64):
        order = np.random.default_rng(0).permutation(10).tolist()
        size = min(batch, 10)
        filled = (order * 2)[: math.ceil(10 / size) * size]
        losses = []
        for start in range(0, len(filled), size):
            part = filled[start : start + size]
            for i in part:
                own, others = math.exp(5 * images[i] @ texts[i]), [j for j in part if data.text_ids[j] != data.text_ids[i]]
                there = own + sum(math.exp(5 * images[i] @ texts[j]) for j in others)
                back = own + sum(math.exp(5 * images[j] @ texts[i]) for j in others)
                losses.append(-math.log(own / there) / 2 - math.log(own / back) / 2)
        found = held_out_loss(data, rows, 5.0, batch, torch.device("cpu"))
        assert found == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ({"optimizer.lr": 0.1, "schedule": {"name": "constant"}}, "collapse"),
        ({"optimizer.lr": 1e-9}, "nothing learned"),
    ],
)
def test_a_real_run_that_is_made_ill_says_so(
    plan_of: Callable[..., Plan], tmp_path: Path, overrides: dict[str, Any], kind: str
) -> None:
    plan = plan_of(epochs=16, log_every=1, **overrides)
    train(plan, tmp_path)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    scored = [line for line in lines if "held_out_loss" in line]
    assert all({"spread_images", "spread_texts", "rank_images", "rank_texts"} <= line.keys() for line in scored)
    found = diagnose(lines, plan.settings.model_dump(mode="json"), chances_of(plan.held_out), finished=True)
    assert kind in [finding.kind for finding in found]
