"""The report of a sweep, read the way a browser would, against tables made by hand. No Ray, no training."""

import math
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.patience import PATIENCE
from tests.refusals import refused
from tests.training.test_report import Element, read
from tests.tuning.pages import headline, markdown_tables, page_of, plain, section, table_rows
from tests.tuning.tables import BEGUN, CELLS, FINALS, I2T, MORE, NAN_REASON, T2I, final_rows, row, search_rows, write
from tuning.held_out_items import FILE
from tuning.reporting import write_report
from tuning.trials import Outcome, end

NASTY = "<script>alert('x')</script> & \"quotes\" | _*`"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep with its report."""
    folder = write(tmp_path_factory.mktemp("sweep") / "by hand", search_rows() + final_rows())
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Element:
    return read(folder / "report.html")


# The answer


ALONE = " (chance: of seeds alone, on these test items)"
LEVEL = {"clip, adamw": [15.0, 17.0, 19.0], "sogclr, adamw": [21.0, 23.0, 16.0]}  # differences 6, 6, -3: t = 1
FOUR = {"clip, adamw": [15.0, 17.0, 19.0], "clip, sgd": [14.0, 19.0, 15.0], "sogclr, adamw": [21.0, 23.0, 16.0]}


@pytest.mark.parametrize(
    ("trials", "changes", "said"),
    [
        (final_rows(), {}, f"sogclr, adamw leads with 22.0 % Average over 3 seeds; ahead of every other cell{ALONE}"),
        (
            final_rows(LEVEL),
            {},
            f"sogclr, adamw leads with 20.0 % Average over 3 seeds; not distinguishable from clip, adamw{ALONE}",
        ),
        (final_rows(FOUR), {}, "over 3 seeds; not distinguishable from any of the 2 others"),
        (
            final_rows(FOUR | {"sogclr, sgd": [1.0, 2.9, -3.9]}),  # 20, 20.1 and 19.9 below the leader, 16 below the others
            {},
            f"sogclr, adamw leads with 20.0 % Average over 3 seeds; not distinguishable from clip, adamw and 1 more{ALONE}",
        ),
        (
            final_rows({cell: scores[:1] for cell, scores in FINALS.items()}),
            {},
            "sogclr, adamw leads with 21.0 % Average over 1 seed; with one seed a cell no difference can be told from chance",
        ),
        (
            final_rows({"clip, adamw": [15.0, 17.0], "sogclr, adamw": [21.0, 23.0]}),  # no spread of the differences
            {},
            "over 2 seeds; with so few seeds in common no difference can be told from chance",
        ),
        (
            final_rows({"clip, adamw": [15.0, 17.0]}),
            {},
            "clip, adamw is the only one of 4 cells with a result: 16.0 % Average over 2 seeds",
        ),
        (
            search_rows() + final_rows(),
            BEGUN,
            "So far sogclr, adamw leads with 22.0 % Average over 3 seeds; ahead of every other cell"
            f"{ALONE}. 6 of 12 final runs are done",
        ),
        (
            search_rows(),
            BEGUN,
            "No final run is finished yet; 16 of 16 search trials are done; the best of the search, sogclr, adamw, "
            "has 20.0 % Average on the validation split",
        ),
        (
            search_rows(),
            BEGUN | {"score": {"title": "Average", "metrics": [I2T, T2I], "mode": "min"}},
            "No final run is finished yet; 16 of 16 search trials are done; the best of the search, sogclr, adamw, "
            "has 11.0 % Average on the validation split",
        ),
        ([], BEGUN, "No final run is finished yet; 0 of 16 search trials are done"),
        (
            [row(cell, "search", 0, 0, math.nan, status="failed", reason=f"{NAN_REASON}.") for cell in CELLS],
            {},
            f"All 4 trials failed: {NAN_REASON}",
        ),
        (
            [r for r in search_rows() if r["cell"].endswith("sgd")],
            {},
            "No cell has a result: of 4 trials, 2 failed and 2 were stopped early",
        ),
        ([], {}, "No trial was run"),
    ],
)
def test_the_answer_comes_first_and_says_no_more_than_the_tables(tmp_path: Path, trials: Any, changes: Any, said: str):
    page = page_of(tmp_path, trials, **changes)
    assert said in headline(page)
    if said[0].isupper():
        assert headline(page) == said
    assert f"**{said}" in (tmp_path / "report.md").read_text() or said in (tmp_path / "report.md").read_text().replace("\\", "")


def test_the_certainty_is_that_of_the_t_test_worked_out_by_hand(page: Element):
    """Differences 6, 6, 3: sd sqrt(3), so sd / sqrt(n) is 1 and the 97.5 % quantile of t is the resolution: 4.303, n = 3;
    with 6 seeds sqrt(3 / 6) of the quantile 2.571."""
    header = plain(page.all("header")[0])
    assert "corrected for 1 comparison by" in header
    assert "With 3 seeds and the usual (median) spread, a difference of less than about 4.3 points" in header
    assert "with 6 seeds and the same spread that would be about 1.8 points" in header
    assert "python -m tuning sweeps/by-hand.yaml 'seeds=[0,1,2,3,4,5]'" in header


def test_the_header_counts_trials_and_names_the_splits(page: Element):
    facts = dict(zip([plain(e) for e in page.all("dt")], [plain(e) for e in page.all("dd")], strict=True))
    assert facts["Search"] == "11 of 16 finished, 3 failed, 2 stopped early"
    assert facts["Final runs"] == "6 of 12 finished, 6 not run"
    assert facts["Time"] == "1 h 02 min of wall time in 2 sessions"
    assert facts["Selected on"].startswith("the validation split (212 pairs of emoji)")
    assert facts["Reported on"] == "the test split (331 pairs of emoji); seeds 0, 1, 2"


def with_items(folder: Path, finals: dict[str, list[np.ndarray]]) -> list[dict[str, Any]]:
    """Final rows whose score is the mean of these hits, in percent, and the files that such runs keep beside them."""
    rows = final_rows({cell: [float(hits.mean()) for hits in runs] for cell, runs in finals.items()})
    for trial, hits in zip(rows, [hits for runs in finals.values() for hits in runs], strict=True):
        place = folder / "trials" / trial["trial"]
        place.mkdir(parents=True)
        parts = {"groups-0": np.arange(len(hits)), "metrics-0": np.array([I2T, T2I]), "parts-0": np.stack([hits, hits])}
        np.savez_compressed(place / FILE, **parts)
    return rows


def test_a_verdict_says_of_which_chance_it_speaks(tmp_path: Path):
    """Of 86 pairs the leader finds two more, with each seed nearly the same: certain by seeds, nothing by another 86 pairs."""
    hits = 100.0 * (np.arange(86) < 20)
    runs = {
        "clip, adamw": [np.where(np.arange(86) == seed, 0.0, hits) for seed in range(3)],
        "sogclr, adamw": [100.0 * (np.arange(86) < 22 + (seed == 2)) for seed in range(3)],
    }
    rows = with_items(tmp_path, runs)
    both = page_of(tmp_path, rows)
    assert headline(both).endswith("not distinguishable from clip, adamw (chance: of seeds and test items)")
    told = plain(both.all("header")[0])
    assert "another draw of test items" in told and "kept none of their results" not in told
    assert table_rows(section(both, "pairs").all("table")[0])[0][-1] == "within noise"
    assert "(chance: of seeds and test items)" in (tmp_path / "report.md").read_text().replace("\\", "")
    pairs = pd.read_csv(tmp_path / "pairwise.csv")
    assert pairs.loc[0, "se_items"] > 1.5 and pairs.loc[0, "df_items"] == 85
    (tmp_path / "trials" / rows[0]["trial"] / FILE).unlink()
    alone = page_of(tmp_path, rows)
    assert headline(alone).endswith(f"ahead of every other cell{ALONE}")
    assert "1 of 6 final runs kept none of their results on items" in plain(alone.all("header")[0])


def test_without_a_search_no_page_says_that_something_was_chosen_on_validation(tmp_path: Path):
    searched = page_of(tmp_path / "searched", search_rows() + final_rows())
    info = {"space": [], "planned": {"search": 0, "final": 12}}
    rows = [trial | {"split": "dev"} for trial in final_rows()]
    plainly = page_of(tmp_path / "not", rows, **info)
    assert "best on the validation split" in plain(section(searched, "grid"))
    for text in (plain(plainly), (tmp_path / "not" / "report.md").read_text()):
        assert "best on the validation split" not in text and "selected on the validation split" not in text
        assert "the best of 2 cells on the dev split itself" in text and "no cell was searched" in text


# The tables


def test_every_number_of_the_cells_is_of_the_final_trials(page: Element):
    lines = {line[0] + ", " + line[1]: line[2:] for line in table_rows(section(page, "cells").all("table", "paper")[0])[:-1]}
    assert list(lines) == CELLS
    for cell, seconds in (("clip, adamw", "11.0 s"), ("sogclr, adamw", "21.0 s")):
        scores = FINALS[cell]
        spread = statistics.stdev(scores)
        expected = [
            (statistics.mean(scores) + 5, spread),
            (statistics.mean(scores) - 5, spread),
            (2 * statistics.mean(scores), 2 * spread),
            (statistics.mean(scores), spread),
        ]
        assert lines[cell][2:6] == [f"{mean:.1f} ({sd:.1f})" for mean, sd in expected]
        assert lines[cell][6:] == ["3", "1" if cell == "sogclr, adamw" else "2", seconds]
    assert lines["clip, adamw"][:2] == ["1e-4", "0.07"] and lines["sogclr, adamw"][:2] == ["3e-3", "0.07"]
    assert lines["clip, sgd"] == ["", "", "failed", *[""] * 3, "0", "", ""]
    assert lines["sogclr, sgd"] == ["", "", "stopped early", *[""] * 3, "0", "", ""]


def test_the_best_mean_of_every_column_is_bold_and_chance_stands_below(page: Element):
    table = section(page, "cells").all("table", "paper")[0]
    assert [plain(bold) for bold in table.all("b")] == ["27.0", "17.0", "44.0", "22.0"]
    assert table_rows(table)[-1] == ["chance", "", "", "", "0.3", "0.5", "", "0.4", "", "", ""]
    heads = {span.text: span.attributes["title"] for head in table.all("th") for span in head.all("span")}
    assert heads["image to text R@1"] == I2T and heads["zero-shot subgroup top-1"] == MORE
    assert heads["Average"] == f"{I2T} + {T2I}" and heads["lr"] == "optimizer.lr"
    assert "a metric is of: 331." in plain(section(page, "cells"))


def test_chance_of_a_mean_over_both_directions_is_the_mean_of_theirs(tmp_path: Path):
    mean = "retrieval/emoji/mean_recall@1"
    trials = [trial | {mean: trial["score"]} for trial in final_rows()]
    score = {"title": mean, "metrics": [mean], "mode": "max"}
    part = section(page_of(tmp_path, trials, score=score, metrics=[mean, I2T], sample_sizes={mean: 662, I2T: 331}), "cells")
    assert table_rows(part.all("table")[0])[-1] == ["chance", "", "", "", "0.3", "0.4", "", "", ""]
    assert "a metric is of: 662 (mean R@1); 331 (image to text R@1)." in plain(part)


def test_the_heat_map_shows_mean_interval_and_n_and_why_a_cell_is_empty(page: Element):
    maps = section(page, "grid").all("figure", "heat")
    assert [figure.all("figcaption")[0].text for figure in maps] == [
        "Average, %",
        "image to text R@1, %",
        "text to image R@1, %",
        "zero-shot subgroup top-1, %",
    ]
    cells = {cell.attributes["title"]: cell for cell in maps[0].all("td") if "title" in cell.attributes}
    assert list(cells) == ["clip, adamw", "sogclr, adamw", "clip, sgd", "sogclr, sgd"]  # columns are the first axis
    assert plain(cells["sogclr, adamw"]) == "22.0 21.0\u201323.0 n 3 \u2605 best"
    assert plain(cells["clip, adamw"]) == "17.0 15.0\u201319.0 n 3"  # the leader is ahead of it
    assert plain(cells["clip, sgd"]) == "failed" and plain(cells["sogclr, sgd"]) == "stopped early"
    assert plain(maps[3].all("td", "best")[0]).startswith("44.0")
    heat = {cell: float(re.findall(r"/ ([\d.]+)\)", cells[cell].attributes["style"])[0]) for cell in FINALS}
    assert heat["sogclr, adamw"] > heat["clip, adamw"]


def test_cells_level_with_the_leader_are_marked(tmp_path: Path):
    figure = section(page_of(tmp_path, final_rows(LEVEL)), "grid").all("figure", "heat")[0]
    assert [plain(cell) for cell in figure.all("td", "level")] == ["17.0 15.0\u201319.0 n 3 \u2248 level"]


def test_pairs_say_what_the_t_test_says(tmp_path: Path, page: Element):
    """t = 5 with 2 degrees of freedom: p = 1 - 5 / sqrt(27). In the second, t = 1: p = 1 - 1 / sqrt(3)."""
    tables = section(page, "pairs").all("table")
    assert [table_rows(table) for table in tables] == [[["clip, adamw", "5.0", "1.7", "3", "", "0.038", "0.038", "better"]]]
    level = section(page_of(tmp_path, final_rows(LEVEL)), "pairs")
    assert table_rows(level.all("table")[0]) == [["clip, adamw", "3.0", "5.2", "3", "", "0.42", "0.42", "within noise"]]


def test_all_pairs_are_there_where_there_are_more_than_the_leaders(tmp_path: Path):
    """clip, adamw and clip, sgd: differences 1, -2, 4, mean 1, sd 3. The three pairs' squared sds 27, 9 and 9 have the mean 15: t
    = sqrt(3 / 15), and with 4 degrees of freedom p = 0.68; by Holm no less than the pair before it, which has t = 1, 2 x 0.37."""
    leading, every = section(page_of(tmp_path, final_rows(FOUR)), "pairs").all("table")
    assert [line[0] for line in table_rows(leading)] == ["clip, adamw", "clip, sgd"]
    found = {(line[0], line[1]): line[2:] for line in table_rows(every)}
    assert len(found) == 3 and found["clip, adamw", "clip, sgd"] == ["1.0", "3.0", "3", "", "0.68", "0.75", "within noise"]


def test_a_leader_that_is_behind_on_shared_seeds_says_so(tmp_path: Path):
    finals = final_rows({"clip, adamw": [15.0, 17.0], "sogclr, adamw": [14.0, 15.0, 40.0]})
    page = page_of(tmp_path, finals)
    assert headline(page).startswith("sogclr, adamw leads")
    assert table_rows(section(page, "pairs").all("table")[0])[0][:4] == ["clip, adamw", "\u22121.5", "0.7", "2"]


def test_the_csv_files_hold_what_the_page_rounds(folder: Path):
    summary = pd.read_csv(folder / "summary.csv").set_index(["cell", "metric"])
    assert summary.loc[("sogclr, adamw", "score"), ["n", "mean", "sd", "rank"]].tolist() == [3, 22.0, 1.0, 1]
    assert summary.loc[("clip, adamw", MORE), ["n", "mean", "sd"]].tolist() == [3, 34.0, 4.0]
    assert summary.loc[("clip, sgd", "score"), "n"] == 0 and len(summary) == len(CELLS) * 4
    pairs = pd.read_csv(folder / "pairwise.csv")
    assert pairs.loc[0, ["better", "worse", "n", "difference"]].tolist() == ["sogclr, adamw", "clip, adamw", 3, 5.0]
    assert pairs.loc[0, "p"] == pytest.approx(1 - 5 / math.sqrt(27), abs=1e-12)  # all digits, not those of the page


def test_markdown_has_the_same_numbers(folder: Path, page: Element):
    text = (folder / "report.md").read_text()
    tables = markdown_tables(text)
    assert tables["Average, %"][2:] == [
        ["optimizer", "clip", "sogclr"],
        ["adamw", "17.0 (15.0\u201319.0) (n 3)", "22.0 (21.0\u201323.0) (n 3) (\u2605 best)"],
        ["sgd", "failed", "stopped early"],
    ]
    of_page = table_rows(section(page, "cells").all("table", "paper")[0])
    of_markdown = [[cell.replace("*", "") for cell in line] for line in tables["Cells"][2:]]
    for line, expected in zip(of_markdown, of_page, strict=True):
        assert [cell for cell in line if cell] == [cell for cell in expected if cell]
    assert all(len(line) == len(tables["Cells"][0]) for line in tables["Cells"])
    assert [cell for line in tables["Cells"] for cell in line if cell.startswith("**")] == [
        "**27.0** (1.0)",
        "**17.0** (1.0)",
        "**44.0** (2.0)",
        "**22.0** (1.0)",
    ]
    assert tables["Pairs"][2] == ["clip, adamw", "5.0", "1.7", "3", "", "0.038", "0.038", "better"]
    assert NAN_REASON in tables["Failures"][2][0] and "sogclr-adamw-p8" in tables["Failures"][2][1]
    assert "2 search trials ended early by the scheduler" in text and "0.0.1+abc" in text and "0123456789abcdef" in text
    assert "```\npython -m tuning sweeps/by-hand.yaml\n" in text and f"python -m tuning report '{folder}'" in text


# Failures, commands, data


def test_failures_are_listed_with_their_reason_and_stopped_trials_are_not_among_them(page: Element):
    part = section(page, "failures")
    assert table_rows(part.all("table")[0]) == [[NAN_REASON, "3: sogclr-adamw-p8, clip-sgd-p0, clip-sgd-p1"]]
    assert "2 search trials ended early by the scheduler (asha)" in plain(part)


def test_every_trial_stands_with_the_command_that_repeats_it(page: Element):
    trials = search_rows() + final_rows()
    lines = section(page, "again").all("table", "trials")[0].all("tr")[1:]
    assert [line.all("th")[0].text for line in lines] == [trial["trial"] for trial in trials]
    assert [line.all("code")[0].texts[0] for line in lines] == [trial["command"] for trial in trials]


def test_what_is_needed_to_do_it_again_is_on_the_page(page: Element, folder: Path):
    part = section(page, "again")
    commands = [pre.texts[0] for pre in part.all("pre")][:3]
    assert commands == [
        "python -m tuning sweeps/by-hand.yaml",
        "python -m tuning sweeps/by-hand.yaml 'seeds=[0,1,2,3,4,5]'",
        f"python -m tuning report '{folder}'",  # a folder with a space in its name
    ]
    for said in (
        "1,700 listed, 1,650 found, 1,643 kept",
        "too small 7",
        "0123456789abcdef" * 2,
        "CC0-1.0",
        "A. Painter & friends",
        "z80",
        "0.0.1+abc",
    ):
        assert said in plain(part)
    assert "low: 0.0001" in part.text  # the sweep file


def test_seeds_given_on_the_command_line_are_replaced(tmp_path: Path):
    page = page_of(tmp_path, final_rows(), command="python -m tuning s.yaml 'seeds=[0, 4]' epochs=3", seeds=[0, 4])
    assert "python -m tuning s.yaml epochs=3 'seeds=[0,4,1,2,3]'" in [pre.texts[0] for pre in page.all("pre")]


# Text of others, and files


def test_labels_and_reasons_are_text_and_never_markup(tmp_path: Path):
    cell = f"{NASTY}, adamw"
    trials = [row(cell, "search", i, 0, 10.0 + i) for i in range(9)] + [row(cell, "final", 8, s, 9.0 + s) for s in range(3)]
    trials += [row("clip, adamw", "final", 0, s, 8.0 - s, reason=NASTY, status="failed" if s else "finished") for s in range(3)]
    for trial in trials:
        trial["objective.name"] = NASTY if trial["cell"] == cell else "clip"
    page = page_of(
        tmp_path,
        trials,
        axes=[
            {"key": "objective.name", "title": NASTY, "labels": [NASTY, "clip"]},
            {"key": "optimizer.name", "title": "optimizer", "labels": ["adamw"]},
        ],
        cells=[{"cell": cell, "labels": [NASTY, "adamw"]}, {"cell": "clip, adamw", "labels": ["clip", "adamw"]}],
        name=NASTY,
    )
    assert not page.all("script") and cell in [e.text for e in page.all("span", "cell")]
    assert NASTY in page.all("title")[0].text and NASTY in section(page, "failures").text
    text = (tmp_path / "report.md").read_text()
    table = markdown_tables(text)["Cells"]
    assert all(len(line) == len(table[0]) for line in table)  # a bar in a label does not end a column
    assert "<script>" not in text and re.search(r"(?<!\\)[`]_", text) is None


def test_the_page_is_one_file_that_loads_nothing_and_has_no_script(page: Element, folder: Path):
    html = (folder / "report.html").read_text()
    assert not page.all("script") and "url(" not in html and "@import" not in html
    for element in page.all():
        for name in ("src", "href", "xlink:href"):
            assert re.match(r"#|data:", element.attributes.get(name, "#"))
        assert not [name for name in element.attributes if name.startswith("on")]
    assert "default-src 'none'" in next(m for m in page.all("meta") if "http-equiv" in m.attributes).attributes["content"]
    ids = [element.attributes["id"] for element in page.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids)) and {a.attributes["href"][1:] for a in page.all("a")} <= set(ids)


def test_it_needs_neither_ray_nor_torch_and_gives_the_same_files_again(folder: Path):
    names = ["report.html", "report.md", "summary.csv", "pairwise.csv"]
    before = {name: (folder / name).read_bytes() for name in names}
    code = (
        "import sys; from pathlib import Path; from tuning.reporting import write_report; write_report(Path(sys.argv[1])); "
        "sys.exit(str({'ray', 'torch'} & set(sys.modules)) if {'ray', 'torch'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {name: (folder / name).read_bytes() for name in names} == before
    assert not list(folder.glob("*.partial*"))


@pytest.mark.parametrize("name", ["sweep.json", "trials.parquet", "curves.parquet"])
def test_what_is_missing_or_broken_is_one_line(tmp_path: Path, name: str):
    with refused(f"{tmp_path / 'nowhere'}"):
        write_report(tmp_path / "nowhere")
    write(tmp_path, final_rows())
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    with refused(f"{tmp_path / name}", remedy="command"):
        write_report(tmp_path)
    (tmp_path / name).unlink()
    with refused(f"{tmp_path / name}", tmp_path):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_findings_are_counted_by_kind_and_those_of_the_best_are_in_words(tmp_path: Path):
    assert not [part for part in page_of(tmp_path / "none", final_rows()).all("section") if part.attributes["id"] == "findings"]
    trials = [
        trial | {"findings": "overfitting, idle input" if trial["seed"] else "idle input"}
        for trial in search_rows() + final_rows()
    ]
    for trial in trials:
        place = tmp_path / "some" / "trials" / trial["trial"]
        place.mkdir(parents=True)
        end(place, Outcome("finished", findings=[{"kind": "idle input", "evidence": trial["trial"], "advice": "Try it"}]))
    found = section(page_of(tmp_path / "some", trials), "findings")
    numbers = {kind: int(number) for kind, _, number in table_rows(found.all("table")[0])}
    assert numbers == {"idle input": len(trials), "overfitting": sum(trial["seed"] > 0 for trial in trials)}
    (block,) = found.all("div", "advice")
    leaders = [trial["trial"] for trial in final_rows() if trial["cell"] == "sogclr, adamw"]
    assert any(f"Idle input: {trial}. Try it." in plain(block) for trial in leaders)


def test_only_the_page_of_a_sweep_that_runs_is_read_again_by_the_browser(tmp_path: Path, folder: Path):
    reloads = []
    for page in (read(folder / "report.html"), page_of(tmp_path / "begun", search_rows(), **BEGUN)):
        reloads.append([meta for meta in page.all("meta") if meta.attributes.get("http-equiv") == "refresh"])
    assert not reloads[0] and len(reloads[1]) == 1
