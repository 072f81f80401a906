"""The comparison page, read the way a browser would, against results made by hand."""

import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from evaluation.class_sets import ELEVEN
from evaluation.metrics import TASKS
from evaluation.report import write_report
from evaluation.reporting.__main__ import main
from evaluation.reporting.render import write_files
from evaluation.results import Result
from tests.evaluation.results_by_hand import LINE, NASTY, of_every_task, result, zero_shot
from tests.patience import PATIENCE
from tests.training.test_report import Element, read
from tests.tuning.pages import plain, section, table_rows

MODELS = {"alpha": 60.0, "beta": 59.0, "gamma": 40.0}  # top-1; intervals are 2 to either side


def page_of(output: Path, results: list[Result]) -> Element:
    for made in results:
        made.write(output, TASKS[made.task])
    write_report(output)
    return read(output / "report.html")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Element:
    made = [each for model, top1 in MODELS.items() for each in of_every_task(model, top1)]
    # gamma lacks one set.
    made += [zero_shot("alpha", "cars", 30.0), zero_shot("beta", "cars", 50.0)]
    return page_of(tmp_path_factory.mktemp("results"), made)


def row(page: Element, name: str, within: str = "scores") -> Element:
    """The first row of a section whose head begins so."""
    lines = [line for table in section(page, within).all("table") for body in table.all("tbody") for line in body.all("tr")]
    return next(line for line in lines if plain(line.children[0]).startswith(name))


def cells(line: Element) -> list[str]:
    return [plain(cell) for cell in line.children[1:]]


def test_the_best_is_bold_and_what_its_interval_overlaps_is_within_noise(page: Element):
    pets = row(page, "pets")
    assert cells(pets) == ["60.0 58.0 to 62.0", "\u2248 59.0 57.0 to 61.0", "40.0 38.0 to 42.0", "10.0", "1,234"]
    assert [bool(cell.all("b")) for cell in pets.children[1:4]] == [True, False, False]
    cars = row(page, "cars")
    assert [bool(cell.all("b")) for cell in cars.children[1:4]] == [False, True, False]
    assert cells(cars)[0] == "30.0 28.0 to 32.0" and cells(cars)[2] == "\u2013"  # far behind; not measured


@pytest.mark.parametrize(("behind", "marked"), [(3.9, True), (4.0, True), (4.1, False)])
def test_intervals_that_touch_overlap(tmp_path: Path, behind: float, marked: bool):
    page = page_of(tmp_path, [zero_shot("a", "pets", 60.0), zero_shot("b", "pets", 60.0 - behind)])
    assert ("\u2248" in cells(row(page, "pets"))[1]) is marked
    clear = "all beyond noise" if not marked else "all within noise"
    assert plain(page.all("h1")[0]) == f"a is best in 1 of 1 comparison, {clear}"


def test_without_intervals_nothing_is_said_of_noise(tmp_path: Path):
    page = page_of(tmp_path, [zero_shot("a", "pets", 60.0, intervals={}), zero_shot("b", "pets", 59.9, intervals={})])
    assert cells(row(page, "pets"))[:2] == ["60.0", "59.9"]
    assert "1 of 1 comparison" in page.all("h1")[0].text and "beyond" not in page.all("h1")[0].text


def test_equals_are_both_best(tmp_path: Path):
    page = page_of(tmp_path, [zero_shot("a", "pets", 60.0), zero_shot("b", "pets", 60.0)])
    assert [bool(cell.all("b")) for cell in row(page, "pets").children[1:3]] == [True, True]
    assert plain(page.all("h1")[0]) == "No model is ahead: a and b are each best in 1 of 1 comparison"


def test_scores_on_different_data_are_not_compared(tmp_path: Path):
    other = zero_shot("b", "pets", 60.0, about={"data": {"fingerprint": "another"}})
    page = page_of(tmp_path, [zero_shot("a", "pets", 50.0), other, zero_shot("a", "cars", 50.0)])
    page_of(tmp_path, [zero_shot("b", "cars", 70.0, sample_sizes={"top1": 99})])
    page = read(tmp_path / "report.html")
    for name, reason in (("pets", "different data"), ("cars", "different numbers of items (1,234, 99)")):
        assert reason in row(page, name).text and "not comparable" in row(page, name).text
        assert not row(page, name).all("b")
    assert "not the same for all models" in section(page, "scored").text


