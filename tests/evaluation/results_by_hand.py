"""Results made by hand for tests of the comparison page: one of each task, with all that a result can tell."""

import math
from dataclasses import replace
from typing import Any

from evaluation.results import Result

IMAGE = "data:image/jpeg;base64,AAAA"
NASTY = "<b>bold</b> & \"quoted\" <img src='http://example.org/x.png'>"
LINE = {"slope": 0.9, "intercept": -0.5, "r2": 0.99, "models": 85, "left_out": 1, "lowest": 56.5, "highest": 84.7}


def result(model: str, dataset: str, task: str, main: str, scores: dict[str, float], **changes: Any) -> Result:
    made = Result(
        model=model,
        dataset=dataset,
        task=task,
        main=main,
        scores=scores,
        intervals={name: (value - 2, value + 2) for name, value in scores.items() if math.isfinite(value)},
        baselines={name: {"chance": 10.0} for name in scores},
        sample_sizes=dict.fromkeys(scores, 1234),
        about={
            "embedder": "made.by:hand",
            "arguments": {"model": "ViT-B-32"},
            "fingerprint": f"model-{model}",
            "data": {"fingerprint": f"data-{dataset}", "attribution": "A. Painter <a@example.org>", "coverage": {"used": 1234}},
        },
    )
    return replace(made, **changes)


def zero_shot(model: str, dataset: str, top1: float, **changes: Any) -> Result:
    worst = [{"name": "<b>", "images": 7, "recall": 14.3, "taken_for": [["cat & dog", 71.4]]}]
    bins = [
        {"low": 0, "high": 50, "count": 0, "confidence": None, "accuracy": None},
        {"low": 50, "high": 100, "count": 9, "confidence": 80.0, "accuracy": 60.0},
    ]
    details = {
        "num_classes": 10,
        "without_images": ["unseen & unsung"],
        "worst": worst,
        "templates": ["a photo of {}", "<i>{}</i>"],
        "sensitivity": {"metric": "top1", "scores": [top1 - 3, top1 - 1], "mean": top1 - 2, "sd": 1.4, "min": 0, "max": 0},
        "calibration": {"error": 20.0, "confidence": 80.0, "accuracy": 60.0, "scale": 100.0, "bins": bins},
    }
    scores = {"top1": top1, "top5": top1 + 20, "mean_per_class": top1 - 1}
    return result(model, dataset, "zeroshot_classification", "top1", scores, details=details, **changes)


def of_every_task(model: str, top1: float) -> list[Result]:
    """One result of each task, with all that a result can tell."""
    found = {"image": "p1", "hit": True}, {"image": "p2", "hit": False}
    gallery = {
        "captions": [{"caption": NASTY, "right": "p1", "found": list(found)}],
        "images": [{"image": "p1", "right": [NASTY], "found": [{"caption": f"said by {model}", "hit": False}]}],
    }
    retrieval = {
        "median_rank": {"image_to_text": 2.5, "text_to_image": math.inf},
        "geometry": {"modality_gap": 0.8, "alignment": 1.2, "uniformity_images": -2.3, "uniformity_texts": -2.0},
        "gallery": gallery,
        "thumbnails": {"p1": IMAGE, "p2": "http://example.org/tracker.png"},
    }
    recalls = {
        f"{direction}_recall@{k}": top1 - 20 + k for direction in ("image_to_text", "text_to_image", "mean") for k in (1, 5)
    }
    probe = {"l2": 1e6, "c": 1e-6, "tried": {"1e-06": 50.0, "1.0": 60.0, "1000000.0": 70.0}, "converged": False}
    probe |= {"not_converged": [1e-6], "width": 512, "train": 3680, "validation": 736, "worst": [], "without_images": []}
    probe |= {"of": "embeddings", "without_training": ["yeti"]}
    shots = [
        {
            "shots": k,
            "scores": [1, 2],
            "mean": top1 - 8 / k,
            "sd": None if k == 1 else 1.5,
            "converged": [True, False],
            "short": [3],
        }
        for k in (1, 4)
    ]
    clean = {f"{name}@{s}": top1 - 5 * s for name in ("blur", "noise") for s in (1, 5)} | {"mean": top1 - 15}
    crepe = dict.fromkeys(("replace_obj", "replace", "swap_att", "swap", "macro", "swap_micro", "micro"), top1)
    crepe |= {"order_only": 51.0, "swap_att_order_only": 51.0}
    shift = {"effective": top1 - 58, "prediction": 48.0, "shift": top1 - 10, "reference": top1}
    robustness = {"extrapolated": top1 < 56.5, "line": LINE, "baselines": "shipped", "reference_set": "imagenet"}
    return [
        zero_shot(model, "pets", top1),
        result(model, "pets", "linear_probe", "top1", {"top1": top1 + 20}, details=probe),
        result(
            model,
            "pets",
            "few_shot",
            "top1@4",
            {f"top1@{s['shots']}": s["mean"] for s in shots},
            details={"shots": shots, "seeds": [0, 1]},
            intervals={},
        ),
        result(model, "coco", "zeroshot_retrieval", "mean_recall@1", recalls, details=retrieval),
        result(model, "crepe", "image_caption_selection", "macro", crepe, baselines={name: {"chance": 50.0} for name in crepe}),
        result(model, "imagenet_v2", "effective_robustness", "effective", shift, details=robustness, baselines={}),
        result(model, "pets", "corruption", "mean", clean, details={"clean": top1, "names": ["blur", "noise"]}),
    ]
