"""Linear probe: logistic regression on frozen features, by CLIP's procedure (arXiv 2103.00020, appendix A.3).

The features are those before the projection into the joint space, one an image; random crops of the training images may be
fitted beside them, as MCD (arXiv 2312.12661) probes, and nothing is chosen or scored on those. Fitted is lambda/2 |W|^2 plus the
sum of the cross entropies, the bias unpenalised: scikit-learn's C is 1 / lambda. Lambda is searched on validation data over 1e-6
to 1e6 in steps of an eighth of a decade: seven values two decades apart first, then twice as fine around the best, and so on to
one step. A tie goes to the stronger regularisation, so a plateau is left at the end where the classifier is simplest. It is a
local search of 15 fits in place of 97: where the score wavers by a validation image or two, it may settle on another peak than
the full sweep. The last fit is on training and validation data together.
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
END = 6 * STEPS_A_DECADE  # of the search, in steps from lambda = 1 to either side
HELD_OUT = 0.2  # of the training data, where no validation data is given
FEW_SHOT_VALIDATION = 4


@dataclass(frozen=True)
class Labelled:
    """Features of images and what they show."""

    features: np.ndarray  # float [n, D]
    labels: np.ndarray  # int [n]
    views: np.ndarray | None = None  # float [n, V, D], of random views of the same images, which are fitted too

    def fitted(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows to fit and their labels: of the images, then of their views."""
        if self.views is None:
            return self.features, self.labels
        rows = np.concatenate([self.features, self.views.reshape(-1, self.features.shape[1])])
        return rows, np.concatenate([self.labels, np.repeat(self.labels, self.views.shape[1])])


@dataclass(frozen=True)
class Probe:
    """A fitted probe's figures. `outcome` feeds `classification.result`; it counts classes as training numbers them."""

    scores: dict[str, float]  # on test data, percent: top1, top5, mean_per_class
    l2: float  # lambda; C is 1 / lambda
    tried: dict[float, float]  # lambda -> metric on validation data, percent
    converged: bool  # the last fit, within 1000 iterations
    not_converged: list[float]  # lambdas of the search whose fit did not
    classes: np.ndarray  # int [C]: the labels of training, ascending
    outcome: Outcome  # its labels and predictions are positions in `classes`


@dataclass(frozen=True)
class FewShot:
    """Probes on k images a class, one a seed; the metric in percent."""

    shots: int
    scores: list[float]
    mean: float
    sd: float | None  # sample standard deviation over seeds; None with one seed
    l2: list[float]
    converged: list[bool]
    short: list[int]  # labels of classes that have fewer than k images; all of theirs are used


def linear_probe(
    train: Labelled, test: Labelled, metric: str = "top1", validation: Labelled | None = None, seed: int = 0
) -> Probe:
    """Search lambda, fit on training and validation data, score on test data.

    Args:
        metric: chooses lambda on validation data; "top1" or "mean_per_class", as the papers report the set.
        validation: None takes a fifth of each class from the training data, drawn by `seed`.

    Raises `UserError` for labels of the wrong length, features that are NaN or of another width, and labels of test or
    validation data that training data lacks. A fit that does not converge is reported, not an error.
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
    """Probes on k training images a class, drawn by each seed; more shots contain the fewer of the same seed.

    Lambda is searched on min(k, 4) validation images a class, as CoOp (arXiv 2109.01134) draws them: with a whole
    validation set, few shots would not be few. They do not join the last fit. Arguments and errors as `linear_probe`.
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
    found: dict[int, float] = {}
    not_converged = []
    step, best = 2 * STEPS_A_DECADE, 0
    places = list(range(-END, END + 1, step))
    while step >= 1:
        for place in places:
            if place in found or abs(place) > END:
                continue
            model, converged = fit(train, lambda_at(place))
            found[place] = measures(_judge(model, validation))[metric]
            if not converged:
                not_converged.append(lambda_at(place))
        best = max(found, key=lambda place: (found[place], place))
        step //= 2
        places = [best - step, best + step]
    return lambda_at(best), {lambda_at(place): found[place] for place in sorted(found)}, not_converged


def lambda_at(place: int) -> float:
    """Regularisation strength so many steps above 1."""
    return 10.0 ** (place / STEPS_A_DECADE)


def fit(train: Labelled, l2: float) -> tuple[Any, bool]:
    """scikit-learn's model, L-BFGS, and whether it converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0 / l2, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows, labels = train.fitted()
        model.fit(np.asarray(rows, dtype=np.float64), labels)
    return model, not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def hold_out(data: Labelled, seed: int) -> tuple[Labelled, Labelled]:
    """A fifth of each class, at least one of two or more images, split off by `seed`: what is left, and what is held out."""
    random = np.random.default_rng(seed)
    taken = np.zeros(len(data.labels), dtype=bool)
    for label in np.unique(data.labels):
        mine = random.permutation(np.flatnonzero(data.labels == label))
        count = max(1, round(HELD_OUT * len(mine))) if len(mine) > 1 else 0
        taken[mine[:count]] = True
    if not taken.any():
        raise UserError("train labels: no class has two images, so none can be held out; give validation data")
    return _rows(data, ~taken), _rows(data, taken)


def draw(data: Labelled, k: int, seed: int) -> Labelled:
    """k images of each class, or all of a smaller one, drawn by `seed`."""
    random = np.random.default_rng(seed)
    drawn = [random.permutation(np.flatnonzero(data.labels == label))[:k] for label in np.unique(data.labels)]
    return _rows(data, np.concatenate(drawn))


def _rows(data: Labelled, kept: np.ndarray) -> Labelled:
    return Labelled(data.features[kept], data.labels[kept], None if data.views is None else data.views[kept])


def _joined(one: Labelled, other: Labelled) -> Labelled:
    views = None if one.views is None or other.views is None else np.concatenate([one.views, other.views])
    return Labelled(np.concatenate([one.features, other.features]), np.concatenate([one.labels, other.labels]), views)


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
        raise UserError(f"metric: '{metric}' is unknown; there are {', '.join(METRICS)}")
    parts = {"train": train, "test": test} | ({} if validation is None else {"validation": validation})
    known = np.unique(train.labels)
    for name, data in parts.items():
        if len(data.labels) == 0 or len(data.labels) != len(data.features):
            raise UserError(f"{name} labels: {len(data.labels)} for {len(data.features)} images; give one an image")
        if data.features.ndim != 2 or data.features.shape[1] != train.features.shape[1]:
            raise UserError(
                f"{name} features: shape {list(data.features.shape)}, training has {list(train.features.shape)}; "
                "embed all of them with one model"
            )
        bad = int((~np.isfinite(data.features)).any(axis=1).sum())
        if bad:
            raise UserError(f"{name} features: {bad} of {len(data.features)} rows have NaN or infinity; check the embedder")
        lacking = np.setdiff1d(data.labels, known)
        if len(lacking):
            raise UserError(
                f"{name} labels: {len(lacking)} classes are not in training, such as {lacking[0]}; "
                "train on them, or leave their images out"
            )
    if len(known) < 2:
        raise UserError(f"train labels: all are {known[0]}; a probe needs two classes or more")
