"""The scores on a run's page: the headline, the tiles below it, and every score beside chance and the number of queries."""

import math
from typing import Any

from markupsafe import Markup

from evaluation.metrics import DIRECTIONS, chances, metric
from evaluation.reporting import html, number_format
from evaluation.suite import HeldOut
from pipelines.program.wilson import wilson


def headline(result: dict[str, Any], data: HeldOut) -> Markup:
    """The mean recall at the smallest k beside chance, and directions that may be chance by their 95 % intervals."""
    result, hollow, k = _reported(result), [], min(data.settings.recall_at)
    first = f"retrieval/{data.dataset}/mean_recall@{k}"
    for direction, title in DIRECTIONS.items():
        path = first.replace("mean_", f"{direction}_")
        value, chance, n = result["metrics"][path], result["baselines"][path]["chance"], result["sample_sizes"][path]
        if wilson(n * value / 100, n)[0] <= chance / 100:
            hollow.append(f"{title}, {value:.1f}\u00a0% by {chance:.1f}\u00a0%")
    return html.fill(
        '{} in {}\u00a0% of <span class="whole">held-out</span> searches; by chance it would be in {}\u00a0%{}',
        "The right match comes first" if k == 1 else f"A right match is among the first {k}",
        *map(number_format.value, _figures(result, first)[:2]),
        f"; not distinguishable from chance: {' and '.join(hollow)}" if hollow else "",
    )


def tiles(result: dict[str, Any], data: HeldOut) -> Markup:
    """R@k of both directions, and top-1 of the two labels with most classes."""
    result, ks, made = _reported(result), data.settings.recall_at, []
    shown = []
    for path in dict.fromkeys(f"retrieval/{data.dataset}/mean_recall@{k}" for k in (min(ks), max(ks))):
        title, about = _titled(path, data)
        shown.append((path, title, f"{about}, mean of both directions"))
    for label, classes in sorted(data.classes.items(), key=lambda entry: -len(entry[1]))[:2]:
        about = f"right class of {len(classes)} on the first guess"
        shown.append((f"zero_shot/{data.dataset}_{label}/top1", f"Zero-shot {label}", about))
    for path, title, about in shown:
        value, chance, largest = _figures(result, path)
        figure, least = map(number_format.value, (value, chance))
        naming = f", always the largest class {largest}\u00a0%" if largest else ""
        beside = html.bar(value, chance), html.tag("p", about), html.tag("p", f"chance {least}\u00a0%{naming}")
        made.append(html.tile(title, figure, "%", path, *beside))
    return html.div("tiles", *made)


def test(result: dict[str, Any], data: HeldOut) -> html.Section | None:
    """The chosen checkpoint's scores on the test split, where the run has one: `data` is the split that it was chosen on."""
    test = result.get("test")
    if test is None:
        return None
    about = html.paragraph(
        "Of the run's evaluations on split <b>{t[chosen_on]}</b> the one at step {t[step]:,} had the best "
        "<code>{t[metric]}</code>: {t[value]:.1f} (at the end: {last:.1f}). That checkpoint, in <code>best/</code>, was then "
        "scored on split <b>{t[split]}</b>, {t[samples]:,} pairs that were part of no choice.",
        t=test,
        last=result["metrics"][test["metric"]],
    )
    return html.section("test", "Test of the chosen checkpoint", about, _table(test, data))


def scores(result: dict[str, Any], data: HeldOut) -> html.Section:
    """Every score of the last step, with an interval of the first."""
    test, reported = result.get("test"), _reported(result)
    of_split = "Scores, images and curves below are of split {}, on which the checkpoint was chosen, and of the last step."
    first = f"retrieval/{data.dataset}/mean_recall@{min(data.settings.recall_at)}"
    # Of one direction: the two are about the same pairs, so their mean is hardly surer than either.
    value, queries = reported["metrics"][first], reported["sample_sizes"][first.replace("mean_", "image_to_text_")]
    low, high = (100 * end for end in wilson(queries * value / 100, queries))
    return html.section(
        "scores",
        f"Scores on split {test['chosen_on']}" if test else "Scores",
        html.paragraph(of_split, test["chosen_on"]) if test else "",
        html.paragraph(
            "Images and captions are embedded in one space. R@k: the percentage of queries with a right answer among the k "
            "nearest. All after the last step of <b>one run with seed {}</b>; n is the number of queries.",
            result["seed"],
        ),
        html.soft(
            "Uncertainty: {:,} queries a direction. The score on all such pairs is {:.1f} to {:.1f}&nbsp;% (95&nbsp;%, Wilson's "
            "interval), where {:.1f}&nbsp;% was measured; another seed changes it too. The more candidates, the lower R@k: "
            "compare only with scores on as many candidates.",
            *(queries, low, high, value),
        ),
        _table(result, data),
        html.soft(
            "Chance: a random order, or a random class. Largest class: the best that naming the same class for every image can "
            "reach. A tie counts against the model."
        ),
    )


