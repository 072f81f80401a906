"""What every classification shows on the page, a block a set: its scores, and the classes that each model misses most."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from evaluation.reporting import html, number_format
from evaluation.reporting.comparison import Comparison, Row, number, score_table
from evaluation.results import Result

FEW = 3  # sets whose details stand open; of more, a reader opens each
_MEASURES = ("top1", "top5", "mean_per_class")
_SHOWN = 12  # names of classes without images; the rest are counted


def class_sets(
    comparison: Comparison, task: str, content: Callable[[str, Mapping[html.Model, Result], Markup], Sequence[str]]
) -> Markup:
    """`content`: what a set shows, of its name, its results by model and the table of their scores."""
    datasets = comparison.datasets(task)
    blocks = []
    for dataset in datasets:
        results = comparison.of(task, dataset)
        mains = [
            html.fill(
                '<small title="{}">{}<span class="hidden">{} </span>{}</small>',
                m.name,
                html.chip(m),
                m.name,
                number_format.signed(value),
            )
            for m, value in ((cell.model, cell.value) for cell in comparison.main_row(task, dataset).cells)
            if value is not None
        ]
        elements = [*content(dataset, results, score_table(comparison, measures(comparison, task, dataset, _MEASURES)))]
        elements.append(_most_missed(results))
        for key, words in (
            ("without_images", "Classes without a test image, which no score is about: {}."),
            ("without_training", "Classes without a training image, whose test images are left out: {}."),
        ):
            # A matter of the data, so it is said once.
            names: list[str] = next((r.details[key] for r in results.values() if r.details.get(key)), [])
            if names:
                elements.append(html.soft(words, _list(names)))
        summary = html.fill("<summary>{}\n{}</summary>", dataset, html.join(*mains))
        opened = Markup(" open" if len(datasets) <= FEW else "")
        blocks.append(html.fill('<details class="set"{}>{}\n{}\n</details>', opened, summary, html.join(*elements)))
    return html.join(*blocks)


def measures(comparison: Comparison, task: str, dataset: str, scores: Sequence[str]) -> list[Row]:
    """Rows of those scores that any model has."""
    measured = {score for result in comparison.of(task, dataset).values() for score in result.scores}
    return [comparison.row(task, dataset, score) for score in scores if score in measured]


def _list(names: Sequence[Any]) -> str:
    shown = ", ".join(str(name) for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _most_missed(results: Mapping[html.Model, Result]) -> Markup:
    """A list a model of the classes with the lowest recall, and what their images are taken for."""
    lists = []
    for model, result in results.items():
        items = [_missed(entry) for entry in result.details.get("worst", [])]
        lists += [html.fill("<div>{}\n<ol>{}</ol></div>", html.named(model), html.join(*items))] if items else []
    return (
        html.join(html.heading("Classes with the lowest recall, and what they are taken for", 4), html.div("lists", *lists))
        if lists
        else Markup("")
    )


def _missed(entry: Mapping[str, Any]) -> Markup:
    recall = number(entry.get("recall"))
    shown = "" if recall is None else html.fill("{}&nbsp;%", number_format.signed(recall))
    images = html.fill(' <span class="soft">of {:,}</span>', entry["images"]) if entry.get("images") else ""
    taken = [
        f"{name}" if number(share) is None else f"{name} {number_format.signed(share, 0)}\u00a0%"
        for name, share in entry.get("taken_for", [])
    ]
    taken_for = html.fill('<span class="taken">{}</span>', ", ".join(taken)) if taken else ""
    return html.fill("<li><b>{}</b><span>{}{}</span>{}</li>", entry["name"], shown, images, taken_for)
