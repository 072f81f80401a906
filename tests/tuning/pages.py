"""Reading a sweep's report.html and report.md in tests: sections, tables and charts as a reader meets them."""

import re
from pathlib import Path
from typing import Any

from tests.training.test_report import Element, read
from tests.tuning.tables import write
from tuning.reporting import write_report


def page_of(folder: Path, trials: Any, curves: Any = None, **changes: Any) -> Element:
    write_report(write(folder, trials, curves, **changes))
    return read(folder / "report.html")


def section(page: Element, name: str) -> Element:
    return next(element for element in page.all("section") if element.attributes.get("id") == name)


def plain(element: Element) -> str:
    """What is read, without the spaces that stand where elements end."""
    return re.sub(r" ([;:,.])", r"\1", " ".join(element.text.replace("\xa0", " ").split()))


def headline(page: Element) -> str:
    return plain(page.all("h1")[0])


def table_rows(table: Element) -> list[list[str]]:
    """Body rows of a table."""
    return [[plain(cell) for cell in line.children] for body in table.all("tbody") for line in body.all("tr")]


def markdown_tables(text: str) -> dict[str, list[list[str]]]:
    """Heading -> rows, with the head, of the table below it."""
    found = {}
    for part in re.split(r"^#+ ", text, flags=re.M)[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        if lines:
            found[part.splitlines()[0]] = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return {title: [[cell.strip() for cell in line] for line in lines] for title, lines in found.items()}


def paths(figure: Element, name: str) -> list[str]:
    return [path.attributes["d"] for path in figure.all("path", name)]


def figures(part: Element) -> dict[str, Element]:
    return {figure.all("figcaption")[0].texts[0]: figure for figure in part.all("figure")}
