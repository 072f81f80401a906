"""`report.html`: what a run trained on what, what it is worth, and images it found; one file that needs nothing else.

`python -m training.report RUN` writes it again from what the run left on disk, without Ray and without training.
"""

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from evaluation.metrics import DIRECTIONS, chances, metric
from evaluation.reporting import number_format, render
from evaluation.reporting.chart import TINY, Series, lines, mark, score_range
from evaluation.reporting.render import write_files
from evaluation.suite import HeldOut, SuiteSettings, held_out
from pipelines.dataset.prepared import Prepared
from pipelines.io.retry import shown
from pipelines.prepare.repeated_captions import warnings_of
from pipelines.program import yaml_text
from pipelines.program.errors import UserError
from pipelines.program.settings import validate
from pipelines.program.wilson import wilson
from training.gallery import gallery_of
from training.held_out import read_held_out
from training.metrics_file import read_metrics
from training.warmup import warmup_warning

_MODES = {
    "trainable": "trained",
    "frozen": "frozen: it runs in every step, and only its head is trained",
    "locked": "locked: its features are computed once, and only its head is trained",
}
_HEALTH = {
    "lr": "Learning rate",
    "temperature": "Temperature",
    "grad_norm": "Norm of the gradient",
    "skipped": "Skipped steps",
    "samples_per_second": "Pairs per second",
    "data_wait": "Waiting for data",
    "peak_memory_gib": "Peak memory, GiB",
}
_NO_CURVE = {"step", "epoch", "samples", "time", "loss"}


def write_report(run: Path, result: dict[str, Any], data: HeldOut) -> None:
    """Write `run/report.html`, aside and renamed. `result` is the content of `result.json`.

    Raises `UserError` where the run's folder or its data lack something.
    """
    prepared = Prepared.open(result["dataset"]["path"])
    config = yaml_text.parse((run / "config.yaml").read_text(encoding="utf-8"))
    kept = read_held_out(run)
    page = {
        "name": result["name"],
        "result": result,
        "summary": _summary(result, config),
        "headline": _headline(result | (result.get("test") or {}), data),
        "test": _test(result, data),
        "warnings": _warnings(result, config, prepared),
        "scores": _scores(result, data),
        "gallery": gallery_of(kept["gallery"], data),
        "curves": _curves(read_metrics(run / "metrics.jsonl"), result, data),
        "dataset": _dataset(prepared, result),
        "again": _again(config, prepared),
        "restarts": _restarts(run / "restarts.jsonl"),
    }
    write_files(run, {"report.html": render.page(Path(__file__).parent, "report.html.j2", page)})


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
    rows = {row["path"]: row for row in _rows(result, data)}
    ks = sorted(data.settings.recall_at)
    tiles = [rows[f"retrieval/{data.dataset}/mean_recall@{k}"] for k in sorted({ks[0], ks[-1]})]
    tiles = [tile | {"title": tile["name"], "about": f"{tile['about']}, mean of both directions"} for tile in tiles]
    for label in sorted(data.classes, key=lambda label: -len(data.classes[label]))[:2]:
        about = f"right class of {len(data.classes[label])} on the first guess"
        tiles.append(rows[f"zero_shot/{data.dataset}_{label}/top1"] | {"title": f"Zero-shot {label}", "about": about})
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
    for direction, title in DIRECTIONS.items():
        path = f"retrieval/{data.dataset}/{direction}_recall@{k}"
        value, chance, n = result["metrics"][path], result["baselines"][path]["chance"], result["sample_sizes"][path]
        if wilson(n * value / 100, n)[0] <= chance / 100:
            found.append(f"{title}, {value:.1f} % by {chance:.1f} %")
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
    last = next(row["value"] for row in _rows(result, data) if row["path"] == test["metric"])
    return test | {"groups": _scores(test, data), "last": last}


def _scores(result: dict[str, Any], data: HeldOut) -> list[dict[str, Any]]:
    """Groups of rows: every metric of the run, those of unknown kinds by their paths."""
    retrieval, sentences = f"retrieval/{data.dataset}/", number_format.count(len(data.settings.templates), "sentence")
    groups: dict[str, tuple[str, str]] = {}
    for way, other, query, wanted in (
        ("image_to_text", "text_to_image", "image", "caption"),
        ("text_to_image", "image_to_text", "caption", "image"),
    ):
        candidates = result["sample_sizes"][f"{retrieval}{other}_recall@{min(data.settings.recall_at)}"]
        about = f"given a held-out {query}, its {wanted} is looked for among {candidates:,}"
        groups[f"{retrieval}{way}"] = (DIRECTIONS[way].capitalize(), about)
    groups[f"{retrieval}mean"] = ("Mean of both directions", "")
    for label, names in data.classes.items():
        about = f"which of {len(names)} classes a held-out image is of, by the classes' names in {sentences}"
        groups[f"zero_shot/{data.dataset}_{label}/"] = (f"Zero-shot: {label}", about)
    groups[""] = ("Other scores", "")
    found: dict[str, list[dict[str, Any]]] = {prefix: [] for prefix in groups}
    for row in _rows(result, data):
        found[next(prefix for prefix in groups if row["path"].startswith(prefix))].append(row)
    return [{"title": groups[p][0], "about": groups[p][1], "rows": rows} for p, rows in found.items() if rows]


