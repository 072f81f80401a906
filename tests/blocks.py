"""Code blocks of the documentation, and what they say: configs, commands, Python."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_PROGRAMS = ("raylign", "make")


@dataclass(frozen=True)
class Block:
    """A fenced block. `mark`, a comment on the line before: `file: NAME` is where a reader saves it; `run` that it can run."""

    page: str
    line: int
    language: str
    text: str
    mark: str

    @property
    def file(self) -> str:
        return self.mark.removeprefix("file: ") if self.mark.startswith("file: ") else ""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str) -> list[Block]:
    """All blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start("text")), found["language"], found["text"], found["mark"] or "")
        for found in _FENCE.finditer(text)
    ]


def commands_of(block: Block) -> Iterator[list[str]]:
    """The words of each command for this project's programs: `raylign VERB ...`, `python -m MODULE ...`, `make ...`."""
    if block.language not in ("", "bash"):
        return
    for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # no command: a quotation of output, or a command over several lines
            continue
        if "--" in words and words[:3] == ["ray", "job", "submit"]:
            words = words[words.index("--") + 1 :]
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # environment
            words = words[1:]
        if words and words[0].removeprefix(".venv/bin/") == "python" and words[1:2] == ["-m"]:
            yield ["python -m", *words[2:]]
        elif words and words[0] in _PROGRAMS and len(words) > 1:
            yield words
