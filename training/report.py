"""`report.html`: what a run trained on what, what it is worth, and images it found; one file that needs nothing else.

`python -m training.report RUN` writes it again from what the run left on disk, without Ray and without training.
"""

import argparse
import json
import math
import os
import shlex
import sys
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from evaluation import metrics
from evaluation.suite import HeldOut, SuiteSettings, held_out
from pipelines.dataset.prepared import Prepared
from pipelines.io.retry import shown
from pipelines.prepare.repeats import warnings_of
from pipelines.program import yaml_text
from pipelines.program.settings import UserError, validate
from pipelines.program.wilson import wilson
from training.checkpoint_registry import newest_checkpoint
from training.gallery import gallery_of
from training.metrics_file import read_metrics
from training.warmup import warmup_warning

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_WAYS = {way: title.capitalize() for way, title in metrics.DIRECTIONS.items()}
_MODES = {
    "trainable": "trained",
    "frozen": "frozen: it runs in every step, and only its head is trained",
    "locked": "locked: its features are computed once, and only its head is trained",
}
_HEALTH = {
    "lr": ("Learning rate", ""),
    "temperature": ("Temperature", ""),
    "grad_norm": ("Norm of the gradient", ""),
    "skipped": ("Skipped steps", ""),
    "samples_per_second": ("Pairs per second", ""),
    "data_wait": ("Waiting for data", "%"),
    "peak_memory_gib": ("Peak memory, GiB", ""),
}
_NO_CURVE = {"step", "epoch", "samples", "time", "loss"}


def write_report(run: Path, result: dict[str, Any], data: HeldOut) -> None:
    """Write `run/report.html`, aside and renamed. `result` is the content of `result.json`.

    Raises `UserError` where the run's folder or its data lack something.
    """
    prepared = Prepared.open(result["dataset"]["path"])
    config = yaml_text.parse((run / "config.yaml").read_text(encoding="utf-8"))
    images, texts = _embeddings(newest_checkpoint(run) / "held_out.npz", data)
    page = {
        "name": result["name"],
        "result": result,
        "summary": _summary(result, config),
        "headline": _headline(result | (result.get("test") or {}), data),
        "test": _test(result, data),
        "warnings": _warnings(result, config, prepared),
        "scores": _scores(result, data),
        "gallery": gallery_of(prepared, data, images, texts),
        "curves": _curves(read_metrics(run / "metrics.jsonl"), result, data),
        "dataset": _dataset(prepared, result),
        "again": _again(config, prepared),
        "restarts": _restarts(run / "restarts.jsonl"),
    }
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"duration": _duration, "ordinal": _ordinal}
    html = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(page)
    aside = run / f"report.html.partial-{os.getpid()}"
    aside.write_text(html, encoding="utf-8")
    aside.rename(run / "report.html")


def _embeddings(path: Path, data: HeldOut) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows of the held-out images and captions, as they were when training ended."""
    try:
        rows = np.load(path)
        images, texts = rows["images"], rows["texts"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        raise UserError(f"{path}: missing or not readable; let the training command finish, or train again") from None
    if (len(images), len(texts)) != (len(data.sample_ids), len(data.texts)):
        raise UserError(
            f"{path}: holds {len(images)} images and {len(texts)} captions, the held-out split has {len(data.sample_ids)} and "
            f"{len(data.texts)}; it was written with other data"
        )
    return images, texts


def _summary(result: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What was trained, in words."""
    return {
        "objective": config["objective"]["name"],
        "towers": [
            {
                "side": side,
                "name": _tower_name(tower),
                "kind": tower["name"],
                "mode": tower["mode"],
                "about": _MODES[tower["mode"]],
            }
            for side, tower in (("Image", config["image_tower"]), ("Text", config["text_tower"]))
        ],
        "batch": config["global_batch_size"],
        "workers": result["machine"]["workers"],
        "seconds": math.fsum(result["seconds"].values()),
    }


