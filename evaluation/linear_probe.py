"""Linear probe: logistic regression on frozen features, by CLIP's procedure (arXiv 2103.00020, appendix A.3).

The features are those before the projection into the joint space, one row per image. Random crops of the training images can be
fitted too, as in MCD's probes (arXiv 2312.12661); lambda is selected and scores are computed without them. The objective is
lambda/2 |W|^2 plus the sum of the cross entropies, with the bias unpenalised: scikit-learn's C is 1 / lambda. Lambda is searched
on validation data over 1e-6 to 1e6 in steps of an eighth of a decade: first seven values two decades apart, then with half the
spacing around the best, down to one step. A tie goes to the stronger regularisation, which gives the simplest classifier of a
plateau. This local search makes 15 fits in place of 97: where the score varies by a validation image or two, it may find another
peak than the full sweep. The last fit is on training and validation data together.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.classification import METRICS, Outcome, judge, measures
from pipelines.program.errors import UserError

MAX_ITERATIONS = 1000
STEPS_A_DECADE = 8
END = 6 * STEPS_A_DECADE  # limit of the search, in steps from lambda = 1 in both directions
HELD_OUT = 0.2  # fraction of the training data that validates, where no validation data is given
FEW_SHOT_VALIDATION = 4


@dataclass(frozen=True)
class Labelled:
    """Features of images, and their labels."""

    features: np.ndarray  # float [n, D]
    labels: np.ndarray  # int [n]
    views: np.ndarray | None = None  # float [n, V, D], of random crops of the same images, which are fitted too

    def fitted(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows to fit and their labels: of the images, then of their views."""
        if self.views is None:
            return self.features, self.labels
        rows = np.concatenate([self.features, self.views.reshape(-1, self.features.shape[1])])
        return rows, np.concatenate([self.labels, np.repeat(self.labels, self.views.shape[1])])


@dataclass(frozen=True)
class Probe:
    """Scores of a fitted probe. `outcome` is for `classification.result`, with classes numbered by position in `classes`."""

    scores: dict[str, float]  # on test data, percent: top1, top5, mean_per_class
    l2: float  # lambda; C is 1 / lambda
    tried: dict[float, float]  # lambda -> metric on validation data, in percent
    converged: bool  # whether the last fit did, within 1000 iterations
    not_converged: list[float]  # lambdas of the search whose fit did not
    classes: np.ndarray  # int [C]: the labels of the training data, ascending
    outcome: Outcome


@dataclass(frozen=True)
class FewShot:
    """Probes on k images per class, one for each seed; the metric in percent."""

    shots: int
    scores: list[float]
    mean: float
    sd: float | None  # sample standard deviation over seeds; None with one seed
    l2: list[float]
    converged: list[bool]
    short: list[int]  # labels of classes with fewer than k images, all of which are used


def linear_probe(
    train: Labelled, test: Labelled, metric: str = "top1", validation: Labelled | None = None, seed: int = 0
) -> Probe:
    """Search lambda, fit on training and validation data, score on test data.

    Args:
        metric: selects lambda on validation data; "top1" or "mean_per_class", as papers report the set.
        validation: None holds out a fifth of each class of the training data, drawn by `seed`.

    Raises `UserError` for labels of the wrong length, features that are NaN or of another width, and labels of test or
    validation data that training data lacks. A fit that does not converge is reported and is no error.
    """
    _check(train, test, validation, metric)
    fitted, validation = hold_out(train, seed) if validation is None else (train, validation)
    l2, tried, not_converged = search(fitted, validation, metric)
    return _score(_joined(fitted, validation), test, l2, tried, not_converged)


def few_shot(
    train: Labelled,
    test: Labelled,
    metric: str = "top1",
    validation: Labelled | None = None,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    seeds: Sequence[int] = (0, 1, 2),
) -> list[FewShot]:
    """Probes on k training images per class, drawn by each seed; with the same seed a larger k contains the smaller ones.

    Lambda is searched on min(k, 4) validation images per class, as in CoOp (arXiv 2109.01134): with a whole validation set, few
    shots would not be few. The last fit is without them. Arguments and errors as of `linear_probe`.
    """
    _check(train, test, validation, metric)
    result = []
    for k in shots:
        probes = []
        for seed in seeds:
            pool, held_out = hold_out(train, seed) if validation is None else (train, validation)
            few = draw(pool, k, seed)
            l2, tried, not_converged = search(few, draw(held_out, min(k, FEW_SHOT_VALIDATION), seed), metric)
            probes.append(_score(few, test, l2, tried, not_converged))
        scores = [probe.scores[metric] for probe in probes]
        labels, counts = np.unique(pool.labels, return_counts=True)
        result.append(
            FewShot(
                shots=k,
                scores=scores,
                mean=float(np.mean(scores)),
                sd=float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
                l2=[probe.l2 for probe in probes],
                converged=[probe.converged for probe in probes],
                short=[int(label) for label in labels[counts < k]],
            )
        )
    return result


