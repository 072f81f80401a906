"""The registry of scores: what a path is called, in which unit, and which way is better; means and what guessing scores."""

import pytest

from evaluation import metrics


@pytest.mark.parametrize(
    ("path", "heading", "title"),
    [
        ("retrieval/openmoji/image_to_text_recall@5", "image to text R@5", "image to text R@5"),
        ("retrieval/openmoji/mean_recall@1", "mean R@1", "mean R@1"),
        ("retrieval/openmoji/mean_recall", "mean of all recalls", "mean of all recalls"),
        ("zero_shot/openmoji_group/top1", "zero-shot group top-1", "top-1"),
        ("linear_probe/openmoji_group/mean_per_class", "linear probe group mean per class", "mean per class"),
        ("few_shot/openmoji_group/top1@4", "few shot group top-1 at 4", "top-1 at 4"),
    ],
)
def test_a_path_has_one_title_wherever_it_is_shown(path: str, heading: str, title: str) -> None:
    found = metrics.metric(path, ["openmoji"])
    assert (found.heading, found.title, found.dataset, found.percent, found.better) == (heading, title, "openmoji", True, "max")


def test_units_and_directions() -> None:
    assert metrics.metric("robustness/imagenet_v2/effective").unit == "percentage points"
    loss = metrics.metric("loss")
    assert (loss.better, loss.percent, loss.dataset) == ("min", False, "")


def test_a_result_and_its_path_agree() -> None:
    """The same score, named by task, set and score, or by its path."""
    for info in metrics.TASKS.values():
        for measure in info.measures:
            score = f"{measure.name}3" if measure.name.endswith("@") else measure.name
            path = metrics.path_of(info.name, "pets", score)
            assert metrics.metric(path, ["pets"]).title == info.measure(score).title


def test_guessing_scores_a_mean_what_it_scores_the_parts() -> None:
    recall = "retrieval/toy/{}_recall@{}".format
    base = {recall("image_to_text", 1): 4.0, recall("text_to_image", 1): 2.0, recall("image_to_text", 5): 20.0}
    base |= {recall("text_to_image", 5): 10.0}
    found = metrics.chances({path: {"chance": value} for path, value in base.items()} | {"zero_shot/toy/top1": {}})
    assert found == base | {recall("mean", 1): 3.0, recall("mean", 5): 15.0, "retrieval/toy/mean_recall": 9.0}
