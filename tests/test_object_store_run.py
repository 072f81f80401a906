"""From S3 to S3 and into training, through a store that fails now and then: nothing is lost, and the result is that of a disk."""

import functools
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import pipelines.prepare.prepare
import raylign.__main__
import training.report
from pipelines.dataset.prepared import Prepared
from pipelines.prepare.config import PrepareSettings
from pipelines.program.display import Display
from pipelines.program.settings import load
from tests.in_process import Apart, succeed
from tests.object_store import Store, object_store
from tests.patience import wait_until
from tests.training.program import Program
from training.config import TrainSettings
from training.plan import frozen_towers
from training.precision import unit
from training.run_store import RunStore
from training.status import status_of
from training.tensor_tree import load_tree
from training.weight_sources import check_sources

pytestmark = pytest.mark.e2e

TARS, ROWS = 4, 40  # tars, and samples of each
BROKEN = {(1, 7), (3, 20)}


def tar_of(number: int) -> bytes:
    """A tar of images and captions; two images of all are broken."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for row in range(ROWS):
            pixels = np.random.default_rng([number, row]).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            image = io.BytesIO()
            Image.fromarray(pixels).save(image, "PNG")
            data = image.getvalue()[: 300 if (number, row) in BROKEN else None]
            for extension, content in (("png", data), ("txt", f"thing {row} of {number}".encode())):
                member = tarfile.TarInfo(f"{number}{row:04d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with object_store() as store:
        for number in range(TARS):
            store.put(f"web/{number:05d}.tar", tar_of(number))
        yield store


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    for number in range(TARS):
        (folder / f"{number:05d}.tar").write_bytes(tar_of(number))
    return folder


@pytest.fixture(scope="module")
def apart(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    """Where the environment names the store."""
    apart = Apart(store.environment | {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))})
    yield apart
    apart.close()


def settings(paths: str, output: str, mode: str) -> dict[str, Any]:
    return {
        "source": {"name": "webdataset", "paths": paths, "dataset": "web"},
        "output": output,
        "mode": mode,
        "image": {"size": 32, "format": "png"},
        "splits": {"test": 0.2},
    }


Prepare = Callable[[str], dict[str, int]]


@pytest.fixture(scope="module")
def prepare(store: Store, apart: Apart, tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    """A function that prepares from the store to the store, once in each mode, and returns the faults meanwhile."""
    folder = tmp_path_factory.mktemp("there")

    @functools.cache
    def make(mode: str) -> dict[str, int]:
        config = folder / f"{mode}.yaml"
        config.write_text(yaml.safe_dump(settings(store.uri("web", "{00000..00003}.tar"), store.uri(mode), mode)))
        store.forget()
        with store.faulty(errors=0.1, stalls=0.04, resets=0.1):
            apart.succeed("pipelines", str(config))
        return store.faults()

    return make


def config_of(folder: Path, name: str, data: str, storage: str) -> Path:
    """A short run with pixels in, two workers, on data in a store or on a disk."""
    tree = {
        "name": name,
        "storage": storage,
        "data": {"path": data},
        "image_tower": {"name": "conv", "image_size": 24, "channels": [8, 16]},
        "text_tower": {"name": "bag", "width": 16, "max_tokens": 8},
        "embed_dim": 16,
        "epochs": 2,
        "global_batch_size": 20,
        "log_every": 1,
        "checkpoint": {"every_steps": 2, "best": "loss"},
        "resources": {"num_workers": 2, "cpus_per_worker": 0.4},
        "tensorboard": False,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return folder / f"{name}.yaml"


@pytest.fixture(scope="module")
def on_disk(ray_session: None, disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Prepared]:
    """The same tars prepared from a disk to a disk."""
    folder = tmp_path_factory.mktemp("prepared")

    @functools.cache
    def make(mode: str) -> Prepared:
        tree = settings(str(disk / "{00000..00003}.tar"), str(folder / mode), mode)
        return pipelines.prepare.prepare.prepare(PrepareSettings.model_validate(tree), Display(quiet=True))

    return make


@pytest.mark.parametrize("mode", ["copy", "index"])
def test_preparing_through_faults_gives_what_a_disk_gives(store: Store, prepare: Prepare, on_disk: Callable, mode: str) -> None:
    faults = prepare(mode)
    assert sum(faults.values()) > 3 and faults["500"] + faults["503"] and faults["reset"], faults
    there, here = json.loads(store.get(f"{mode}/manifest.json") or b""), on_disk(mode).manifest
    assert there["fingerprint"] == here["fingerprint"] and there["counts"] == here["counts"]
    counts = there["counts"]
    assert counts["read"] == counts["kept"] + sum(counts["rejected"].values()) == TARS * ROWS
    if mode == "copy":
        assert counts["rejected"] == {"truncated": len(BROKEN)}


def asked_from_outside(there: RunStore, disk: Path, folder: Path) -> None:
    """What else reads a run: its status, Python, configs that name it as a tower, exports, and who writes its page again."""
    ours, theirs = status_of(there.uri), status_of(disk)
    assert (ours.state, ours.step, ours.kept, ours.costs["sessions"]) == ("finished", theirs.step, theirs.kept, 2)
    with redirect_stdout(io.StringIO()) as told:
        assert raylign.__main__.main(["status", there.uri.rpartition("/")[0] + "/"]) == 0
    (row,) = told.getvalue().splitlines()[2:]
    assert row.split()[:2] == ["s3", "finished"]
    embedder, texts = raylign.load_run(there.uri), ["thing 3 of 1", "a thing"]
    images = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)) for seed in range(3)]
    rows = embedder.embed_images(images), embedder.embed_texts(texts)

    half = {"name": "run", "path": there.uri, "mode": "locked"}
    towers = {"image_tower": half | {"image_size": 24}, "text_tower": half | {"max_tokens": 8}}
    settings = load(TrainSettings, folder / "s3.yaml", towers)
    check_sources(settings)
    image, text = frozen_towers(settings, None).values()
    tokenizer = text.tokenizer(list)
    pixels = torch.from_numpy(np.stack([np.asarray(image).transpose(2, 0, 1) for image in images]))
    with torch.no_grad():
        again = image.build()(pixels), text.build(tokenizer.vocabulary_size)(*map(torch.from_numpy, tokenizer(texts)))
    for found, wanted in zip(again, rows, strict=True):
        assert np.allclose(unit(found).numpy(), wanted, atol=1e-6)

    with pytest.raises(SystemExit):
        raylign.__main__.main(["export", there.uri, "--to", "safetensors", "--output", there.uri])
    assert raylign.__main__.main(["export", there.uri, "--to", "safetensors", "--output", str(folder / "exported")]) == 0
    assert np.allclose(raylign.load_run(folder / "exported").embed_texts(texts), rows[1], atol=1e-6)
    there.drop("report.html")
    assert training.report.main([there.uri]) == 0
    assert b"</html>" in there.read("report.html")


def test_a_run_in_a_store_outlives_its_node(
    store: Store, apart: Apart, prepare: Prepare, on_disk: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data, checkpoints and all: killed while it uploads one, it goes on on another node, through faults, as on a disk."""
    prepare("index")
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    config = config_of(tmp_path, "s3", store.uri("index"), store.uri("runs"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    there = RunStore(store.uri("runs", "s3"))
    with store.faulty(errors=0, stalls=0, resets=0, held="PUT .*checkpoint_00000008"):
        first = Program(config)
        try:
            wait_until(lambda: store.held() > 0 or first.process.poll() is not None, first.text)
            assert store.held(), first.text()
            seen = status_of(there.uri)
            assert (seen.state, seen.total) == ("running", 12) and seen.step > 0
        finally:
            first.kill()
    seen = status_of(there.uri)
    assert (seen.state, seen.kept) == ("failed", 6)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    store.forget()
    with store.faulty(errors=0.05, stalls=0.02, resets=0.05):
        second = Program(config)
        try:
            assert second.wait() == 0, second.text()
        finally:
            second.kill()
    assert "resuming from step 6" in second.text() and sum(store.faults().values()) > 3
    succeed("training", str(config_of(tmp_path, "disk", str(on_disk("index").path), str(tmp_path / "runs"))))

    def lines(data: bytes) -> list[dict[str, Any]]:
        times = ("time", "seconds", "samples_per_second", "data_wait", "checkpoint_wait", "peak_memory_gib")
        return [{name: value for name, value in json.loads(line).items() if name not in times} for line in data.splitlines()]

    disk = tmp_path / "runs" / "disk"
    for name in ("metrics.jsonl", "unusable.jsonl"):
        found = store.get(f"runs/s3/{name}") or b""
        assert lines(found) == lines((disk / name).read_bytes()) and found
    for folder in ("checkpoint_00000012", "best"):
        ours, theirs = (load_tree(place, "state")["encoder"] for place in (there.opened(folder), disk / folder))
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    names = {name.partition("/")[0] for name in there.files()}
    assert names == {path.name for path in disk.iterdir() if not path.name.startswith(".")} - {"placement_group"}
    assert store.get("runs/s3/.lock") == b"{}"
    result = json.loads(store.get("runs/s3/result.json") or b"")
    assert result["step"] == 12 and result["metrics"] == json.loads((disk / "result.json").read_text())["metrics"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
    # As a process leaves it that is killed right after its result: the same command does the rest, and does not train.
    grown = store.get("runs/s3/metrics.jsonl") or b""
    store.put("runs/s3/metrics.jsonl.parts/000000", grown)
    there.drop("metrics.jsonl")
    succeed("training", str(config))
    assert store.get("runs/s3/metrics.jsonl") == grown and store.get("runs/s3/metrics.jsonl.parts/000000") is None
    assert json.loads(store.get("runs/s3/result.json") or b"") == result
    asked_from_outside(there, disk, tmp_path)
    # A node scores it, and keeps the embeddings in the store.
    scored = {
        "checkpoint": there.uri,
        "data": store.uri("index"),
        "tasks": ["retrieval"],
        "output": str(tmp_path / "out"),
        "cache": store.uri("cache"),
    }
    (tmp_path / "scored.yaml").write_text(yaml.safe_dump(scored))
    apart.succeed("evaluation", str(tmp_path / "scored.yaml"))
    (file,) = (tmp_path / "out").glob("s3/*/zeroshot_retrieval/result.json")
    scores = json.loads(file.read_text())["scores"]
    recalls = {name.rpartition("/")[2]: value for name, value in result["metrics"].items() if name.endswith("_recall@1")}
    assert recalls and all(scores[name] == value for name, value in recalls.items())
    assert any(name.endswith("/features.json") for name in RunStore(store.uri("cache")).files())