def _rows(result: dict[str, Any], data: HeldOut) -> list[dict[str, Any]]:
    """Every score with all that it must be compared with, recalls by k and that of all k last."""
    chance, largest, sizes = chances(result["baselines"]), result["baselines"], result["sample_sizes"]
    rows = []
    for path, value in result["metrics"].items():
        known, k = metric(path, [data.dataset]), path.partition("_recall@")[2]
        name, about, n = known.title, known.about, f"{sizes[path]:,}" if path in sizes else ""
        if path.endswith("/mean_recall"):
            name = "all of these"
        if k:
            name, about = f"R@{k}", "the right one comes first" if k == "1" else f"a right one is among the first {k}"
            if not n:  # of both directions
                both = [f"{sizes[path.replace('mean_', f'{way}_')]:,}" for way in DIRECTIONS]
                n = f"2 x {both[0]}" if both[0] == both[1] else " + ".join(both)
        row = {"path": path, "name": name, "about": about, "value": value, "n": n, "k": int(k or 0)}
        rows.append(row | {"chance": chance.get(path), "largest": largest.get(path, {}).get("largest_class")})
    return sorted(rows, key=lambda row: row["k"] or math.inf)


def _curves(history: list[dict[str, Any]], result: dict[str, Any], data: HeldOut) -> dict[str, list[dict[str, Any]]]:
    """Charts in two groups: how good it became, and how training went."""

    def draw(title: str, keys: dict[str, str], note: str = "", percent: bool = False, **options: Any) -> list[dict[str, Any]]:
        """A line a key of the history, under its name, where the history has it."""
        found: list[Series] = []
        for i, (key, name) in enumerate(keys.items()):
            points = {line["epoch"]: (100.0 if key == "data_wait" else 1.0) * line[key] for line in history if key in line}
            found += [Series(name or title, points, mark(i))] if points else []
        if not found:
            return []
        ends = [(s.name if len(keys) > 1 else "", s.points[min(s.points)], s.points[max(s.points)]) for s in found]
        spans = ", ".join(f"{name} from {first:.4g} to {last:.4g}".strip() for name, first, last in ends)
        note = note or f"{number_format.short(ends[0][2])}{' %' if percent else ''} at the end"
        about = f"{title} over {max(found[0].points):g} epochs: {spans}"
        labelled = 82.0 if len(keys) > 1 else 0.0
        drawn = lines(found, about, "epoch", percent=percent, from_zero=True, labelled=labelled, **options)
        return [{"title": title, "note": note, "chart": drawn}]

    learning = draw("Training loss", {"loss": ""})
    ks = data.settings.recall_at[:3]
    recalls = {way: {f"retrieval/{data.dataset}/{way}_recall@{k}": f"R@{k}" for k in ks} for way in DIRECTIONS}
    # One height for both directions, so that they can be compared.
    top = score_range((line[key] for line in history for keys in recalls.values() for key in keys if key in line), from_zero=True)
    for (way, keys), candidates in zip(recalls.items(), ("captions", "images"), strict=True):
        queries = f"{len(data.sample_ids):,} images" if candidates == "captions" else f"{len(data.texts):,} captions"
        learning += draw(f"Recall, {DIRECTIONS[way]}", keys, f"%, of {queries}", percent=True, limits=top)
    for label in data.classes:
        path = f"zero_shot/{data.dataset}_{label}/"
        keys = {path + "top5": "top-5", path + "top1": "top-1", path + "mean_per_class": "per class"}
        levels = {"largest": result["baselines"][path + "top1"]["largest_class"]}
        note = "%; dashed: top-1 of always naming the largest class"
        learning += draw(f"Zero-shot, {label}", keys, note, percent=True, levels=levels)
    extra = {key for line in history for key in line if "/" not in key} - _NO_CURVE - _HEALTH.keys()
    health = []
    for key, title in (_HEALTH | {key: key for key in sorted(extra)}).items():
        health += draw(title, {key: ""}, percent=key == "data_wait", size=TINY)
    return {"learning": learning, "health": health}


def _dataset(prepared: Prepared, result: dict[str, Any]) -> dict[str, Any]:
    """What the data is, beyond what the result says; `table`: what became of its rows."""
    manifest, about, counts = prepared.manifest, result["dataset"], result["dataset"]["counts"]
    credit, licence = about["attribution"], about["licence"]
    fraction, shuffled = about.get("fraction", 1), about.get("shuffled", prepared.shuffled)  # not in results of earlier versions
    rejected = sorted(counts["rejected"].items(), key=lambda item: -item[1]) or [("", 0)]
    held_out = "the dataset's own split" if about["split_seed"] is None else f"split seed {about['split_seed']}"
    drawn = f"a share of {fraction:g} of the split's groups, drawn by seed {result['seed']}" if fraction < 1 else ""
    table = [("listed by the source", "", counts["listed"]), ("found", "", counts["found"])]
    table += [("rejected", reason.replace("_", " "), count) for reason, count in rejected]
    table += [("kept", "", counts["kept"])]
    table += [("of these unusable while training", reason.replace("_", " "), n) for reason, n in counts["unusable"].items()]
    table += [("trained on", drawn, about["train_samples"])]
    table += [("of these with another row's captions", "shuffled on purpose", shuffled)] if shuffled else []
    table += [("held out and scored", held_out, about["held_out_samples"])]
    return about | {
        "credit": credit if licence in credit else f"{credit} (licence: {licence})",
        "table": [(Markup("{} <small>{}</small>").format(name, why) if why else name, f"{n:,}") for name, why, n in table],
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


def _restarts(path: Path) -> list[tuple[str, str]]:
    """When workers were lost, and why; an earlier version kept only what each of them said last."""
    return [
        (
            time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(line["time"])),
            line.get("cause") or "; ".join(f"worker {rank}: {error}" for rank, error in line["workers"].items()),
        )
        for line in read_metrics(path)
    ]


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
