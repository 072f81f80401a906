"""What the page tells of retrieval: recalls, the median place, how the embeddings lie, and what the models find, side by side."""

from collections.abc import Mapping
from typing import Any

from evaluation.metrics import DIRECTIONS
from evaluation.reporting import number_format
from evaluation.reporting.comparison import Comparison, Model, number
from evaluation.results import Result

_WAYS = (*DIRECTIONS, "mean")
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
        scores = {score.partition("_recall@")[::2]: score for result in results.values() for score in result.scores}
        recalls = [(_WAYS.index(way), int(k), score) for (way, k), score in scores.items() if way in _WAYS and k.isdigit()]
        found.append(
            {
                "dataset": dataset,
                "rows": [comparison.row(task, dataset, score) for *_, score in sorted(recalls)],
                "ranks": _ranks(comparison, results),
                "geometry": _geometry(comparison, results),
                "captions": _captions(results),
                "images": _images(results),
            }
        )
    return found


def _ranks(comparison: Comparison, results: Mapping[Model, Result]) -> list[dict[str, Any]]:
    """The median place of the best right one, a row a direction; infinite where half of the queries have none."""
    rows = []
    for way, title in DIRECTIONS.items():
        places = {model: (result.details.get("median_rank") or {}).get(way) for model, result in results.items()}
        if any(place is not None for place in places.values()):
            shown = [_place(places.get(model)) for model in comparison.models]
            none = "; none: half of the queries or more have no right answer" if "none" in shown else ""
            rows.append({"title": f"median place, {title}", "about": f"1 is first; less is better{none}", "figures": shown})
    return rows


def _place(place: Any) -> str:
    if place is None:
        return "-"
    return f"{place:,.1f}".removesuffix(".0") if number(place) is not None else "none"


def _geometry(comparison: Comparison, results: Mapping[Model, Result]) -> list[dict[str, Any]]:
    rows = []
    for key, (title, about) in _GEOMETRY.items():
        values = {model: number((result.details.get("geometry") or {}).get(key)) for model, result in results.items()}
        if any(value is not None for value in values.values()):
            # Two decimals: these have no unit, and all that matters of them lies within 1.
            known = [values.get(model) for model in comparison.models]
            shown = ["-" if value is None else number_format.signed(value, 2) for value in known]
            rows.append({"title": title, "about": about, "figures": shown})
    return rows


def _captions(results: Mapping[Model, Result]) -> list[dict[str, Any]]:
    """Captions with the images that each model found, hits marked; the same caption of all models together."""
    found: dict[str, dict[str, Any]] = {}
    for model, sources, item in _gallery(results, "captions"):
        entry = found.setdefault(item["caption"], {"caption": item["caption"], "own": None, "answers": []})
        src = sources.get(str(item.get("right")))
        entry["own"] = entry["own"] or (src and {"src": src, "alt": item["caption"]})
        hits = [(sources.get(str(f["image"])), bool(f["hit"])) for f in item.get("found", [])]
        shown = [{"src": src, "alt": "right" if hit else "not right", "hit": hit} for src, hit in hits]
        entry["answers"].append({"model": model, "found": shown, "verdict": _verdict(shown)})
    return list(found.values())


def _images(results: Mapping[Model, Result]) -> list[dict[str, Any]]:
    """Images with the captions that each model found."""
    found: dict[str, dict[str, Any]] = {}
    for model, sources, item in _gallery(results, "images"):
        own = [str(text) for text in item.get("right", [])]
        entry = found.setdefault(str(item["image"]), {"src": None, "alt": "; ".join(own) or "query", "own": own, "answers": []})
        entry["src"] = entry["src"] or sources.get(str(item["image"]))
        shown = [{"caption": str(f["caption"]), "hit": bool(f["hit"])} for f in item.get("found", [])]
        entry["answers"].append({"model": model, "found": shown, "verdict": _verdict(shown)})
    return list(found.values())


def _gallery(results: Mapping[Model, Result], kind: str) -> list[tuple[Model, dict[str, str], dict[str, Any]]]:
    """The queries of a kind that models were shown, each with the model and its thumbnails."""
    found = []
    for model, result in results.items():
        thumbnails = result.details.get("thumbnails") or {}
        sources = {str(key): src for key, src in thumbnails.items() if isinstance(src, str) and src.startswith(_IMAGE)}
        found += [(model, sources, item) for item in (result.details.get("gallery") or {}).get(kind, [])]
    return found


def _verdict(shown: list[dict[str, Any]]) -> str:
    """What a reader who does not see the frames is told."""
    hits = [place for place, found in enumerate(shown, 1) if found["hit"]]
    return f"right at place {hits[0]}" if hits else f"none right among {number_format.count(len(shown), 'answer')}"
