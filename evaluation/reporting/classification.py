"""What the page tells of classes: zero-shot classification set by set, linear probes, few-shot probes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.metrics import score_title
from evaluation.reporting import number_format
from evaluation.reporting.chart import Chart, Plot, Scale, Series, Table, lines, score_range
from evaluation.reporting.comparison import Comparison, Model, Row, first, number
from evaluation.results import Result

_MEASURES = ("top1", "top5", "mean_per_class")
_SHOWN = 12  # names of classes without images; the rest are counted
_STRIP, _SQUARE = 360.0, 250.0  # pixels


def zero_shot(comparison: Comparison) -> list[dict[str, Any]]:
    """A block a set: scores, how much is the wording, how sure the models are, and which classes they miss."""
    found = []
    for block, results in _blocks(comparison, "zeroshot_classification"):
        block |= {
            "classes": next((r.details["num_classes"] for r in results.values() if r.details.get("num_classes")), None),
            "largest": first(result.baselines.get(result.main, {}).get("largest_class") for result in results.values()),
            "sensitivity": _sensitivity(block["dataset"], results),
            "reliability": _reliability(block["dataset"], results),
        }
        found.append(block)
    return found


def _blocks(comparison: Comparison, task: str) -> list[tuple[dict[str, Any], Mapping[Model, Result]]]:
    """What every classification shows, a block a set, and the results that the rest is made of."""
    found: list[tuple[dict[str, Any], Mapping[Model, Result]]] = []
    for dataset in comparison.datasets(task):
        results = comparison.of(task, dataset)
        block = {
            "dataset": dataset,
            "main": comparison.main_row(task, dataset),
            "metric": score_title(task, next(iter(results.values())).main),
            "rows": measures(comparison, task, dataset, _MEASURES),
            "worst": _worst(results),
            "without": _without(results, "without_images"),
            "untrained": _without(results, "without_training"),
        }
        found.append((block, results))
    return found


def measures(comparison: Comparison, task: str, dataset: str, scores: Sequence[str]) -> list[Row]:
    """Rows of those scores that any model has."""
    there = {score for result in comparison.of(task, dataset).values() for score in result.scores}
    return [comparison.row(task, dataset, score) for score in scores if score in there]


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
    count, title = max(len(scores) for _, scores, _ in rows), score_title("zeroshot_classification", metric)
    templates = [*templates, *(f"template {i + 1}" for i in range(len(templates), count))]
    about = f"{title} on {dataset} by each of {count} templates: " + "; ".join(f"{m.name} {s}" for m, s in spread)
    return {"chart": _strip(rows, templates, about), "metric": title, "count": count, "spread": spread}


def _strip(rows: Sequence[tuple[Model, Sequence[float], float | None]], templates: Sequence[str], about: str) -> Chart:
    """A row of dots a model, one a template, and a bar where all templates together are."""
    limits = score_range([value for _, scores, all_ in rows for value in (*scores, *([] if all_ is None else [all_]))])
    x, bottom = Scale(*(limits or (0.0, 1.0)), 6, _STRIP - 6), 12.0 + 32 * len(rows)
    plot = Plot(_STRIP, bottom + 12, x, Scale(0, bottom, 0, bottom))
    for value in x.ticks(5):
        plot.line([(value, 2), (value, bottom - 6)], "grid")
        plot.text(x(value), bottom + 8, number_format.parameter(value))
    for i, (model, scores, together) in enumerate(rows):
        y = 12.0 + 32 * i
        plot.text(0, y, model.name, "start", "name halo")
        for template, score in zip(templates, scores, strict=False):
            title = f"{model.name}, {template}: {number_format.value(score)}"
            plot.dot(score, y + 11, 3.4, f"dot faint {model.mark}", title)
        if together is not None:
            left, right = x(together) - 1.5, x(together) + 1.5
            corners = [(left, y + 3), (right, y + 3), (right, y + 19), (left, y + 19)]
            plot.pixels(corners, "together", f"{model.name}, all templates: {number_format.value(together)}", closed=True)
    by_template = [[number_format.value(s[i]) if i < len(s) else "" for _, s, _ in rows] for i in range(len(templates))]
    table = [[template, *values] for template, values in zip(templates, by_template, strict=True)]
    return Chart(plot.svg(about), Table(["template", *(model.name for model, *_ in rows)], table))


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
        notes = [f"calibration error {number_format.value(error)} points"]
        sure, right = number(found.get("confidence")), number(found.get("accuracy"))
        if sure is not None and right is not None and abs(sure - right) >= 0.05:
            word = "too sure" if sure > right else "not sure enough"
            notes.append(f"{number_format.value(abs(sure - right))} points {word} on average")
        notes += [f"scale {scale}"] if (scale := number_format.parameter(found.get("scale"))) else []
        about = f"Accuracy against confidence of {model.name} on {dataset}: expected {notes[0]}"
        figures.append({"model": model, "note": "; ".join(notes), "chart": _bins(model, bins, about)})
    return figures


def _bins(model: Model, bins: Sequence[tuple[float, float, int]], about: str) -> Chart:
    """Accuracy against confidence: (mean confidence, accuracy, images) of each bin; the larger, the more images."""
    plot = Plot(_SQUARE, _SQUARE, Scale(0, 100, 30, _SQUARE - 10), Scale(0, 100, _SQUARE - 34, 8))
    plot.frame("confidence, %")
    plot.line([(0, 0), (100, 100)], "diagonal")
    plot.line([(sure, right) for sure, right, _ in bins], f"line {model.mark}", model.name)
    rows = [(f"{count:,}", number_format.value(sure), number_format.value(right)) for sure, right, count in bins]
    most = max(count for *_, count in bins)
    for (sure, right, count), (images, *shown) in zip(bins, rows, strict=True):
        title = f"{images} image{'' if count == 1 else 's'}: confidence {shown[0]}, right {shown[1]}"
        plot.dot(sure, right, round(1.8 + 4.2 * math.sqrt(count / most), 1), f"dot {model.mark}", title)
    table = Table(("confidence, %", "right, %", "images"), [(sure, right, images) for images, sure, right in rows])
    return Chart(plot.svg(about), table)


def _worst(results: Mapping[Model, Result]) -> list[dict[str, Any]]:
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
        lists += [{"model": model, "classes": classes}] if classes else []
    return lists


def _without(results: Mapping[Model, Result], key: str) -> str:
    """Classes that have no image to test with, or to train with: a matter of the data, so it is said once."""
    names: list[str] = next((r.details[key] for r in results.values() if r.details.get(key)), [])
    shown = ", ".join(str(name) for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def probes(comparison: Comparison) -> list[dict[str, Any]]:
    """A block a set: scores, the search of the regularisation, and what went wrong in it."""
    found = []
    for block, results in _blocks(comparison, "linear_probe"):
        series, table = [], []
        for model, result in results.items():
            details = result.details
            tried = {float(key): float(value) for key, value in details.get("tried", {}).items() if number(value) is not None}
            l2 = number(details.get("l2"))
            if tried:
                chosen = min(tried, key=lambda key: abs(key - l2)) if l2 else None
                series.append(Series(model.name, tried, model.mark, chosen=chosen))
            sizes = [details.get(key) for key in ("width", "train", "validation")]
            sizes = [f"{size:,}" if number_format.is_number(size) else "" for size in sizes]
            table.append({"model": model, "flags": _flags(details, tried, l2), "cells": [number_format.parameter(l2), *sizes]})
        about = f"Validation score on {block['dataset']} against the strength of regularisation"
        block |= {"table": table, "chart": lines(series, about, "lambda", log=True) if series else None}
        found.append(block)
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
    if missed := details.get("not_converged"):
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
        metric = next(iter(results.values())).main.partition("@")[0]
        none = {model: number(zero[model].scores.get(metric)) for model in results if model in zero}
        series = []
        for model, shots in by_model.items():
            points = {places.index(k) + 1.0: mean for k, (mean, _) in shots.items()}
            if (at_none := none.get(model)) is not None:
                points[0.0] = at_none
            spread = {places.index(k) + 1.0: (mean - sd, mean + sd) for k, (mean, sd) in shots.items() if sd is not None}
            series.append(Series(model.name, points, model.mark, spread=spread))
        with_zero = any(0.0 in s.points for s in series)
        names = ({0.0: "0"} if with_zero else {}) | {i + 1.0: str(k) for i, k in enumerate(places)}
        seeds, title = max(len(result.details.get("seeds", [])) for result in results.values()), score_title(task, metric)
        about = f"{title} on {dataset} against images a class, mean of {number_format.count(seeds, 'seed')}"
        chance = first(r.baselines.get(f"{metric}@{places[-1]}", {}).get("chance") for r in results.values())
        levels = {} if chance is None else {"chance": chance}
        rows: list[tuple[str, list[tuple[float | None, float | None]]]] = []
        if with_zero:
            rows.append(("0, zero-shot", [(none.get(model), None) for model in results]))
        rows += [(str(k), [shots.get(k, (None, None)) for shots in by_model.values()]) for k in places]
        found.append(
            {
                "dataset": dataset,
                "note": f"{title}, %" + (f"; {number_format.count(seeds, 'seed')}" if seeds else ""),
                "models": list(results),
                "rows": rows,
                "flags": _few_flags(results),
                "with_zero": with_zero,
                "chart": lines(series, about, "images a class", names=names, levels=levels),
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