def gained_and_lost(result: dict[str, Any]) -> html.Section | None:
    """Scores before the first step and at the end, of a run that started from a dual encoder, on every set that it scores."""
    start: dict[str, float] = result.get("start") or {}  # not in results of earlier versions
    rows = []
    for path in result["metrics"]:
        if path not in start or not path.endswith(("/top1", "/mean_recall@1")):
            continue
        task, dataset, _ = path.split("/")
        size = result["sample_sizes"].get(path) or result["sample_sizes"][path.replace("mean_", "image_to_text_")]
        ends = [tuple(100 * end for end in wilson(size * value / 100, size)) for value in (start[path], result["metrics"][path])]
        change = result["metrics"][path] - start[path]
        word = "gained" if change > 0 else "lost" if change < 0 else "the same"
        noise = ", within noise" if change and ends[0][0] <= ends[1][1] and ends[1][0] <= ends[0][1] else ""
        figures = [
            html.join(number_format.value(value), html.small(number_format.span(*of)))
            for value, of in zip((start[path], result["metrics"][path]), ends, strict=True)
        ]
        title = html.join(dataset, html.small("R@1, mean of both directions" if task == "retrieval" else "zero-shot, top-1"))
        rows.append(html.row([title, *figures, f"{change:+.1f}: {word}{noise}", f"{size:,}"], tooltip=path))
    if not rows:
        return None
    return html.section(
        "gained-and-lost",
        "What was gained, what was lost",
        html.paragraph(
            "The run started from a dual encoder. Its scores before the first step and after the last, on the held-out split and "
            "on every set of <code>evaluation.extra_datasets</code>, with 95&nbsp;% intervals (Wilson's); within noise: the two "
            "overlap. <code>wise_ft</code> in an evaluation scores the weights in between."
        ),
        html.table("Gained and lost", ("score, %", "start", "end", "change", "n"), rows),
    )


def _reported(result: dict[str, Any]) -> dict[str, Any]:
    """With the scores on the test split, where the run has one."""
    return result | (result.get("test") or {})


def _figures(result: dict[str, Any], path: str) -> tuple[float, float | None, str]:
    """A score, what chance scores, and what always naming the largest class does."""
    largest = result["baselines"].get(path, {}).get("largest_class")
    return result["metrics"][path], chances(result["baselines"]).get(path), number_format.value(largest)


def _table(result: dict[str, Any], data: HeldOut) -> Markup:
    """All scores by direction of retrieval and by label, recalls by k; unknown kinds of scores come last."""
    marked = Markup('<span class="hidden">value as a bar; </span>mark: chance')
    prefix, ways = f"retrieval/{data.dataset}/", list(DIRECTIONS)
    groups = {}
    for way, other in zip(ways, ways[::-1], strict=True):
        query, answer = (word.replace("text", "caption") for word in way.split("_to_"))
        candidates = result["sample_sizes"][f"{prefix}{other}_recall@{min(data.settings.recall_at)}"]
        about = f"the {answer} of a held-out {query} among {candidates:,}"
        groups[prefix + way] = html.join(DIRECTIONS[way].capitalize(), html.small(about))
    groups[f"{prefix}mean"] = Markup("Mean of both directions")
    sentences = number_format.count(len(data.settings.templates), "sentence")
    for label, names in data.classes.items():
        about = f"the class of a held-out image among {len(names)}, by the classes' names in {sentences}"
        groups[f"zero_shot/{data.dataset}_{label}/"] = html.join(f"Zero-shot: {label}", html.small(about))
    groups[""] = Markup("Other scores")
    bodies: dict[str, list[Markup]] = {heading: [] for heading in groups.values()}
    for path in sorted(result["metrics"], key=_k):
        (value, chance, largest), (title, about) = _figures(result, path), _titled(path, data)
        shown, least = (number_format.value(number) for number in (value, chance))
        line = [html.join(title, html.small(about)), html.tag("b", shown), html.bar(value, chance), least]
        heading = next(heading for start, heading in groups.items() if path.startswith(start))
        bodies[heading].append(html.row([*line, largest, _size(result, path)], tooltip=path))
    return html.table("Scores", ("score", "value, %", marked, "chance", "largest class", "n"), bodies, style="run")


def _k(path: str) -> float:
    """Of a recall; infinite for that of all k, and for other scores."""
    return float(path.partition("_recall@")[2] or math.inf)


def _titled(path: str, data: HeldOut) -> tuple[str, str]:
    """A score's name beside others of its kind, and what it is the share of."""
    k, known = _k(path), metric(path, [data.dataset])
    if k < math.inf:
        return f"R@{k:g}", "the right one comes first" if k == 1 else f"a right one is among the first {k:g}"
    return "all of these" if path.endswith("/mean_recall") else known.title, known.about


def _size(result: dict[str, Any], path: str) -> str:
    """The number of queries; those of both directions where a score is their mean."""
    sizes = result["sample_sizes"]
    if path in sizes or _k(path) == math.inf:
        return f"{sizes[path]:,}" if path in sizes else ""
    there, back = (f"{sizes[path.replace('mean_', f'{way}_')]:,}" for way in DIRECTIONS)
    return f"2 x {there}" if there == back else f"{there} + {back}"
