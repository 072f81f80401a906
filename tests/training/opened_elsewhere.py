"""A process of its own that knows a run's folder and no other file of its towers: what it embeds, and how it resumes."""

import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
from PIL import Image

from pipelines.dataset.stream import Worker
from pipelines.features.pool import Pool
from pipelines.features.rows_by_id import feature_rows
from pipelines.program.display import Display
from pipelines.program.settings import validate
from training.build import build_state
from training.checkpoint import find_checkpoint, load_checkpoint, load_embedder
from training.checkpoint_registry import settle
from training.config import TrainSettings
from training.plan import keep_towers, plan_of

TEXTS = ["a square of colour 3", "A photo of TWO cats, on a mat!"]


def images() -> list[Image.Image]:
    """The same in every process."""
    return [Image.fromarray(np.random.default_rng(n).integers(0, 256, (20, 30, 3), dtype=np.uint8)) for n in range(2)]


def embedded(run: Path) -> dict[str, np.ndarray]:
    """By the newest checkpoint of a run."""
    embedder = load_embedder(str(run))
    return {"images": embedder.embed_images(images()), "texts": embedder.embed_texts(TEXTS)}


def resumed(run: Path, tree: dict[str, Any]) -> dict[str, np.ndarray]:
    """What a resumed run reads: features that no checkpoint holds, ids of its words, and its weights in a row."""
    settings = validate(TrainSettings, tree, "run")
    checkpoint = settle(run, print)
    plan = plan_of(settings, Pool(0), Display(quiet=True), run, checkpoint)
    keep_towers(plan, run)
    _, state = build_state(plan, Worker(0, 1, torch.device("cpu"), 1.0), checkpoint)
    if checkpoint is not None:
        load_checkpoint(find_checkpoint(run), state, plan)
    frozen = plan.stream.frozen_features
    stored = [
        plan.stream.image_features,
        plan.stream.text_features,
        *([frozen.image_features, frozen.text_features] if frozen else []),
    ]
    found = {f"features {n}": np.asarray(feature_rows(place)) for n, place in enumerate(stored) if place is not None}
    found["ids"] = plan.tokenizer(TEXTS)[0]
    if plan.stream.frozen_tokenizer is not None:
        neighbour_ids, mask = map(torch.from_numpy, plan.stream.frozen_tokenizer(TEXTS))
        batch: Any = {"image": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "frozen_text": neighbour_ids, "frozen_mask": mask}
        with torch.no_grad():
            found["frozen encoder"] = state.teacher(batch)["frozen_text_features"].numpy()
    if checkpoint is not None:
        weights = [p.detach().reshape(-1) for p in state.encoder.parameters()]
        found["weights"] = torch.cat(weights).numpy()
        found["trained"] = np.asarray([p.requires_grad for p in state.encoder.parameters()])
    return found


def _alone(event: str, arguments: tuple[Any, ...]) -> None:
    """No network, and nothing that was fetched before: whoever asks for it is told so."""
    if event in ("socket.getaddrinfo", "socket.connect"):
        raise OSError(f"no network here: {arguments}")
    if event == "open" and str(arguments[0]).startswith(huggingface_hub.constants.HF_HOME):
        raise OSError(f"no hub's cache here: {arguments[0]}")


def opened(root: Path, trees: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """Of each run in a folder, given the settings with which it resumes: all of the above. To be called in its own process."""
    torch.set_num_threads(1)
    sys.addaudithook(_alone)
    found = {name: embedded(root / name) | resumed(root / name, tree) for name, tree in trees.items()}
    return {f"{name} {key}": value for name, rows in found.items() for key, value in rows.items()}
