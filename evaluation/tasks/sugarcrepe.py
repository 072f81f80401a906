"""SugarCrepe: an image's caption against one that says something else in nearly the same words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from evaluation import sugarcrepe
from evaluation.bootstrap import interval
from evaluation.data import base
from evaluation.embeddings import Inputs, Rows
from evaluation.tasks.base import Measure, Scored, Task, TaskInfo
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
