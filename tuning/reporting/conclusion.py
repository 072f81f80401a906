"""The answer of a sweep in a sentence or two, and its uncertainty."""

import itertools
import shlex
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from evaluation.reporting.html import fill
from evaluation.reporting.number_format import count, duration
from tuning import statistics
from tuning.reporting.sweep_data import Sweep


def answer(sweep: Sweep) -> Markup:
    """The leader and its lead, in one or two sentences without a final full stop."""
    verdict, with_results = sweep.verdict, [cell for cell in sweep.cells if sweep.figures[cell, "score"]["n"]]
    if verdict.leader is None:
        return _without_results(sweep)
    seeds, start = int(sweep.figures[verdict.leader, "score"]["n"]), "So far " if sweep.yet else ""
    reached, leader = f"{sweep.score.named(verdict.value)} over {count(seeds, 'seed')}", _cell(verdict.leader)
    if len(sweep.cells) == 1:
        about = "the best point" if sweep.best_points and len(sweep.search) else "it"
        sentence = fill("{} reaches {}", f"{start}{about}" if start else about.capitalize(), reached)
    elif len(with_results) == 1:
        sentence = fill("{}{} is the only one of {} cells with a result: {}", start, leader, len(sweep.cells), reached)
    else:
        sentence = fill("{}{} leads with {}; {}", start, leader, reached, _against(verdict, seeds))
    return fill("{}. {}", sentence, _progress(sweep)) if sweep.yet else sentence


def _against(verdict: statistics.Verdict, seeds: int) -> Markup:
    """Which cells the leader can be distinguished from, and which chance that accounts for."""
    level, others = verdict.level_with, len(verdict.level_with) + len(verdict.ahead_of)
    if verdict.resolution is None:
        few = "one seed a cell" if seeds < 2 else "so few seeds in common"
        return fill("with {} no difference can be told from chance", few)
    against = Markup("ahead of every other cell")
    if len(level) == others > 1:
        against = fill("not distinguishable from any of the {} others", others)
    elif level:
        more = f" and {len(level) - 1} more" if len(level) > 1 else ""
        against = fill("not distinguishable from {}{}", _cell(level[0]), more)
    return fill("{} (chance: of seeds {})", against, "and test items" if verdict.over_items else "alone, on these test items")


def _without_results(sweep: Sweep) -> Markup:
    status = sweep.trials["status"]
    failed = sweep.trials[status == "failed"]
    if sweep.yet:
        sentence = fill("No final run is finished yet; {}", _progress(sweep))
        scored = sweep.search[(sweep.search["status"] == "finished") & sweep.search["score"].notna()]
        if len(scored):
            best = scored.sort_values("score", ascending=sweep.mode == "min").iloc[0]
            words = "; the best of the search, {}, has {} on the validation split"
            sentence += fill(words, _cell(best["cell"]), sweep.score.named(best["score"]))
        return sentence
    if sweep.trials.empty:
        return Markup("No trial was run")
    if len(failed) == len(sweep.trials):
        every = "The only trial" if len(failed) == 1 else f"All {len(failed):,} trials"
        return fill("{} failed: {}", every, str(failed.iloc[0]["reason"]).rstrip("."))
    words = "No cell has a result: of {}, {} failed and {} were stopped early"
    return fill(words, count(len(sweep.trials), "trial"), len(failed), (status == "stopped").sum())


def _progress(sweep: Sweep) -> str:
    """12 of 45 final runs done; before the first of them, of the search."""
    for phase, noun, rows in (("final", "final runs", sweep.final), ("search", "search trials", sweep.search)):
        ended = int((rows["status"] != "running").sum())
        planned = sweep.info["planned"][phase]
        if planned and (ended or phase == "search" or not sweep.info["planned"]["search"]):
            return f"{ended:,} of {planned:,} {noun} are done"
    return "nothing planned"


def _cell(label: str) -> Markup:
    return fill('<span class="cell">{}</span>', label)


def certainty(sweep: Sweep) -> list[Markup]:
    """Sentences of a paragraph each: the test, the smallest difference that it detects, and how to detect a smaller one."""
    verdict = sweep.verdict
    if verdict.leader is None or len(sweep.cells) == 1:
        return []
    words = (
        "No two cells have two seeds in common whose scores could be compared. What another seed would have changed is not "
        "known, so neither the order nor the distances say which cell is better."
    )
    told = [Markup(words)]
    if verdict.resolution is not None:
        told = [_test(sweep, verdict), _sensitivity(sweep, verdict, verdict.resolution)]
    if others := len(verdict.level_with) + len(verdict.ahead_of):
        words = (
            "The leader is the best of {} on the {} split itself: comparisons are corrected for that, its own score is not, "
            "and is likelier too high than too low."
        )
        told.append(fill(words, count(1 + others, "cell"), sweep.words["test"]))
    return [*told, fill("More seeds, with finished trials kept: <code>{}</code>", more_seeds(sweep.info))]


