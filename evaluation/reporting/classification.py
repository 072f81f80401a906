"""What every classification shows on the page, a block a set: its scores, and the classes that each model misses most."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from evaluation.reporting import html, number_format
from evaluation.reporting.comparison import Comparison, score_table
from evaluation.results import Result
from evaluation.task_info import TaskInfo

FEW = 3  # sets whose details stand open; of more, a reader opens each
_MEASURES = ("top1", "top5", "mean_per_class")
_Results = Mapping[html.Model, Result]
_SHOWN = 12  # names of classes without images; the rest are counted
_WITHOUT = {
    "without_images": "Classes without a test image, which no score is about: {}.",
    "without_training": "Classes without a training image, whose test images are left out: {}.",
}


def class_sets(
    comparison: Comparison, info: TaskInfo, about: str, content: Callable[[str, _Results, Markup], Sequence[str]]
) -> html.Section:
    """A classification's block. `content`: what a set shows, of its name, its results and the table of their scores."""

    def of_set(comparison: Comparison, dataset: str) -> Markup:
        results = comparison.of(info.name, dataset)
        measured = {score for result in results.values() for score in result.scores}
        rows = [comparison.row(info.name, dataset, score) for score in _MEASURES if score in measured]
        elements = [*content(dataset, results, score_table(comparison, {"": rows})), _most_missed(results)]
        for key, words in _WITHOUT.items():
            # A matter of the data, so it is said once.
            names: list[str] = next((r.details[key] for r in results.values() if r.details.get(key)), [])
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            elements += [html.soft(words, ", ".join(map(str, names[:_SHOWN])) + more)] if names else []
        words = '<small title="{0}">{1}<span class="hidden">{0} </span>{2}</small>'
        cells = [cell for cell in comparison.main_row(info.name, dataset).cells if cell.value is not None]
        mains = (html.fill(words, c.model.name, html.chip(c.model), number_format.value(c.value)) for c in cells)
        return html.more(html.join(dataset, *mains), *elements, open=len(comparison.datasets(info.name)) <= FEW, style="set")

    return comparison.section(info, about, of_set)


def _most_missed(results: _Results) -> Markup:
    """A list a model of the classes with the lowest recall, and what their images are taken for."""
    lists = []
    for model, result in results.items():
        items = [_missed(entry) for entry in result.details.get("worst", [])]
        lists += [html.tag("div", html.named(model), html.tag("ol", *items))] if items else []
    heading = html.tag("h4", "Classes with the lowest recall, and what they are taken for")
    return html.join(heading, html.div("columns lists", *lists)) if lists else Markup("")


def _missed(entry: Mapping[str, Any]) -> Markup:
    recall, images, taken = number_format.value(entry.get("recall")), entry.get("images"), []
    for name, share in entry.get("taken_for", []):
        taken.append(f"{name} {part}\u00a0%" if (part := number_format.value(share, digits=0)) else name)
    of_images = html.tag("span", f" of {images:,}", style="soft") if images else ""
    shown = html.tag("span", f"{recall}\u00a0%" if recall else "", of_images)
    taken_for = html.tag("span", ", ".join(taken), style="taken") if taken else ""
    return html.tag("li", html.tag("b", entry["name"]), shown, taken_for)
