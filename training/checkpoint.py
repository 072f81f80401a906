"""Checkpoints: all of TrainState, with the resolved config, the data's fingerprint and the code version; and their embedder.

state.pt         TrainState.state_dict()
checkpoint.json  config, dataset fingerprint, code version, step
tokenizer.json   the text tower's
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipelines.settings import UserError, validate
from pipelines.tokenizer import TextTokenizer
from pipelines.views import eval_view
from training.config import TrainSettings
from training.encoder import build_encoder
from training.plan import Plan
from training.state import TrainState
from training.towers import ImageFeatures, TextFeatures

_SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of registered checkpoints
NEWEST = "newest_checkpoint.json"  # the name of one, where a run was trained without Ray Train


def save_checkpoint(folder: Path, state: TrainState, plan: Plan, metrics: dict[str, Any]) -> None:
    """Write all files of a checkpoint into a folder; Ray Train puts the folder in place as a whole."""
    torch.save(state.state_dict(), folder / "state.pt")
    (folder / "tokenizer.json").write_text(plan.tokenizer.json, encoding="utf-8")
    about = {
        "config": plan.settings.model_dump(mode="json"),
        "dataset": {"path": str(plan.stream.prepared.path), "fingerprint": plan.stream.prepared.fingerprint},
        "code_version": plan.code_version,
        "step": state.step,
        "total_steps": plan.total_steps,
        "metrics": metrics,
    }
    (folder / "checkpoint.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def load_checkpoint(folder: Path, state: TrainState, plan: Plan, device: torch.device) -> None:
    """Read a checkpoint into the state. Raises `UserError` where it is of other data."""
    about = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
    found, wanted = about["dataset"]["fingerprint"], plan.stream.prepared.fingerprint
    if found != wanted:
        raise UserError(
            f"data.path: the checkpoint {folder} was trained on data {found[:12]}, "
            f"{plan.stream.prepared.path} holds {wanted[:12]}; give the run another name, or pass overwrite=true"
        )
    state.load_state_dict(torch.load(folder / "state.pt", map_location=device, weights_only=True))


def newest_checkpoint(run: Path) -> Path:
    """The newest finished checkpoint of a run's folder. Raises `UserError` where there is none."""
    try:
        if (run / NEWEST).exists():
            return run / json.loads((run / NEWEST).read_text(encoding="utf-8"))
        snapshot = json.loads((run / _SNAPSHOT).read_text(encoding="utf-8"))
        return run / snapshot["latest_checkpoint_result"]["checkpoint_dir_name"]
    except (OSError, KeyError, TypeError, ValueError):
        raise UserError(
            f"checkpoint: {run} holds no finished checkpoint; give a run's folder, or one checkpoint_... or best inside it"
        ) from None


class CheckpointEmbedder:
    """A trained dual encoder, towers and heads, on its own."""

    def __init__(self, folder: Path):
        about = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        settings = validate(TrainSettings, about["config"], str(folder / "checkpoint.json"))
        saved = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)["encoder"]
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._size = settings.image_tower.image_size
        self._tokenizer = TextTokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"), settings.text_tower.max_tokens)
        image_locked, text_locked = settings.image_tower.mode == "locked", settings.text_tower.mode == "locked"
        self._image_tower = ImageFeatures(settings.image_tower) if image_locked else None
        self._text_tower = TextFeatures(settings.text_tower, self._tokenizer) if text_locked else None
        self._encoder = build_encoder(
            settings.image_tower,
            settings.text_tower,
            settings.heads,
            settings.embed_dim,
            (
                _input_width(saved, "image") if image_locked else None,
                _input_width(saved, "text") if text_locked else None,
            ),
            self._tokenizer.vocabulary_size,
        ).eval()
        self._encoder.load_state_dict(saved)
        self._encoder.to(self._device)

    @torch.inference_mode()
    def embed_images(self, images: list[Image.Image]) -> np.ndarray:
        """RGB pictures to unit rows, float32 [n, D]."""
        pixels = np.stack([eval_view(image, self._size) for image in images])
        rows = self._tensor(self._image_tower(pixels) if self._image_tower else pixels)
        return self._encoder.embed_images(rows).cpu().numpy()

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Strings to unit rows, float32 [n, D]."""
        if self._text_tower:
            return self._encoder.embed_texts(self._tensor(self._text_tower(np.asarray(texts, dtype=object)))).cpu().numpy()
        ids, mask = self._tokenizer(texts)
        return self._encoder.embed_texts(self._tensor(ids), self._tensor(mask)).cpu().numpy()

    def _tensor(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rows).to(self._device)


def _input_width(saved: dict[str, torch.Tensor], side: str) -> int:
    """Width of a head's input: the last axis of its first weight."""
    return next(tensor for name, tensor in saved.items() if name.startswith(f"{side}_head.")).shape[-1]


def load_embedder(checkpoint: str) -> CheckpointEmbedder:
    """`embedder=training.checkpoint:load_embedder`: from a run's folder, or one of its checkpoints."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise UserError(f"checkpoint: {folder} is not a folder; give a run such as runs/demo, or one of its checkpoints")
    return CheckpointEmbedder(folder if (folder / "state.pt").exists() else newest_checkpoint(folder))
