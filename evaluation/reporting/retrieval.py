"""What the page tells of retrieval: recalls, the median place, how the embeddings lie, and what the models find, side by side."""

from collections.abc import Mapping
from typing import Any

from evaluation.reporting.comparison import Comparison, Model, Row, number
from evaluation.results import Result
from pipelines.program import number_format

_WAYS = ("image_to_text_recall", "text_to_image_recall", "mean_recall")
_DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}
_GEOMETRY = {
    "modality_gap": ("modality gap", "distance between the mean image and the mean text, 0 to 2; 0 is no gap"),
    "alignment": ("alignment", "mean squared distance of an image to its text, 0 to 4; less is closer"),
    "uniformity_images": ("uniformity of images", "-8 to 0; less is more evenly spread over the sphere"),
    "uniformity_texts": ("uniformity of texts", "the same of texts"),
}
_IMAGE = "data:image/"  # all that may be shown: nothing is loaded from anywhere


def retrieval(comparison: Comparison) -> list[dict[str, Any]]:
    """A block a set."""
    task, found = "zeroshot_retrieval", []
    for dataset in comparison.datasets(task):
        results = comparison.of(task, dataset)
        found.append(
            {
                "dataset": dataset,
                "main": comparison.main_row(task, dataset),
                "rows": _recalls(comparison, dataset, results),
                "ranks": _ranks(comparison, results),
                "geometry": _geometry(comparison, results),
                "captions": _captions(results),
                "images": _images(results),
            }
        )
    return found


def _recalls(comparison: Comparison, dataset: str, results: Mapping[Model, Result]) -> list[Row]:
    scores = {score for result in results.values() for score in result.scores}
    known = [(way, int(k)) for way, _, k in (score.partition("@") for score in scores) if way in _WAYS and k.isdigit()]
    known.sort(key=lambda item: (_WAYS.index(item[0]), item[1]))
    return [comparison.row("zeroshot_retrieval", dataset, f"{way}@{k}") for way, k in known]


def _ranks(comparison: Comparison, results: Mapping[Model, Result]) -> list[tuple[str, list[str]]]:
    """The median place of the best right one, a row a direction; infinite where half of the queries have none."""
    rows = []
    for way, title in _DIRECTIONS.items():
        places = {model: (result.details.get("median_rank") or {}).get(way) for model, result in results.items()}
        if any(place is not None for place in places.values()):
            rows.append((f"median place, {title}", [_place(places.get(model), model in results) for model in comparison.models]))
    return rows


def _place(place: Any, known: bool) -> str:
    if place is None or not known:
        return "-"
    return f"{place:,.1f}".removesuffix(".0") if number(place) is not None else "none"


def _geometry(comparison: Comparison, results: Mapping[Model, Result]) -> list[dict[str, Any]]:
    rows = []
    for key, (title, about) in _GEOMETRY.items():
        values = {model: number((result.details.get("geometry") or {}).get(key)) for model, result in results.items()}
        if any(value is not None for value in values.values()):
            shown = [_decimals(values.get(model)) for model in comparison.models]
            rows.append({"title": title, "about": about, "values": shown})
    return rows


def _decimals(value: float | None) -> str:
    """Two: these have no unit, and all that matters of them lies within 1."""
    return "-" if value is None else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def _captions(results: Mapping[Model, Result]) -> list[dict[str, Any]]:
    """Captions with the images that each model found, hits marked; the same caption of all models together."""
    found: dict[str, dict[str, Any]] = {}
    for model, result in results.items():
        sources = _sources(result)
        for item in (result.details.get("gallery") or {}).get("captions", []):
            entry = found.setdefault(item["caption"], {"caption": item["caption"], "right": None, "models": []})
            entry["right"] = entry["right"] or sources.get(str(item.get("right")))
            shown = [{"src": sources.get(str(f["image"])), "hit": bool(f["hit"])} for f in item.get("found", [])]
            entry["models"].append({"model": model, "found": shown, "verdict": _verdict(shown)})
    return list(found.values())


def _images(results: Mapping[Model, Result]) -> list[dict[str, Any]]:
    """Images with the captions that each model found."""
    found: dict[str, dict[str, Any]] = {}
    for model, result in results.items():
        sources = _sources(result)
        for item in (result.details.get("gallery") or {}).get("images", []):
            key = str(item["image"])
            entry = found.setdefault(key, {"src": None, "right": [str(text) for text in item.get("right", [])], "models": []})
            entry["src"] = entry["src"] or sources.get(key)
            shown = [{"caption": str(f["caption"]), "hit": bool(f["hit"])} for f in item.get("found", [])]
            entry["models"].append({"model": model, "found": shown, "verdict": _verdict(shown)})
    return list(found.values())


def _sources(result: Result) -> dict[str, str]:
    sources = result.details.get("thumbnails") or {}
    return {str(key): src for key, src in sources.items() if isinstance(src, str) and src.startswith(_IMAGE)}


def _verdict(shown: list[dict[str, Any]]) -> str:
    """What a reader who does not see the frames is told."""
    hits = [place for place, found in enumerate(shown, 1) if found["hit"]]
    return f"right at place {hits[0]}" if hits else f"none right among {number_format.count(len(shown), 'answer')}"
