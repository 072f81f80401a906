"""The linear probe: scikit-learn's direct fit, the objective's own gradient, the full sweep, and what is told of it."""

import numpy as np
import pytest
from sklearn import datasets
from sklearn.linear_model import LogisticRegression

from evaluation import linear_probe as module
from evaluation.linear_probe import END, Labelled, draw, few_shot, fit, hold_out, lambda_at, linear_probe, search
from tests.refusals import refused


def real(name: str, seed: int, sizes: tuple[float, float]) -> list[Labelled]:
    """A data set of scikit-learn's, scaled and shuffled, in three parts."""
    features, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    features = features / 16 if name == "digits" else (features - features.mean(axis=0)) / features.std(axis=0)
    order = np.random.default_rng(seed).permutation(len(labels))
    first, second = (int(share * len(labels)) for share in np.cumsum(sizes))
    return [Labelled(features[part], labels[part]) for part in np.split(order, [first, second])]


def together(*parts: Labelled) -> Labelled:
    return Labelled(np.concatenate([p.features for p in parts]), np.concatenate([p.labels for p in parts]))


def blobs(counts: dict[int, int], seed: int = 0, noise: float = 1.0) -> Labelled:
    """Around a corner of its own for each label."""
    labels = np.repeat(list(counts), list(counts.values()))
    return Labelled(4 * np.eye(30)[labels] + noise * np.random.default_rng(seed).normal(size=(len(labels), 30)), labels)


@pytest.mark.parametrize("name", ["wine", "breast_cancer"])  # three classes and two
def test_it_equals_a_direct_fit_at_the_chosen_strength(name: str) -> None:
    train, validation, test = real(name, 0, (0.4, 0.2))
    found = linear_probe(train, test, "mean_per_class", validation)
    both = together(train, validation)
    direct = LogisticRegression(C=1 / found.l2, max_iter=1000).fit(both.features, both.labels)
    predicted = direct.predict(test.features)
    assert found.classes[found.outcome.predicted].tolist() == predicted.tolist()
    assert found.scores["top1"] == pytest.approx(100 * direct.score(test.features, test.labels))
    recalls = [np.mean(predicted[test.labels == label] == label) for label in np.unique(test.labels)]
    assert found.scores["mean_per_class"] == pytest.approx(100 * np.mean(recalls))
    assert found.converged and found.not_converged == [] and 90 < found.scores["top1"] < 100


def with_views(data: Labelled, seed: int, count: int = 2) -> Labelled:
    """Other features, as of crops."""
    shifts = np.random.default_rng(seed).normal(size=(len(data.labels), count, data.features.shape[1]))
    return Labelled(data.features, data.labels, data.features[:, None] + 0.3 * shifts)


def test_views_are_fitted_beside_their_images_and_chosen_on_images_alone() -> None:
    """A direct fit on all rows at the chosen strength; a validation image's views are not seen while it is validation."""
    train, validation, test = real("wine", 0, (0.4, 0.2))
    train, validation = with_views(train, 1), with_views(validation, 2)
    found = linear_probe(train, test, "top1", validation)
    assert train.views is not None and validation.views is not None
    rows = [train.features, validation.features, *train.views.transpose(1, 0, 2), *validation.views.transpose(1, 0, 2)]
    labels = [train.labels, validation.labels, *[train.labels] * 2, *[validation.labels] * 2]
    direct = LogisticRegression(C=1 / found.l2, max_iter=1000).fit(np.concatenate(rows), np.concatenate(labels))
    assert found.classes[found.outcome.predicted].tolist() == direct.predict(test.features).tolist()
    for l2, score in list(found.tried.items())[::4]:
        known = np.concatenate([train.features, *train.views.transpose(1, 0, 2)]), np.concatenate([train.labels] * 3)
        model = LogisticRegression(C=1 / l2, max_iter=1000).fit(*known)
        assert score == pytest.approx(100 * model.score(validation.features, validation.labels))
    # What is held out of the training data takes its views along.
    kept, held_out = hold_out(train, 0)
    assert kept.views is not None and held_out.views is not None
    assert len(kept.views) == len(kept.labels) and len(held_out.views) == len(held_out.labels)
    assert np.abs(held_out.views.mean(axis=1) - held_out.features).max() < 1.5


