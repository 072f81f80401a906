"""The run's page, read the way a browser would, against a run folder and a prepared dataset made by hand. No Ray."""

import base64
import io
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from evaluation.metrics import mean_recalls
from evaluation.suite import HeldOut, SuiteSettings, held_out, score
from pipelines.dataset.prepared import FORMAT_VERSION, Prepared
from tests.patience import PATIENCE
from training.held_out import HeldOutEmbeddings, keep_held_out
from training.report import main, write_report

NASTY = "<script>alert('x')</script> & \"quotes\" <img src=http://example.org/x.png>"
ATTRIBUTION = "Squares by A. Painter & <b>friends</b>, https://example.org/squares"
TRAIN = 3  # the first so many samples are trained on, so that held-out positions and sample ids differ
HEX = "0123456789abcdef"


def colour(sample_id: int) -> tuple[int, int, int]:
    """Every image has one colour of its own."""
    return (20 * sample_id % 256, (70 + 90 * sample_id) % 256, (160 + 37 * sample_id) % 256)


def prepare_by_hand(folder: Path, captions: list[list[str]], labels: bool = True) -> Prepared:
    """Two shards and a manifest; `captions` are of the held-out samples."""
    folder.mkdir(parents=True)
    every = [[f"trained on, {i}"] for i in range(TRAIN)] + captions
    text_ids: dict[str, int] = {}
    rows = []
    for sample_id, texts in enumerate(every):
        file = io.BytesIO()
        Image.new("RGB", (48, 24 + 24 * (sample_id % 2)), colour(sample_id)).save(file, "PNG")
        (folder / f"{sample_id}.png").write_bytes(file.getvalue())
        rows.append(
            {
                "sample_id": sample_id,
                "image_id": sample_id,
                "text_id": [text_ids.setdefault(text, len(text_ids)) for text in texts],
                "key": f"k{sample_id}",
                "group": f"g{sample_id}",
                "split": "train" if sample_id < TRAIN else "test",
                "captions": texts,
                "file": f"{sample_id}.png",
                "start": 0,
                "length": -1,
                "column": "",
            }
            | ({"label_shape": "<i>round</i>" if sample_id % 3 else "square"} if labels else {})
        )
    half = len(rows) // 2
    shards = []
    for name, part in (("a.parquet", rows[:half]), ("b.parquet", rows[half:])):
        pq.write_table(pa.Table.from_pylist(part), folder / name)
        splits = [row["split"] for row in part]
        shards.append({"file": name, "rows": len(part), "splits": {s: splits.count(s) for s in ("train", "test")}})
    found = [row["label_shape"] for row in rows] if labels else []
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": "squares",
        "num_samples": len(rows),
        "num_images": len(rows),
        "num_texts": len(text_ids),
        "splits": {"train": TRAIN, "test": len(captions)},
        "split_shares": {"test": 0.5},
        "labels": {"shape": {name: found.count(name) for name in sorted(set(found))}} if labels else {},
        "image": {"size": 24, "format": "png", "background": "white"},
        "fingerprint": HEX * 2,
        "counts": {
            "listed": len(rows) + 2007,
            "found": len(rows) + 1007,
            "read": len(rows) + 1007,
            "kept": len(rows),
            "rejected": {"too_small": 7, "empty_caption": 1000},
        },
        "captions": {"chosen": 1009, "shuffled": 1008},
        "licence": "CC0-1.0",
        "attribution": ATTRIBUTION,
        "config": {"source": {"name": "folder", "path": "squares"}},
        "created": "2026-01-02T03:04:05Z",
        "tables": False,
        "shards": shards,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Prepared.open(folder)


