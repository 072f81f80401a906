"""What every classification shows on the page, a block a set: its scores, and the classes that each model misses most."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from evaluation.reporting import html, number_format
from evaluation.reporting.comparison import Comparison, number, score_table
from evaluation.results import Result

FEW = 3  # sets whose details stand open; of more, a reader opens each
_MEASURES = ("top1", "top5", "mean_per_class")
_SHOWN = 12  # names of classes without images; the rest are counted
_WITHOUT = {
    "without_images": "Classes without a test image, which no score is about: {}.",
    "without_training": "Classes without a training image, whose test images are left out: {}.",
}


def class_sets(
    comparison: Comparison, task: str, content: Callable[[str, Mapping[html.Model, Result], Markup], Sequence[str]]
) -> Markup:
    """`content`: what a set shows, of its name, its results by model and the table of their scores."""
    datasets, blocks = comparison.datasets(task), []
    for dataset in datasets:
        results = comparison.of(task, dataset)
        measured = {score for result in results.values() for score in result.scores}
        rows = [comparison.row(task, dataset, score) for score in _MEASURES if score in measured]
        elements = [*content(dataset, results, score_table(comparison, {"": rows})), _most_missed(results)]
        for key, words in _WITHOUT.items():
            # A matter of the data, so it is said once.
            names: list[str] = next((r.details[key] for r in results.values() if r.details.get(key)), [])
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            elements += [html.soft(words, ", ".join(map(str, names[:_SHOWN])) + more)] if names else []
        words = '<small title="{0}">{1}<span class="hidden">{0} </span>{2}</small>'
        cells = [cell for cell in comparison.main_row(task, dataset).cells if cell.value is not None]
        mains = (html.fill(words, c.model.name, html.chip(c.model), number_format.value(c.value)) for c in cells)
        blocks.append(html.more(html.join(dataset, *mains), *elements, open=len(datasets) <= FEW, style="set"))
    return html.join(*blocks)


def _most_missed(results: Mapping[html.Model, Result]) -> Markup:
    """A list a model of the classes with the lowest recall, and what their images are taken for."""
    lists = []
    for model, result in results.items():
        items = [_missed(entry) for entry in result.details.get("worst", [])]
        lists += [html.tag("div", html.named(model), html.tag("ol", *items))] if items else []
    heading = html.tag("h4", "Classes with the lowest recall, and what they are taken for")
    return html.join(heading, html.div("lists", *lists)) if lists else Markup("")


def _missed(entry: Mapping[str, Any]) -> Markup:
    recall, images = number(entry.get("recall")), entry.get("images")
    shown = "" if recall is None else f"{number_format.value(recall)}\u00a0%"
    of_images = html.tag("span", f" of {images:,}", style="soft") if images else ""
    shares = [(name, number(share)) for name, share in entry.get("taken_for", [])]
    taken = ", ".join(
        f"{name}" if share is None else f"{name} {number_format.value(share, digits=0)}\u00a0%" for name, share in shares
    )
    taken_for = html.tag("span", taken, style="taken") if taken else ""
    return html.tag("li", html.tag("b", entry["name"]), html.tag("span", shown, of_images), taken_for)
