"""`report.html`: what a run trained on what, its scores, and retrieved images; one file that needs nothing else.

`python -m training.report RUN` writes it again from what the run left on disk or in a store, without Ray and without training.
"""

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from evaluation.reporting import html, number_format
from evaluation.reporting.gallery import Gallery, examples
from evaluation.reporting.render import page, write_files
from evaluation.suite import HeldOut, SuiteSettings, held_out
from pipelines.dataset.prepared import Prepared
from pipelines.io import storage
from pipelines.io.retry import shown
from pipelines.prepare.repeated_captions import warnings_of
from pipelines.program import yaml_text
from pipelines.program.cli import Parser, run_page
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.path_keys import place_argument
from pipelines.program.settings import validate
from training import report_scores
from training.held_out import read_held_out, retrieval_of
from training.metrics_file import read_metrics
from training.report_curves import curves
from training.report_findings import what_to_try
from training.run_store import kept
from training.warmup import warmup_warning
from training.working_copy import working_copy

_PAGE = "report.html"
_MODES = {
    "trainable": "trained",
    "frozen": "frozen: it runs in every step, and only its head is trained",
    "locked": "locked: its features are computed once, and only its head is trained",
}


def write_report(run: Path, result: dict[str, Any], data: HeldOut) -> None:
    """Write `run/report.html`, aside and renamed. `result` is the content of `result.json`.

    Raises `UserError` where the run's folder or its data lack something.
    """
    about, config = result["dataset"], yaml_text.parse((run / "config.yaml").read_text(encoding="utf-8"))
    prepared, credit, versions = Prepared.open(about["path"]), html.credit(about), result["versions"]
    # Why the scores may say less than they seem to.
    warmup = warmup_warning(config.get("schedule", {}).get("warmup_steps", 0), result["step"])
    warnings = [*([warmup] if warmup else []), *warnings_of(prepared.manifest)]
    made = page(
        result["name"],
        html.fill("Training run <b>{}</b>", result["name"]),
        report_scores.headline(result, data),
        [
            *map(html.warning, warnings),
            _what_was_trained(result, config),
            what_to_try(result.get("findings", ())),  # not in results of earlier versions
            report_scores.tiles(result, data),
        ],
        [
            report_scores.test(result, data),
            report_scores.gained_and_lost(result),
            report_scores.scores(result, data),
            _retrieved(read_held_out(run)["gallery"], data, credit),
            curves(read_metrics(run / "metrics.jsonl"), config, data, result["baselines"]),
            _data(prepared, result),
            _reproduce(run, result, config, prepared),
        ],
        html.fill("Written by raylign {}. The images and captions of {}: {}", versions["raylign"], about["name"], credit),
    )
    write_files(run, {_PAGE: made})


def _what_was_trained(result: dict[str, Any], config: dict[str, Any]) -> Markup:
    """In a sentence or two."""
    test, unseen, skipped = result.get("test"), "", ""
    if test:
        unseen = ": split {split}, once, by the checkpoint of step {step:,}, which split {chosen_on} chose".format(**test)
    if result.get("skipped"):
        skipped = f" ({result['skipped']:,} of them skipped, for their loss or gradient was no number)"
    towers = ", ".join(f"{side} tower {_tower_name(tower)} ({tower['mode']})" for side, tower in _towers(config).items())
    return html.paragraph(
        "A dual encoder trained with the <b>{config[objective][name]}</b> objective on <b>{result[dataset][train_samples]:,} "
        "image-text pairs of {result[dataset][name]}</b> and scored on <b>{samples:,} held-out pairs</b> that it has not seen{}. "
        "{towers}; {epochs}, {result[step]:,} steps of {config[global_batch_size]:,} pairs{}, {workers}, seed {result[seed]}, "
        "{time} in all.",
        *(unseen, skipped),
        config=config,
        result=result,
        samples=test["samples"] if test else result["dataset"]["held_out_samples"],
        towers=towers[0].upper() + towers[1:],
        epochs=number_format.count(result["epochs"], "epoch"),
        workers=f"{_worker_numbers(result['machine'])} {'worker' if result['machine']['workers'] == 1 else 'workers'}",
        time=number_format.duration(math.fsum(result["seconds"].values())),
    )