def test_the_strength_is_lambda_over_two_beside_the_sum_of_losses() -> None:
    """At the minimum the gradient of lambda/2 |W|^2 + sum of cross entropies is zero, the bias's without penalty."""
    train, _, _ = real("wine", 0, (0.5, 0.2))
    l2 = 3.0  # scikit-learn stops at a gradient of 1e-4 an image
    model, converged = fit(train, l2)
    logits = train.features @ model.coef_.T + model.intercept_
    wrong = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(3)[train.labels]
    assert converged
    assert l2 * model.coef_ + wrong.T @ train.features == pytest.approx(np.zeros_like(model.coef_), abs=0.02)
    assert wrong.sum(axis=0) == pytest.approx(np.zeros(3), abs=0.02)
    assert np.abs(l2 * model.coef_).max() > 1


def full_sweep(train: Labelled, validation: Labelled) -> dict[float, float]:
    """Validation accuracy at all 97 strengths (96 steps of an eighth of a decade), by scikit-learn alone."""
    return {
        l2: LogisticRegression(C=1 / l2, max_iter=1000).fit(train.features, train.labels).score(*vars(validation).values())
        for l2 in 10.0 ** (np.arange(-48, 49) / 8)
    }


@pytest.mark.parametrize("name", ["digits", "wine", "breast_cancer"])
def test_the_bisection_ends_where_the_full_sweep_does(name: str) -> None:
    train, validation, _ = real(name, 0, (1 / 3, 2 / 3))
    l2, tried, _ = search(train, validation, "top1")
    sweep = full_sweep(train, validation)
    best = max(sweep, key=lambda place: (sweep[place], place))
    assert abs(np.log10(l2 / best)) < 1.01 / 8
    assert len(tried) == 15 and all(100 * sweep[min(sweep, key=lambda s: abs(s - t))] == pytest.approx(tried[t]) for t in tried)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", ["wine", "breast_cancer"])
def test_where_it_settles_on_another_peak_it_loses_an_image_at_most(name: str, seed: int) -> None:
    train, validation, _ = real(name, seed, (1 / 3, 2 / 3))
    l2, tried, _ = search(train, validation, "top1")
    assert tried[l2] >= 100 * max(full_sweep(train, validation).values()) - 100.1 / len(validation.labels)


def test_places_are_tried_two_decades_apart_then_twice_as_fine_around_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """A score that peaks at place 13 of -48 to 48 and is worth the same at 12: the stronger wins."""
    values: list[float] = []
    monkeypatch.setattr(module, "fit", lambda train, l2: (l2, l2 > 1e-5))
    monkeypatch.setattr(module, "_judge", lambda l2, data: l2)
    monkeypatch.setattr(module, "measures", lambda l2: values.append(l2) or {"top1": -max(abs(np.log10(l2) * 8 - 12.5), 0.51)})
    l2, tried, not_converged = search(None, None, "top1")  # type: ignore[arg-type]
    places = [round(8 * np.log10(value)) for value in values]
    assert places == [-48, -32, -16, 0, 16, 32, 48, 8, 24, 12, 20, 10, 14, 11, 13]
    assert round(8 * np.log10(l2)) == 13 and sorted(values) == list(tried)
    assert not_converged == [lambda_at(-END)]


def test_the_search_stays_within_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fit", lambda train, l2: (l2, True))
    monkeypatch.setattr(module, "_judge", lambda l2, data: l2)
    monkeypatch.setattr(module, "measures", lambda l2: {"top1": l2})
    l2, tried, _ = search(None, None, "top1")  # type: ignore[arg-type]
    assert l2 == max(tried) == 1e6 and min(tried) == 1e-6


def test_a_tie_goes_to_the_stronger_regularisation() -> None:
    """Apart by far: every strength but the strongest classifies all, so the strongest of those is chosen."""
    train, validation = blobs({0: 40, 1: 20, 2: 10}, 0, 0.3), blobs({0: 20, 1: 10, 2: 10}, 1, 0.3)
    l2, tried, _ = search(train, validation, "top1")
    sweep = full_sweep(train, validation)
    assert l2 == pytest.approx(max(place for place, score in sweep.items() if score == 1.0))
    assert sum(score == 100.0 for score in tried.values()) > 5 and min(tried.values()) < 100.0


def test_a_fit_that_does_not_converge_is_told_and_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ITERATIONS", 2)
    train, validation, test = real("wine", 0, (0.4, 0.2))
    found = linear_probe(train, test, "top1", validation)
    assert not found.converged and set(found.not_converged) <= set(found.tried) and len(found.not_converged) > 5
    assert found.scores["top1"] > 50
    assert few_shot(train, test, "top1", validation, [4], [0])[0].converged == [False]