def _tower_name(tower: dict[str, Any]) -> str:
    """The model's name where it has one, the name of its weights, or what it is."""
    weights = tower.get("weights")
    if tower.get("model"):
        return tower["model"] if weights else f"{tower['model']} from random weights"
    if not weights:
        return f"{tower['name']} from random weights"
    if weights.startswith("package:"):
        return weights.removeprefix("package:").split("/")[0]
    return Path(weights).name if weights.startswith(("/", ".", "~")) else weights


def _headline(result: dict[str, Any], data: HeldOut) -> dict[str, Any]:
    """The figures that come first: R@k of both directions, and top-1 of the labels with most classes."""
    ks = sorted(data.settings.recall_at)
    tiles = [_mean_row(result, data, k) | {"title": f"R@{k}", "about": _recall_words(k)} for k in sorted({ks[0], ks[-1]})]
    for label in sorted(data.classes, key=lambda label: -len(data.classes[label]))[:2]:
        row = _row(result, f"zero_shot/{data.dataset}_{label}/top1", "", "")
        tiles.append(
            row | {"title": f"Zero-shot {label}", "about": f"right class of {len(data.classes[label])} on the first guess"}
        )
    queries = result["sample_sizes"][f"retrieval/{data.dataset}/image_to_text_recall@{ks[0]}"]
    # Of one direction: the two are about the same pairs, so their mean is hardly surer than either.
    low, high = wilson(queries * tiles[0]["value"] / 100, queries)
    return {
        "hollow": _hollow(result, data, ks[0]),
        "first": tiles[0],
        "k": ks[0],
        "tiles": tiles,
        "low": 100 * low,
        "high": 100 * high,
        "queries": queries,
    }


def _hollow(result: dict[str, Any], data: HeldOut, k: int) -> list[str]:
    """Directions whose recall may be chance, by its 95 % interval: the mean of both hides them."""
    found = []
    for way, title in _WAYS.items():
        path = f"retrieval/{data.dataset}/{way}_recall@{k}"
        value, chance, n = result["metrics"][path], result["baselines"][path]["chance"], result["sample_sizes"][path]
        if wilson(n * value / 100, n)[0] <= chance / 100:
            found.append(f"{title.lower()}, {value:.1f} % by {chance:.1f} %")
    return found


def _warnings(result: dict[str, Any], config: dict[str, Any], prepared: Prepared) -> list[str]:
    """What makes the scores say less than they seem to."""
    warmup = warmup_warning(config.get("schedule", {}).get("warmup_steps", 0), result["step"])
    return [*([warmup] if warmup else []), *warnings_of(prepared.manifest)]


def _test(result: dict[str, Any], data: HeldOut) -> dict[str, Any] | None:
    """What the chosen checkpoint scored on the test split, where the run has one: `data` is the split that it was chosen on."""
    test = result.get("test")
    if test is None:
        return None
    (row,) = (row for group in _scores(result, data) for row in group["rows"] if row["path"] == test["metric"])
    return test | {"groups": _scores(test, data), "last": row["value"]}


def _scores(result: dict[str, Any], data: HeldOut) -> list[dict[str, Any]]:
    """Groups of rows: every metric of the run, those of unknown kinds by their paths."""
    ks = sorted(data.settings.recall_at)
    sizes = [result["sample_sizes"][f"retrieval/{data.dataset}/{way}_recall@{ks[0]}"] for way in _WAYS]
    # What one way asks for the other looks for.
    pool = {"image_to_text": ("image", "caption", sizes[1]), "text_to_image": ("caption", "image", sizes[0])}
    groups, left = [], dict(result["metrics"])
    for way, title in _WAYS.items():
        query, wanted, count = pool[way]
        paths = {k: f"retrieval/{data.dataset}/{way}_recall@{k}" for k in ks}
        about = f"given a held-out {query}, its {wanted} is looked for among {count:,}"
        groups.append({"title": title, "about": about, "rows": [_row(result, paths[k], f"R@{k}", _recall_words(k)) for k in ks]})
        left = {path: value for path, value in left.items() if path not in paths.values()}
    rows = [_mean_row(result, data, k) | {"name": f"R@{k}", "about": _recall_words(k)} for k in ks]
    overall = f"retrieval/{data.dataset}/mean_recall"
    if overall in result["metrics"]:  # not in results of earlier versions
        rows.append(_row(result, overall, "all of these", "the mean of every recall above"))
        rows[-1]["chance"] = math.fsum(row["chance"] for row in rows[:-1]) / len(ks)
    groups.append({"title": "Mean of both directions", "about": "", "rows": rows})
    for row in rows:
        left.pop(row["path"], None)
    for label, names in data.classes.items():
        rows = [
            _row(result, f"zero_shot/{data.dataset}_{label}/{m.name}", m.title.capitalize(), m.about)
            for m in metrics.TASKS["zeroshot_classification"].measures
        ]
        prompts = len(data.settings.templates)
        about = f"which of {len(names)} classes a held-out image is of, by the classes' names in {_count(prompts, 'sentence')}"
        groups.append({"title": f"Zero-shot: {label}", "about": about, "rows": rows})
        for row in rows:
            left.pop(row["path"], None)
    if left:
        groups.append({"title": "Other scores", "about": "", "rows": [_row(result, path, path, "") for path in left]})
    return groups


