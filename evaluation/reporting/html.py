"""The elements of every page: sections, tables, charts with their figures, tiles and facts.

An element is `Markup`. Its words are ours and may hold markup; values are passed beside them and are escaped:
`paragraph("<b>{}</b> images", name)`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from evaluation.reporting.chart import Chart

NDASH = "\N{EN DASH}"


class Section(NamedTuple):
    """A section of a page, and its link in the head of the page."""

    id: str
    link: str
    content: Markup


@dataclass(frozen=True)
class Model:
    """A model, and the class of the style that gives it the same colour everywhere."""

    name: str
    mark: str


def fill(words: str, *values: Any, **named: Any) -> Markup:
    """Our markup, with a value for each {}, {name} or {name[key]}."""
    return Markup(words).format(*values, **named)


def join(*elements: str) -> Markup:
    """One after the other; those that are empty are left out."""
    return Markup("\n").join(element for element in elements if element)


def section(id: str, title: str, *elements: str, link: str = "") -> Section:
    return Section(id, link or title, fill('<section id="{}">\n<h2>{}</h2>\n{}\n</section>', id, title, join(*elements)))


def div(name: str, *elements: str) -> Markup:
    """A block with a class of the style."""
    return fill('<div class="{}">{}</div>', name, join(*elements))


def ordered(name: str, items: Iterable[str]) -> Markup:
    """A list with a class of the style, of <li>."""
    return fill('<ol class="{}">\n{}</ol>', name, join(*items))


def heading(title: str, level: int = 3) -> Markup:
    return fill("<h{}>{}</h{}>", level, title, level)


def warning(text: str) -> Markup:
    """Why figures may say less than they seem to, in a sentence without its full stop."""
    return fill('<p class="warning" role="note"><b>Warning:</b> {}.</p>', text)


def paragraph(words: str, *values: Any, style: str = "", **named: Any) -> Markup:
    """`style`: a class, such as `soft` for an explanation and `flag` for a warning."""
    return fill('<p class="{}">{}</p>' if style else "<p{}>{}</p>", style, fill(words, *values, **named))


def soft(words: str, *values: Any, **named: Any) -> Markup:
    """An explanation, in a quiet colour."""
    return paragraph(words, *values, style="soft", **named)


def small(words: str, name: str = "") -> Markup:
    """Below a name; nothing where there are no words."""
    return fill('<small class="{}">{}</small>' if name else "<small{}>{}</small>", name, words) if words else Markup("")


def code(text: str) -> Markup:
    """Commands and configs, as they are typed."""
    return fill("<pre>{}</pre>", text)


def more(title: str, *elements: str, open: bool = False, name: str = "") -> Markup:
    """What a reader opens to see it."""
    style = fill(' class="{}"', name) if name else ""
    words = "<details{}{}><summary>{}</summary>\n{}\n</details>"
    return fill(words, style, Markup(" open" if open else ""), title, join(*elements))


def facts(pairs: Iterable[tuple[str, Any]]) -> Markup:
    """Names and values; a missing value is left out."""
    return fill("<dl>\n{}</dl>", join(*(fill("<dt>{}</dt><dd>{}</dd>", *pair) for pair in pairs if pair[1] not in (None, ""))))


def credit(dataset: Mapping[str, Any]) -> str:
    """Whose a dataset is."""
    licence, attribution = dataset["licence"], dataset["attribution"]
    return attribution if licence in attribution else f"{attribution} (licence: {licence})"


def tile(title: str, value: str, unit: str, tooltip: str, *elements: str) -> Markup:
    """A figure that stands out."""
    words = '<div class="tile" title="{}">\n<h2>{}</h2>\n<div class="value">{} <small>{}</small></div>\n{}</div>'
    return fill(words, tooltip, title, value, unit, join(*elements))


def bar(percent: float, mark: float | None = None) -> Markup:
    """A share as a bar, with a mark to compare it with."""
    line = "" if mark is None else fill('<b style="left:{:.1f}%"></b>', mark)
    return fill('<span class="bar" aria-hidden="true"><i style="width:{:.1f}%"></i>{}</span>', min(percent, 100.0), line)


def scroll(about: str, content: str, name: str = "") -> Markup:
    """What is wider than the page scrolls by itself, with the keyboard too."""
    return fill('<div class="{}" tabindex="0" role="region" aria-label="{}">{}</div>', f"scroll {name}".strip(), about, content)


def row(first: str, *cells: str, name: str = "", tooltip: str = "") -> Markup:
    """A row of a table: what it is about, and cells of `cell`."""
    about = (fill(' {}="{}"', key, value) for key, value in (("class", name), ("title", tooltip)) if value)
    return fill('<tr{}><th scope="row">{}</th>{}</tr>', Markup("").join(about), first, Markup("").join(cells))


def cell(content: Any, name: str = "number") -> Markup:
    return fill('<td class="{}">{}</td>', name, content) if name else fill("<td>{}</td>", content)


def group(title: str, about: str, columns: int) -> Markup:
    """The first row of a body that has a heading of its own."""
    words = '<tr class="group"><th scope="rowgroup" colspan="{}">{}{}</th></tr>'
    return fill(words, columns, title, small(about))


def table(about: str, titles: Sequence[str], *bodies: Iterable[Markup | Sequence[str]], text: int = 1, name: str = "") -> Markup:
    """A table that scrolls where it is wider than the page.

    Args:
        titles: of the columns, or a whole <thead>; all but the first `text` are of numbers.
        bodies: rows, each of `row` or `group`, or the texts of its cells.
    """
    if not isinstance(titles, Markup):
        numbers = (Markup(' class="number"' if i >= text else "") for i in range(len(titles)))
        cells = (fill('<th scope="col"{}>{}</th>', *both) for both in zip(numbers, titles, strict=True))
        titles = fill("<thead><tr>{}</tr></thead>", join(*cells))
    made = []
    for body in bodies:
        rows = [line if isinstance(line, Markup) else _of_texts(line, text) for line in body]
        made += [fill("<tbody>\n{}\n</tbody>", join(*rows))] if rows else []
    return scroll(about, fill('<table class="{}">\n{}\n{}\n</table>', name, titles, join(*made)))


def _of_texts(texts: Sequence[str], text: int) -> Markup:
    first, *others = texts
    return row(first, *(cell(content, "number" if i >= text else "") for i, content in enumerate(others, 1)))


def figure(chart: Chart, title: str = "", note: str = "", own: bool = True) -> Markup:
    """A chart and, closed below it, its figures; `own=False` where the table beside it has them."""
    caption = fill("<figcaption>{}{}</figcaption>", title, small(note)) if title or note else ""
    figures = Markup("")
    if own:
        shown, rows, name = chart.shown, chart.rows, fill("{}", title or note).striptags()
        summary = fill("{} of {:,} rows", len(shown), len(rows)) if len(shown) < len(rows) else "Figures"
        summary = fill('{}<span class="hidden"> of {}</span>', summary, name)
        figures = table(f"Figures of {name}", chart.head, shown, name="narrow")
        figures = more(summary, figures, name="figures")
    return fill("<figure>{}{}\n{}</figure>", caption, chart.svg, figures)


def named(model: Model) -> Markup:
    """A model with its colour."""
    return fill('<span class="model">{}{}</span>', chip(model), model.name)


def chip(model: Model) -> Markup:
    return fill('<i class="chip {}" aria-hidden="true"></i>', model.mark)
