"""The answer of a sweep in a sentence or two, and its uncertainty."""

import shlex
from collections.abc import Sequence
from itertools import count, islice
from typing import Any

from markupsafe import Markup

from evaluation.reporting import number_format
from tuning import statistics
from tuning.reporting.sweep_data import Sweep


def answer(sweep: Sweep) -> Markup:
    """The leader and its lead, in one or two sentences without a final full stop."""
    verdict = sweep.verdict
    if verdict.leader is None:
        return _without_results(sweep)
    start = "So far " if sweep.running else ""
    n = int(sweep.figures[verdict.leader, "score"]["n"])
    reached = sum(sweep.figures[cell, "score"]["n"] > 0 for cell in sweep.cells)
    said = {"leader": _cell(verdict.leader), "score": _score(sweep, verdict.value), "seeds": number_format.count(n, "seed")}
    if len(sweep.cells) == 1:
        about = Markup("the best point" if sweep.best_points and len(sweep.search) else "it")
        sentence = Markup("{}{} reaches {} over {}").format(start, about, said["score"], said["seeds"])
        sentence = Markup(sentence[:1].upper() + sentence[1:])
    elif reached == 1:
        sentence = Markup("{}{} is the only one of {} cells with a result: {} over {}").format(
            start, said["leader"], len(sweep.cells), said["score"], said["seeds"]
        )
    else:
        sentence = Markup("{}{} {} {} over {}; {}{}").format(
            start, said["leader"], "leads with", said["score"], said["seeds"], _against(sweep, verdict, n), _chance(verdict)
        )
    return sentence + Markup(". {}").format(_progress(sweep)) if sweep.running else sentence


def _against(sweep: Sweep, verdict: statistics.Verdict, n: int) -> Markup:
    """The second half of the sentence: which cells the leader can be distinguished from."""
    level = verdict.level_with
    if verdict.resolution is None:
        few = "one seed a cell" if n < 2 else "so few seeds in common"
        return Markup("with {} no difference can be told from chance").format(few)
    others = len(level) + len(verdict.ahead_of)
    if not level:
        return Markup("ahead of every other cell")
    if len(level) == 1:
        return Markup("not distinguishable from {}").format(_cell(level[0]))
    if len(level) == others:
        return Markup("not distinguishable from any of the {} others").format(others)
    return Markup("not distinguishable from {} and {} more").format(_cell(level[0]), len(level) - 1)


def _chance(verdict: statistics.Verdict) -> str:
    """Which chance the comparison accounts for."""
    if verdict.resolution is None:
        return ""
    return " (chance: of seeds and test items)" if verdict.over_items else " (chance: of seeds alone, on these test items)"


def _without_results(sweep: Sweep) -> Markup:
    done, failed, stopped = (sweep.with_status(status) for status in ("finished", "failed", "stopped"))
    if sweep.running:
        sentence = Markup("No final run is finished yet; {}").format(_progress(sweep))
        scored = done[(done["phase"] == "search") & done["score"].notna()]
        if len(scored):
            best = scored.sort_values("score", ascending=sweep.mode == "min").iloc[0]
            sentence += Markup("; the best of the search, {}, has {} on the validation split").format(
                _cell(best["cell"]), _score(sweep, best["score"])
            )
        return sentence
    if len(failed) and len(failed) == len(sweep.trials):
        every = "The only trial" if len(failed) == 1 else f"All {len(failed):,} trials"
        return Markup("{} failed: {}").format(every, str(failed.iloc[0]["reason"]).rstrip("."))
    if sweep.trials.empty:
        return Markup("No trial was run")
    return Markup("No cell has a result: of {}, {} failed and {} were stopped early").format(
        number_format.count(len(sweep.trials), "trial"), len(failed), len(stopped)
    )


def _progress(sweep: Sweep) -> str:
    """12 of 45 final runs done; before the first of them, of the search."""
    for phase, noun, rows in (("final", "final runs", sweep.final), ("search", "search trials", sweep.search)):
        ended = int((rows["status"] != "running").sum())
        planned = sweep.info["planned"][phase]
        if planned and (ended or phase == "search" or not sweep.info["planned"]["search"]):
            return f"{ended:,} of {planned:,} {noun} are done"
    return "nothing planned"


def _score(sweep: Sweep, value: float) -> str:
    """22.3 % Average; 1.234 loss."""
    unit = "\u00a0%" if sweep.percent else ""
    return f"{number_format.value(value, sweep.percent)}{unit} {sweep.title}"


def _cell(label: str) -> Markup:
    return Markup('<span class="cell">{}</span>').format(label)