def test_tasks_have_fingerprints_of_their_own(tmp_path: Path):
    made = [each for model in ("a", "b") for each in of_every_task(model, 60.0)]
    for each in made:
        each.about["data"]["fingerprint"] = f"rows of {each.task}"
    page = page_of(tmp_path, made)
    assert "not the same" not in section(page, "scored").text and "not comparable" not in page.text


def test_every_task_has_its_section_and_only_those_with_results(page: Element, tmp_path: Path):
    ids = [part.attributes["id"] for part in page.all("section")]
    own = ["zero-shot", "linear-probe", "few-shot", "retrieval", "sugarcrepe", "robustness", "corruption"]
    assert ids == ["scores", "bars", *own, "scored"] and len(own) == len(TASKS)
    links = [link.attributes["href"] for link in page.all("nav")[0].all("a")]
    assert sorted(links) == sorted(f"#{name}" for name in ids)
    titles = [plain(figure.all("figcaption")[0]) for figure in section(page, "bars").all("figure")]
    assert titles == [f"{info.title} {'percentage points' if 'robust' in info.title else '%'}" for info in TASKS.values()]
    one = page_of(tmp_path, [zero_shot("a", "pets", 60.0)])
    assert [part.attributes["id"] for part in one.all("section")] == ["scores", "bars", "zero-shot", "scored"]


def test_a_model_alone_is_compared_with_nobody(tmp_path: Path):
    page = page_of(tmp_path, of_every_task("alone", 60.0))
    assert plain(page.all("h1")[0]) == "alone: 7 main scores on 4 sets"
    assert not [b for table in page.all("table") for b in table.all("b")] and "\u2248" not in page.text


def test_what_others_wrote_is_text(page: Element):
    missed = section(page, "zero-shot").all("ol")[0]
    assert plain(missed.all("li")[0]) == "<b> 14.3 % of 7 cat & dog 71 %"
    assert NASTY in plain(section(page, "retrieval").all("div", "query")[0])
    assert not [e for e in page.all("img") if not e.attributes["src"].startswith("data:image/")]
    assert "A. Painter <a@example.org>" in plain(section(page, "scored"))


def test_nothing_is_loaded_and_nothing_runs(page: Element):
    assert not page.all("script") and not page.all("iframe") and not page.all("object")
    sources = [e.attributes[name] for e in page.all() for name in ("src", "srcset", "href", "data") if name in e.attributes]
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert not [e for e in page.all() for name in e.attributes if name.startswith("on")]
    policy = [e for e in page.all("meta") if e.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0].attributes["content"].startswith("default-src 'none'")


def test_models_keep_their_colour(page: Element):
    chips = [li.all("i", "chip")[0].attributes["class"] for li in page.all("ul", "legend")[0].all("li")]
    assert chips == ["chip m0", "chip m1", "chip m2"]
    for part in ("bars", "zero-shot", "few-shot", "corruption", "robustness"):
        for shape in section(page, part).all("svg")[0].all():
            title = plain(shape)
            for i, name in enumerate(MODELS):
                if title.startswith(name) and shape.tag in ("circle", "path") and "together" not in shape.attributes["class"]:
                    assert f"m{i}" in shape.attributes["class"].split(), (part, title)


def test_zero_shot_tells_wording_and_confidence(page: Element):
    part = section(page, "zero-shot")
    _, pets = part.all("details", "set")
    assert plain(pets.all("summary")[0]) == "pets alpha 60.0 beta 59.0 gamma 40.0"
    assert [line[0] for line in table_rows(pets.all("table")[0])] == ["top-1", "top-5", "mean per class"]
    strip, *reliability = pets.all("svg")
    assert len(strip.all("circle")) == 2 * len(MODELS) and "<i>{}</i>" in strip.all("circle")[1].text
    assert len(reliability) == len(MODELS) and len(reliability[0].all("circle")) == 1  # one bin has images
    assert "calibration error 20.0 points; 20.0 points too sure on average; scale 100" in plain(pets)
    assert "Classes without a test image, which no score is about: unseen & unsung." in plain(pets)
    assert "alpha 57.0 to 59.0, sd 1.4" in plain(pets)


def test_probes_flag_what_makes_them_doubtful(page: Element):
    flags = [plain(flag) for flag in section(page, "linear-probe").all("small", "flag")]
    assert flags[0] == "on embeddings: the model offers no features before the joint space"
    assert flags[1:3] == ["the last fit did not converge", "best at the high end of the search"]
    assert flags[3] == "1 fit of the search did not converge"
    said = plain(section(page, "linear-probe"))
    assert "Classes without a training image, whose test images are left out: yeti." in said
    assert len(section(page, "linear-probe").all("circle", "chosen")) == len(MODELS)


