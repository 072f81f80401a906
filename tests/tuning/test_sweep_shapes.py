"""Reports of sweeps that are not whole yet, and of grids, scores and spaces of other shapes."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.tuning.pages import figures, headline, markdown_tables, page_of, plain, section, table_rows
from tests.tuning.tables import BEGUN, I2T, MORE, NAN_REASON, T2I, final_rows, info, row, search_rows


@pytest.mark.parametrize("count", range(len(search_rows() + final_rows()) + 1))
def test_a_report_can_be_written_after_any_trial(tmp_path: Path, count: int):
    trials = (search_rows() + final_rows())[:count]
    if trials:  # the newest has only begun
        trials[-1] = (
            trials[-1] | {"status": "running", "score": math.nan, "seconds": math.nan} | dict.fromkeys([I2T, T2I, MORE], math.nan)
        )
    page = page_of(tmp_path, trials, **BEGUN, sample_sizes={}, datasets=[])
    done = sum(trial["phase"] == "final" and trial["status"] == "finished" for trial in trials)
    assert headline(page).startswith("So far " if done else "No final run is finished yet")
    states = {
        cell.attributes["title"]: plain(cell)
        for cell in section(page, "grid").all("figure")[0].all("td")
        if "title" in cell.attributes
    }
    if trials and not any(
        t["cell"] == trials[-1]["cell"] and t["phase"] == "final" and t["status"] == "finished" for t in trials
    ):
        assert states[trials[-1]["cell"]] == "running"
    if not trials:
        assert set(states.values()) == {"not run yet"}
    assert "nan" not in re.sub(re.escape(NAN_REASON), "", plain(page)).lower().split()


def test_a_running_sweep_without_curves_or_columns_says_what_is_missing(tmp_path: Path):
    page = page_of(tmp_path, [], [], **BEGUN)
    assert "no two cells with results to compare yet" in section(page, "pairs").text
    assert "evaluated during training yet" in section(page, "curves").text
    assert "No final run is finished yet" in section(page, "cost").text
    assert "No trial failed" in section(page, "failures").text


def test_one_cell_without_a_grid(tmp_path: Path):
    shape: Mapping[str, Any] = {"axes": [], "cells": [{"cell": "all", "labels": []}], "space": []}
    page = page_of(
        tmp_path, [row("all", "final", 0, seed, 10.0 + seed) for seed in range(3)], **shape, planned={"search": 0, "final": 3}
    )
    assert headline(page) == "It reaches 11.0 % Average over 3 seeds"
    assert not page.all("figure", "heat") and not [e for e in page.all("section") if e.attributes["id"] in ("grid", "search")]
    assert table_rows(page.all("table", "paper")[0])[0] == [
        "all",
        "16.0 (1.0)",
        "6.0 (1.0)",
        "22.0 (2.0)",
        "11.0 (1.0)",
        "3",
        "1",
        "10.0 s",
    ]
    assert markdown_tables((tmp_path / "report.md").read_text())["Cells"][2][0] == "all"


def test_three_axes_cross_in_the_rows(tmp_path: Path):
    labels = [(a, b, c) for a in ("x", "y") for b in ("1", "2") for c in ("u", "v")]
    trials = [
        row(", ".join(names), "final", 0, s, 10.0 + 2 * i + s, **dict(zip(("a", "b", "c"), names, strict=True)))
        for i, names in enumerate(labels)
        for s in (0, 1)
    ]
    axes = [
        {"key": k, "title": t, "labels": v}
        for k, t, v in (("a", "first", ["x", "y"]), ("b", "second", ["1", "2"]), ("c", "third", ["u", "v"]))
    ]
    page = page_of(
        tmp_path, trials, axes=axes, cells=[{"cell": ", ".join(names), "labels": list(names)} for names in labels], space=[]
    )
    lines = table_rows(section(page, "grid").all("figure", "heat")[0].all("table")[0])
    assert [line[0] for line in lines] == ["1, u", "1, v", "2, u", "2, v"]
    assert [[cell.split()[0] for cell in line[1:]] for line in lines] == [
        ["10.5", "18.5"],
        ["12.5", "20.5"],
        ["14.5", "22.5"],
        ["16.5", "24.5"],
    ]
    assert "second x third" in plain(section(page, "grid"))


def test_a_wide_grid_is_laid_out_downwards(tmp_path: Path):
    rates = [f"{i}e-4" for i in range(1, 10)]
    trials = [row(rate, "final", 0, 0, 10.0 + i, **{"optimizer.lr": rate}) for i, rate in enumerate(rates)]
    axes = [{"key": "optimizer.lr", "title": "lr", "labels": rates}]
    page = page_of(tmp_path, trials, axes=axes, cells=[{"cell": rate, "labels": [rate]} for rate in rates], space=[])
    lines = table_rows(section(page, "grid").all("figure", "heat")[0].all("table")[0])
    assert [line[0] for line in lines] == rates and [line[1].split()[0] for line in lines] == [f"{10 + i}.0" for i in range(9)]


def test_a_loss_is_better_low_and_no_percentage(tmp_path: Path):
    score = {"title": "loss", "metrics": ["loss"], "mode": "min"}
    trials = [trial | {"score": trial["score"] / 100, "loss": trial["score"] / 100} for trial in search_rows() + final_rows()]
    # Now the worst of the search is the best: point 0 of sogclr, adamw and 2 of clip, adamw.
    trials = [t | {"point": {"clip, adamw": 2, "sogclr, adamw": 0}[t["cell"]]} if t["phase"] == "final" else t for t in trials]
    page = page_of(tmp_path, trials, score=score, metrics=["loss", I2T])
    chance = "(chance: of seeds alone, on these test items)"
    assert headline(page) == f"clip, adamw leads with 0.17 loss over 3 seeds; ahead of every other cell {chance}"
    heat = section(page, "grid").all("figure", "heat")
    assert [figure.all("figcaption")[0].text for figure in heat] == ["loss", "image to text R@1, %"]
    assert [plain(figure.all("td", "best")[0]).split()[0] for figure in heat] == ["0.17", "27.0"]
    lines = table_rows(page.all("table", "paper")[0])
    assert lines[0] == ["clip", "adamw", "4e-4", "0.07", "22.0 (2.0)", "0.17 (0.02)", "3", "1", "11.0 s"]
    assert [plain(bold) for bold in page.all("table", "paper")[0].all("b")] == ["0.17", "27.0"]
    assert "sogclr, adamw 0.05 0.01732 3 0.038 0.038 better" in plain(section(page, "pairs"))


def test_choices_without_numbers_have_places_side_by_side(tmp_path: Path):
    trials = [row("clip, adamw", "search", i, 0, 10.0 + i, augment=["none", "crop"][i % 2]) for i in range(4)]
    space = [{"key": "augment", "title": "augment", "log": False, "choices": ["none", "crop"]}]
    page = page_of(
        tmp_path, trials, space=space, settings=info()["settings"] | {"space": {"augment": {"choices": ["none", "crop"]}}}
    )
    figure = figures(section(page, "search"))["clip, adamw"]
    assert "chosen: crop" in figure.text and len({circle.attributes["cx"] for circle in figure.all("circle")}) == 2
    assert table_rows(page.all("table", "paper")[0])[0][:3] == ["clip", "adamw", "crop"]


def test_a_parameter_that_does_not_apply_is_blank(tmp_path: Path):
    trials = [
        trial | ({"objective.temperature": math.nan} if trial["cell"] == "clip, adamw" else {})
        for trial in search_rows() + final_rows()
    ]
    page = page_of(tmp_path, trials)
    assert table_rows(page.all("table", "paper")[0])[0][:4] == ["clip", "adamw", "1e-4", ""]
    assert "none" in [text.text for text in page.all("svg", "parallel")[0].all("text")]