def _recall_words(k: int) -> str:
    return "the right one comes first" if k == 1 else f"a right one is among the first {k}"


def _row(result: dict[str, Any], path: str, name: str, about: str) -> dict[str, Any]:
    """One score with all that it must be compared with."""
    base = result["baselines"].get(path, {})
    return {
        "path": path,
        "name": name,
        "about": about,
        "value": result["metrics"][path],
        "chance": base.get("chance"),
        "largest": base.get("largest_class"),
        "n": f"{result['sample_sizes'][path]:,}" if path in result["sample_sizes"] else "",
    }


def _mean_row(result: dict[str, Any], data: HeldOut, k: int) -> dict[str, Any]:
    """The mean of both directions, its chance being the mean of theirs."""
    both = [_row(result, f"retrieval/{data.dataset}/{way}_recall@{k}", "", "") for way in _WAYS]
    row = _row(result, f"retrieval/{data.dataset}/mean_recall@{k}", "", "")
    sizes = [r["n"] for r in both]
    n = f"2 x {sizes[0]}" if sizes[0] == sizes[1] else " + ".join(sizes)
    return row | {"chance": math.fsum(r["chance"] for r in both) / 2, "n": n}


def _curves(history: list[dict[str, Any]], result: dict[str, Any], data: HeldOut) -> dict[str, list[dict[str, Any]]]:
    """Charts in two groups: how good it became, and how training went."""
    from training.curves import Curve, chart, number  # brings matplotlib along

    def curve(key: str, label: str = "", factor: float = 1.0) -> Curve:
        lines = [line for line in history if key in line]
        return Curve(label, [line["epoch"] for line in lines], [factor * line[key] for line in lines])

    def draw(name: str, title: str, curves: list[Curve], note: str = "", **options: Any) -> list[dict[str, Any]]:
        curves = [c for c in curves if len(c.y)]
        if not curves:
            return []
        ends = ", ".join(f"{c.label} from {c.y[0]:.4g} to {c.y[-1]:.4g}".strip() for c in curves)
        note = note or f"{number(curves[0].y[-1])}{options.get('unit', '')} at the end"
        about = f"{title} over {curves[0].x[-1]:g} epochs: {ends}"
        return [{"title": title, "note": note, "svg": chart(name, about, curves, **options)}]

    learning = draw("loss", "Training loss", [curve("loss")])
    recalls = {
        way: [curve(f"retrieval/{data.dataset}/{way}_recall@{k}", f"R@{k}") for k in data.settings.recall_at] for way in _WAYS
    }
    # One height for both directions, so that they can be compared.
    top = 1.08 * max([y for curves in recalls.values() for c in curves for y in c.y], default=100.0)
    for way, title in _WAYS.items():
        note = f"of {len(data.sample_ids):,} images" if way == "image_to_text" else f"of {len(data.texts):,} captions"
        learning += draw(way, f"Recall, {title.lower()}", recalls[way][:3], note, unit="%", top=top or None)
    for position, label in enumerate(data.classes):
        path = f"zero_shot/{data.dataset}_{label}/"
        curves = [curve(path + "top5", "top-5"), curve(path + "top1", "top-1"), curve(path + "mean_per_class", "per class")]
        largest = result["baselines"][path + "top1"]["largest_class"]
        note = "dotted: top-1 of always naming the largest class"
        learning += draw(f"label-{position}", f"Zero-shot, {label}", curves, note, unit="%", reference=("largest", largest))
    extra = {key for line in history for key in line if "/" not in key} - _NO_CURVE - _HEALTH.keys()
    health = []
    for key, (title, unit) in (_HEALTH | {key: (key, "") for key in sorted(extra)}).items():
        health += draw(f"health-{key}", title, [curve(key, factor=100.0 if unit == "%" else 1.0)], unit=unit, width=2.6)
    return {"learning": learning, "health": health}