def _test(sweep: Sweep, verdict: statistics.Verdict) -> Markup:
    """How two cells are compared, and which chance is accounted for."""
    pooled = ", against the spread of all pairs together or their own where that is larger" if verdict.comparisons > 1 else ""
    words = (
        "Two cells are compared by a paired t-test on the seeds that both have{pooled}: what is said is of <b>another run on the "
        "same test items</b>. How another draw of test items would move a difference is not in it, for {missing} of {runs} kept "
        "none of their results on items; where there are few, that is the larger part."
    )
    if verdict.over_items:
        words = (
            "Two cells are compared run by run, with the same seed, and item by item of the {test} split: a difference has to be "
            "larger than <b>another seed</b>{pooled} and <b>another draw of test items</b> together could make it."
        )
    words += (
        " The probabilities are corrected for {comparisons} by Holm's method; a difference counts where the corrected "
        "probability is below {alpha:g}."
    )
    runs, comparisons = count(len(sweep.results), "final run"), count(verdict.comparisons, "comparison")
    values = {"pooled": pooled, "missing": len(sweep.results) - len(sweep.items), "runs": runs, "comparisons": comparisons}
    return fill(words, **values, alpha=statistics.ALPHA, test=sweep.words["test"])


def _sensitivity(sweep: Sweep, verdict: statistics.Verdict, resolution: float) -> Markup:
    """The smallest difference that would have been detected, now and with more seeds."""
    more = len(_more(sweep.info["seeds"]))
    then = statistics.resolution(sweep.trials, sweep.mode, sweep.items, more)
    assert then is not None
    now, later = (sweep.score.shown(value) + (" points" if sweep.score.percent else "") for value in (resolution, then))
    return fill(
        "With {}{} and the usual (median) spread, a difference of less than about <b>{}</b> could not have been told from "
        "chance; with {} and the same spread that would be about {}.",
        count(verdict.n, "seed"),
        " and these test items" if verdict.over_items else "",
        now,
        count(more, "seed"),
        later,
    )


def more_seeds(info: dict[str, Any]) -> str:
    """The sweep's command with twice as many seeds, five at least."""
    kept = [word for word in shlex.split(info["command"]) if not word.startswith("seeds=")]
    return shlex.join([*kept, f"seeds=[{','.join(map(str, _more(info['seeds'])))}]"])


def _more(seeds: Sequence[int]) -> list[int]:
    """Twice as many, five at least: those there are, and the smallest others."""
    unused = (seed for seed in itertools.count() if seed not in seeds)
    return [*seeds, *itertools.islice(unused, max(5, 2 * len(seeds)) - len(seeds))]


def facts(sweep: Sweep) -> list[tuple[str, str]]:
    """Names and values: trials, time, and the splits of selection and report."""
    info, pairs = sweep.info, []
    words = {"failed": "failed", "stopped": "stopped early", "running": "running"}
    for phase, rows, title in (("search", sweep.search, "Search"), ("final", sweep.final, "Final runs")):
        planned, counts = info["planned"][phase], rows["status"].value_counts()
        parts = [f"{counts.get('finished', 0):,} of {planned:,} finished"]
        parts += [f"{counts[status]:,} {word}" for status, word in words.items() if counts.get(status)]
        parts += [f"{planned - len(rows):,} not run"] if not sweep.yet and len(rows) < planned else []
        pairs += [(title, ", ".join(parts))] if planned else []
    selected = "nothing: no cell was searched, every cell is trained as the grid says"
    if info["planned"]["search"]:
        selected = _split(sweep, "validation", "the best point of each cell, with one seed")
    return [
        *pairs,
        ("Time", f"{duration(info['seconds'])} of wall time in {count(info['sessions'], 'session')}"),
        ("Selected on", selected),
        ("Reported on", _split(sweep, "test", f"seeds {', '.join(map(str, info['seeds']))}")),
    ]


def _split(sweep: Sweep, name: str, detail: str) -> str:
    pairs = {dataset["name"]: dataset.get(f"{name}_samples") for dataset in sweep.info["datasets"]}
    sizes = ", ".join(f"{n:,} pairs of {dataset}" for dataset, n in pairs.items() if n)
    return f"the {sweep.words[name]} split{f' ({sizes})' if sizes else ''}; {detail}"