def certainty(sweep: Sweep) -> list[Markup]:
    """Paragraphs: the test, the smallest difference that it detects, and how to detect a smaller one."""
    verdict = sweep.verdict
    paragraphs: list[Markup] = []
    if verdict.leader is None or len(sweep.cells) == 1:
        return paragraphs
    if verdict.resolution is None:
        paragraphs.append(
            Markup(
                "No two cells have two seeds in common whose scores could be compared. What another seed would have changed is "
                "not known, so neither the order nor the distances say which cell is better."
            )
        )
    else:
        paragraphs.append(_test(sweep, verdict))
        paragraphs.append(_sensitivity(sweep, verdict))
    if len(verdict.level_with) + len(verdict.ahead_of) > 0:
        paragraphs.append(
            Markup(
                "The leader is the best of {} on the {} split itself: comparisons are corrected for that, its own score is not, "
                "and is likelier too high than too low."
            ).format(number_format.count(1 + len(verdict.level_with) + len(verdict.ahead_of), "cell"), sweep.test_split)
        )
    paragraphs.append(Markup("More seeds, with finished trials kept: <code>{}</code>").format(more_seeds(sweep.info)))
    return paragraphs


def _test(sweep: Sweep, verdict: statistics.Verdict) -> Markup:
    """How two cells are compared, and which chance is accounted for."""
    pooled = ", against the spread of all pairs together or their own where that is larger" if verdict.comparisons > 1 else ""
    corrected = Markup(
        "The probabilities are corrected for {} by Holm's method; a difference counts where the corrected probability is below "
        "{:g}."
    ).format(number_format.count(verdict.comparisons, "comparison"), statistics.ALPHA)
    if verdict.over_items:
        return Markup(
            "Two cells are compared run by run, with the same seed, and item by item of the {} split: a difference has to be "
            "larger than <b>another seed</b>{} and <b>another draw of test items</b> together could make it. {}"
        ).format(sweep.test_split, pooled, corrected)
    lost = sweep.without_items
    return Markup(
        "Two cells are compared by a paired t-test on the seeds that both have{}: what is said is of <b>another run on the same "
        "test items</b>. How another draw of test items would move a difference is not in it, for {}; where there are few, "
        "that is the larger part. {}"
    ).format(
        pooled, f"{lost} of {number_format.count(len(sweep.results), 'final run')} kept none of their results on items", corrected
    )


def _sensitivity(sweep: Sweep, verdict: statistics.Verdict) -> Markup:
    """The smallest difference that would have been detected, now and with more seeds."""
    assert verdict.resolution is not None
    more = len(_more(sweep.info["seeds"]))
    then = statistics.resolution(sweep.trials, sweep.mode, sweep.items, more)
    assert then is not None
    return Markup(
        "With {}{} and the usual (median) spread, a difference of less than about <b>{}</b> could not have been told from "
        "chance; with {} and the same spread that would be about {}."
    ).format(
        number_format.count(verdict.n, "seed"),
        " and these test items" if verdict.over_items else "",
        _points(sweep, verdict.resolution),
        number_format.count(more, "seed"),
        _points(sweep, then),
    )


def _points(sweep: Sweep, difference: float) -> str:
    return number_format.value(difference, sweep.percent) + (" points" if sweep.percent else "")


def more_seeds(info: dict[str, Any]) -> str:
    """The sweep's command with twice as many seeds, five at least."""
    kept = [word for word in shlex.split(info["command"]) if not word.startswith("seeds=")]
    return shlex.join([*kept, f"seeds=[{','.join(str(seed) for seed in _more(info['seeds']))}]"])


def _more(seeds: Sequence[int]) -> list[int]:
    """Twice as many, five at least: those there are, and the smallest others."""
    unused = (seed for seed in count() if seed not in seeds)
    return [*seeds, *islice(unused, max(5, 2 * len(seeds)) - len(seeds))]


def facts(sweep: Sweep) -> list[tuple[str, str]]:
    """Names and values: trials, time, and the splits of selection and report."""
    info = sweep.info
    pairs = []
    for phase, rows, title in (("search", sweep.search, "Search"), ("final", sweep.final, "Final runs")):
        if not info["planned"][phase]:
            continue
        counts = rows["status"].value_counts()
        parts = [f"{counts.get('finished', 0):,} of {info['planned'][phase]:,} finished"]
        parts += [
            f"{counts[status]:,} {word}"
            for status, word in (("failed", "failed"), ("stopped", "stopped early"), ("running", "running"))
            if counts.get(status)
        ]
        if not sweep.running and len(rows) < info["planned"][phase]:
            parts.append(f"{info['planned'][phase] - len(rows):,} not run")
        pairs.append((title, ", ".join(parts)))
    pairs.append(
        ("Time", f"{number_format.duration(info['seconds'])} of wall time in {number_format.count(info['sessions'], 'session')}")
    )
    if info["planned"]["search"]:
        pairs.append(("Selected on", _split(sweep, "validation", "the best point of each cell, with one seed")))
    else:
        pairs.append(("Selected on", "nothing: no cell was searched, every cell is trained as the grid says"))
    pairs.append(("Reported on", _split(sweep, "test", f"seeds {', '.join(str(seed) for seed in info['seeds'])}")))
    return pairs


def _split(sweep: Sweep, name: str, detail: str) -> str:
    sizes = [f"{d[f'{name}_samples']:,} pairs of {d['name']}" for d in sweep.info["datasets"] if d.get(f"{name}_samples")]
    return (
        f"the {sweep.test_split if name == 'test' else sweep.validation_split} split"
        + (f" ({', '.join(sizes)})" if sizes else "")
        + f"; {detail}"
    )