def run_by_hand(
    folder: Path, prepared: Prepared, lines: int = 8, seed: int = 0
) -> tuple[dict[str, Any], HeldOut, dict[str, np.ndarray]]:
    """A finished run's folder: what `training.run` leaves, with embeddings that are half right."""
    settings = SuiteSettings(templates=("a {}",))
    data = held_out(prepared, settings)
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(len(data.sample_ids), 6)).astype(np.float32)
    texts = images[data.image_of_text] + 1.2 * rng.normal(size=(len(data.texts), 6)).astype(np.float32)
    rows = {"images": images, "texts": texts, "prompts": rng.normal(size=(len(data.prompts), 6)).astype(np.float32)}
    rows = {name: array / np.linalg.norm(array, axis=1, keepdims=True) for name, array in rows.items()}
    scores = score(data, **rows)
    keep_held_out(folder, 1234, [("held_out.npz", data, HeldOutEmbeddings(**rows), scores)])
    config = {
        "name": folder.name,
        "storage": "runs",
        "data": {"path": "data/squares"},
        "image_tower": {"name": "timm", "model": "net_<small>", "weights": "hub", "mode": "frozen"},
        "text_tower": {"name": "bag", "mode": "trainable", "width": 32},
        "objective": {"name": "clip", "temperature": 0.0625},
        "global_batch_size": 24,
        "evaluation": settings.model_dump(mode="json") | {"every_epochs": 1, "batch_size": 8},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    history = []
    for i in range(1, lines + 1):
        line = {"step": i, "epoch": i / 2, "samples": 24 * i, "loss": 3 / i, "lr": 1e-3, "grad_norm": 1.0, "temperature": 0.05}
        line |= {
            "samples_per_second": 1000.0,
            "data_wait": 0.125,
            "peak_memory_gib": 0.5,
            "objective_of_its_own": 2.0,
            "workers": 2,
            "time": 0.0,
        }
        history.append(line | (scores.metrics if i % 2 == 0 else {}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    result = {
        "name": folder.name,
        "step": 1234,
        "epochs": 17,
        "samples": 5678,
        "loss": 0.5,
        "metrics": scores.metrics | mean_recalls(scores.metrics) | {"probe/squares/top1": 43.21},
        "baselines": scores.baselines,
        "sample_sizes": scores.sample_sizes | {"probe/squares/top1": 77},
        "dataset": {
            "name": prepared.name,
            "path": str(prepared.path),
            "fingerprint": prepared.fingerprint,
            "train_samples": TRAIN,
            "held_out_samples": len(data.sample_ids),
            "split_seed": None,
            "counts": prepared.manifest["counts"] | {"unusable": {"truncated": 3}},
            "licence": prepared.manifest["licence"],
            "attribution": prepared.manifest["attribution"],
        },
        "seconds": {"start": 5.0, "training": 98.0},
        "versions": {"python": "3.x", "raylign": "0.0.1+abc", "ray": "2.y"},
        "machine": {"cpus": 2, "processor": "z80", "workers": 2, "device": "CPU"},
        "seed": 41,
    }
    (folder / "result.json").write_text(json.dumps(result))
    return result, data, rows


@dataclass
class Element:
    """A node of the page."""

    tag: str
    attributes: dict[str, str]
    children: list["Element"] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # own and inner, in order

    def all(self, tag: str = "", name: str = "") -> list["Element"]:
        """Nodes inside by tag and by class, in order."""
        found = []
        for child in self.children:
            if (not tag or child.tag == tag) and (not name or name in child.attributes.get("class", "").split()):
                found.append(child)
            found += child.all(tag, name)
        return found

    @property
    def text(self) -> str:
        """What a reader reads, with single spaces."""
        return " ".join(" ".join(self.texts).split())


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        if tag not in ("meta", "link", "img", "br"):
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open[-1].tag != "style":
            for element in self._open:
                element.texts.append(data)


def read(path: Path) -> Element:
    """Parse a page; every element must be closed where it should be."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert len(reader._open) == 1
    return reader.root


@dataclass
class Made:
    """A page and what it was made of."""

    run: Path
    prepared: Prepared
    result: dict[str, Any]
    data: HeldOut
    rows: dict[str, np.ndarray]
    page: Element


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """23 held-out images: one with two captions, two with the same one, one with HTML in it."""
    folder = tmp_path_factory.mktemp("report")
    captions = [[f"square number {i}"] for i in range(23)]
    captions[0], captions[4], captions[9], captions[11] = [NASTY], ["shared", "four"], ["twice"], ["twice"]
    prepared = prepare_by_hand(folder / "data", captions)
    result, data, rows = run_by_hand(folder / "runs" / "tried", prepared)
    write_report(folder / "runs" / "tried", result, data)
    return Made(folder / "runs" / "tried", prepared, result, data, rows, read(folder / "runs" / "tried" / "report.html"))


def sample_of(thumbnail: Element) -> int:
    """Which sample a thumbnail shows, told by its pixels."""
    kind, _, data = thumbnail.attributes["src"].partition(";base64,")
    assert kind == "data:image/webp"
    image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    assert max(image.size) <= 128
    pixel = image.getpixel((image.width // 2, image.height // 2))
    distances = [sum(abs(a - b) for a, b in zip(pixel, colour(i), strict=True)) for i in range(26)]
    assert sorted(distances)[0] < 12 < sorted(distances)[1]
    return int(np.argmin(distances))


def test_the_page_loads_nothing_and_runs_nothing(made: Made):
    for element in made.page.all():
        assert element.tag not in ("script", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in element.attributes)
        for name in ("src", "srcset", "href", "xlink:href", "data", "poster", "background"):
            assert element.attributes.get(name, "#").startswith(("#", "data:")), element
        assert "url(" not in element.attributes.get("style", "").replace("url(#", "")
    text = (made.run / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text and "@font-face" not in text
    policy = [e for e in made.page.all("meta") if e.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0].attributes["content"].startswith("default-src 'none'")


def test_ids_are_unique_and_every_reference_has_its_target(made: Made):
    ids = [element.attributes["id"] for element in made.page.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    wanted = {element.attributes["href"][1:] for element in made.page.all() if element.attributes.get("href", "").startswith("#")}
    wanted |= {e.attributes["clip-path"][5:-1] for e in made.page.all() if e.attributes.get("clip-path", "").startswith("url(#")}
    assert len(wanted) >= 5 and wanted <= set(ids)


def test_the_head_says_what_was_trained_on_what_and_the_score_beside_chance(made: Made):
    header = made.page.all("header")[0].text
    for said in ("clip", "3 image-text pairs of squares", "23 held-out pairs", "17 epochs", "1,234 steps of 24", "2 workers"):
        assert said in header
    for said in ("seed 41", "1 min 43 s", "net_<small> (frozen)", "bag from random weights (trainable)"):
        assert said in header
    metrics, base = made.result["metrics"], made.result["baselines"]
    ways = [f"retrieval/squares/{way}_recall@1" for way in ("image_to_text", "text_to_image")]
    value, chance = (sum(values) / 2 for values in ([metrics[w] for w in ways], [base[w]["chance"] for w in ways]))
    headline = made.page.all("h1")[0].text.replace("\xa0", " ")
    assert f"{value:.1f} %" in headline and f"{chance:.1f} %" in headline


def test_what_makes_scores_hollow_stands_at_the_top(tmp_path: Path):
    """Equal captions, a run that is all warm-up, and a direction that its mean with the other hides."""
    prepared = prepare_by_hand(tmp_path / "data", [[f"square number {i}"] for i in range(23)])
    repeats = {"rows": 26, "captions": 20, "groups": 20, "commonest": "a <b>photo</b>", "with_commonest": 7, "largest_group": 7}
    manifest = prepared.manifest | {"repeats": repeats}
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    result, data, _ = run_by_hand(tmp_path / "runs" / "tried", prepared)
    config = yaml.safe_load((tmp_path / "runs" / "tried" / "config.yaml").read_text())
    config["schedule"] = {"name": "cosine", "warmup_steps": 2000}
    (tmp_path / "runs" / "tried" / "config.yaml").write_text(yaml.safe_dump(config))
    path = "retrieval/squares/image_to_text_recall@1"
    result["metrics"] |= {path: result["baselines"][path]["chance"] / 2, path.replace("image_to_text", "text_to_image"): 90.0}
    write_report(tmp_path / "runs" / "tried", result, data)
    header = read(tmp_path / "runs" / "tried" / "report.html").all("header")[0]
    warnings = [element.text for element in header.all("p") if element.attributes.get("role") == "note"]
    assert len(warnings) == 2 and "schedule.warmup_steps: 2,000 of 1,234 steps" in warnings[0]
    assert "7 of 26 rows (27%)" in warnings[1] and "'a <b>photo</b>'" in warnings[1]
    headline = header.all("h1")[0].text
    assert "image to text" in headline and "text to image" not in headline


def test_a_page_without_such_things_warns_of_nothing(made: Made):
    assert not [element for element in made.page.all("p") if element.attributes.get("role") == "note"]


def test_every_metric_stands_with_chance_largest_class_and_n(made: Made):
    rows = {
        row.attributes["title"]: [cell.text for cell in row.all("td")] for row in made.page.all("tr") if "title" in row.attributes
    }
    assert rows.keys() == made.result["metrics"].keys()
    for path, value in made.result["metrics"].items():
        shown, _, chance, largest, n = rows[path]
        assert shown == f"{value:.1f}"
        if path in made.result["baselines"]:
            base = made.result["baselines"][path]
            assert chance == f"{base['chance']:.1f}"
            assert largest == (f"{base['largest_class']:.1f}" if "largest_class" in base else "")
            assert n == str(made.result["sample_sizes"][path])
    assert rows["retrieval/squares/text_to_image_recall@5"][-1] == "24"
    assert rows["retrieval/squares/mean_recall@1"][-1] == "23 + 24"
    assert rows["probe/squares/top1"] == ["43.2", "", "", "", "77"]  # of a kind that the page does not know
    assert "seed 41" in next(s for s in made.page.all("section") if s.attributes["id"] == "scores").text


def test_data_and_its_attribution_are_on_the_page(made: Made):
    section = next(s for s in made.page.all("section") if s.attributes["id"] == "data").text
    for said in (ATTRIBUTION, "CC0-1.0", HEX * 2, "1,033", "too small", "empty caption 1,000", "26", "shuffled on purpose 1,008"):
        assert said in section
    images = next(s for s in made.page.all("section") if s.attributes["id"] == "images").text
    assert ATTRIBUTION in images and "CC0-1.0" in images


def test_what_is_needed_to_do_it_again_is_on_the_page(made: Made):
    section = next(s for s in made.page.all("section") if s.attributes["id"] == "again").text
    for said in (
        "python -m training runs/tried/config.yaml",
        "temperature: 0.0625",
        "path: squares",
        "0.0.1+abc",
        "z80",
        "1 min 38 s",
    ):
        assert said in section


def test_captions_are_text_and_never_markup(made: Made):
    assert not made.page.all("script") and not made.page.all("b", "x")
    assert NASTY in [query.text for query in made.page.all("div", "query")]
    assert not [image for image in made.page.all("img") if "example.org" in image.attributes["src"]]
    assert NASTY in [image.attributes["alt"] for image in made.page.all("img")]
    assert "net_<small>" in made.page.all("header")[0].text


def test_images_found_for_captions_are_those_that_retrieval_finds(made: Made):
    searches = made.page.all("li", "search")
    assert len(searches) == 10
    scores = made.rows["texts"] @ made.rows["images"].T
    outcomes = set()
    for search in searches:
        caption = search.all("div", "query")[0].text
        t = made.data.texts.index(caption)  # equal captions are not spread to in this split
        best = np.argsort(-scores[t])[:5]
        right = {int(made.data.image_of_text[i]) for i, text in enumerate(made.data.texts) if text == caption}
        shown = search.all("div", "slot")
        assert [sample_of(slot.all("img")[0]) for slot in shown[:5]] == [TRAIN + i for i in best]
        captions = [made.data.texts[list(made.data.image_of_text).index(i)] for i in best]
        assert [slot.all("img")[0].attributes["alt"] for slot in shown[:5]] == captions
        hits = [i in right for i in best]
        assert ["hit" in slot.attributes["class"].split() for slot in shown[:5]] == hits
        assert ["\u2713 right" in slot.text for slot in shown[:5]] == hits  # said in words, not by colour alone
        answers = search.all("div", "answer")
        place = 1 + min(int((scores[t] > scores[t][i]).sum()) for i in right)
        if any(hits):
            assert not answers and len(shown) == 5
        else:
            assert sample_of(answers[0].all("img")[0]) - TRAIN in right
            assert re.search(r"comes (\d+)(st|nd|rd|th) of 23$", search.all("span", "verdict")[0].text)[1] == str(place)
        outcomes.add(any(hits))
    assert outcomes == {True, False}  # else half of this test tested nothing


def test_captions_found_for_images_are_those_that_retrieval_finds(made: Made):
    cards = made.page.all("li", "card")
    assert len(cards) == 10
    scores = made.rows["images"] @ made.rows["texts"].T
    outcomes = set()
    for card in cards:
        image = sample_of(card.children[0]) - TRAIN
        own = [text for text, i in zip(made.data.texts, made.data.image_of_text, strict=True) if i == image]
        best = [made.data.texts[t] for t in np.argsort(-scores[image])[:5]]
        items = card.all("li")
        assert [item.all("span", "clamp")[0].attributes["title"] for item in items] == best
        hits = [text in own for text in best]
        assert ["hit" in item.attributes.get("class", "").split() for item in items] == hits
        assert ["\u2713" in item.text for item in items] == hits
        answers = card.all("p", "answer")
        assert bool(answers) is not any(hits)
        if answers:
            assert "; ".join(own) in answers[0].text
        outcomes.add(any(hits))
    assert outcomes == {True, False}


def test_equal_captions_are_right_for_each_others_images(tmp_path: Path):
    prepared = prepare_by_hand(tmp_path / "data", [["twice"], ["twice"], ["once"]])
    result, data, _ = run_by_hand(tmp_path / "run", prepared)
    write_report(tmp_path / "run", result, data)
    for search in read(tmp_path / "run" / "report.html").all("li", "search"):
        expected = 2 if search.all("div", "query")[0].text == "twice" else 1
        assert len(search.all("div", "hit")) == expected


def test_skipped_steps_are_seen(tmp_path: Path):
    """In the first sentence, and as gaps of the loss's curve."""
    prepared = prepare_by_hand(tmp_path / "data", [["one"], ["two"], ["three"]])
    result, data, _ = run_by_hand(tmp_path / "run", prepared, lines=4)
    history = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    del history[-1]["loss"]
    lines = [json.dumps(line | {"skipped": int("loss" not in line)}) + "\n" for line in history]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines))
    for skipped in (0, 1234):
        write_report(tmp_path / "run", result | {"skipped": skipped}, data)
        page = read(tmp_path / "run" / "report.html")
        assert ("1,234 of them skipped" in page.text) == (skipped > 0)
    about = {figure.all("figcaption")[0].texts[0]: figure.all("svg")[0].attributes["aria-label"] for figure in page.all("figure")}
    assert "from 3 to 1" in about["Training loss"] and "from 0 to 1" in about["Skipped steps"]


def test_a_small_split_without_labels_shows_as_many_as_there_are(tmp_path: Path):
    prepared = prepare_by_hand(tmp_path / "data", [["one"], ["two"], ["three"]], labels=False)
    result, data, _ = run_by_hand(tmp_path / "run", prepared, lines=1)  # not one evaluation in the history
    write_report(tmp_path / "run", result, data)
    page = read(tmp_path / "run" / "report.html")
    assert [query.text for query in page.all("div", "query")] == ["one", "two", "three"]
    assert [len(search.all("div", "slot")) for search in page.all("li", "search")] == [3, 3, 3]
    assert [len(card.all("li")) for card in page.all("li", "card")] == [3, 3, 3]
    assert "Zero-shot" not in page.text


def test_the_curves_tell_what_they_show(made: Made):
    figures = {figure.all("figcaption")[0].texts[0]: figure.all("svg")[0] for figure in made.page.all("figure")}
    about = {title: svg.attributes["aria-label"] for title, svg in figures.items()}
    assert "from 3 to 0.375" in about["Training loss"]
    for title in ("Recall, image to text", "Recall, text to image"):
        assert all(f"R@{k} from" in about[title] for k in (1, 5, 10))
        value = made.result["metrics"][f"retrieval/squares/{title[8:].replace(' ', '_')}_recall@10"]
        assert f"R@10 {value:.1f}" in figures[title].text and "epoch" in figures[title].text
    assert "from 12.5 to 12.5" in about["Waiting for data"]
    assert {"Zero-shot, shape", "Learning rate", "Temperature", "Norm of the gradient", "Pairs per second"} <= about.keys()
    assert "objective_of_its_own" in about  # what an objective reports needs no change here


def test_a_long_run_does_not_make_a_heavy_page(tmp_path: Path):
    prepared = prepare_by_hand(tmp_path / "data", [["one"], ["two"]])
    result, data, _ = run_by_hand(tmp_path / "run", prepared, lines=20_000)
    write_report(tmp_path / "run", result, data)
    assert (tmp_path / "run" / "report.html").stat().st_size < 1_000_000


def titles(page: Element) -> list[str]:
    return [figure.all("figcaption")[0].texts[0] for figure in page.all("figure")]


def test_numbers_of_workers_are_told_where_there_were_several(made: Made, tmp_path: Path):
    assert ", then" not in made.page.text and "workers" not in {title.lower() for title in titles(made.page)}
    prepared = prepare_by_hand(tmp_path / "data", [["one"], ["two"]])
    result, data, _ = run_by_hand(tmp_path / "run", prepared)
    result["machine"] |= {"workers": 2, "worker_history": [1, 3, 2]}
    history = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    changing = [
        json.dumps(line | {"workers": workers}) + "\n" for line, workers in zip(history, (1, 1, 3, 3, 3, 2, 2, 2), strict=True)
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(changing))
    result["history"] = {"sessions": 4321, "redone_steps": 8765, "worker_hours": 76.5, "gpu_hours": 54.3}
    write_report(tmp_path / "run", result, data)
    page = read(tmp_path / "run" / "report.html")
    assert page.text.count("1, then 3, then 2") == 2 and "Workers" in titles(page)
    assert all(figure in page.text for figure in ("4,321", "8,765", "76.5", "54.3"))


def test_restarts_are_told_where_there_were_some(made: Made, tmp_path: Path):
    assert "Restarts" not in made.page.text
    prepared = prepare_by_hand(tmp_path / "data", [["one"], ["two"]])
    result, data, _ = run_by_hand(tmp_path / "run", prepared)
    before = {"time": 86400.0, "workers": {"1": "Lost <i>it</i>"}}  # as an earlier version wrote it
    now = {"time": 0.0, "cause": "worker 0: its <b>node</b> was lost", "workers": {"0": "-", "1": "Connection closed by peer"}}
    (tmp_path / "run" / "restarts.jsonl").write_text(f"{json.dumps(now)}\n{json.dumps(before)}\n")
    write_report(tmp_path / "run", result, data)
    text = read(tmp_path / "run" / "report.html").text
    assert "1970-01-02 00:00:00 UTC" in text and "worker 1: Lost <i>it</i>" in text
    assert "worker 0: its <b>node</b> was lost" in text and "Connection closed" not in text


def test_the_same_page_comes_from_disk_alone_without_ray(made: Made):
    before = (made.run / "report.html").read_bytes()
    (made.run / "report.html").unlink()
    code = "import sys; from training.report import main; code = main(sys.argv[1:]); sys.exit(code or 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(made.run)], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert (made.run / "report.html").read_bytes() == before
    assert str(made.run / "report.html") in done.stdout
    assert not list(made.run.glob("*.partial*"))


def test_data_that_moved_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_by_hand(tmp_path / "run", prepare_by_hand(tmp_path / "data", [["one"], ["two"]]))
    (tmp_path / "data").rename(tmp_path / "moved")
    assert main([str(tmp_path / "run")]) == 2
    assert one_line(capsys).startswith("error: data.path: ")
    assert main([str(tmp_path / "run"), "--data", str(tmp_path / "moved")]) == 0
    assert (tmp_path / "run" / "report.html").exists()


def test_a_missing_run_is_one_line_and_exit_code_2(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "training.report", str(tmp_path / "nowhere")], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and str(tmp_path / "nowhere") in done.stderr


@pytest.mark.parametrize("missing", ["result.json", "config.yaml", "held_out.json"])
def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str):
    run_by_hand(tmp_path / "run", prepare_by_hand(tmp_path / "data", [["one"], ["two"]]))
    (tmp_path / "run" / missing).unlink()
    assert main([str(tmp_path / "run")]) == 2
    line = one_line(capsys)
    assert missing in line and str(tmp_path / "run") in line
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("name", ["result.json", "held_out.json"])
def test_a_broken_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str):
    run_by_hand(tmp_path / "run", prepare_by_hand(tmp_path / "data", [["one"], ["two"]]))
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:100])
    assert main([str(tmp_path / "run")]) == 2
    assert Path(name).name in one_line(capsys)