def test_few_shot_begins_at_zero_shot_and_shows_the_spread(page: Element):
    part = section(page, "few-shot")
    assert table_rows(part.all("table")[0])[0] == ["0, zero-shot", "60.0", "59.0", "40.0"]
    assert table_rows(part.all("table")[0])[2] == ["4", "58.0 sd 1.5", "57.0 sd 1.5", "38.0 sd 1.5"]
    assert len(part.all("path", "error")) == len(MODELS)  # one seed has no spread
    said = [plain(flag) for flag in part.all("p", "flag")]
    assert "1 fit with 1 a class did not converge" in said  # of all models, so it is said once


def test_retrieval_shows_the_same_caption_of_all_models(page: Element):
    part = section(page, "retrieval")
    (search,) = part.all("li", "search")
    assert [plain(who) for who in search.all("div", "who")] == [f"{name}: the right one found first" for name in MODELS]
    assert [len(find.all("div", "hit")) for find in search.all("div", "find")] == [1, 1, 1]
    assert len(search.all("span", "lost")) == len(MODELS)  # an image from elsewhere is not loaded
    assert [plain(item) for card in part.all("li", "card") for item in card.all("li")] == [f"1 said by {name}" for name in MODELS]
    assert cells(row(page, "median rank, image to text", "retrieval"))[:3] == ["2.5"] * 3
    assert cells(row(page, "median rank, text to image", "retrieval"))[:3] == ["none"] * 3
    assert cells(row(page, "modality gap", "retrieval"))[:3] == ["0.80"] * 3


def test_corruptions_begin_with_the_clean_score(page: Element):
    part = section(page, "corruption")
    assert [plain(figure.all("figcaption")[0]) for figure in part.all("figure")] == ["blur", "noise"]
    assert len(part.all("svg")[0].all("path", "line")[0].attributes["d"].split("L")) == 3  # 0, 1 and 5
    assert table_rows(part.all("table")[0])[0] == ["alpha", "60.0", "45.0", "75.0 %"]


def test_sugarcrepe_stands_by_group_beside_chance(page: Element):
    heads = [plain(line) for line in section(page, "sugarcrepe").all("tr", "group")]
    assert heads == ["All subsets", "Replace", "Swap", "Only the order of words differs"]
    assert cells(row(page, "swap att, order only", "sugarcrepe"))[-2:] == ["50.0", "1,234"]


def test_extrapolation_is_flagged_and_the_line_drawn(page: Element):
    part = section(page, "robustness")
    assert plain(part.all("p", "flag")[0]).startswith("gamma: accuracy without the shift is outside")
    assert cells(row(page, "imagenet_v2"))[:3] == [
        "2.0 0.0 to 4.0",
        "\u2248 1.0 \u22121.0 to 3.0",
        "\u221218.0 \u221220.0 to \u221216.0",
    ]
    figure = part.all("svg")[0]
    numbers = [e for e in figure.all("text") if re.fullmatch(r"[\d.]+", e.text)]
    across = {float(e.text): float(e.attributes["x"]) for e in numbers if e.attributes["text-anchor"] == "middle"}
    up = {float(e.text): float(e.attributes["y"]) - 3.5 for e in numbers if e.attributes["text-anchor"] == "end"}

    def logit(percent: float) -> float:
        return math.log(percent / (100 - percent))

    def place(ticks: dict[float, float], at: float) -> float:
        (a, pixel_a), (b, pixel_b) = sorted(ticks.items())[0], sorted(ticks.items())[-1]
        return pixel_a + (at - logit(a)) / (logit(b) - logit(a)) * (pixel_b - pixel_a)

    beyond, fitted = (re.findall(r"(-?[\d.]+) (-?[\d.]+)", path.attributes["d"]) for path in part.all("path", "fit"))
    for (x, y), reference in zip([*beyond, *fitted], (40.0, 56.5, 56.5, 84.7), strict=True):  # 40 is gamma's
        assert float(x) == pytest.approx(place(across, logit(reference)), abs=0.3)
        assert float(y) == pytest.approx(place(up, LINE["slope"] * logit(reference) + LINE["intercept"]), abs=0.3)


