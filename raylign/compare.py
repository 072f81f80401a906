"""`raylign compare RUN RUN ...`: finished runs side by side on one page, from the files that they left, without Ray and torch.

Settings that differ, curves over each other, findings, and scores on the held-out split. A difference from the first run has an
interval over the groups of held-out items, paired, where both runs kept their embeddings: what another split of as many groups
would change. Seeds are not in it; a sweep tests over these too. Runs of other data, or of another split, are refused by name.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from evaluation.metrics import metric
from evaluation.reporting import html, number_format
from evaluation.reporting.chart import Series, figure, lines, mark
from evaluation.reporting.render import page, write_files
from evaluation.retrieval import mean_recalls
from evaluation.suite import HeldOut, SuiteSettings, held_out
from pipelines.dataset.prepared import Prepared
from pipelines.io import storage
from pipelines.io.retry import shown_place
from pipelines.program import yaml_text
from pipelines.program.cli import Parser, run_page
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.path_keys import place_argument
from pipelines.program.settings import validate
from training.metrics_file import read_metrics
from training.report_findings import what_to_try
from training.run_store import looked_at

_RESULT, _CONFIG, _METRICS, _ROWS = "result.json", "config.yaml", "metrics.jsonl", "held_out.npz"
_SAME = {"fingerprint": "data", "split_seed": "data.split_seed", "validation": "data.validation"}
_OWN = ("name", "storage")  # keys that say nothing of a difference
_FIGURES = {"loss": "Training loss", "held_out_loss": "Held-out loss", "lr": "Learning rate"}


@dataclass(frozen=True)
class _Run:
    name: str
    place: str
    result: dict[str, Any]
    config: dict[str, Any]
    lines: list[dict[str, Any]]
    rows: dict[str, np.ndarray] | None  # held-out embeddings, where it kept them

    @property
    def split(self) -> list[Any]:
        """What must be equal to compare scores."""
        evaluation = self.config["evaluation"]
        return [self.result["dataset"].get(key) for key in _SAME] + [evaluation["split"]]


def main(arguments: Sequence[str], prog: str = "raylign compare") -> int:
    """Compare runs. Exit code 0, or 2 with one line that says what is wrong."""
    parser = Parser(prog=prog, description="Finished runs side by side: settings, curves, scores with paired intervals.")
    parser.add_argument("runs", type=place_argument, nargs="+", metavar="RUN", help="such as runs/demo or s3://bucket/runs/demo")
    parser.add_argument("--output", type=Path, default=Path("compare.html"), metavar="FILE", help="the page; default %(default)s")
    data = "the prepared dataset, where it is no longer where it was"
    parser.add_argument("--data", type=place_argument, metavar="FOLDER", help=data)
    return run_page(parser, _write, arguments)


def _write(options: argparse.Namespace) -> Path:
    runs = [_read(place) for place in options.runs]
    if len(runs) < 2:
        raise UserError("RUN", "one run alone has nothing to be compared with", "give two runs or more")
    first = runs[0]
    for run in runs[1:]:
        for name, ours, theirs in zip((*_SAME.values(), "evaluation.split"), first.split, run.split, strict=True):
            if ours != theirs:
                what = f"has other held-out rows than {first.place}: {name} is {theirs}, and {ours} there"
                raise UserError(run.place, what, "compare runs of the same data and split, or score both by raylign evaluate")
    if len({run.place for run in runs}) < len(runs):
        raise UserError("RUN", "a run is named twice", "name each once")
    names = [run.name if sum(other.name == run.name for other in runs) == 1 else run.place for run in runs]
    data = storage.absolute(options.data) if options.data is not None else first.result["dataset"]["path"]
    scores = _scores(runs, names, data)
    models = [html.Model(name, mark(i)) for i, name in enumerate(names)]
    headline = html.fill("{} on {:,} held-out pairs", " and ".join(names), first.result["dataset"]["held_out_samples"])
    about = html.paragraph(
        "Differences are from <b>{}</b>, with 95&nbsp;% intervals over the groups of held-out items, paired, so that what both "
        "runs find hard does not count; they do not cover seeds. In bold: the interval is without 0.",
        names[0],
    )
    found = [what_to_try(run.result.get("findings", ()), name) for run, name in zip(runs, names, strict=True)]
    made = page(
        "compare",
        html.fill("Comparison of {}", number_format.count(len(runs), "run")),
        headline,
        [html.div("legend", *map(html.named, models))],
        [
            html.section("scores", "Scores", about, _score_table(scores, names)),
            html.section("settings", "Settings that differ", _settings(runs, names)),
            html.section("curves", "Curves", html.div("charts", *_curves(runs, models, first))),
            html.section("findings", "Findings", *found) if any(found) else None,
        ],
        html.fill("Written by raylign compare {}", " ".join(run.place for run in runs)),
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_files(options.output.parent, {options.output.name: made})
    Display().table(f"difference from {names[0]}, with its 95 % interval", ["score, %", *names], _plain(scores))
    return options.output


def _read(place: Path | str) -> _Run:
    with ExitStack() as stack:
        folder = place if isinstance(place, Path) else stack.enter_context(looked_at(place, (_RESULT, _CONFIG, _METRICS, _ROWS)))
        try:
            result = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
            config = yaml_text.parse((folder / _CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            remedy = "give a run, such as runs/demo, whose command has ended"
            raise UserError(shown_place(place), "no finished run: result.json or config.yaml is not readable", remedy) from None
        rows = None
        if (folder / _ROWS).exists():
            with np.load(folder / _ROWS) as file:
                rows = {name: file[name] for name in file.files}
        return _Run(result["name"], shown_place(place), result, config, read_metrics(folder / _METRICS), rows)


@dataclass(frozen=True)
class _Difference:
    """From the first run; without an interval where either run kept no embeddings."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def sure(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        known = not math.isnan(self.low)
        return f"{self.value:+.1f}" + (f" [{self.low:+.1f}, {self.high:+.1f}]" if known else "")


