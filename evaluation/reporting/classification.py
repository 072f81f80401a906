"""What the page tells of classes: zero-shot classification set by set, linear probes, few-shot probes."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.metrics import score_title
from evaluation.reporting import charts
from evaluation.reporting.comparison import Comparison, Model, number
from evaluation.results import Result
from pipelines.program import number_format

_MEASURES = ("top1", "top5", "mean_per_class")
_SHOWN = 12  # names of classes without images; the rest are counted


def zero_shot(comparison: Comparison) -> list[dict[str, Any]]:
    """A block a set: scores, how much is the wording, how sure the models are, and which classes they miss."""
    task, found = "zeroshot_classification", []
    for dataset in comparison.datasets(task):
        results = comparison.of(task, dataset)
        rows = [comparison.row(task, dataset, score) for score in _MEASURES if any(score in r.scores for r in results.values())]
        found.append(
            {
                "dataset": dataset,
                "classes": next((r.details["num_classes"] for r in results.values() if r.details.get("num_classes")), None),
                "main": comparison.main_row(task, dataset),
                "metric": score_title(task, next(iter(results.values())).main),
                "largest": _largest(results),
                "rows": rows,
                "sensitivity": _sensitivity(dataset, results),
                "reliability": _reliability(dataset, results),
                "worst": worst(results),
                "without": _without(results),
            }
        )
    return found


def _largest(results: Mapping[Model, Result]) -> float | None:
    values = [number(result.baselines.get(result.main, {}).get("largest_class")) for result in results.values()]
    return next((value for value in values if value is not None), None)


def _sensitivity(dataset: str, results: Mapping[Model, Result]) -> dict[str, Any] | None:
    """A strip of dots a model, and the spread in numbers. With one template there is no spread."""
    rows, spread, metric = [], [], ""
    templates: list[str] = []
    for model, result in results.items():
        found = result.details.get("sensitivity") or {}
        scores = [float(value) for value in found.get("scores", []) if number(value) is not None]
        if len(scores) > 1:
            metric = metric or str(found.get("metric", result.main))
            templates = templates or [str(template) for template in result.details.get("templates", [])]
            rows.append((model, scores, number(result.scores.get(found.get("metric", result.main)))))
            ends = f"{number_format.value(min(scores))} to {number_format.value(max(scores))}"
            sd = number(found.get("sd"))
            spread.append((model, ends + (f", sd {number_format.value(sd)}" if sd is not None else "")))
    if not rows:
        return None
    count = max(len(scores) for _, scores, _ in rows)
    about = f"{score_title('zeroshot_classification', metric)} on {dataset} by each of {count} templates: " + "; ".join(
        f"{m.name} {s}" for m, s in spread
    )
    return {
        "svg": charts.strip(rows, templates, about),
        "metric": score_title("zeroshot_classification", metric),
        "count": count,
        "spread": spread,
    }


def _reliability(dataset: str, results: Mapping[Model, Result]) -> list[dict[str, Any]]:
    figures = []
    for model, result in results.items():
        found = result.details.get("calibration") or {}
        bins = [
            (float(b["confidence"]), float(b["accuracy"]), int(b["count"]))
            for b in found.get("bins", [])
            if number(b.get("confidence")) is not None and number(b.get("accuracy")) is not None and b.get("count")
        ]
        error = number(found.get("error"))
        if not bins or error is None:
            continue
        sure, right = number(found.get("confidence")), number(found.get("accuracy"))
        word = ""
        if sure is not None and right is not None and abs(sure - right) >= 0.05:
            word = (
                f"{number_format.value(abs(sure - right))} points {'too sure' if sure > right else 'not sure enough'} on average"
            )
        about = (
            f"Accuracy against confidence of {model.name} on {dataset}: expected calibration error {number_format.value(error)}"
        )
        figures.append(
            {
                "model": model,
                "error": number_format.value(error),
                "word": word,
                "scale": number_format.parameter(found.get("scale")),
                "svg": charts.reliability(model, bins, about),
            }
        )
    return figures


def worst(results: Mapping[Model, Result]) -> list[dict[str, Any]]:
    """A list a model of the classes that it misses most, and what it takes them for."""
    lists = []
    for model, result in results.items():
        classes = [
            {
                "name": entry["name"],
                "images": entry.get("images"),
                "recall": number(entry.get("recall")),
                "taken_for": [(str(name), number(share)) for name, share in entry.get("taken_for", [])],
            }
            for entry in result.details.get("worst", [])
        ]
        if classes:
            lists.append({"model": model, "classes": classes})
    return lists


def _without(results: Mapping[Model, Result], key: str = "without_images") -> str:
    """Classes that have no image to test with, or to train with: a matter of the data, so it is said once."""
    names: list[str] = next((r.details[key] for r in results.values() if r.details.get(key)), [])
    shown = ", ".join(str(name) for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def probes(comparison: Comparison) -> list[dict[str, Any]]:
    """A block a set: scores, the search of the regularisation, and what went wrong in it."""
    task, found = "linear_probe", []
    for dataset in comparison.datasets(task):
        results = comparison.of(task, dataset)
        series, table = [], []
        for model, result in results.items():
            details = result.details
            tried = {float(key): float(value) for key, value in details.get("tried", {}).items() if number(value) is not None}
            l2 = number(details.get("l2"))
            if tried:
                series.append(charts.Series(model, tried, chosen=min(tried, key=lambda key: abs(key - l2)) if l2 else None))
            facts = {key: details.get(key) for key in ("width", "train", "validation")}
            table.append({"model": model, "l2": number_format.parameter(l2), **facts, "flags": _flags(details, tried, l2)})
        about = f"Validation score on {dataset} against the strength of regularisation"
        svg = charts.lines(series, about, "lambda", log=True) if series else None
        main = comparison.main_row(task, dataset)
        metric = score_title(task, next(iter(results.values())).main)
        rows = [comparison.row(task, dataset, score) for score in _MEASURES if any(score in r.scores for r in results.values())]
        block = {"dataset": dataset, "main": main, "metric": metric, "rows": rows, "svg": svg, "table": table}
        found.append(
            block | {"worst": worst(results), "without": _without(results), "untrained": _without(results, "without_training")}
        )
    return found


def _flags(details: Mapping[str, Any], tried: Mapping[float, float], l2: float | None) -> list[str]:
    """What a reader should know before believing the score."""
    flags = []
    if details.get("of") == "embeddings":
        flags.append("on embeddings: the model offers no features before the joint space")
    if details.get("converged") is False:
        flags.append("the last fit did not converge")
    if l2 is not None and len(tried) > 1:
        for end, side in ((min(tried), "low"), (max(tried), "high")):
            if abs(l2 - end) <= 1e-9 * end:
                flags.append(f"best at the {side} end of the search")
    missed = details.get("not_converged") or []
    if missed:
        flags.append(f"{number_format.count(len(missed), 'fit')} of the search did not converge")
    return flags


def few_shot(comparison: Comparison) -> list[dict[str, Any]]:
    """A chart a set: score against images a class, whiskers for the seeds; zero-shot, of the same metric, at none."""
    task, found = "few_shot", []
    for dataset in comparison.datasets(task):
        results, zero = comparison.of(task, dataset), comparison.of("zeroshot_classification", dataset)
        by_model = {model: _shots(result) for model, result in results.items()}
        places = sorted({k for shots in by_model.values() for k in shots})
        if not places:
            continue
        series, columns, metric = [], [], next(iter(results.values())).main.partition("@")[0]
        for model, shots in by_model.items():
            points = {places.index(k) + 1.0: mean for k, (mean, _) in shots.items()}
            spread = {places.index(k) + 1.0: sd for k, (_, sd) in shots.items() if sd is not None}
            at_none = number(zero[model].scores.get(metric)) if model in zero else None
            if at_none is not None:
                points[0.0] = at_none
            series.append(charts.Series(model, points, spread))
            columns.append({"model": model, "zero": at_none, "shots": shots})
        with_zero = any(0.0 in s.points for s in series)
        names = ({0.0: "0"} if with_zero else {}) | {i + 1.0: str(k) for i, k in enumerate(places)}
        seeds = max(len(result.details.get("seeds", [])) for result in results.values())
        about = f"{score_title(task, metric)} on {dataset} against images a class, mean of {number_format.count(seeds, 'seed')}"
        chance = number(next(iter(results.values())).baselines.get(f"{metric}@{places[-1]}", {}).get("chance"))
        found.append(
            {
                "dataset": dataset,
                "metric": score_title(task, metric),
                "seeds": seeds,
                "places": places,
                "columns": columns,
                "flags": _few_flags(results),
                "with_zero": with_zero,
                "svg": charts.lines(series, about, "images a class", names, chance=chance),
            }
        )
    return found


def _shots(result: Result) -> dict[int, tuple[float, float | None]]:
    """Number of shots -> mean and sd over seeds; from the scores alone where details are missing."""
    entries: Sequence[Mapping[str, Any]] = result.details.get("shots", [])
    found = {int(e["shots"]): (float(e["mean"]), number(e.get("sd"))) for e in entries if number(e.get("mean")) is not None}
    metric = result.main.partition("@")[0]
    for score, value in result.scores.items():
        name, _, k = score.partition("@")
        if name == metric and k.isdigit() and number(value) is not None:
            found.setdefault(int(k), (float(value), None))
    return dict(sorted(found.items()))


def _few_flags(results: Mapping[Model, Result]) -> list[str]:
    """What a reader should know; once where it is true of all models, as where the data lacks images."""
    who: dict[str, list[str]] = {}
    for model, result in results.items():
        for entry in result.details.get("shots", []):
            missed, short = list(entry.get("converged", [])).count(False), len(entry.get("short", []))
            if missed:
                flag = f"{number_format.count(missed, 'fit')} with {entry['shots']} a class did not converge"
                who.setdefault(flag, []).append(model.name)
            if short:
                noun = "1 class has" if short == 1 else f"{short:,} classes have"
                who.setdefault(f"{noun} fewer than {entry['shots']} images: all of them are used", []).append(model.name)
    return [flag if len(names) == len(results) else f"{', '.join(names)}: {flag}" for flag, names in who.items()]
