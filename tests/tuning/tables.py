"""Tables of a sweep made by hand: two objectives x two optimizers, of which one cell failed and one was stopped early.

Every score is the mean of two metrics, 5 above and 5 below it, so that what a page must show can be worked out in the head.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

I2T = "retrieval/emoji/image_to_text_recall@1"
T2I = "retrieval/emoji/text_to_image_recall@1"
MORE = "zero_shot/emoji_subgroup/top1"  # shown, but not ranked by: twice the score
OBJECTIVES, OPTIMIZERS = ["clip", "sogclr"], ["adamw", "sgd"]
CELLS = [f"{objective}, {optimizer}" for objective in OBJECTIVES for optimizer in OPTIMIZERS]
FINALS = {"clip, adamw": [15.0, 17.0, 19.0], "sogclr, adamw": [21.0, 23.0, 22.0]}
LR = {"low": 1e-4, "high": 1e-2, "log": True}
LR_SGD = {"low": 1e-2, "high": 1.0, "log": True}
BEGUN = {"state": "running"}  # of sweep.json, while trials run
NAN_REASON = "loss is nan at step 83; lower optimizer.lr"


def row(cell: str, phase: str, point: int, seed: int, score: float, **more: Any) -> dict[str, Any]:
    """A trial; a NaN score is one that it has not, and `more` replaces or adds columns."""
    name = f"{cell.replace(', ', '-')}-p{point}" + (f"-seed{seed}" if phase == "final" else "")
    labels = dict(zip(("objective.name", "optimizer.name"), cell.split(", "), strict=False))
    return {
        "trial": name,
        "cell": cell,
        "phase": phase,
        "point": point,
        "seed": seed,
        **labels,
        "optimizer.lr": 1e-3,
        "objective.temperature": 0.07,
        "status": "finished",
        "reason": "",
        "split": "validation" if phase == "search" else "test",
        "epochs": 4.0,
        "samples": 400.0,
        "seconds": 10.0,
        "peak_memory_gib": 1.0,
        "loss": 2.0,
        "started": 1.7e9,
        I2T: score + 5,
        T2I: score - 5,
        MORE: 2 * score,
        "score": score,
        "command": f"python -m training base.yaml name={name} 'optimizer.lr=1e-3' seed={seed}",
    } | more


def cell_of(name: str, lr: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An entry of sweep.json. `lr`: the range in which it was searched."""
    ranges = {"objective.temperature": {"low": 0.01, "high": 0.5, "log": True}} | ({"optimizer.lr": lr} if lr else {})
    return {"cell": name, "labels": name.split(", "), "ranges": ranges}


def search_rows() -> list[dict[str, Any]]:
    """Nine points for sogclr, adamw (best: 4, lr 3e-3); three for clip, adamw (best: 0); failed and stopped ones."""
    rates = [1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 6e-3, 8e-3]
    scores = [11.0, 14.0, 17.0, 19.0, 20.0, 18.5, 18.0, 16.0]
    heats = [0.05, 0.2, 0.03, 0.15, 0.07, 0.3, 0.02, 0.1]
    found = [
        row("sogclr, adamw", "search", i, 0, score, **{"optimizer.lr": rate, "objective.temperature": heat})
        for i, (rate, score, heat) in enumerate(zip(rates, scores, heats, strict=True))
    ]
    failed = {"status": "failed", "reason": NAN_REASON, "epochs": 1.0}
    found.append(row("sogclr, adamw", "search", 8, 0, math.nan, **failed, **{"optimizer.lr": 1e-2}))
    found += [row("clip, adamw", "search", i, 0, 16.0 - i, **{"optimizer.lr": 1e-4 * 2**i}) for i in range(3)]
    found += [row("clip, sgd", "search", i, 0, math.nan, **failed) for i in range(2)]
    found += [row("sogclr, sgd", "search", i, 0, 3.0 + i, status="stopped", epochs=1.0) for i in range(2)]
    return found


