"""The run's page while it goes: a thread of the driver writes `report.html` anew after each evaluation, or once a minute.

It has the curves and the findings so far; scores beside chance and retrieved images come with the page at the end, which replaces
it. Writing takes a twentieth of the time at most, and whatever fails in it, the run goes on.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.metrics import mean_recalls
from evaluation.reporting import html, number_format
from evaluation.reporting.render import page, write_files
from pipelines.io.retry import shown
from pipelines.program import yaml_text
from pipelines.program.display import Display
from training.diagnosis import diagnose
from training.held_out import chances_of
from training.metrics_file import read_metrics
from training.plan import Plan
from training.report_curves import curves
from training.report_findings import what_to_try
from training.run_store import kept, place_of

_PAGE = "report.html"
_POLL = 5.0  # seconds between two looks at metrics.jsonl
_LONGEST = 60.0  # seconds without an evaluation after which new lines are reason enough
_SHARE = 0.05  # of the time, at most, that writing takes
_RELOAD = 30  # seconds after which a browser reads the page again


@contextmanager
def live_page(plan: Plan, folder: Path, display: Display) -> Iterator[None]:
    """A context in which the page follows the run. If the run ends in it by an error or a request, the page says so."""
    for left in folder.glob(f"{_PAGE}.partial-*"):  # of a driver that was killed while it wrote
        left.unlink()
    writer = _Writer(plan, folder, display)
    writer.start()
    try:
        yield
    except BaseException:
        writer.end()
        writer.write(goes_on=False)
        raise
    writer.end()


class _Writer(threading.Thread):
    def __init__(self, plan: Plan, folder: Path, display: Display):
        super().__init__(name="live-page", daemon=True)
        self._plan, self._folder, self._display = plan, folder, display
        self._over = threading.Event()

    def run(self) -> None:
        pause, size, scored, written = _POLL, 0, 0, -math.inf
        path = self._folder / "metrics.jsonl"
        while not self._over.wait(pause):
            pause, begun = _POLL, time.monotonic()
            now = path.stat().st_size if path.exists() else 0
            if now == size:
                continue
            evaluations = sum("held_out_loss" in line for line in read_metrics(path))
            if evaluations == scored and begun - written < _LONGEST:
                continue
            self.write()
            size, scored, written = now, evaluations, time.monotonic()
            pause = max(_POLL, (written - begun) / _SHARE)

    def end(self) -> None:
        """Write no more: what the thread writes now is the last, so that the page at the end cannot be followed by it."""
        self._over.set()
        self.join()

    def write(self, goes_on: bool = True) -> None:
        """Write the page from what metrics.jsonl has; nothing before the first line."""
        try:
            lines = read_metrics(self._folder / "metrics.jsonl")
            if lines:
                write_files(self._folder, {_PAGE: live(self._plan, lines, goes_on, str(place_of(self._folder)))})
                kept(self._folder, _PAGE)
        except Exception as error:  # the page at the end raises its errors
            self._display.line(f"page: not written this time ({type(error).__name__}: {error})")


def live(plan: Plan, lines: list[dict[str, Any]], goes_on: bool, place: str) -> str:
    """The page of a run that has these lines of metrics.jsonl so far."""
    settings, data, last = plan.settings, plan.held_out, lines[-1]
    config = settings.model_dump(mode="json")
    findings = [asdict(finding) for finding in diagnose(lines, config, chances_of(data))]
    so_far = (
        f"{last['step']:,} of {plan.total_steps:,} steps, epoch {number_format.parameter(last['epoch'])} of {settings.epochs}"
    )
    scored: dict[str, Any] = next((line for line in reversed(lines) if "held_out_loss" in line or line["step"] == 0), {})
    k = min(data.settings.recall_at)
    value = mean_recalls(scored).get(f"retrieval/{data.dataset}/mean_recall@{k}")
    reached = "" if value is None else f"; R@{k} {value:.1f}\u00a0% on the held-out split at step {scored['step']:,}"
    clock = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(last.get("time", time.time())))
    now = "still running; the page is written anew as it goes on" if goes_on else "not running; the same command resumes it"
    resolved = html.tag("pre", shown(yaml_text.dump(config)))
    about = html.paragraph(
        "A dual encoder that trains with the <b>{}</b> objective on <b>{:,} image-text pairs of {}</b>, scored on <b>{:,} "
        "held-out pairs</b>; {:,} pairs a step, {} workers, seed {}.",
        *(settings.objective.name, plan.order.rows, plan.stream.prepared.name, len(data.sample_ids)),
        *(settings.global_batch_size, last.get("workers", "?"), settings.seed),
    )
    return page(
        settings.name,
        html.fill("Training run <b>{}</b>{}", settings.name, ", still running" if goes_on else ""),
        html.fill("{}{}", so_far, reached),
        [html.paragraph("As of step {:,}, {}: {}.", last["step"], clock, now), about, what_to_try(findings)],
        [curves(lines, config, data, {}), html.section("config", "Config", html.paragraph("The run is in {}.", place), resolved)],
        html.fill("Written by raylign {}.", plan.code_version),
        reload=_RELOAD if goes_on else None,
    )