def test_other_data_at_the_same_place_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_by_hand(tmp_path / "run", prepare_by_hand(tmp_path / "data", [["one"], ["two"]]))
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": "f" * 32}))
    assert main([str(tmp_path / "run")]) == 2
    line = one_line(capsys)
    assert str(tmp_path / "data") in line and 12 * "f" in line and "--data" in line


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed to standard error, which must be one line."""
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    return error


def test_nearest_errors_are_wrong_by_least_and_show_both_captions(made: Made):
    cards = made.page.all("li", "miss")
    scores = made.rows["images"] @ made.rows["texts"].T
    margins = {}
    for i, row in enumerate(scores):
        own = [t for t, text in enumerate(made.data.texts) if t in made.data.texts_of_image[i]]
        order = np.argsort(-row)
        place = min(list(order).index(t) for t in own)
        if 0 < place < 5:
            margins[i] = row[order[0]] - row[order[place]]
    nearest = sorted(margins, key=lambda i: margins[i])[:8]
    assert 1 < len(nearest) < len(scores) and [sample_of(card.children[0]) - TRAIN for card in cards] == nearest
    for card, i in zip(cards, nearest, strict=True):
        order = np.argsort(-scores[i])
        wrong, right = card.all("li")
        assert wrong.all("span", "clamp")[0].attributes["title"] == made.data.texts[order[0]]
        assert right.all("span", "clamp")[0].attributes["title"] in [made.data.texts[t] for t in made.data.texts_of_image[i]]
        assert "hit" in right.attributes["class"].split() and "hit" not in wrong.attributes.get("class", "").split()
        assert f"{scores[i][order[0]]:.3f}" in wrong.text and f"{scores[i][order[0]] - margins[i]:.3f}" in right.text


def test_findings_stand_at_the_top(made: Made, tmp_path: Path):
    assert not made.page.all("div", "advice")  # a result of an earlier version has none
    found = {"kind": "overfitting", "evidence": "the loss <rose>", "advice": "Try fewer epochs"}
    write_report(made.run, made.result | {"findings": [found]}, made.data)
    (block,) = read(made.run / "report.html").all("header")[0].all("div", "advice")
    assert all(words in block.text for words in ("Overfitting", "the loss <rose>.", "Try fewer epochs."))
