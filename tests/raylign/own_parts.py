"""A source, a task and an optimizer as somebody outside of this repository writes them."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from evaluation.data.base import Content
from evaluation.embeddings import Inputs, Rows
from evaluation.reporting import html
from evaluation.reporting.comparison import Comparison, score_table
from evaluation.tasks.base import Scored, TaskInfo
from pipelines.io.image_bytes import Location
from pipelines.sources.base import Pair, Rejected, Source, Unit


class Squares(Source):
    """Images that are drawn as they are read."""

    count: int = 12

    def title(self) -> str:
        return "squares"

    def units(self) -> list[Unit]:
        return [Unit(list(range(self.count)), self.count)]

    def read(self, unit: Any, images: bool) -> Iterator[Pair | Rejected]:
        for i in unit:
            if i == 3:
                yield Rejected("3", "memory", "not_liked")
            else:
                yield Pair(f"{i}", "memory", Location("memory"), [f"square {i}"], f"{i}", {}, b"")


class Same:
    """Whether a caption is nearer to its image than the mean caption is."""

    info: ClassVar[TaskInfo] = TaskInfo("same", "same", "Nearer than the mean", (), needs="captions")
    settings = None

    def __init__(self, place: str, content: Content):
        assert content.retrieval is not None
        self.dataset = self.place = place
        self.images = Inputs("images", content.retrieval.images, f"{place}/test")
        self.texts = Inputs("texts", tuple(content.retrieval.texts), f"{place}/captions")
        self.identity = [texts.tolist() for texts in content.retrieval.texts_of_image]
        self._first = np.asarray([texts[0] for texts in content.retrieval.texts_of_image])

    @classmethod
    def among(cls, contents: Mapping[str, Content], settings: Any) -> Iterator["Same"]:
        """One a set with captions."""
        yield from (cls(place, content) for place, content in contents.items() if content.retrieval is not None)

    def inputs(self) -> tuple[Inputs, Inputs]:
        return self.images, self.texts

    def score(self, rows: Rows) -> Scored:
        images, texts = rows[self.images], rows[self.texts]
        own, mean = (images * texts[self._first]).sum(1), images @ texts.mean(0)
        return Scored("nearer", {"nearer": 100 * float((own > mean).mean())})

    @classmethod
    def block(cls, comparison: Comparison) -> html.Section:
        """Its block of the page."""
        rows = [comparison.row(cls.info.name, dataset, "nearer", dataset) for dataset in comparison.datasets(cls.info.name)]
        return html.section(
            "same", cls.info.title, html.soft("Of <b>{:,}</b> sets.", len(rows)), score_table(comparison, {"": rows})
        )


class Descent(torch.optim.Optimizer):
    """Plain gradient descent with a factor of its own."""

    def __init__(self, params: Any, lr: float, weight_decay: float, factor: float = 1.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "factor": factor})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= group["lr"] * group["factor"] * (p.grad + group["weight_decay"] * p)
