"""Terminal output: one progress line per task, plain lines if there is no terminal, nothing with --quiet."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipelines.io.retry import shown

_PIPED = 10_000  # columns


class Task:
    """Progress of one long task. `update(done, note)`; in a log file at most one line every `every` seconds."""

    def __init__(self, display: "Display", title: str, total: int, every: float = 5.0):
        self._display, self._title, self._total, self._every = display, title, total, every
        self._last = time.monotonic()
        self._progress: Progress | None = None
        if display.live:
            # What matters fits into 80 columns; a wider terminal gets a longer bar.
            bar = BarColumn(bar_width=max(8, min(30, display.console.width - 70)))
            columns: list[ProgressColumn] = [TextColumn("{task.description}"), bar, MofNCompleteColumn()]
            columns += [TextColumn("{task.fields[note]}"), TextColumn("left"), TimeRemainingColumn()]
            self._progress = Progress(*columns, console=display.console)
            self._progress.start()
            self._id = self._progress.add_task(title, total=total, note="")

    def update(self, done: int, note: str = "") -> None:
        """`done` of the total so far; `note` is shown next to the bar."""
        if self._progress is not None:
            self._progress.update(self._id, completed=done, note=note)
        elif time.monotonic() - self._last >= self._every or done >= self._total:
            self._last = time.monotonic()
            self._display.line(f"{self._title} {done}/{self._total} {note}".rstrip())

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class Display:
    """A program's output. `live` if standard output is a terminal."""

    def __init__(self, quiet: bool = False, verbose: bool = False):
        self.quiet, self.verbose = quiet, verbose
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = _PIPED  # a file or a pipe has no width at which to wrap names
        self.live = self.console.is_terminal and not quiet
        self._task: Task | None = None

    def line(self, text: str) -> None:
        """One plain line."""
        if not self.quiet:
            self.console.print(shown(text), markup=False)

    def detail(self, text: str) -> None:
        """A line for --verbose only."""
        if self.verbose:
            self.line(text)

    def table(self, title: str, header: list[str], rows: list[list[str]]) -> None:
        """A small table, first column to the left, the others to the right."""
        if self.quiet:
            return
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for position, name in enumerate(header):
            table.add_column(name, justify="left" if position == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(shown, row))
        self.console.print(table)

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Task]:
        """A progress display for one task."""
        self._task = Task(self, title, total)
        try:
            yield self._task
        finally:
            self._task.close()
            self._task = None

    def close(self) -> None:
        """Restore the terminal in any case."""
        if self._task is not None:
            self._task.close()
