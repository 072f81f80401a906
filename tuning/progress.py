"""Progress of a running sweep: a table of cells in a terminal, an occasional line in a log file, and an updated report."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rich.live import Live
from rich.table import Table

from pipelines.program.display import Display
from tuning.search_order import Schedule
from tuning.trials import Trial

_EVERY = 10.0  # minimum number of seconds between two lines without a terminal
_AGAIN = 120.0  # seconds after which a line that says the same is repeated
_LINES = 20  # maximum number of lines over the time so far, after that
_REFRESH = 30.0  # minimum number of seconds between two reports
_SHARE = 0.05  # maximum share of the time spent on writing reports
_LATEST = 300.0  # maximum number of seconds without a report, as running trials have longer curves


class Board:
    """Counts for every cell (done, running, best so far), and the estimated time left."""

    def __init__(self, name: str, schedule: Schedule, at_once: int, display: Display):
        self._name, self._schedule, self._at_once, self._display = name, schedule, at_once, display
        self._begun = self._shown = time.monotonic()
        self._live: Live | None = None
        self._seconds: Sequence[float] = ()
        self._said = ("", 0.0)  # the last line, and when

    def __enter__(self) -> "Board":
        if self._display.live:
            self._live = Live(console=self._display.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, running: Sequence[Trial], seconds: Sequence[float]) -> None:
        """Show the state of the sweep, not too often; `seconds`: duration of each trial of this session."""
        self._seconds = seconds
        now = time.monotonic()
        if now - self._shown < (0.5 if self._live else max(_EVERY, (now - self._begun) / _LINES)):
            return
        self._shown = now
        if self._live is not None:
            self._live.update(self._table(running), refresh=True)
            return
        text = self.line(len(running))
        if text != self._said[0] or now - self._said[1] >= _AGAIN:
            self._said = text, now
            self._display.line(text)

    def line(self, running: int) -> str:
        """The state of the sweep in one line."""
        outcomes, total = self._schedule.outcomes, sum(self._schedule.planned.values())
        states = Counter(outcome.status for outcome in outcomes.values())
        parts = [f"{self._name}: {len(outcomes)}/{total} trials"]
        parts += [f"{running} running"] if running else []
        parts += [f"{states['stopped']} stopped early"] if states["stopped"] else []
        parts += [f"{states['failed']} failed"] if states["failed"] else []
        best, tested = self._schedule.best_scores(), self._schedule.test_scores()
        values = {cell: math.fsum(v) / len(v) for cell, v in tested.items()} or best
        if values:
            cell = self._schedule.pick(values)
            parts.append(f"best so far {cell} {values[cell]:.1f} ({'test' if tested else 'validation'})")
        if self._seconds and len(outcomes) < total:
            left = (total - len(outcomes)) * math.fsum(self._seconds) / len(self._seconds) / self._at_once
            parts.append(f"about {left / 60:.0f} min left" if left >= 90 else f"about {left:.0f} s left")
        return ", ".join(parts)

    def _table(self, running: Sequence[Trial]) -> Table:
        table = Table(title=self.line(len(running)), title_justify="left", box=None, pad_edge=False, header_style="bold")
        for position, name in enumerate(["cell", "search", "running", "best, validation", "seeds", "mean, test"]):
            table.add_column(name, justify="left" if position == 0 else "right")
        out = Counter(trial.cell for trial in running)
        best, tested = self._schedule.best_scores(), self._schedule.test_scores()
        cells = self._schedule.counts()
        room = max(5, self._display.console.height - 6)
        moving_first = sorted(cells, key=lambda cell: not out[cell])[:room]
        for cell in [cell for cell in cells if cell in moving_first]:
            searched, points, seeded, seeds = cells[cell]
            values = tested.get(cell, [])
            table.add_row(
                cell,
                f"{searched}/{points}" if points else "",
                str(out[cell] or ""),
                f"{best[cell]:.1f}" if cell in best else "",
                f"{seeded}/{seeds}",
                f"{math.fsum(values) / len(values):.1f}" if values else "",
            )
        if len(cells) > room:
            table.caption = f"and {len(cells) - room} more cells"
        return table


class Refresher:
    """Writes the report of a running sweep in a thread if there are new results, or after a while, at most 5 % of the time."""

    def __init__(self, write: Callable[[], Any], display: Display):
        self._write, self._display, self._ended = write, display, 0
        self._news, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Refresher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._news.set()
        self._thread.join()

    def hear(self, ended: int) -> None:
        """Note the number of trials that have ended."""
        if ended > self._ended:
            self._ended = ended
            self._news.set()

    def _work(self) -> None:
        pause = _REFRESH
        while not self._stop.wait(pause):
            self._news.wait(_LATEST)
            self._news.clear()
            if self._stop.is_set():
                return
            begun = time.monotonic()
            try:
                self._write()
            except Exception as error:  # a failed report must not end the trials; the final one raises its errors
                self._display.line(f"report: not written this time ({type(error).__name__}: {error})")
            pause = max(_REFRESH, (time.monotonic() - begun) / _SHARE)
