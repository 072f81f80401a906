"""A whole page in one file, and files that appear whole: for the reports of all programs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from evaluation.reporting import html
from evaluation.reporting.chart import COLOURS, SHADES
from pipelines.io.storage import written

_STYLE = Path(__file__).with_name("style.css")
# Everything is inline and there is no script, so that a page can be mailed, printed, and opened in twenty years.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">{}
<title>{}: {}</title>
<style>
{}
</style>
</head>
<body>
<header>
<p class="over">{}</p>
<h1>{}</h1>
{}
<nav aria-label="Sections">
{}
</nav>
</header>

{}
<footer><p>{}</p></footer>
</body>
</html>
"""


def page(
    name: str,
    over: str,
    headline: str,
    lead: Sequence[str],
    sections: Iterable[html.Section | None],
    footer: str,
    reload: int | None = None,
) -> str:
    """A whole page.

    Args:
        name: what the page is about; over: the line above the headline; lead: what follows it, before the links to the sections.
        reload: seconds after which a browser reads it again, as it is written anew; None: it is final.
    """
    again = Markup("") if reload is None else html.fill('\n<meta http-equiv="refresh" content="{}">', reload)
    shown = [section for section in sections if section]
    links = html.join(*(html.fill('<a href="#{}">{}</a>', section.id, section.title) for section in shown))
    colours = [f".m{i} {{ --c: var(--m{i}); }}" for i in range(COLOURS)]
    colours += [f"svg .shade-{i} {{ stroke: var(--shade-{i}); stroke-opacity: .65; }}" for i in range(SHADES)]
    style = Markup("\n".join([*colours, _STYLE.read_text(encoding="utf-8")]))
    title, body = html.fill("{}", headline).striptags(), html.join(*(section.content for section in shown))
    return str(html.fill(_PAGE, again, name, title, style, over, headline, html.join(*lead), links, body, footer))


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Each aside and renamed: a reader sees the old one or the new one. Raises `OSError`, and leaves no part of a file then."""
    for name, content in files.items():
        with written(folder / name) as aside:
            aside.write_text(content, encoding="utf-8", newline="")
