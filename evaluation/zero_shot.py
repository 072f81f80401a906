"""Zero-shot classification: prompts to class vectors, nearest class by cosine (CLIP, arXiv 2103.00020, section 3.1.4)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.classification import METRICS, Outcome, check, judge, measures
from pipelines.program.errors import UserError

_BLOCK = 4096


@dataclass(frozen=True)
class Prompts:
    """Prompts of a set's classes, in the order of their embeddings: by class, then by template, then by name."""

    texts: list[str]  # [P]
    class_of: np.ndarray  # int64 [P], ascending
    template_of: np.ndarray  # int64 [P]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Sensitivity:
    """One metric in percent for each template alone: how much the score depends on the wording."""

    scores: tuple[float, ...]  # one for each template
    mean: float
    sd: float | None  # sample standard deviation; None with one template
    min: float
    max: float


def build_prompts(classes: Sequence[str | Sequence[str]], templates: Sequence[str]) -> Prompts:
    """Every name of every class in every template.

    Args:
        classes: one name or several for each class. templates: each `{}` or `{c}` is replaced by the name.
    """
    if not templates:
        raise UserError("templates", "there is none", "give at least one; '{}' is the name alone")
    for template in templates:
        if "{}" not in template and "{c}" not in template:
            raise UserError("templates", f"'{template}' has no place for the name of the class", "write {} or {c} there")
    texts, class_of, template_of = [], [], []
    for c, entry in enumerate(classes):
        names = [entry] if isinstance(entry, str) else entry
        if len(names) == 0:
            raise UserError("classes", f"class {c} has no name", "give it at least one")
        for t, template in enumerate(templates):
            texts += [template.replace("{c}", "{}").replace("{}", name) for name in names]
            class_of += [c] * len(names)
            template_of += [t] * len(names)
    return Prompts(texts, np.asarray(class_of, dtype=np.int64), np.asarray(template_of, dtype=np.int64), tuple(templates))


def ensemble(prompts: Prompts, embeddings: np.ndarray, template: int | None = None) -> np.ndarray:
    """Unit vectors of classes, float [C, D]: prompts normalised, averaged over templates and names, normalised again.

    Args:
        embeddings: float [P, D], in the order of `prompts.texts`. template: use only the prompts of this one.
    """
    if len(embeddings) != len(prompts.texts):
        problem = f"it gave {len(embeddings)} rows for {len(prompts.texts)} prompts"
        raise UserError("embedder", problem, "return one row for each prompt")
    selected = slice(None) if template is None else prompts.template_of == template
    class_of = prompts.class_of[selected]
    starts = np.flatnonzero(np.diff(class_of, prepend=-1))
    sums = np.add.reduceat(_unit(embeddings[selected]), starts, axis=0)
    return _unit(sums / np.bincount(class_of)[:, None])


def class_vectors(prompts: np.ndarray) -> np.ndarray:
    """`ensemble` for classes with equally many prompts.

    Args:
        prompts: float [classes, templates, D]; each row is normalised, averaged over templates, normalised again.
    """
    mean = _unit(prompts).mean(axis=1)
    return _unit(mean)


def outcome(images: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> Outcome:
    """Rank of the right class and the predicted class of each image, by cosine.

    Args:
        images: float [n, D] unit rows; classes: float [C, D] unit rows; labels: int [n] in [0, C).
    """
    check(images, labels, len(classes))
    if images.shape[1] != classes.shape[1]:
        problem = f"images are {images.shape[1]} wide and prompts {classes.shape[1]}"
        raise UserError("embedder", problem, "embed images and texts into one space")
    columns = classes.astype(np.float32).T
    blocks = [
        judge(images[start : start + _BLOCK].astype(np.float32) @ columns, labels[start : start + _BLOCK])
        for start in range(0, max(1, len(images)), _BLOCK)
    ]
    return Outcome(
        np.asarray(labels, dtype=np.int64),
        np.concatenate([block.ranks for block in blocks]),
        np.concatenate([block.predicted for block in blocks]),
        len(classes),
    )


def classify(images: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores in percent: `top1`, `top5`, `mean_per_class`.

    Ties and NaN count against the model. `mean_per_class` is the mean recall over the classes that have images.

    Args:
        images: float [n, D] unit rows; classes: float [C, D] unit rows; labels: int [n] in [0, C).
    """
    return measures(outcome(images, classes, labels))


def prompt_sensitivity(
    images: np.ndarray, prompts: Prompts, embeddings: np.ndarray, labels: np.ndarray, metric: str
) -> Sensitivity:
    """The metric for each template alone, and its spread. Names are still averaged.

    Args:
        images: float [n, D] unit rows; embeddings: float [P, D]; labels: int [n]; metric: of METRICS.
    """
    if metric not in METRICS:
        raise UserError("metric", f"'{metric}' is unknown", f"choose one of {', '.join(METRICS)}")
    scores = [
        classify(images, ensemble(prompts, embeddings, template), labels)[metric] for template in range(len(prompts.templates))
    ]
    sd = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    return Sensitivity(tuple(scores), float(np.mean(scores)), sd, min(scores), max(scores))


def baselines(num_classes: int, labels: np.ndarray) -> dict[str, dict[str, float]]:
    """For each score: `chance` of a uniform guess, and `largest_class`, the best constant guess."""
    counts = np.bincount(labels, minlength=num_classes)
    share = np.sort(counts / len(labels))[::-1]
    present = int((counts > 0).sum())
    return {
        "top1": {"chance": 100.0 / num_classes, "largest_class": 100.0 * float(share[0])},
        "top5": {"chance": 100.0 * min(5, num_classes) / num_classes, "largest_class": 100.0 * float(share[:5].sum())},
        "mean_per_class": {"chance": 100.0 / num_classes, "largest_class": 100.0 / present},
    }


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
