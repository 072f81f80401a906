"""`raylign compare` on runs made by hand: what differs, curves over each other, paired intervals, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from evaluation.items import contributions
from raylign.compare import main
from tests.training.test_report import Element, prepare_by_hand, read, run_by_hand


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of one dataset: the second with other embeddings and another learning rate, the third a copy of the first."""
    folder = tmp_path_factory.mktemp("compare")
    prepared = prepare_by_hand(folder / "data", [[f"square number {i}"] for i in range(23)])
    for seed, name in enumerate(("one", "two")):
        run_by_hand(folder / name, prepared, seed=seed)
        config = yaml.safe_load((folder / name / "config.yaml").read_text())
        (folder / name / "config.yaml").write_text(yaml.safe_dump(config | {"optimizer": {"lr": 0.001 * (1 + seed)}}))
    run_by_hand(folder / "same", prepared, seed=0)
    return folder


def compared(runs: Path, *names: str) -> Element:
    assert main([*(str(runs / name) for name in names), "--output", str(runs / "page" / "compare.html")]) == 0
    return read(runs / "page" / "compare.html")


def row(page: Element, path: str) -> list[str]:
    (found,) = [row for row in page.all("tr") if row.attributes.get("title") == path]
    return [cell.text for cell in found.all("td")]


def test_differences_have_paired_intervals(runs: Path) -> None:
    """About as wide as those of the plain paired difference over items, and none where the rows are the same."""
    page, path = compared(runs, "one", "two"), "retrieval/squares/image_to_text_recall@5"
    results = [json.loads((runs / name / "result.json").read_text()) for name in ("one", "two")]
    values = [result["metrics"][path] for result in results]
    first, second = row(page, path)
    assert first == f"{values[0]:.1f}" and second.startswith(f"{values[1]:.1f} {values[1] - values[0]:+.1f} [")
    low, high = (float(end) for end in second.partition("[")[2].rstrip("]").split(","))
    data = run_by_hand(runs / "scratch", prepare_by_hand(runs / "again", [[f"square number {i}"] for i in range(23)]))[1]
    parts = [contributions(data, **np.load(runs / name / "held_out.npz"))[path] for name in ("one", "two")]
    plain = 2.07 * np.std(parts[1] - parts[0], ddof=1) / np.sqrt(23)
    assert plain < (high - low) / 2 < 1.25 * plain and (low + high) / 2 == pytest.approx(values[1] - values[0], abs=0.11)
    assert "+0.0" in row(compared(runs, "one", "same"), path)[1]


def test_settings_that_differ_and_curves_of_all(runs: Path) -> None:
    page = compared(runs, "one", "two")
    (table,) = [section for section in page.all("section") if section.attributes["id"] == "settings"]
    assert [[cell.text for cell in line.all("td")] for line in table.all("tr")[1:]] == [["0.001", "0.002"]]
    curves = {figure.all("figcaption")[0].texts[0]: figure.all("svg")[0] for figure in page.all("figure")}
    assert {"R@1, mean of both directions", "Training loss"} <= curves.keys()
    assert all(name in curves["Training loss"].text for name in ("one", "two"))


def test_a_run_without_embeddings_has_no_interval(runs: Path, tmp_path: Path) -> None:
    for file in (runs / "two").iterdir():
        if file.name != "held_out.npz":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    output = tmp_path / "page.html"
    assert main([str(runs / "one"), str(tmp_path), "--output", str(output)]) == 0
    assert "[" not in row(read(output), "retrieval/squares/mean_recall@1")[1]


@pytest.mark.parametrize("change", [{"fingerprint": "f" * 64}, {"split_seed": 7}])
def test_runs_of_other_rows_are_refused_by_name(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    for file in (runs / "two").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    result = json.loads((tmp_path / "result.json").read_text())
    result["dataset"] |= change
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert main([str(runs / "one"), str(tmp_path), "--output", str(tmp_path / "page.html")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {tmp_path}: ") and str(runs / "one") in told and not (tmp_path / "page.html").exists()


def test_one_run_and_an_unfinished_one_are_refused(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs / "one")]) == 2
    assert main([str(runs / "one"), str(tmp_path)]) == 2
    assert f"error: {tmp_path}: " in capsys.readouterr().err
