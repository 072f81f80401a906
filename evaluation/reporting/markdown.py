"""A page as Markdown, for a terminal or a repository: the page's own elements, without charts and what a reader has to open."""

import re
from html.parser import HTMLParser

from evaluation.reporting import html

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&])")
_BLOCKS = {"h1": "# ", "h2": "## ", "h3": "### ", "h4": "#### ", "figcaption": "#### ", "p": ""}
_INLINE = {"b": "**{}**", "code": "`{}`", "li": "\n- {}", "dt": "\n- {}: ", "dd": "{}", "small": " ({})"}


def markdown(name: str, headline: str, *elements: str) -> str:
    """The whole file: a heading, the headline, and elements of a page."""
    reader = _Reader()
    reader.feed(html.fill("<h1>{}</h1><p><b>{}.</b></p>{}", name, headline, html.join(*elements)))
    return "\n\n".join(reader.blocks) + "\n"


class _Reader(HTMLParser):
    """Collects the text of every element until it ends, and hands it to the element around it or to `blocks`."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[str] = []
        self._open: list[tuple[str, dict[str, str | None], list[str], int]] = [("", {}, [], 0)]
        self._rows: list[list[str]] = []
        self._rule: list[str] = []  # of the columns of a table

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self._rows.append([])
        if tag == "br":
            self.handle_data(" ")
        elif tag != "img":
            self._open.append((tag, dict(attrs), [], len(self.blocks)))

    def handle_data(self, data: str) -> None:
        typed = any(tag in ("pre", "code") for tag, *_ in self._open)
        self._open[-1][2].append(data if typed else _SPECIAL.sub(r"\\\1", data))

    def handle_endtag(self, tag: str) -> None:
        _, attributes, parts, begun = self._open.pop()
        text, around = "".join(parts), self._open[-1][2]
        words = " ".join(text.split())
        if tag in ("svg", "details") or "aria-hidden" in attributes or attributes.get("class") == "hidden":
            words = text = ""
            del self.blocks[begun:]
        if tag in ("td", "th"):
            columns = int(attributes.get("colspan") or 1)
            self._rows[-1] += [f"**{words}**" if attributes.get("scope") == "rowgroup" else words, *[""] * (columns - 1)]
            if len(self._rows) == 1:
                self._rule += ["---:" if attributes.get("class") == "number" else "---"] * columns
        elif tag == "table":
            head, *rows = self._rows
            self.blocks.append("\n".join(f"| {' | '.join(cells)} |" for cells in (head, self._rule, *rows)))
            self._rows, self._rule = [], []
        elif tag == "pre":
            self.blocks.append(f"```\n{text}\n```")
        elif tag in ("ul", "ol", "dl") and words:
            self.blocks.append("\n".join(line for line in text.splitlines() if line.strip()))
        elif tag in _BLOCKS and words:
            self.blocks.append(_BLOCKS[tag] + words)
        elif tag in _INLINE and words:
            bracketed = tag == "small" and (words.startswith("(") or not "".join(around).strip())
            around.append(f" {words}" if bracketed else _INLINE[tag].format(words))
        elif tag not in ("ul", "ol", "dl", *_BLOCKS):
            around.append(text)
