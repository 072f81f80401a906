"""The elements of every page: sections, tables, charts with their figures, tiles, facts, and retrieved examples.

An element is `Markup`. Its words are ours and may hold markup; values are passed beside them and are escaped:
`paragraph("<b>{}</b> images", name)`.
"""

from collections.abc import Iterable, Sequence
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


def more(title: str, *elements: str, open: bool = False) -> Markup:
    """What a reader opens to see it."""
    return fill("<details{}><summary>{}</summary>\n{}\n</details>", Markup(" open" if open else ""), title, join(*elements))


def facts(pairs: Iterable[tuple[str, Any]]) -> Markup:
    """Names and values; a missing value is left out."""
    return fill("<dl>\n{}</dl>", join(*(fill("<dt>{}</dt><dd>{}</dd>", *pair) for pair in pairs if pair[1] not in (None, ""))))


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


def head(titles: Sequence[str], text: int = 1) -> Markup:
    """The head of a table; all but the first `text` columns are of numbers."""
    cells = (fill('<th scope="col"{}>{}</th>', _number(i >= text), title) for i, title in enumerate(titles))
    return fill("<thead><tr>{}</tr></thead>", join(*cells))


def row(first: str, *cells: str, name: str = "", tooltip: str = "") -> Markup:
    """A row: what it is about, and cells of `cell`."""
    about = (fill(' {}="{}"', key, value) for key, value in (("class", name), ("title", tooltip)) if value)
    return fill('<tr{}><th scope="row">{}</th>{}</tr>', Markup("").join(about), first, Markup("").join(cells))


def cell(content: Any, name: str = "number") -> Markup:
    return fill('<td class="{}">{}</td>', name, content) if name else fill("<td>{}</td>", content)


def table(about: str, titles: Sequence[str], rows: Iterable[Sequence[str]], text: int = 1, name: str = "") -> Markup:
    """Rows of text; all but the first `text` columns are of numbers."""
    body = [row(first, *(cell(c, "number" if i >= text else "") for i, c in enumerate(cells, 1))) for first, *cells in rows]
    return scroll(about, fill('<table class="{}">\n{}\n<tbody>\n{}\n</tbody>\n</table>', name, head(titles, text), join(*body)))


def _number(number: bool) -> Markup:
    return Markup(' class="number"' if number else "")


def figure(chart: Chart, title: str = "", note: str = "", own: bool = True) -> Markup:
    """A chart and, closed below it, its figures; `own=False` where the table beside it has them."""
    caption = fill("<figcaption>{}{}</figcaption>", title, small(note)) if title or note else ""
    figures = Markup("")
    if own:
        shown, rows, name = chart.table.shown, chart.table.rows, fill("{}", title or note).striptags()
        summary = fill("{} of {:,} rows", len(shown), len(rows)) if len(shown) < len(rows) else "Figures"
        summary = fill('{}<span class="hidden"> of {}</span>', summary, name)
        figures = table(f"Figures of {name}", chart.table.head, shown, name="narrow")
        figures = fill('<details class="figures"><summary>{}</summary>\n{}\n</details>', summary, figures)
    return fill("<figure>{}{}\n{}</figure>", caption, chart.svg, figures)


def named(model: Model) -> Markup:
    """A model with its colour."""
    return fill('<span class="model">{}{}</span>', chip(model), model.name)


def chip(model: Model) -> Markup:
    return fill('<i class="chip {}" aria-hidden="true"></i>', model.mark)


def thumb(src: str | None, alt: str) -> Markup:
    """A thumbnail, as a data URI."""
    words = '<img class="thumb" src="{}" alt="{}" title="{}" loading="lazy">'
    return fill(words, src, alt, alt) if src else Markup('<span class="thumb lost">no image</span>')


@dataclass(frozen=True)
class Found:
    """An image or a caption that was found for a query."""

    text: str  # the caption; of an image its alternative text
    hit: bool
    src: str | None = None  # of an image


@dataclass(frozen=True)
class Answer:
    """What one model found for a query, nearest first; without `model` on the page of that model."""

    found: Sequence[Found]
    verdict: str
    model: Model | None = None

    @property
    def who(self) -> Markup:
        """The model, or the verdict on the page of a single model."""
        if self.model is None:
            return fill('<span class="verdict">{}</span>', self.verdict)
        return fill('<div class="who">{}<span class="hidden">: {}</span></div>', named(self.model), self.verdict)


@dataclass
class Example:
    """A caption with the images that were found for it, or an image with captions."""

    text: str  # the caption; of an image its alternative text
    answers: list[Answer]
    src: str | None = None  # of the query, or of a caption's own image
    own: Sequence[str] = ()  # captions of an image, where they are shown


def searches(examples: Iterable[Example]) -> Markup:
    """Captions, and the images that one model or several found."""
    return fill('<ol class="searches">\n{}</ol>', join(*map(_search, examples)))


def _search(example: Example) -> Markup:
    own = ""
    if example.src:
        own = fill('<div class="answer">{}<span>its own image</span></div>', thumb(example.src, example.text))
    query = fill('<div><div class="query clamp" title="{}">{}</div>{}</div>', example.text, example.text, own)
    finds = []
    for answer in example.answers:
        slots = [
            fill('<div class="slot{}">{}{}{}</div>', " hit" * f.hit, thumb(f.src, f.text), place, " \N{CHECK MARK} right" * f.hit)
            for place, f in enumerate(answer.found, 1)
        ]
        finds.append(div("find", answer.who, *slots))
    return fill('<li class="search">{}{}</li>', query, div("finds", *finds))


def cards(examples: Iterable[Example]) -> Markup:
    """Images, and the captions that one model or several found."""
    return fill('<ol class="cards">\n{}</ol>', join(*map(_card, examples)))


def _card(example: Example) -> Markup:
    answers = []
    for answer in example.answers:
        items = []
        for place, f in enumerate(answer.found, 1):
            hidden = Markup('<span class="hidden">right: </span>' if f.hit else "")
            words = '<li class="{}"><span class="place">{}</span><span class="clamp" title="{}">{}{}</span></li>'
            items.append(fill(words, "hit" * f.hit, "\N{CHECK MARK}" if f.hit else place, f.text, hidden, f.text))
        captions = fill("<ol>{}</ol>", join(*items))
        answers.append(fill("<div>{}</div>", join(*((answer.who, captions) if answer.model else (captions, answer.who)))))
    own = paragraph("<b>Its own:</b> {}", "; ".join(example.own), style="answer clamp") if example.own else ""
    return fill('<li class="card">{}{}{}</li>', thumb(example.src, example.text), div("answers", *answers), own)