def final_rows(finals: Mapping[str, Iterable[float]] = FINALS) -> list[dict[str, Any]]:
    """The best points of `search_rows` with seeds 0, 1, ...; sogclr takes twice as long as clip."""
    points, rates = {"clip, adamw": 0, "sogclr, adamw": 4}, {"clip, adamw": 1e-4, "sogclr, adamw": 3e-3}
    return [
        row(
            cell,
            "final",
            points.get(cell, 0),
            seed,
            score,
            seconds=20.0 + seed if cell.startswith("sogclr") else 10.0 + seed,
            **{"optimizer.lr": rates.get(cell, 1e-3)},
        )
        for cell, scores in finals.items()
        for seed, score in enumerate(scores)
    ]


def curve_rows(trials: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """An evaluation an epoch: a quarter of the trial's score after the first of four epochs, all after the last."""
    return [
        {
            "trial": trial["trial"],
            "epoch": float(epoch),
            "samples": 100.0 * epoch,
            "loss": 4 / epoch,
            "score": trial["score"] * epoch / 4,
        }
        for trial in trials
        for epoch in range(1, int(trial["epochs"]) + 1)
        if not math.isnan(trial["score"])
    ]


def write(
    folder: Path, trials: Iterable[Mapping[str, Any]], curves: Iterable[Mapping[str, Any]] | None = None, **changes: Any
) -> Path:
    """The folder of a sweep; `changes` are of sweep.json."""
    trials = list(trials)
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(
        trials, columns=None if trials else [name for name in row(CELLS[0], "search", 0, 0, 0.0) if "/" not in name]
    )
    table.to_parquet(folder / "trials.parquet")
    pd.DataFrame(curve_rows(trials) if curves is None else list(curves)).to_parquet(folder / "curves.parquet")
    (folder / "sweep.json").write_text(json.dumps(info() | changes))
    return folder


def info() -> dict[str, Any]:
    """sweep.json of the finished sweep."""
    return {
        "name": "by-hand",
        "command": "python -m tuning sweeps/by-hand.yaml",
        "settings": {
            "name": "by-hand",
            "grid": {"objective.name": OBJECTIVES, "optimizer.name": OPTIMIZERS},
            "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
        },
        "axes": [
            {"key": "objective.name", "title": "objective", "labels": OBJECTIVES},
            {"key": "optimizer.name", "title": "optimizer", "labels": OPTIMIZERS},
        ],
        "cells": [cell_of(cell, LR_SGD if cell.endswith("sgd") else LR) for cell in CELLS],
        "space": [
            {"key": "optimizer.lr", "title": "lr", "log": True, "choices": None},
            {"key": "objective.temperature", "title": "temperature", "log": True, "choices": None},
        ],
        "score": {"title": "Average", "metrics": [I2T, T2I], "mode": "max"},
        "metrics": [I2T, T2I, MORE],
        "seeds": [0, 1, 2],
        "seed_keys": ["seed"],
        "planned": {"search": 16, "final": 12},
        "state": "finished",
        "seconds": 3723.0,
        "resources": "2 at a time, each on 1 CPU",
        "sessions": 2,
        "sampler": "tpe",
        "scheduler": "asha",
        "budget": "4 epochs",
        "datasets": [
            {
                "name": "emoji",
                "path": "data/emoji",
                "fingerprint": "0123456789abcdef" * 2,
                "licence": "CC0-1.0",
                "attribution": "Drawn by A. Painter & friends",
                "counts": {"listed": 1700, "found": 1650, "read": 1650, "kept": 1643, "rejected": {"too_small": 7}},
                "train_samples": 1100,
                "validation_samples": 212,
                "test_samples": 331,
                "shuffled": 0,
            }
        ],
        "baselines": {I2T: {"chance": 0.3}, T2I: {"chance": 0.5}},
        "sample_sizes": {I2T: 331, T2I: 331, MORE: 331},
        "versions": {"python": "3.x", "ray": "2.y", "torch": "2.z", "optuna": "5.0", "raylign": "0.0.1+abc"},
        "machine": {"cpus": 2, "processor": "z80"},
    }
