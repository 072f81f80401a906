"""report.html: everything that the page shows, gathered for its templates."""

import json
import shlex
from pathlib import Path
from typing import Any

import jinja2

from evaluation.metrics import task_title
from evaluation.reporting import charts, classification, overview, retrieval, shifts
from evaluation.reporting.comparison import Comparison
from pipelines.program import number_format

_TEMPLATES = Path(__file__).parent
_DIGITS = 12  # of a fingerprint
_FEW = 3  # sets whose details stand open; of more, each is opened by who wants to see it


def render(comparison: Comparison, output: Path) -> str:
    """The whole file: one that needs nothing else, and has no script."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"score": charts.signed, "chance": _chance}
    environment.globals |= {"count": number_format.count, "models": comparison.models, "few": _FEW}
    groups = overview.groups(comparison)
    return environment.get_template("report.html.j2").render(
        name=output.name or str(output),
        headline=overview.headline(comparison),
        groups=groups,
        bars=_bars(groups),
        zero_shot=classification.zero_shot(comparison),
        probes=classification.probes(comparison),
        few_shot=classification.few_shot(comparison),
        retrieval=retrieval.retrieval(comparison),
        corruptions=shifts.corruptions(comparison),
        captions=shifts.captions(comparison),
        robustness=shifts.robustness(comparison),
        scored=_scored(comparison),
        data=_data(comparison),
        results=len(comparison.results),
        command=shlex.join(["python", "-m", "evaluation.reporting", str(output)]),
    )


def _bars(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chart a task of the main scores; averages are of other bars and stand in the table alone."""
    found = []
    for group in groups:
        rows = [entry["row"] for entry in group["rows"] if not entry["average"]]
        rows = [row for row in rows if any(cell.value is not None for cell in row.cells)]
        if rows:
            found.append({"title": group["title"], "unit": group["unit"], "svg": charts.bars(rows, group["unit"])})
    return found


def _chance(value: float) -> str:
    """Never 0.0, which it is not."""
    return "<0.1" if 0 < value < 0.05 else charts.signed(value)


def _scored(comparison: Comparison) -> list[dict[str, Any]]:
    """The models: what made them, and how long they took."""
    found = []
    for model in comparison.models:
        mine = [result for result in comparison.results if result.model == model.name]
        seconds = sum(result.about["seconds"] for result in mine if number_format.is_number(result.about.get("seconds")))
        facts = {
            key: _distinct([r.about.get(key) for r in mine]) for key in ("embedder", "pretrained", "arguments", "fingerprint")
        }
        facts["time"] = [number_format.duration(seconds)] if seconds else []
        facts["results"] = [f"{len(mine):,}"]
        found.append({"model": model, "facts": {key: values for key, values in facts.items() if values}})
    return found


def _data(comparison: Comparison) -> list[dict[str, Any]]:
    """The sets: whose images they are, how much of them was there, and whether all models saw the same."""
    found = []
    for dataset in sorted({result.dataset for result in comparison.results}):
        mine = [result for result in comparison.results if result.dataset == dataset]
        abouts = [(result.task, result.about["data"]) for result in mine if isinstance(result.about.get("data"), dict)]
        keys = dict.fromkeys(key for _, about in abouts for key in about if key != "fingerprint")
        facts = {str(key): _distinct([about.get(key) for _, about in abouts]) for key in keys}
        # A task has a fingerprint of its own: each is of the rows that it needs.
        prints: dict[str, list[str]] = {}
        for task, about in abouts:
            if about.get("fingerprint"):
                prints.setdefault(task, []).append(str(about["fingerprint"])[:_DIGITS])
        shown = [f"{task_title(task)} {' or '.join(dict.fromkeys(values))}" for task, values in prints.items()]
        tasks = ", ".join(dict.fromkeys(task_title(result.task) for result in mine))
        facts = {"tasks": [tasks]} | {key: values for key, values in facts.items() if values} | {"fingerprints": shown}
        differs = any(len(set(values)) > 1 for values in prints.values())
        found.append({"dataset": dataset, "facts": {key: values for key, values in facts.items() if values}, "differs": differs})
    return found


def _distinct(values: list[Any]) -> list[str]:
    """Each value once, as text; what is missing or empty is left out."""
    shown = [_plain(value) for value in values if value is not None and value not in ("", {}, [])]
    return list(dict.fromkeys(shown))


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items() if entry not in (None, "", {}, []))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