def _scores(runs: Sequence[_Run], names: Sequence[str], place: Path | str) -> dict[str, list[tuple[float, _Difference | None]]]:
    """Path -> each run's score and its difference; paths that all runs have."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    from tuning.held_out_items import items_of, variance

    first, paths = runs[0], [path for path in runs[0].result["metrics"] if all(path in run.result["metrics"] for run in runs)]
    split = _data(first, place)
    own = [{} if split is None or run.rows is None else items_of(*split, run.rows, paths) for run in runs]
    scores: dict[str, list[tuple[float, _Difference | None]]] = {path: [] for path in paths}
    for run, items in zip(runs, own, strict=True):
        for path in paths:
            value = run.result["metrics"][path]
            if run is first:
                scores[path].append((value, None))
                continue
            difference = _Difference(value - first.result["metrics"][path])
            both = path in items and path in own[0]
            if both and (over := variance([(items[path], own[0][path])])) is not None:
                reach = float(stdtrit(over[1], 0.975)) * math.sqrt(over[0])
                difference = _Difference(difference.value, difference.value - reach, difference.value + reach)
            scores[path].append((value, difference))
    return scores


def _data(run: _Run, place: Path | str) -> tuple[Prepared, HeldOut] | None:
    """The held-out split; None where it is not needed."""
    if run.rows is None:
        return None
    prepared = Prepared.open(place)
    if prepared.fingerprint != run.result["dataset"]["fingerprint"]:
        remedy = "name the folder that holds it with --data"
        raise UserError(f"{prepared.path}", f"holds other data than {run.place} was trained on", remedy)
    suite = {key: value for key, value in run.config["evaluation"].items() if key in SuiteSettings.model_fields}
    about = run.result["dataset"]
    settings = validate(SuiteSettings, suite, run.place)
    return prepared, held_out(prepared, settings, about["split_seed"], about.get("validation"))


def _score_table(scores: Mapping[str, Sequence[tuple[float, _Difference | None]]], names: Sequence[str]) -> Markup:
    rows = []
    for path, of in scores.items():
        cells = []
        for value, difference in of:
            shown = html.tag("b", f"{difference}") if difference and difference.sure else f"{difference or ''}"
            cells.append(html.join(number_format.value(value), html.tag("small", shown) if difference else ""))
        rows.append(html.row([html.join(metric(path).heading, html.small(path)), *cells], tooltip=path))
    return html.table("Scores", ("score, %", *names), rows, style="scores")


def _plain(scores: Mapping[str, Sequence[tuple[float, _Difference | None]]]) -> list[list[str]]:
    return [[path, *(f"{value:.1f}" + (f"  {by}" if by else "") for value, by in of)] for path, of in scores.items()]


def _settings(runs: Sequence[_Run], names: Sequence[str]) -> Markup:
    flat = [_flat(run.config) for run in runs]
    keys = sorted({key for of in flat for key in of})
    different = [key for key in keys if key not in _OWN and len({of.get(key, "") for of in flat}) > 1]
    if not different:
        return html.paragraph("None, but for names.")
    return html.table("Settings", ("key", *names), [[key, *(of.get(key, "") for of in flat)] for key in different], len(runs) + 1)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and their values as text."""
    found: dict[str, str] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        found |= _flat(value, f"{key}.") if isinstance(value, dict) and value else {key: json.dumps(value, default=str)}
    return found


def _curves(runs: Sequence[_Run], models: Sequence[html.Model], first: _Run) -> list[Markup]:
    """A chart a figure or score, with a line a run."""
    least = min(first.config["evaluation"]["recall_at"])
    score = f"retrieval/{first.result['dataset']['name']}/mean_recall@{least}"
    charts = []
    for key, title in {score: f"R@{least}, mean of both directions", **_FIGURES}.items():
        series = []
        for run, model in zip(runs, models, strict=True):
            points = {line["epoch"]: known[key] for line in run.lines if key in (known := line | mean_recalls(line))}
            series += [Series(model.name, points, model.mark)] if points else []
        if series:
            percent = "/" in key
            about = f"{title} over epochs: {'; '.join(f'{s.name} ends at {s.points[max(s.points)]:.4g}' for s in series)}"
            drawn = lines(series, about, "epoch", percent=percent, from_zero=True, labelled=110.0, size=(400.0, 240.0))
            charts.append(figure(drawn, title, "%" if percent else ""))
    return charts