def test_the_average_of_eleven_needs_all_eleven(tmp_path: Path):
    values = {name: 40.0 + i for i, name in enumerate(ELEVEN)}
    made = [zero_shot(model, name, value + more) for name, value in values.items() for model, more in (("a", 0.0), ("b", 2.0))]
    page = page_of(tmp_path, made[:-1])
    assert cells(row(page, "average of eleven sets"))[:2] == ["45.0", "\u2013"]
    page = page_of(tmp_path, made[-1:])
    assert cells(row(page, "average of eleven sets"))[:2] == ["45.0", "47.0"]
    assert "11 of 11 comparisons" in page.all("h1")[0].text  # it is none of its own


def test_numbers_that_are_none_are_missing(tmp_path: Path):
    broken = zero_shot("a", "pets", math.nan)
    broken.details["calibration"]["error"] = math.nan
    broken.details["sensitivity"]["scores"] = [math.nan, math.inf]
    page = page_of(
        tmp_path, [broken, zero_shot("b", "pets", 50.0), result("a", "coco", "zeroshot_retrieval", "mean_recall@1", {})]
    )
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"\b(nan|inf|None|Infinity)\b", re.sub("<style>.*</style>|'none'", "", html, flags=re.S), re.I)
    assert cells(row(page, "pets"))[0] == "\u2013"


def test_missing_details_are_missing_parts(tmp_path: Path):
    bare = [replace(each, details={}, about={}, intervals={}, baselines={}, sample_sizes={}) for each in of_every_task("a", 60.0)]
    page = page_of(tmp_path, bare)
    assert len(page.all("section")) == 3 + len(TASKS) and not section(page, "zero-shot").all("svg")


def test_more_models_than_colours_stay_apart(tmp_path: Path):
    page = page_of(tmp_path, [zero_shot(f"m{i:02}", "pets", 50.0 + i) for i in range(10)])
    marks = [li.all("i", "chip")[0].attributes["class"] for li in page.all("ul", "legend")[0].all("li")]
    assert len(set(marks)) == 10 and marks[8] == "chip m0 again"


def test_the_csv_has_every_score(tmp_path: Path):
    page_of(tmp_path, [*of_every_task("alpha", 60.0), zero_shot("b,c", "pets", 50.0)])
    table = pd.read_csv(tmp_path / "results.csv")
    assert len(table) == 3 + 1 + 2 + 6 + 9 + 4 + 5 + 3
    first = table[(table.model == "b,c") & (table.score == "top1")].iloc[0].to_dict()
    expected = {"dataset": "pets", "task": "zeroshot_classification", "value": 50.0, "low": 48.0, "high": 52.0, "chance": 10.0}
    assert expected.items() <= first.items() and first["n"] == 1234 and bool(first["main"])
    assert table.groupby(["model", "dataset", "task"]).main.sum().eq(1).all()
    few = table[table.task == "few_shot"]
    assert few.low.isna().all() and few.value.tolist() == [52.0, 58.0]


def test_the_markdown_has_the_main_table(tmp_path: Path):
    page_of(tmp_path, [zero_shot("a", "pets", 60.0), zero_shot("b|c", "pets", 59.0), zero_shot("a", "cars", 1.0)])
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    assert "| **Zero-shot classification, %** |  |  |  |  |" in lines
    assert "| pets (top-1) | **60.0** (58.0 to 62.0) | \u224859.0 (57.0 to 61.0) | 10.0 | 1,234 |" in lines
    assert "| cars (top-1) | 1.0 (\u22121.0 to 3.0) | \u2013 | 10.0 | 1,234 |" in lines
    assert any("b\\|c" in line for line in lines)


def test_the_command_writes_it_again_without_ray_and_torch(tmp_path: Path):
    zero_shot("a", "pets", 60.0).write(tmp_path, TASKS["zeroshot_classification"])
    code = (
        "import sys; from evaluation.reporting.__main__ import main; status = main(sys.argv[1:]); "
        "sys.exit(status or sum(name in sys.modules for name in ('ray', 'torch')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, f"report: {tmp_path / 'report.html'}\n")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "report.html", "report.md", "results.csv"}


def test_a_folder_without_results_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err
        == f"error: output: there is no result in {tmp_path}; run python -m evaluation CONFIG.yaml first\n"
    )


def test_a_page_that_cannot_be_written_leaves_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()  # as a disk that has no room, it lets nothing be put there
    with pytest.raises(OSError, match=r"report\.html"):
        write_files(tmp_path, {"report.html": "content"})
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
