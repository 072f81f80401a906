"""What fine-tuning gained and lost, and the models in between: the config's key `wise_ft`, and its block of the page.

Each alpha is a model of its own (training/wise_ft.py). The block needs results alone, whose arguments have alpha.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from markupsafe import Markup
from pydantic import AfterValidator, Field, field_validator

from evaluation.model_settings import ModelSettings
from evaluation.reporting import html, number_format
from evaluation.reporting.chart import LARGE, Chart, Plot, Scale, Series, figure, lines, mark, score_range
from evaluation.reporting.comparison import Comparison
from evaluation.tasks.base import different
from pipelines.program.path_keys import Place
from pipelines.program.settings_base import Settings

_ARGUMENT = "wise_ft"


class WiseFtSettings(Settings):
    """Weights between those that a fine-tuned run started from and its own, each as a model."""

    checkpoint: Place = Field(description="a run that started from a dual encoder, such as runs/demo, or one of its checkpoints")
    alphas: Annotated[tuple[float, ...], AfterValidator(different)] = Field(
        (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), min_length=2, description="0: the start; 1: the fine-tuned weights"
    )

    @field_validator("alphas")
    @classmethod
    def _with_both_ends(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if min(value) != 0 or max(value) != 1:
            raise ValueError(
                f"got {list(value)}; give numbers from 0, the start, to 1, the fine-tuned weights, and both of these"
            )
        return tuple(sorted(value))

    def models(self) -> dict[str, ModelSettings]:
        """By the names that results have."""
        return {
            f"alpha-{alpha:g}": ModelSettings(checkpoint=self.checkpoint, embedder_arguments={_ARGUMENT: alpha})
            for alpha in self.alphas
        }


@dataclass(frozen=True)
class Skill:
    """The main score of a set by alpha, with its intervals."""

    title: str
    points: Mapping[float, float]
    intervals: Mapping[float, tuple[float, float]]

    @property
    def change(self) -> float:
        """From the start to the fine-tuned weights."""
        return self.points[1.0] - self.points[0.0]

    @property
    def beyond_noise(self) -> bool:
        """Whether the intervals of both ends are apart."""
        first, last = (self.intervals.get(alpha) for alpha in (0.0, 1.0))
        return first is not None and last is not None and (first[1] < last[0] or last[1] < first[0])


def blocks(comparison: Comparison) -> Iterator[html.Section]:
    """One for each run whose weights between start and end were scored at both ends."""
    alphas: dict[str, dict[str, float]] = {}  # run -> model -> alpha
    for result in comparison.results:
        arguments = result.about.get("arguments") or {}
        if isinstance(arguments.get(_ARGUMENT), int | float):
            alphas.setdefault(str(arguments["checkpoint"]), {})[result.model] = float(arguments[_ARGUMENT])
    for place, (run, models) in enumerate(alphas.items()):
        skills = sorted(_skills(comparison, models), key=lambda skill: -skill.change)
        if skills:
            yield _block(run, skills, f"gained-and-lost{f'-{place + 1}' if place else ''}")


def _skills(comparison: Comparison, models: Mapping[str, float]) -> Iterator[Skill]:
    for info in comparison.tasks():
        for dataset in comparison.datasets(info.name):
            row = comparison.main_row(info.name, dataset)
            cells = {models[cell.model.name]: cell for cell in row.cells if cell.model.name in models and cell.value is not None}
            if {0.0, 1.0} <= cells.keys() and info.unit == "%":
                yield Skill(
                    f"{dataset}, {info.title.lower()}",
                    {alpha: cell.value for alpha, cell in sorted(cells.items()) if cell.value is not None},
                    {alpha: cell.interval for alpha, cell in cells.items() if cell.interval is not None},
                )


def _block(run: str, skills: Sequence[Skill], anchor: str) -> html.Section:
    """A table of what changed, every score against alpha, and what was lost against what was gained most."""
    best = skills[0]
    lost = [skill for skill in skills[1:] if skill.change < 0]
    about = html.paragraph(
        "Weights between those that {} started from (&alpha; = 0) and its own (&alpha; = 1), as in WiSE-FT: "
        "(1 &minus; &alpha;) start + &alpha; fine-tuned. Choose &alpha; on validation data, and export it with "
        "<code>raylign export {} --to TARGET --wise-ft &alpha;</code>.",
        run,
        run,
    )
    rows = [[skill.title, *_ends(skill), _in_words(skill), *_kept(skill)] for skill in skills]
    table = html.table(
        "Gained and lost", ["main score, %", "start", "fine-tuned", "change", "best \N{GREEK SMALL LETTER ALPHA}"], rows
    )
    by_alpha = [Series(skill.title, skill.points, mark(i), spread=skill.intervals) for i, skill in enumerate(skills)]
    charts = [
        figure(
            lines(by_alpha, "Main scores by alpha", "alpha", labelled=230, size=LARGE),
            "Scores by \N{GREEK SMALL LETTER ALPHA}",
            "%",
        )
    ]
    if best.change > 0 and lost:
        charts.append(figure(_curve(best, lost), "Old skill against new", "%, along \N{GREEK SMALL LETTER ALPHA}"))
    return html.section(anchor, "What fine-tuning gained and lost", about, table, html.div("charts", *charts))


def _ends(skill: Skill) -> list[Markup]:
    """The scores of start and end, with their intervals."""
    return [
        html.join(
            number_format.value(skill.points[alpha]),
            html.small(number_format.span(*skill.intervals[alpha]) if alpha in skill.intervals else ""),
        )
        for alpha in (0.0, 1.0)
    ]


def _in_words(skill: Skill) -> str:
    word = "gained" if skill.change > 0 else "lost" if skill.change < 0 else "the same"
    noise = "" if skill.beyond_noise or not skill.change else ", within noise"
    return f"{skill.change:+.1f}: {word}{noise}"


def _kept(skill: Skill) -> list[str]:
    """The alpha with the highest score, the nearest to the start of several, and that score."""
    alpha = max(skill.points, key=lambda a: (skill.points[a], -a))
    return [f"{alpha:g} ({number_format.value(skill.points[alpha])})"]


def _curve(new: Skill, old: Sequence[Skill]) -> Chart:
    """A line for each skill that was lost, against the one that gained the most; a point for each alpha."""
    width, height = LARGE
    x = Scale(*score_range(new.points.values()), 38, width - 230)
    y = Scale(*score_range([value for skill in old for value in skill.points.values()]), height - 34, 8)
    plot = Plot(width, height, x, y)
    plot.frame(f"new: {new.title}")
    for place, skill in enumerate(old):
        shared = [alpha for alpha in skill.points if alpha in new.points]
        points = [(new.points[alpha], skill.points[alpha]) for alpha in shared]
        plot.line(points, f"line {mark(place)}")
        for alpha, (at, value) in zip(shared, points, strict=True):
            plot.dot(at, value, mark(place), f"alpha {alpha:g}: {new.title} {at:.1f}, {skill.title} {value:.1f}")
            plot.text(x(at), y(value) - 7, f"{alpha:g}")
    plot.end_labels([(list(skill.points.values())[-1], f"old: {skill.title}", f"name {mark(i)}") for i, skill in enumerate(old)])
    head = ["alpha", new.title, *(skill.title for skill in old)]
    rows = [
        [f"{alpha:g}", *(number_format.value(skill.points[alpha]) if alpha in skill.points else "" for skill in (new, *old))]
        for alpha in new.points
    ]
    return Chart(plot.svg(f"Old skill against new along alpha: {', '.join(skill.title for skill in old)}"), head, rows)