def search(train: Labelled, validation: Labelled, metric: str) -> tuple[float, dict[float, float], list[float]]:
    """The best lambda, the metric in percent at every lambda tried, and the lambdas whose fit did not converge."""
    scores: dict[int, float] = {}
    not_converged = []
    step, best = 2 * STEPS_A_DECADE, 0
    exponents = list(range(-END, END + 1, step))
    while step >= 1:
        for exponent in exponents:
            if exponent in scores or abs(exponent) > END:
                continue
            model, converged = fit(train, lambda_at(exponent))
            scores[exponent] = measures(_judge(model, validation))[metric]
            if not converged:
                not_converged.append(lambda_at(exponent))
        best = max(scores, key=lambda exponent: (scores[exponent], exponent))
        step //= 2
        exponents = [best - step, best + step]
    return lambda_at(best), {lambda_at(exponent): scores[exponent] for exponent in sorted(scores)}, not_converged


def lambda_at(exponent: int) -> float:
    """Lambda from its exponent in steps of an eighth of a decade."""
    return 10.0 ** (exponent / STEPS_A_DECADE)


def fit(train: Labelled, l2: float) -> tuple[Any, bool]:
    """scikit-learn's model, fitted by L-BFGS, and whether it converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0 / l2, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows, labels = train.fitted()
        model.fit(np.asarray(rows, dtype=np.float64), labels)
    return model, not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def hold_out(data: Labelled, seed: int) -> tuple[Labelled, Labelled]:
    """Split off a fifth of each class, at least one of two or more images, by `seed`: the rest, and the held-out part."""
    random = np.random.default_rng(seed)
    held_out = np.zeros(len(data.labels), dtype=bool)
    for label in np.unique(data.labels):
        of_class = random.permutation(np.flatnonzero(data.labels == label))
        count = max(1, round(HELD_OUT * len(of_class))) if len(of_class) > 1 else 0
        held_out[of_class[:count]] = True
    if not held_out.any():
        raise UserError("train.labels", "no class has two images, so that none can be held out", "give validation data")
    return _rows(data, ~held_out), _rows(data, held_out)


def draw(data: Labelled, k: int, seed: int) -> Labelled:
    """k images of each class, or all of a smaller one, drawn by `seed`."""
    random = np.random.default_rng(seed)
    drawn = [random.permutation(np.flatnonzero(data.labels == label))[:k] for label in np.unique(data.labels)]
    return _rows(data, np.concatenate(drawn))


def _rows(data: Labelled, kept: np.ndarray) -> Labelled:
    return Labelled(data.features[kept], data.labels[kept], None if data.views is None else data.views[kept])


def _joined(a: Labelled, b: Labelled) -> Labelled:
    views = None if a.views is None or b.views is None else np.concatenate([a.views, b.views])
    return Labelled(np.concatenate([a.features, b.features]), np.concatenate([a.labels, b.labels]), views)


def _score(train: Labelled, test: Labelled, l2: float, tried: dict[float, float], not_converged: list[float]) -> Probe:
    model, converged = fit(train, l2)
    outcome = _judge(model, test)
    return Probe(measures(outcome), l2, tried, converged, not_converged, model.classes_, outcome)


def _judge(model: Any, data: Labelled) -> Outcome:
    scores = model.decision_function(np.asarray(data.features, dtype=np.float64))
    if scores.ndim == 1:  # two classes: the second one's logit against the first's
        scores = np.stack([np.zeros_like(scores), scores], axis=1)
    return judge(scores, np.searchsorted(model.classes_, data.labels))


def _check(train: Labelled, test: Labelled, validation: Labelled | None, metric: str) -> None:
    if metric not in METRICS:
        raise UserError("metric", f"'{metric}' is unknown", f"choose one of {', '.join(METRICS)}")
    parts = {"train": train, "test": test} | ({} if validation is None else {"validation": validation})
    classes = np.unique(train.labels)
    for name, data in parts.items():
        labels, features = f"{name}.labels", f"{name}.features"
        if len(data.labels) == 0 or len(data.labels) != len(data.features):
            raise UserError(labels, f"{len(data.labels)} for {len(data.features)} images", "give one for each image")
        if data.features.ndim != 2 or data.features.shape[1] != train.features.shape[1]:
            problem = f"their shape is {list(data.features.shape)}, and that of train.features {list(train.features.shape)}"
            raise UserError(features, problem, "embed all of them with one model")
        bad = int((~np.isfinite(data.features)).any(axis=1).sum())
        if bad:
            raise UserError(features, f"{bad} of {len(data.features)} rows are NaN or infinite", "correct the embedder")
        lacking = np.setdiff1d(data.labels, classes)
        if len(lacking):
            problem = f"{len(lacking)} classes are not in the training data, such as {lacking[0]}"
            raise UserError(labels, problem, "train on them, or leave their images out")
    if len(classes) < 2:
        raise UserError("train.labels", f"all are {classes[0]}", "give images of two classes or more")