def _worker_numbers(machine: dict[str, Any]) -> str:
    """How many workers trained; each number in turn, if it changed."""
    return ", then ".join(map(str, machine.get("worker_history") or [machine["workers"]]))


def _towers(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"image": config["image_tower"], "text": config["text_tower"]}


def _tower_name(tower: dict[str, Any]) -> str:
    """The model's name where it has one, the name of its weights, or what it is."""
    model, weights = tower.get("model"), tower.get("weights")
    if model or not weights:
        return f"{model or tower['name']}{'' if weights else ' from random weights'}"
    if weights.startswith("package:"):
        return weights.removeprefix("package:").split("/")[0]
    return Path(weights).name if weights.startswith(("/", ".", "~")) else weights


def _retrieved(found: dict[str, Any], data: HeldOut, credit: str) -> html.Section:
    """What the retrieval task found when training ended, with thumbnails."""
    task = retrieval_of(data)
    assert task is not None
    own = Gallery(found, task.thumbnails(found), {"captions": len(data.texts), "images": len(data.sample_ids)})
    about = html.paragraph(
        "Held-out captions and images, at even distances through the split and not picked by hand. Framed and ticked: right; "
        "where nothing is, the right answer stands beside it, dashed."
    )
    return html.section("images", "Retrieved examples", about, *examples([own]), html.soft("Images and captions: {}", credit))


def _data(prepared: Prepared, result: dict[str, Any]) -> html.Section:
    """What the data is, and what became of its rows."""
    manifest, about, counts = prepared.manifest, result["dataset"], result["dataset"]["counts"]
    fraction, shuffled = about.get("fraction", 1), about.get("shuffled", prepared.shuffled)  # not in results of earlier versions
    rejected = sorted(counts["rejected"].items(), key=lambda item: -item[1]) or [("", 0)]
    held_out = "the dataset's own split" if about["split_seed"] is None else f"split seed {about['split_seed']}"
    drawn = f"a share of {fraction:g} of the split's groups, drawn by seed {result['seed']}" if fraction < 1 else ""
    rows = [
        ("listed by the source", "", counts["listed"]),
        ("found", "", counts["found"]),
        *(("rejected", reason.replace("_", " "), n) for reason, n in rejected),
        ("kept", "", counts["kept"]),
        *(("of these unusable while training", reason.replace("_", " "), n) for reason, n in counts["unusable"].items()),
        ("trained on", drawn, about["train_samples"]),
        *([("of these with another row's captions", "shuffled on purpose", shuffled)] if shuffled else []),
        ("held out and scored", held_out, about["held_out_samples"]),
    ]
    image = manifest["image"]
    facts = {
        "Dataset": about["name"],
        "Licence": about["licence"],
        "Attribution": about["attribution"],
        "Images": f"{manifest['num_images']:,} different ones, shorter side {image['size']} pixels, {image['format']}",
        "Captions": f"{manifest['num_texts']:,} different ones",
        "Fingerprint": about["fingerprint"],
        "Prepared": manifest["created"],
    }
    counted = [(html.fill("{} {}", name, html.small(why)), f"{n:,}") for name, why, n in rows]
    table = html.table("Rows of the dataset", ("rows", "count"), counted)
    return html.section("data", "Data", html.div("columns", html.facts(facts.items()), table))


