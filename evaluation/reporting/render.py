"""Pages from templates, tables in Markdown, and files that appear whole: what the reports of all programs share."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from evaluation.reporting import chart, number_format

_KIT = Path(__file__).parent
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&])")


def page(templates: Path, name: str, values: Mapping[str, Any]) -> str:
    """A whole page: one file that needs nothing else, and has no script. Templates find those of the kit beside their own."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates, _KIT]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        extensions=["jinja2.ext.do"],
    )
    environment.filters |= {"score": number_format.signed, "chance": number_format.chance, "whole": "{:,}".format}
    environment.filters |= {"duration": number_format.duration, "number": number_format.value}
    environment.globals |= {"count": number_format.count, "colours": chart.COLOURS}
    return environment.get_template(name).render(values, sections=[])


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Each aside and renamed: a reader sees the old one or the new one."""
    for name, content in files.items():
        aside = folder / f"{name}.partial-{os.getpid()}"
        aside.write_text(content, encoding="utf-8", newline="")
        aside.rename(folder / name)


def plain(text: Any) -> str:
    """Text that stays text in Markdown: on one line, nothing of it is markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Cells are Markdown already; all but the first columns are of numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows])