def _dataset(prepared: Prepared, result: dict[str, Any]) -> dict[str, Any]:
    """What the data is, beyond what the result says."""
    manifest = prepared.manifest
    credit, licence = result["dataset"]["attribution"], result["dataset"]["licence"]
    return result["dataset"] | {
        "credit": credit if licence in credit else f"{credit} (licence: {licence})",
        "rejected": sorted(result["dataset"]["counts"]["rejected"].items(), key=lambda item: -item[1]),
        "shuffled": result["dataset"].get("shuffled", prepared.shuffled),
        "fraction": result["dataset"].get("fraction", 1),  # not in results of earlier versions
        "num_images": manifest["num_images"],
        "num_texts": manifest["num_texts"],
        "image": manifest["image"],
        "created": manifest["created"],
    }


def _again(config: dict[str, Any], prepared: Prepared) -> dict[str, str]:
    """Commands and configs that give this run once more."""
    folder = f"{config['storage']}/{config['name']}"
    return {
        "train": f"python -m training {shlex.quote(f'{folder}/config.yaml')} name={config['name']}-again",
        "report": f"python -m training.report {shlex.quote(folder)}",
        "config": shown(yaml_text.dump(config)),
        "data_config": yaml_text.dump(prepared.manifest["config"]),
    }


def _restarts(path: Path) -> list[dict[str, Any]]:
    """When workers were lost, and why; an earlier version kept only what each of them said last."""
    return [
        {
            "when": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(line["time"])),
            "cause": line.get("cause") or "; ".join(f"worker {rank}: {error}" for rank, error in line["workers"].items()),
        }
        for line in read_metrics(path)
    ]


def _duration(seconds: float) -> str:
    """A time for people: 4.2 s, 1 min 43 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 11th, 1,022nd."""
    last = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{last}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def main(arguments: Iterable[str] | None = None) -> int:
    """Write the page of a finished run again. Exit code 0, or 2 with one line that says what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m training.report", description="Write report.html of a finished run again, from what the run left on disk."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder, such as runs/demo")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the prepared dataset, where it is no longer where it was")
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        _rewrite(options.run, options.data)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"report: {options.run / 'report.html'}")
    return 0


def _rewrite(run: Path, data_path: Path | None) -> None:
    """`write_report` with everything read from disk."""
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; give a finished run, such as runs/demo")
    try:
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        config = yaml_text.parse((run / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{run}: no finished run, {Path(error.filename).name} is missing; the training command of the run finishes it"
        ) from None
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{run}: result.json or config.yaml is not readable: {' '.join(str(error).split())}") from None
    if data_path is not None:
        result["dataset"]["path"] = str(data_path.absolute())
    prepared = Prepared.open(result["dataset"]["path"])
    if prepared.fingerprint != result["dataset"]["fingerprint"]:
        raise UserError(
            f"{prepared.path}: holds other data ({prepared.fingerprint[:12]}) than {run} was trained on "
            f"({result['dataset']['fingerprint'][:12]}); name the folder that does with --data"
        )
    # Of the training config only what the suite knows, so that pages of old runs can be written by newer versions.
    suite = {key: value for key, value in config["evaluation"].items() if key in SuiteSettings.model_fields}
    settings = validate(SuiteSettings, suite, str(run / "config.yaml"))
    splits = result["dataset"]["split_seed"], result["dataset"].get("validation")  # not in results of earlier versions
    write_report(run, result, held_out(prepared, settings, *splits))


if __name__ == "__main__":
    sys.exit(main())