def test_a_fifth_of_each_class_is_held_out_by_the_seed() -> None:
    data = blobs({3: 50, 5: 10, 9: 2, 11: 1})
    kept, held_out = hold_out(data, 4)
    assert dict(zip(*np.unique(held_out.labels, return_counts=True), strict=True)) == {3: 10, 5: 2, 9: 1}
    assert dict(zip(*np.unique(kept.labels, return_counts=True), strict=True)) == {3: 40, 5: 8, 9: 1, 11: 1}
    rows = together(kept, held_out).features
    assert sorted(map(tuple, rows)) == sorted(map(tuple, data.features))
    assert (hold_out(data, 4)[1].features == held_out.features).all()
    assert (hold_out(data, 5)[1].features != held_out.features).any()
    assert set(held_out.features[:10, 0]) != set(data.features[:10, 0])  # not simply the first


def test_without_validation_data_it_holds_some_out_and_gives_them_back() -> None:
    train, test = blobs({0: 30, 1: 30, 2: 30}, 0, 2.0), blobs({0: 50, 1: 50, 2: 50}, 1, 2.0)
    found = linear_probe(train, test, seed=7)
    fitted, held_out = hold_out(train, 7)
    assert found.l2 == search(fitted, held_out, "top1")[0]
    direct = LogisticRegression(C=1 / found.l2, max_iter=1000).fit(train.features, train.labels)
    assert found.scores["top1"] == pytest.approx(100 * direct.score(test.features, test.labels))


def test_few_shots_are_k_a_class_and_more_contain_fewer() -> None:
    data = blobs({0: 30, 4: 3, 7: 30})
    one, four = draw(data, 1, 0), draw(data, 4, 0)
    assert sorted(one.labels) == [0, 4, 7] and sorted(four.labels) == [0] * 4 + [4] * 3 + [7] * 4
    assert set(map(tuple, one.features)) < set(map(tuple, four.features)) < set(map(tuple, data.features))
    assert (draw(data, 1, 1).features != one.features).any()


def test_few_shot_probes_are_fitted_on_the_shots_alone() -> None:
    train, test = blobs({0: 16, 1: 40, 2: 6}, 0, 3.0), blobs({0: 60, 1: 60, 2: 60}, 1, 3.0)
    validation = blobs({0: 40, 1: 40, 2: 40}, 2, 3.0)
    found = few_shot(train, test, "top1", validation, shots=(1, 16), seeds=(0, 1, 2))
    assert [result.shots for result in found] == [1, 16] and [result.short for result in found] == [[], [2]]
    for result in found:
        for seed, score, l2 in zip((0, 1, 2), result.scores, result.l2, strict=True):
            few = draw(train, result.shots, seed)
            assert l2 == search(few, draw(validation, min(result.shots, 4), seed), "top1")[0]
            direct = LogisticRegression(C=1 / l2, max_iter=1000).fit(few.features, few.labels)
            assert score == pytest.approx(100 * direct.score(test.features, test.labels))
        assert result.mean == pytest.approx(sum(result.scores) / 3)
        assert result.sd == pytest.approx(np.sqrt(sum((s - result.mean) ** 2 for s in result.scores) / 2))
    assert found[1].mean > found[0].mean + 5
    assert few_shot(train, test, "top1", validation, shots=[1], seeds=[0])[0].sd is None


GOOD = blobs({0: 5, 1: 5})


@pytest.mark.parametrize(
    ("parts", "key", "named", "remedy"),
    [
        ({"train": Labelled(GOOD.features, GOOD.labels[1:])}, "train.labels", [9, 10], "each image"),
        ({"test": Labelled(GOOD.features[:0], GOOD.labels[:0])}, "test.labels", [0], "each image"),
        ({"test": Labelled(np.full((2, 30), np.nan), np.array([0, 1]))}, "test.features", ["2 of 2 rows"], "embedder"),
        (
            {"validation": Labelled(np.ones((2, 8)), np.array([0, 1]))},
            "validation.features",
            [[2, 8], "train.features", [10, 30]],
            "one model",
        ),
        ({"test": Labelled(np.ones((3, 30)), np.array([0, 7, 8]))}, "test.labels", ["2 classes", 7], "leave"),
        ({"train": blobs({0: 5}), "test": blobs({0: 5})}, "train.labels", [0], "two classes"),
        ({"train": blobs({0: 1, 1: 1})}, "train.labels", ["two images"], "validation"),
        ({"metric": "accuracy"}, "metric", ["'accuracy'"], "top1"),
    ],
)
def test_mistakes_are_named(parts: dict, key: str, named: list, remedy: str) -> None:
    with refused(key, *named, remedy=remedy):
        linear_probe(**{"train": GOOD, "test": GOOD} | parts)
