"""What fine-tuning gained and lost, on the page; and the config's key that scores the weights in between."""

from pathlib import Path
from typing import Any

import pytest

from evaluation.config import EvaluateSettings
from evaluation.embedder import check_embedder
from evaluation.report import write_report
from evaluation.results import Result
from pipelines.program.errors import UserError
from pipelines.program.settings import validate
from tests.evaluation.results_by_hand import zero_shot
from tests.evaluation.test_report_page import page_of
from tests.training.test_report import Element, read
from tests.tuning.pages import plain, section

RUN = "runs/<mine>"
OLD, ALSO, NEW = {0.0: 60.0, 0.5: 55.0, 1.0: 30.0}, {0.0: 50.0, 0.5: 52.0, 1.0: 49.0}, {0.0: 20.0, 0.5: 45.0, 1.0: 50.0}


def scored(skills: dict[str, dict[float, float]], run: str = RUN) -> list[Result]:
    """Intervals are 2 to either side."""
    results = []
    for dataset, points in skills.items():
        for alpha, value in points.items():
            made = zero_shot(f"alpha-{alpha:g}", dataset, value)
            made.about["arguments"] = {"checkpoint": run, "wise_ft": alpha}
            results.append(made)
    return results


def tables(block: Element) -> list[list[list[str]]]:
    """Cells of the rows of each table in the body."""
    bodies = [table.all("tbody") for table in block.all("table")]
    return [[[plain(cell) for cell in line.children] for body in table for line in body.all("tr")] for table in bodies]


def test_what_was_gained_and_lost_and_the_curve_between(tmp_path: Path) -> None:
    found = section(page_of(tmp_path, scored({"pets": OLD, "cars": ALSO, "icons": NEW})), "gained-and-lost")
    changes, by_alpha, curve = tables(found)
    assert [[line[0].split(",")[0], *line[1:]] for line in changes] == [
        ["icons", "20.0 18.0 to 22.0", "50.0 48.0 to 52.0", "+30.0: gained", "1 (50.0)"],
        ["cars", "50.0 48.0 to 52.0", "49.0 47.0 to 51.0", "-1.0: lost, within noise", "0.5 (52.0)"],
        ["pets", "60.0 58.0 to 62.0", "30.0 28.0 to 32.0", "-30.0: lost", "0 (60.0)"],
    ]
    assert len(by_alpha) == 3
    # New against old: a point for each alpha and each skill that was lost.
    assert curve == [["0", "20.0", "50.0", "60.0"], ["0.5", "45.0", "52.0", "55.0"], ["1", "50.0", "49.0", "30.0"]]
    dots = [dot for chart in found.all("svg")[-1:] for dot in chart.all("circle")]
    assert len(dots) == 6 and "alpha 0.5" in plain(dots[1]) and "45.0" in plain(dots[1])
    assert RUN in plain(found)


def test_without_a_gain_or_a_loss_there_is_no_curve(tmp_path: Path) -> None:
    assert len(section(page_of(tmp_path, scored({"icons": NEW})), "gained-and-lost").all("svg")) == 1


@pytest.mark.parametrize("alphas", [(0.0, 0.5), (0.5, 1.0)])
def test_one_end_alone_tells_no_change(tmp_path: Path, alphas: tuple[float, float]) -> None:
    page = page_of(tmp_path, scored({"icons": {alpha: NEW[alpha] for alpha in alphas}}))
    assert not [part for part in page.all("section") if part.attributes.get("id") == "gained-and-lost"]


def test_two_runs_have_a_block_each(tmp_path: Path) -> None:
    for result in scored({"icons": NEW}):
        result.write(tmp_path, _info())
    for result in scored({"icons": NEW}, "runs/other"):
        Result(**(vars(result) | {"model": f"other-{result.model}"})).write(tmp_path, _info())
    write_report(tmp_path)
    page = read(tmp_path / "report.html")
    assert [RUN in plain(section(page, name)) for name in ("gained-and-lost", "gained-and-lost-2")] == [True, False]


def _info() -> Any:
    from evaluation.metrics import TASKS

    return TASKS["zeroshot_classification"]


TREE = {"data": {"x": {"name": "prepared", "path": "data/x"}}, "output": "runs/e"}


def test_the_key_names_a_model_for_each_alpha() -> None:
    settings = validate(EvaluateSettings, TREE | {"wise_ft": {"checkpoint": "runs/demo", "alphas": [1, 0.25, 0]}}, "c.yaml")
    models = settings.all_models()
    assert list(models) == ["alpha-0", "alpha-0.25", "alpha-1"]
    assert [model.embedder_arguments for model in models.values()] == [{"wise_ft": 0}, {"wise_ft": 0.25}, {"wise_ft": 1}]
    for model in models.values():
        assert model.arguments()["checkpoint"].endswith("runs/demo")
        check_embedder(model.embedder, model.arguments())


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"wise_ft": {"checkpoint": "r", "alphas": [0, 0.5]}}, ["wise_ft.alphas", "0.5"]),
        ({"wise_ft": {"checkpoint": "r", "alphas": [0, 1, 2]}}, ["wise_ft.alphas", "2"]),
        ({"wise_ft": {"checkpoint": "r"}, "checkpoint": "q"}, ["wise_ft", "models"]),
    ],
)
def test_a_line_without_both_ends_or_with_other_models_is_refused(tree: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        validate(EvaluateSettings, TREE | tree, "c.yaml")
    assert all(name in str(caught.value) for name in named)
