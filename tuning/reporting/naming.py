"""What a sweep's metrics are called, and which way is better."""

from collections.abc import Sequence

_WAYS = {
    "image_to_text_recall": "image to text R",
    "text_to_image_recall": "text to image R",
    "mean_recall": "mean R",
}
_ALL_RECALLS = "mean_recall"  # of all k
_MEASURES = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}


def is_percent(metric: str) -> bool:
    """Scores have paths and are percentages; `loss` and the like are not."""
    return "/" in metric


def lower_is_better(metric: str, score_metrics: Sequence[str], mode: str) -> bool:
    """As the sweep's mode says for what it ranks by; of all else, losses are better low and percentages high."""
    return mode == "min" if metric in score_metrics else not is_percent(metric)


def metric_names(metrics: Sequence[str], datasets: Sequence[str]) -> dict[str, str]:
    """Path -> what heads its column; the dataset is named only where the metrics are of several."""
    parsed = {path: _parse(path, datasets) for path in metrics}
    several = len({dataset for _, dataset in parsed.values() if dataset}) > 1
    return {path: f"{name}, {dataset}" if several and dataset else name for path, (name, dataset) in parsed.items()}


def _parse(path: str, datasets: Sequence[str]) -> tuple[str, str]:
    """Short name and dataset; an unknown kind of metric keeps its path."""
    parts = path.split("/")
    if len(parts) != 3:
        return path, ""
    kind, middle, measure = parts
    way, _, k = measure.partition("@")
    if kind == "retrieval" and way in _WAYS and k:
        return f"{_WAYS[way]}@{k}", middle
    if kind == "retrieval" and measure == _ALL_RECALLS:
        return "mean of all recalls", middle
    if kind == "zero_shot" and measure in _MEASURES:
        # The longest name first: "openmoji_black" is no label "black" of "openmoji" where both are datasets.
        for dataset in sorted(datasets, key=len, reverse=True):
            if middle.startswith(f"{dataset}_"):
                return f"zero-shot {middle[len(dataset) + 1 :]} {_MEASURES[measure]}", dataset
        return f"zero-shot {middle} {_MEASURES[measure]}", ""
    return path, ""
