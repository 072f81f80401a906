"""A hub's weights: from the cache without a network, else one line at once that names what to fill."""

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from evaluation.embedder import check_embedder
from pipelines.io import hub
from tests.refusals import refused
from training.towers.image import HuggingFaceVisionSettings, TimmSettings
from training.towers.open_clip import OpenClipImageSettings, OpenClipTextSettings
from training.towers.pretrained import load_pretrained
from training.towers.text import HuggingFaceTextSettings


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and nobody asked yet; the hub is at a port that nobody listens to."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    hub._hub_failure.cache_clear()
    yield tmp_path / "hub"
    hub._hub_failure.cache_clear()


@pytest.mark.parametrize(
    ("settings", "repository"),
    [
        (HuggingFaceVisionSettings(name="huggingface", weights="google/vit-base-patch16-224"), "google/vit-base-patch16-224"),
        (HuggingFaceTextSettings(name="huggingface", weights="distilbert-base-uncased"), "distilbert-base-uncased"),
        (TimmSettings(name="timm", model="resnet18", weights="hub"), "timm/resnet18.a1_in1k"),
        (
            OpenClipImageSettings(name="open_clip", model="ViT-B-32", weights="laion2b_s34b_b79k"),
            "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        ),
        (
            OpenClipTextSettings(name="open_clip", model="ViT-B-32", weights="laion2b_s34b_b79k"),
            "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        ),
    ],
    ids=["image", "text", "timm", "open_clip-image", "open_clip-text"],
)
def test_without_a_network_one_line_names_the_cache_to_fill(settings: Any, repository: str, cache: Path) -> None:
    folder = cache / f"models--{repository.replace('/', '--')}"
    with refused("some_tower.weights", folder, constants.ENDPOINT, remedy=f"hf download {repository}"):
        settings.check_source("some_tower")


@pytest.mark.parametrize(
    ("embedder", "arguments", "repository"),
    [
        ("open_clip", {"model": "ViT-B-32", "weights": "laion2b_s34b_b79k"}, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("huggingface", {"weights": "openai/clip-vit-base-patch32"}, "openai/clip-vit-base-patch32"),
    ],
)
def test_evaluation_says_so_before_a_cluster_starts(embedder: str, arguments: dict[str, Any], repository: str) -> None:
    with refused("embedder_arguments.weights", constants.ENDPOINT, remedy=f"hf download {repository}"):
        check_embedder(f"training.embedders:{embedder}", arguments)
    check_embedder("tests.evaluation.stranger:known", {"seen": "x"})  # has nothing to say


def test_weights_that_are_one_file_on_the_web_are_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_web_failure", lambda url: "cannot be reached")
    settings = TimmSettings(name="timm", model="gcvit_tiny", weights="hub", image_size=224)
    with refused("image_tower.weights", "gcvit_tiny", ".pth", remedy="path"):
        settings.check_source("image_tower")


def test_what_is_no_name_of_a_hub(tmp_path: Path) -> None:
    with refused("text_tower.weights", "my/own/folder", remedy="OWNER/NAME"):
        HuggingFaceTextSettings(name="huggingface", weights="my/own/folder").check_source("text_tower")


def test_no_network_is_asked_for_what_is_here(tmp_path: Path) -> None:
    HuggingFaceTextSettings(name="huggingface", weights=str(tmp_path)).check_source("text_tower")
    TimmSettings(name="timm", model="vit_tiny_patch16_224", weights=None).check_source("image_tower")
    assert hub._hub_failure.cache_info().misses == 0


def test_a_cached_model_loads_without_a_network(cache: Path, tmp_path: Path) -> None:
    """And from then on nobody asks the hub: not this process, nor those that it starts."""
    from transformers import DistilBertConfig, DistilBertModel

    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 8, "vocab_size": 50}
    place = cache / "models--somebody--small"
    DistilBertModel(DistilBertConfig(**sizes)).save_pretrained(place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    hub.check_repository("somebody/small", "text_tower.weights", "somebody/small")
    assert os.environ["HF_HUB_OFFLINE"] == "1" and constants.is_offline_mode()
    assert load_pretrained("somebody/small", "text_tower.weights").config.dim == 16
    shutil.rmtree(place / "snapshots")
    with refused("text_tower.weights", "somebody/small", remedy="hf download somebody/small"):
        hub.check_repository("somebody/small", "text_tower.weights", "somebody/small")


def test_a_network_that_swallows_questions_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with refused("image_tower.weights", "Timeout", remedy="hf download somebody/small"):
            hub.check_repository("somebody/small", "image_tower.weights", "somebody/small")


@pytest.mark.parametrize("known", [True, False])
def test_a_hub_that_answers_is_believed(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if known else 404)
            self.send_header("X-Error-Code", "RepoNotFound") if not known else None
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"id": "somebody/small", "siblings": [], "sha": "abc"}' if known else b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        if known:
            hub.check_repository("somebody/small", "image_tower.weights", "somebody/small")
        else:
            with refused("image_tower.weights", "no such model", remedy="hf download somebody/small"):
                hub.check_repository("somebody/small", "image_tower.weights", "somebody/small")
        server.shutdown()
