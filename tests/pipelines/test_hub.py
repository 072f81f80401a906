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
from pipelines.program.errors import UserError
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
    hub._of_hub.cache_clear()
    yield tmp_path / "hub"
    hub._of_hub.cache_clear()


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
    with pytest.raises(UserError) as caught:
        settings.check_source("some_tower")
    said = str(caught.value)
    assert said.startswith("some_tower.weights: ") and "\n" not in said
    assert str(cache / f"models--{repository.replace('/', '--')}") in said
    assert f"hf download {repository}" in said and constants.ENDPOINT in said


@pytest.mark.parametrize(
    ("embedder", "arguments", "repository"),
    [
        ("open_clip", {"model": "ViT-B-32", "weights": "laion2b_s34b_b79k"}, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("huggingface", {"weights": "openai/clip-vit-base-patch32"}, "openai/clip-vit-base-patch32"),
    ],
)
def test_evaluation_says_so_before_a_cluster_starts(embedder: str, arguments: dict[str, Any], repository: str) -> None:
    with pytest.raises(UserError, match=rf"^embedder_arguments\.weights: .* \(hf download {repository}\)"):
        check_embedder(f"training.embedders:{embedder}", arguments)
    check_embedder("tests.evaluation.stranger:known", {"seen": "x"})  # has nothing to say


def test_weights_that_are_one_file_on_the_web_are_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_of_web", lambda url: "cannot be reached")
    settings = TimmSettings(name="timm", model="gcvit_tiny", weights="hub", image_size=224)
    with pytest.raises(UserError, match=r"^image_tower\.weights: timm's gcvit_tiny needs /\S+\.pth, which is not there"):
        settings.check_source("image_tower")


def test_what_is_no_name_of_a_hub(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^text_tower\.weights: there is no my/own/folder here, and no hub takes it for a name"):
        HuggingFaceTextSettings(name="huggingface", weights="my/own/folder").check_source("text_tower")


def test_no_network_is_asked_for_what_is_here(tmp_path: Path) -> None:
    HuggingFaceTextSettings(name="huggingface", weights=str(tmp_path)).check_source("text_tower")
    TimmSettings(name="timm", model="vit_tiny_patch16_224", weights=None).check_source("image_tower")
    assert hub._of_hub.cache_info().misses == 0


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
    with pytest.raises(UserError, match=r"text_tower\.weights: the weights of somebody/small would come"):
        hub.check_repository("somebody/small", "text_tower.weights", "somebody/small")


def test_a_network_that_swallows_questions_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UserError, match=r"cannot be reached \(\w*Timeout\w*\); fill the cache"):
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
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        if known:
            hub.check_repository("somebody/small", "image_tower.weights", "somebody/small")
        else:
            with pytest.raises(UserError, match=r"has no such model, or hides it; fill the cache"):
                hub.check_repository("somebody/small", "image_tower.weights", "somebody/small")
        server.shutdown()