def _reproduce(run: Path, result: dict[str, Any], config: dict[str, Any], prepared: Prepared) -> html.Section:
    """Commands, configs, machine and versions of this run."""
    folder, machine = f"{config['storage']}/{config['name']}", result["machine"]
    words = '{} ({})<br><span class="soft">{}</span>'
    towers = {
        side.capitalize(): html.fill(words, _tower_name(tower), tower["name"], _MODES[tower["mode"]])
        for side, tower in _towers(config).items()
    }
    host = f"{machine['cpus']} CPUs, {machine['processor']}"
    of_machine = html.facts([("Device", machine["device"]), ("Workers", _worker_numbers(machine)), ("Host", host)])
    times = html.facts((phase, number_format.duration(seconds)) for phase, seconds in result["seconds"].items())
    of_calls = html.facts(_of_all_sessions(result["history"])) if "history" in result else ""  # of an earlier version
    about = html.soft("Training was interrupted, and went on from the last checkpoint:")
    restarts = _restarts(run / "restarts.jsonl")
    lost = [html.tag("h3", "Restarts"), about, html.facts(restarts)] if restarts else []
    again = html.paragraph("It is written at the end of a run, and again from the run's folder by")
    return html.section(
        "again",
        "Reproduce",
        html.paragraph("With this run's folder and the prepared data in place:"),
        html.tag("pre", f"python -m training {shlex.quote(f'{folder}/config.yaml')} name={config['name']}-again"),
        html.div(
            "columns",
            html.div("", html.tag("h3", "Towers"), html.facts(towers.items()), html.tag("h3", "Machine"), of_machine),
            html.div("", html.tag("h3", "Wall time"), times, of_calls, *lost),
            html.div("", html.tag("h3", "Versions"), html.facts(result["versions"].items())),
        ),
        html.more("Config of the run", html.tag("pre", shown(yaml_text.dump(config)))),
        html.more("Config of the data", html.tag("pre", yaml_text.dump(prepared.manifest["config"]))),
        html.more("This page", again, html.tag("pre", f"python -m training.report {shlex.quote(folder)}")),
    )


def _of_all_sessions(history: dict[str, Any]) -> list[tuple[str, str]]:
    """What a run took over all calls of its command."""
    return [
        ("Calls of the command", f"{history['sessions']:,}"),
        ("Steps done again", f"{history['redone_steps']:,}"),
        ("Workers' hours", number_format.label(history["worker_hours"])),
        ("GPU hours", number_format.label(history["gpu_hours"])),
    ]


def _restarts(path: Path) -> list[tuple[str, str]]:
    """When workers were lost, and why; an earlier version kept only what each of them said last."""
    restarts = []
    for line in read_metrics(path):
        cause = line.get("cause") or "; ".join(f"worker {rank}: {error}" for rank, error in line["workers"].items())
        restarts.append((time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(line["time"])), cause))
    return restarts


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page of a finished run again. Exit code 0, or 2 with one line that says what is wrong."""
    parser = Parser(
        prog="python -m training.report", description="Write report.html of a finished run again, from what the run left."
    )
    parser.add_argument("run", type=place_argument, metavar="RUN", help="a run, such as runs/demo or s3://bucket/runs/demo")
    data = "the prepared dataset, where it is no longer where it was"
    parser.add_argument("--data", type=place_argument, metavar="FOLDER", help=data)
    return run_page(parser, _rewrite, arguments)


def _rewrite(options: argparse.Namespace) -> Path | str:
    """`write_report` with everything read from disk, or from a store. Returns where the page is."""
    place: Path | str = options.run
    if isinstance(place, Path):
        if not place.is_dir():
            raise UserError(f"{place}", "no such folder", "give a finished run, such as runs/demo")
        _write_again(place, options.data)
    else:
        with working_copy(place, Display()) as run:
            _write_again(run, options.data)
            kept(run, _PAGE)
    return storage.join(place, _PAGE)


def _write_again(run: Path, data: Path | str | None) -> None:
    try:
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        config = yaml_text.parse((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        problem = f"no finished run, as result.json or config.yaml is not readable: {' '.join(str(error).split())}"
        raise UserError(f"{run}", problem, "give the run's training command again, which finishes it") from None
    if data is not None:
        result["dataset"]["path"] = str(storage.absolute(data))
    prepared = Prepared.open(result["dataset"]["path"])
    if prepared.fingerprint != result["dataset"]["fingerprint"]:
        raise UserError(
            f"{prepared.path}",
            f"holds other data ({prepared.fingerprint[:12]}) than {run} was trained on ({result['dataset']['fingerprint'][:12]})",
            "name the folder that holds it with --data",
        )
    # Of the training config only what the suite knows, so that pages of old runs can be written by newer versions.
    suite = {key: value for key, value in config["evaluation"].items() if key in SuiteSettings.model_fields}
    settings = validate(SuiteSettings, suite, str(run / "config.yaml"))
    splits = result["dataset"]["split_seed"], result["dataset"].get("validation")  # not in results of earlier versions
    write_report(run, result, held_out(prepared, settings, *splits))


if __name__ == "__main__":
    sys.exit(main())
