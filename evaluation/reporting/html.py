"""The elements of every page: sections, tables, tiles and facts.

An element is `Markup`. Its words are ours and may hold markup; values are passed beside them and are escaped:
`paragraph("<b>{}</b> images", name)`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup, escape

NDASH = "\N{EN DASH}"
Rows = Sequence[Markup | Sequence[Any]]


class Section(NamedTuple):
    """A section of a page, with its title for the links in the head of the page."""

    id: str
    title: str
    content: Markup


@dataclass(frozen=True)
class Model:
    """A model, and the class of the style that gives it the same colour everywhere."""

    name: str
    mark: str


def fill(words: str, *values: Any, **named: Any) -> Markup:
    """Our markup, with a value for each {}, {name} or {name[key]}."""
    return Markup(words).format(*values, **named)


def join(*elements: Any) -> Markup:
    """One after the other; those that are empty are left out."""
    return Markup("\n").join(element for element in elements if element not in (None, ""))


def tag(name: str, *content: Any, style: str = "", **attributes: Any) -> Markup:
    """An element and its content, one after the other. `style`: its classes; `aria_label` is written aria-label.

    Attributes that are empty are left out.
    """
    known = [(key, value) for key, value in {"class": style, **attributes}.items() if value != ""]
    written = Markup("").join(Markup(f' {key.replace("_", "-")}="{escape(value)}"') for key, value in known)
    return Markup(f"<{name}{written}>{Markup('').join(content)}</{name}>")


def section(id: str, title: str, *elements: str) -> Section:
    return Section(id, title, tag("section", tag("h2", title), *elements, id=id))


def div(style: str, *elements: str) -> Markup:
    return tag("div", *elements, style=style)


def warning(text: str) -> Markup:
    """Why figures may say less than they seem to, in a sentence without its full stop."""
    return fill('<p class="warning" role="note"><b>Warning:</b> {}.</p>', text)


def paragraph(words: str, *values: Any, style: str = "", **named: Any) -> Markup:
    """`style`: a class, such as `soft` for an explanation and `flag` for a warning."""
    return tag("p", fill(words, *values, **named), style=style)


def soft(words: str, *values: Any, **named: Any) -> Markup:
    """An explanation, in a quiet colour."""
    return paragraph(words, *values, style="soft", **named)


def small(words: str, style: str = "") -> Markup:
    """Below a name; nothing where there are no words."""
    return tag("small", words, style=style) if words else Markup("")


def more(title: str, *elements: str, open: bool = False, style: str = "") -> Markup:
    """What a reader opens to see it."""
    return tag("details", tag("summary", title), *elements, style=style, open="open" * open)


def facts(pairs: Iterable[tuple[str, Any]]) -> Markup:
    """Names and values; a missing value is left out."""
    return tag("dl", *(fill("<dt>{}</dt><dd>{}</dd>", *pair) for pair in pairs if pair[1] not in (None, "")))


def credit(dataset: Mapping[str, Any]) -> str:
    """Whose a dataset is."""
    licence, attribution = dataset["licence"], dataset["attribution"]
    return attribution if licence in attribution else f"{attribution} (licence: {licence})"


def tile(title: str, value: str, unit: str, tooltip: str, *elements: str) -> Markup:
    """A figure that stands out."""
    figure = div("value", join(value, tag("small", unit)))
    return tag("div", tag("h2", title), figure, *elements, style="tile", title=tooltip)


def bar(percent: float, mark: float | None = None) -> Markup:
    """A share as a bar, with a mark to compare it with."""
    line = "" if mark is None else fill('<b style="left:{:.1f}%"></b>', mark)
    return fill('<span class="bar" aria-hidden="true"><i style="width:{:.1f}%"></i>{}</span>', min(percent, 100.0), line)


def scroll(about: str, content: str, style: str = "") -> Markup:
    """What is wider than the page scrolls by itself, with the keyboard too."""
    return tag("div", content, style=f"scroll {style}".strip(), tabindex=0, role="region", aria_label=about)


def row(texts: Sequence[Any], text: int = 1, style: str = "", tooltip: str = "") -> Markup:
    """A row of a table: what it is about, and its cells, which are numbers after the first `text` columns."""
    cells = (tag("td", content, style="number" * (column >= text)) for column, content in enumerate(texts[1:], 1))
    return tag("tr", tag("th", texts[0], scope="row"), *cells, style=style, title=tooltip)


def table(about: str, titles: Sequence[str], rows: Rows | Mapping[str, Rows], text: int = 1, style: str = "") -> Markup:
    """A table that scrolls where it is wider than the page.

    Args:
        titles: of the columns; all but the first `text` are of numbers. Or a whole <thead>.
        rows: each the texts of its cells, or a whole <tr>; or groups of rows by the heading above them.
    """
    head, bodies = titles, []
    if not isinstance(titles, Markup):
        heads = (tag("th", title, scope="col", style="number" * (column >= text)) for column, title in enumerate(titles))
        head = tag("thead", tag("tr", *heads))
    for heading, group in rows.items() if isinstance(rows, Mapping) else [("", rows)]:
        above = tag("tr", tag("th", heading, scope="rowgroup", colspan=len(titles)), style="group") if heading else ""
        lines = [line if isinstance(line, Markup) else row(line, text) for line in group]
        bodies += [tag("tbody", above, *lines)] if lines else []
    return scroll(about, tag("table", head, *bodies, style=style))


def named(model: Model) -> Markup:
    """A model with its colour."""
    return fill('<span class="model">{}{}</span>', chip(model), model.name)


def chip(model: Model) -> Markup:
    return tag("i", style=f"chip {model.mark}", aria_hidden="true")
