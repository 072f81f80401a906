"""What is left of a zero-shot score under a shift: corruptions of the test images, or another set of the same classes."""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from evaluation import robustness, zero_shot
from evaluation.bootstrap import interval
from evaluation.classification import measures
from evaluation.data.subsets import Chosen, Corrupted
from evaluation.embeddings import Rows, Wanted
from evaluation.tasks.base import Scored
from evaluation.tasks.zero_shot import ZeroShot
from pipelines.program.settings import UserError


class Corruption:
    """Zero-shot classification of the same images, corrupted in several ways and to several degrees."""

    name = "corruption"

    def __init__(
        self,
        plain: ZeroShot,
        names: Sequence[str],
        severities: Sequence[int],
        images: int,
        seed: int,
        size: int,
    ):
        self.dataset, self.place, self._plain = plain.dataset, plain.place, plain
        self._names, self._severities = names, severities
        count = len(plain.test.labels)
        # Spread over the set, which may be sorted by class; the same ones for every model and corruption.
        self._kept = np.sort(np.random.default_rng(seed).permutation(count)[:images])
        self._images = {
            f"{name}@{severity}": Wanted(
                "images",
                Chosen(Corrupted(plain.test.images, name, severity, seed, size), self._kept),
                f"{plain.place}/test-{name}-{severity}",
            )
            for name in names
            for severity in severities
        }
        self.identity = [plain.identity, self._kept.tolist(), list(self._images)]

    def wanted(self) -> Sequence[Wanted]:
        return [self._plain.images, self._plain.texts, *self._images.values()]

    def score(self, rows: Rows) -> Scored:
        metric = self._plain.content.metric
        labels = self._plain.test.labels[self._kept]
        classes = zero_shot.ensemble(self._plain.prompts, rows[self._plain.texts])
        chance = zero_shot.baselines(len(classes), labels)[metric]
        clean = measures(zero_shot.outcome(rows[self._plain.images][self._kept], classes, labels))[metric]
        scored = Scored("mean", {}, details={"clean": clean, "metric": metric, "names": list(self._names)})
        hits = []
        for name, wanted in self._images.items():
            found = zero_shot.outcome(rows[wanted], classes, labels)
            hit = 100.0 * (found.ranks < 1)
            hits.append(hit)
            scored.scores[name] = measures(found)[metric]
            scored.intervals[name] = interval(hit, labels if metric == "mean_per_class" else None)
        scored.scores["mean"] = float(np.mean(list(scored.scores.values())))
        # An image is one item, however often it was corrupted.
        scored.intervals["mean"] = interval(np.mean(hits, axis=0), labels if metric == "mean_per_class" else None)
        scored.details["severities"] = list(self._severities)
        scored.baselines.update(dict.fromkeys(scored.scores, chance))
        scored.sample_sizes.update(dict.fromkeys(scored.scores, len(labels)))
        return scored


class EffectiveRobustness:
    """Top-1 under a shift beside what a line through baselines predicts from top-1 on the reference set."""

    name = "effective_robustness"

    def __init__(self, shift: ZeroShot, reference: ZeroShot, line: robustness.Line, baselines: str):
        self.dataset, self.place, self._shift = shift.dataset, shift.place, shift
        self._line, self._baselines = line, baselines
        self._reference, self._labels = reference, _on_classes(reference, shift)
        self.identity = [shift.identity, self._labels.tolist(), asdict(line)]

    def wanted(self) -> Sequence[Wanted]:
        return self._shift.images, self._shift.texts, self._reference.images

    def score(self, rows: Rows) -> Scored:
        classes = zero_shot.ensemble(self._shift.prompts, rows[self._shift.texts])
        under = zero_shot.classify(rows[self._shift.images], classes, self._shift.test.labels)["top1"]
        kept = self._labels >= 0
        without = zero_shot.classify(rows[self._reference.images][kept], classes, self._labels[kept])["top1"]
        found = robustness.robustness(self._line, without, under)
        return Scored(
            main="effective",
            scores={"effective": found.effective, "prediction": found.prediction, "shift": under, "reference": without},
            sample_sizes={"shift": len(self._shift.test.labels), "reference": int(kept.sum())},
            details={
                "extrapolated": found.extrapolated,
                "line": asdict(self._line),
                "baselines": self._baselines,
                "reference_set": self._reference.dataset,
            },
        )


def _on_classes(reference: ZeroShot, shift: ZeroShot) -> np.ndarray:
    """The shift's class of each of the reference's images, int64 [n], -1 for none: by ImageNet's numbers, or else by name."""
    ours: Sequence[Sequence[object]] = reference.content.classes
    theirs: Sequence[Sequence[object]] = shift.content.classes
    if reference.content.imagenet is not None and shift.content.imagenet is not None:
        ours, theirs = reference.content.imagenet, shift.content.imagenet
    place = {entry: c for c, entries in enumerate(theirs) for entry in entries}
    found = [next((place[entry] for entry in entries if entry in place), -1) for entries in ours]
    labels = np.asarray(found, dtype=np.int64)[reference.test.labels]
    if (labels < 0).all():
        raise UserError(
            f"robustness.{shift.dataset}.reference: no image of {reference.dataset} is of a class of {shift.dataset}; give a "
            "set with the same classes"
        )
    return labels
