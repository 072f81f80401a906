"""SugarCrepe: an image's caption against one that says something else in nearly the same words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from markupsafe import Markup

from evaluation import sugarcrepe
from evaluation.bootstrap import interval
from evaluation.data import base
from evaluation.embeddings import Inputs, Rows
from evaluation.reporting import html
from evaluation.reporting.comparison import Comparison, score_table
from evaluation.task_info import Measure, TaskInfo
from evaluation.tasks.base import Scored, Task
from pipelines.program.settings_base import Settings


class SugarCrepe:
    """All subsets that the data holds."""

    info: ClassVar[TaskInfo] = TaskInfo(
        "image_caption_selection",
        "sugarcrepe",
        "SugarCrepe",
        (Measure("macro", "macro mean"), Measure("micro", "micro", clip_benchmark="acc")),
        needs="an entry with name: sugarcrepe",
        by_default=True,
    )
    settings: ClassVar[type[Settings] | None] = None

    def __init__(self, dataset: str, content: base.SugarCrepe, place: str):
        self.dataset, self.place, self._content = dataset, place, content
        self._images = Inputs("images", content.images, f"{place}/test")
        texts = [text for items in content.items.values() for item in items for text in (item.caption, item.negative)]
        self._texts = Inputs("texts", tuple(texts), f"{place}/captions")
        self.identity = {name: places.tolist() for name, places in content.image_of.items()}

    @classmethod
    def among(cls, contents: Mapping[str, base.Content], settings: Any) -> Iterator[Task]:
        for place, content in contents.items():
            if content.sugarcrepe is not None:
                yield cls(place, content.sugarcrepe, place)

    def inputs(self) -> Sequence[Inputs]:
        return self._images, self._texts

    def score(self, rows: Rows) -> Scored:
        images, texts = rows[self._images], rows[self._texts]
        right, start = {}, 0
        for name, items in self._content.items.items():
            both = texts[start : start + 2 * len(items)]
            right[name] = sugarcrepe.correct(images[self._content.image_of[name]], both[::2], both[1::2])
            start += 2 * len(items)
        order_only = {name: np.asarray([i.order_only for i in items]) for name, items in self._content.items.items()}
        scores, sizes = sugarcrepe.scores(right, order_only)
        # Subsets and pools are means over items; groups and macro are means over the subsets' means.
        intervals = {name: interval(100.0 * hits) for name, hits in right.items() if len(hits)}
        names = list(right)
        pooled = np.concatenate([100.0 * right[name] for name in names])
        subset = np.repeat(np.arange(len(names)), [len(right[name]) for name in names])
        intervals |= {"macro": interval(pooled, subset), "micro": interval(pooled)}
        return Scored(
            main="macro",
            scores=scores,
            intervals=intervals,
            baselines={name: {"chance": sugarcrepe.CHANCE} for name in scores},
            sample_sizes=sizes,
        )

    @classmethod
    def block(cls, comparison: Comparison) -> html.Section:
        about = (
            "Is an image nearer to its caption than to one that says something else in nearly the same words? Chance is "
            "50&nbsp;%, and a tie is wrong. Where only the order of words differs, a bag of words cannot score at all."
        )
        return comparison.section(cls.info, about, _of_set)


def _of_set(comparison: Comparison, dataset: str) -> Markup:
    """Rows by group, each group's mean first, then its subsets; scores that only depend on word order last."""
    task = SugarCrepe.info.name
    names = list(dict.fromkeys(score for result in comparison.of(task, dataset).values() for score in result.scores))
    groups = {"All subsets": ["macro", "micro"]}
    for group in sugarcrepe.GROUPS:
        subsets = [name for name in names if name.startswith(f"{group}_") and not name.endswith(("_micro", "_order_only"))]
        groups[group.capitalize()] = [group, *subsets, f"{group}_micro"]
    order = [name for name in names if name.endswith("order_only")]
    groups["Only the order of words differs"] = sorted(order, key=lambda name: name != "order_only")
    groups["Other scores"] = [name for name in names if not any(name in listed for listed in groups.values())]
    rows = {
        title: [comparison.row(task, dataset, name, _title(comparison, name)) for name in listed if name in names]
        for title, listed in groups.items()
    }
    several = len(comparison.datasets(task)) > 1
    return html.join(html.tag("h3", dataset) if several else "", score_table(comparison, rows))


def _title(comparison: Comparison, name: str) -> str:
    if name.endswith("_order_only"):
        return f"{comparison.score_title(SugarCrepe.info.name, name.removesuffix('_order_only'))}, order only"
    if name.endswith("_micro"):
        return f"{name.removesuffix('_micro')}, items pooled"
    titles = {"order_only": "all that have such items, pooled", "macro": "mean of subsets", "micro": "items pooled"}
    titles |= {group: f"{group}, mean of subsets" for group in sugarcrepe.GROUPS}
    return titles.get(name) or comparison.score_title(SugarCrepe.info.name, name)
