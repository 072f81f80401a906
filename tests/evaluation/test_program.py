"""`python -m evaluation`: several models and sets in, results and one page out; nothing done twice; mistakes in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.__main__ import PURPOSE, _run
from evaluation.config import EvaluateSettings
from evaluation.data.prepared import PreparedData
from evaluation.results import read_results
from pipelines.dataset.prepared import Prepared
from pipelines.program.cli import run_program
from tests.evaluation.stranger import known

DIGITS = {"name": "function", "function": "evaluation.data.digits:digits"}
COLOURS = "tests.evaluation.stranger:build"


def run(tmp_path: Path, tree: dict, *arguments: str) -> int:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"output": str(tmp_path / "out"), "cache": str(tmp_path / "cache")} | tree))
    return run_program("evaluation", PURPOSE, EvaluateSettings, _run, [str(config), "--quiet", *arguments])


def known_model(tmp_path: Path, fingerprint: str) -> dict:
    arguments = {"seen": str(tmp_path / "seen"), "fingerprint": fingerprint}
    return {"embedder": "tests.evaluation.stranger:known", "embedder_arguments": arguments}


def test_models_are_compared_and_nothing_is_done_twice(ray_session: None, stamps: Prepared, tmp_path: Path) -> None:
    tree = {
        "models": {"a": known_model(tmp_path, "first"), "b": known_model(tmp_path, "second")},
        "data": {"stamps": {"name": "prepared", "path": str(stamps.path)}, "digits": DIGITS},
        "tasks": ["zero_shot", "retrieval", "linear_probe", "few_shot", "corruption"],
        "few_shot": {"shots": [1, 2], "seeds": [0]},
        "corruption": {"names": ["contrast"], "severities": [3], "images": 20},
    }
    assert run(tmp_path, tree) == 0
    results = read_results(tmp_path / "out")
    label = next(iter(stamps.manifest["labels"]))
    by_set = {(r.dataset, r.task) for r in results if r.model == "a"}
    assert by_set >= {("stamps", "zeroshot_retrieval"), (f"stamps_{label}", "zeroshot_classification"), ("digits", "few_shot")}
    assert {(r.dataset, r.task) for r in results if r.model == "b"} == by_set
    for result in results:
        tree_ = json.loads((tmp_path / "out" / result.model / result.dataset / result.task / "result.json").read_text())
        assert {"dataset", "model", "pretrained", "task", "metrics", "language"} <= set(tree_)
        assert "UCI" in result.about["data"]["attribution"] or result.dataset != "digits", "whose images these are"
        assert result.main in result.scores
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(word in page for word in ("digits", f"stamps_{label}", "Linear probe"))

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")}
    (tmp_path / "seen").write_text("")
    assert run(tmp_path, tree) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")} == before
    assert (tmp_path / "seen").read_text() == "", "no embedder was shown anything"

    alone = {"data": {"digits": DIGITS}, "tasks": ["zero_shot"], "embedder": COLOURS, "embedder_arguments": {"scale": 1}}
    assert run(tmp_path, alone, "name=c") == 0
    assert {r.model for r in read_results(tmp_path / "out")} == {"a", "b", "c"}, "the others stay, and are compared"


def test_precomputed_rows_give_the_scores_of_the_embedder(ray_session: None, stamps: Prepared, tmp_path: Path) -> None:
    data = {"stamps": {"name": "prepared", "path": str(stamps.path)}}
    assert run(tmp_path, {"data": data, "name": "live"} | known_model(tmp_path, "x")) == 0
    given = {"data": data, "embeddings": str(tmp_path / "rows"), "scale": 20, "name": "given"}
    assert run(tmp_path, given) == 2, "the files are not there yet, but the lists of what belongs into them are"
    embedder = known(str(tmp_path / "seen"))
    content = PreparedData(name="prepared", path=stamps.path).read("data.stamps")
    assert content.retrieval is not None
    images = list(content.retrieval.images.read(np.arange(len(content.retrieval.images))))
    for listing in (tmp_path / "out" / "inputs").rglob("*.txt"):
        lines = listing.read_text().splitlines()
        rows = embedder.embed_images(images) if listing.stem.endswith("images") else embedder.embed_texts(lines)
        path = tmp_path / "rows" / listing.parent.name / f"{listing.stem}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rows.astype(np.float64))
    assert run(tmp_path, given) == 0
    live, read = ([r for r in read_results(tmp_path / "out") if r.model == model] for model in ("live", "given"))
    assert len(live) == len(read) > 1
    for one, other in zip(live, read, strict=True):
        assert (one.dataset, one.task, one.scores) == (other.dataset, other.task, pytest.approx(other.scores))
        assert one.details.get("calibration") == other.details.get("calibration")


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("use_gpu=true", ["error: use_gpu: ", "1 x 1 GPU", "0", "use_gpu=false"]),
        ("actors=3", ["error: actors: ", "3 x 1 CPUs = 3", "2", "actors=2"]),
        ("cpus_per_actor=64", ["error: cpus_per_actor: ", "64 CPUs", "2", "cpus_per_actor=2"]),
    ],
)
def test_what_would_wait_for_ever_is_told_before_ray(
    argument: str, named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def start(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("pipelines.program.cluster.start", start)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # of the session's Ray
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert run(tmp_path, known_model(tmp_path, "x") | {"data": {"digits": DIGITS}}, argument) == 2
    printed = capfd.readouterr().err
    assert all(part in printed for part in named)


@pytest.fixture
def mistake(capfd: pytest.CaptureFixture, tmp_path: Path) -> Callable[..., str]:
    """Run a program that must fail with exit code 2 and one line, which is returned."""

    def attempt(tree: dict, *arguments: str) -> str:
        assert run(tmp_path, tree, *arguments) == 2
        printed = capfd.readouterr().err.strip()
        assert printed.startswith("error: ") and "\n" not in printed and "Traceback" not in printed
        return printed

    return attempt


MODEL = {"embedder": COLOURS, "embedder_arguments": {"scale": 1}}


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"data": {"digits": DIGITS}}, ["embedder: ", "checkpoint=RUN", "embedder=module:function", "embeddings=FOLDER"]),
        (
            MODEL | {"models": {"a": MODEL}, "data": {"d": DIGITS}},
            ["models: ", "models.NAME.embedder"],
        ),
        (MODEL | {"embeddings": "x", "data": {"d": DIGITS}}, ["embeddings: ", "embedder, checkpoint and embedder_arguments"]),
        (MODEL, ["data: ", "data=VALUE"]),
        (MODEL | {"data": "nowhere"}, ["data.nowhere", "nowhere", "python -m pipelines"]),
        (MODEL | {"data": {"d": {"name": "imagefolder"}}}, ["'imagefolder'", "folder", "webdataset", "torchvision"]),
        (MODEL | {"data": {"a/b": DIGITS}}, ["data: ", "'a/b'", "letters"]),
        (MODEL | {"data": {"d": DIGITS}, "tasks": ["zeroshot"]}, ["tasks", "'zeroshot'", "zero_shot"]),
        (
            MODEL | {"data": {"d": DIGITS}, "tasks": ["retrieval"]},
            ["tasks: ", "retrieval", "captions"],
        ),
        (
            MODEL | {"data": {"d": DIGITS}, "corruption": {"names": ["fog"]}},
            ["corruption.names: ", "'fog'", "blur, noise"],
        ),
        (
            MODEL | {"data": {"d": DIGITS}, "robustness": {"d": {"reference": "e", "line": "x"}}},
            ["robustness.d: ", "'e'", "data"],
        ),
        (
            MODEL | {"data": {"d": DIGITS}, "robustness": {"d": {"reference": "d", "line": "imagenet-r"}}},
            ["robustness.d.line: ", "'imagenet-r'", "imagenet_r"],
        ),
        (
            MODEL | {"data": {"pets": {"name": "torchvision", "dataset": "pets", "path": "/nowhere"}}},
            ["data.pets", "/nowhere", "oxford-iiit-pet"],
        ),
        ({"embedder": "nobodys:model", "data": {"d": DIGITS}}, ["embedder: ", "'nobodys'", "install"]),
        ({"checkpoint": "runs/nowhere", "data": {"d": DIGITS}}, ["checkpoint: ", "runs/nowhere", "runs/demo"]),
    ],
)
def test_mistakes(tree: dict, named: list[str], mistake: Callable[..., str], ray_session: None) -> None:
    printed = mistake(tree)
    for part in named:
        assert part in printed


def test_labels_of_the_wrong_length(mistake: Callable[..., str], tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
    (tmp_path / "labels.txt").write_text("0\n1\n")
    entry = {"name": "folder", "path": str(tmp_path / "images"), "labels": str(tmp_path / "labels.txt"), "classes": "cifar10"}
    printed = mistake(MODEL | {"data": {"mine": entry}})
    assert all(part in printed for part in ("data.mine.labels: ", "labels.txt", "2 labels", "3 images"))


def test_rows_that_cannot_be_judged(mistake: Callable[..., str], ray_session: None, tmp_path: Path) -> None:
    arguments = {"seen": str(tmp_path / "seen"), "bad": 'a photo of the number: "two".'}
    model = {"embedder": "tests.evaluation.stranger:known", "embedder_arguments": arguments, "data": {"d": DIGITS}}
    printed = mistake(model)
    assert all(part in printed for part in ("embedder: ", "NaN", "two", "d/prompts"))
    printed = mistake({"embedder": "tests.evaluation.stranger:narrow", "data": {"d": DIGITS}})
    assert all(part in printed for part in ("embedder: ", "d/test (images)", "3 wide", "d/prompts (texts)", "one space"))
