"""The curves on a run's page: losses and scores, and diagnostics of training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from evaluation.metrics import DIRECTIONS
from evaluation.reporting import html, number_format
from evaluation.reporting.chart import TINY, Series, figure, lines, mark, score_range
from evaluation.suite import HeldOut
from training.held_out import pairs_at_a_time

_DIAGNOSTICS = {
    "lr": "Learning rate",
    "temperature": "Temperature",
    "grad_norm": "Norm of the gradient",
    "spread_images": "Spread of images, 1 - mean cosine",
    "spread_texts": "Spread of texts, 1 - mean cosine",
    "rank_images": "Effective rank of images",
    "rank_texts": "Effective rank of texts",
    "skipped": "Skipped steps",
    "samples_per_second": "Pairs per second",
    "data_wait": "Waiting for data",
    "checkpoint_wait": "Waiting for checkpoints",
    "peak_memory_gib": "Peak memory, GiB",
}
_SHARES = {"data_wait", "checkpoint_wait"}
_NO_CURVE = {"step", "epoch", "samples", "time", "loss", "held_out_loss", "workers"}


def curves(
    history: Sequence[Mapping[str, Any]], config: Mapping[str, Any], data: HeldOut, baselines: Mapping[str, Mapping[str, float]]
) -> html.Section:
    """Charts in two groups: loss and scores, and diagnostics of training.

    Args:
        history: lines of metrics.jsonl. config: the run's. baselines: of its scores, as far as they are known.
    """

    def draw(title: str, keys: dict[str, str], note: str = "", percent: bool = False, **options: Any) -> list[Markup]:
        """A line a key of the history, under its name, where the history has it."""
        series: list[Series] = []
        for i, (key, name) in enumerate(keys.items()):
            points = {line["epoch"]: (100.0 if key in _SHARES else 1.0) * line[key] for line in history if key in line}
            series += [Series(name or title, points, mark(i))] if points else []
        if not series:
            return []
        labelled = 82.0 if len(keys) > 1 else 0.0
        ends = [(s.name if labelled else "", s.points[min(s.points)], s.points[max(s.points)]) for s in series]
        spans = ", ".join(f"{name} from {first:.4g} to {last:.4g}".strip() for name, first, last in ends)
        note = note or f"{number_format.label(ends[0][2])}{' %' if percent else ''} at the end"
        about = f"{title} over {max(series[0].points):g} epochs: {spans}"
        drawn = lines(series, about, "epoch", percent=percent, from_zero=True, labelled=labelled, **options)
        return [figure(drawn, title, note)]

    batch = config["global_batch_size"]
    pairs = pairs_at_a_time(data, batch) if data.texts else 0
    held_out = f"CLIP's, of {pairs:,} held-out pairs at a time; {math.log(max(1, pairs)):.2f} if none is told from another"
    # Only then the two are the same function of as many pairs.
    if config["objective"]["name"] == "clip" and pairs == batch and any("held_out_loss" in line for line in history):
        learning = draw("Loss", {"loss": "training", "held_out_loss": "held out"}, f"held out: {held_out}")
    else:
        learning = draw("Training loss", {"loss": ""}) + draw("Held-out loss", {"held_out_loss": ""}, held_out)
    queries = dict(zip(DIRECTIONS, (f"{len(data.sample_ids):,} images", f"{len(data.texts):,} captions"), strict=True))
    ks, prefix = data.settings.recall_at[:3], f"retrieval/{data.dataset}"
    recalls = {way: {f"{prefix}/{way}_recall@{k}": f"R@{k}" for k in ks} for way in DIRECTIONS}
    # One height for both directions, so that they can be compared.
    top = score_range((line[key] for line in history for keys in recalls.values() for key in keys if key in line), from_zero=True)
    for way, keys in recalls.items():
        learning += draw(f"Recall, {DIRECTIONS[way]}", keys, f"%, of {queries[way]}", percent=True, limits=top)
    for label in data.classes:
        path = f"zero_shot/{data.dataset}_{label}/"
        keys = {path + "top5": "top-5", path + "top1": "top-1", path + "mean_per_class": "per class"}
        known = baselines.get(path + "top1", {})
        levels = {"largest": known["largest_class"]} if known else {}
        note = "%; dashed: top-1 of always naming the largest class"
        learning += draw(f"Zero-shot, {label}", keys, note, percent=True, levels=levels)
    extra = {key for line in history for key in line if "/" not in key} - _NO_CURVE - _DIAGNOSTICS.keys()
    diagnostics = []
    varied = {"workers": "Workers"} if len({line["workers"] for line in history if "workers" in line}) > 1 else {}
    for key, title in (_DIAGNOSTICS | varied | {key: key for key in sorted(extra)}).items():
        diagnostics += draw(title, {key: ""}, percent=key in _SHARES, size=TINY)
    return html.section(
        "curves",
        "Curves",
        html.tag("h3", "Loss and scores"),
        html.div("charts", *learning),
        html.tag("h3", "Diagnostics"),
        html.div("charts small", *diagnostics),
    )
