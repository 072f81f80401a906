"""Checkpoints: all of TrainState, with the resolved config, the data's fingerprint and the code version; and their embedder.

state.pt         TrainState.state_dict()
checkpoint.json  config, dataset fingerprint, code version, step
tokenizer.json   the text tower's
"""

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from pipelines.settings import UserError, validate
from pipelines.tokenizer import TextTokenizer
from pipelines.views import eval_view
from training.config import TrainSettings
from training.encoder import DualEncoder, build_encoder
from training.fingerprint import fingerprint
from training.plan import Plan
from training.state import TrainState

_SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of registered checkpoints
_KEPT = "checkpoint_manager_snapshot.kept.json"  # ours, the last that was whole
NEWEST = "newest_checkpoint.json"  # the name of one, where a run was trained without Ray Train


def save_checkpoint(folder: Path, state: TrainState, plan: Plan, metrics: dict[str, Any]) -> None:
    """Write all files of a checkpoint into a folder; Ray Train puts the folder in place as a whole."""
    torch.save(state.state_dict(), folder / "state.pt")
    (folder / "tokenizer.json").write_text(plan.tokenizer.json, encoding="utf-8")
    about = {
        "config": plan.settings.model_dump(mode="json"),
        "dataset": {"path": str(plan.stream.prepared.path), "fingerprint": plan.stream.prepared.fingerprint},
        "code_version": plan.code_version,
        "tokenizer": plan.tokenizer.reading,
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
    state.load_state_dict(_state(folder, device))


def _state(folder: Path, device: torch.device) -> dict[str, Any]:
    """Tensors and numbers of a checkpoint; nothing in it is run. Raises `UserError` where it is no such file."""
    try:
        return torch.load(folder / "state.pt", map_location=device, weights_only=True)
    except Exception as error:  # pickle, zip and torch each have errors of their own
        raise UserError(
            f"checkpoint: {folder / 'state.pt'} holds no state that torch can load ({type(error).__name__})"
        ) from None


def keep_snapshot(run: Path) -> bool:
    """Copy Ray Train's list of checkpoints, and say whether it was whole.

    Ray writes it in place, so that a process that is killed meanwhile leaves a part of it, from which Ray can go on no more.
    What the list before named is still there: Ray deletes checkpoints after it has written that they are gone.
    """
    try:
        json.loads((run / _SNAPSHOT).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or cut off
        return False
    _put(run / _SNAPSHOT, run / _KEPT)
    return True


def mend_snapshot(run: Path) -> None:
    """Before Ray Train goes on: in place of a list that was cut off, the one before; without one the run starts again."""
    if not (run / _SNAPSHOT).exists() or keep_snapshot(run):
        return
    if (run / _KEPT).exists():
        _put(run / _KEPT, run / _SNAPSHOT)
    else:
        (run / _SNAPSHOT).unlink()


def _put(source: Path, target: Path) -> None:
    aside = target.with_name(f"{target.name}.partial-{os.getpid()}")
    aside.write_bytes(source.read_bytes())
    aside.rename(target)


def newest_checkpoint(run: Path) -> Path:
    """The newest finished checkpoint of a run's folder. Raises `UserError` where there is none."""
    try:
        if (run / NEWEST).exists():
            return run / json.loads((run / NEWEST).read_text(encoding="utf-8"))
        try:
            snapshot = json.loads((run / _SNAPSHOT).read_text(encoding="utf-8"))
        except ValueError:  # cut off
            snapshot = json.loads((run / _KEPT).read_text(encoding="utf-8"))
        return run / snapshot["latest_checkpoint_result"]["checkpoint_dir_name"]
    except (OSError, KeyError, TypeError, ValueError):
        raise UserError(
            f"checkpoint: {run} holds no finished checkpoint; give a run's folder, or one checkpoint_... or best inside it"
        ) from None


class Trained(NamedTuple):
    """A checkpoint's dual encoder with both towers, locked ones too, on the CPU and in eval mode; and how it was trained."""

    encoder: DualEncoder
    settings: TrainSettings
    tokenizer: TextTokenizer
    scale: float | None  # 1/temperature, where its objective has one


def find_checkpoint(path: Path) -> Path:
    """A checkpoint, or the newest one of a run's folder. Raises `UserError` where there is none."""
    if not path.is_dir():
        raise UserError(f"checkpoint: {path} is not a folder; give a run such as runs/demo, or one of its checkpoints")
    return path if (path / "state.pt").exists() else newest_checkpoint(path)


def load_encoder(folder: Path) -> Trained:
    """Of a checkpoint. Raises `UserError` where its weights do not fit its config."""
    file = folder / "checkpoint.json"
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        tree, reading = about["config"], about.get("tokenizer", {})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"checkpoint: {file} holds no config of a run ({type(error).__name__})") from None
    settings = validate(TrainSettings, tree, str(file))
    image, text = settings.image_tower, settings.text_tower
    words = (folder / "tokenizer.json").read_text(encoding="utf-8")
    tokenizer = TextTokenizer(words, text.max_tokens, **reading)
    towers = image, text, settings.heads, settings.embed_dim, (None, None), tokenizer.vocabulary_size
    encoder = build_encoder(*towers).eval()
    saved = _state(folder, torch.device("cpu"))
    locked = tuple(f"{side}_tower." for side, tower in (("image", image), ("text", text)) if tower.mode == "locked")
    missing, unexpected = encoder.load_state_dict(saved["encoder"], strict=False)
    wrong = [name for name in missing if not name.startswith(locked)] + list(unexpected)
    if wrong:
        raise UserError(f"checkpoint: {folder} does not fit its config: {', '.join(wrong[:4])}")
    return Trained(encoder, settings, tokenizer, settings.objective.logit_scale(saved["objective"]))


class CheckpointEmbedder:
    """A trained dual encoder, towers and heads, on its own. What it offers beside rows is in evaluation/embedder.py."""

    def __init__(self, folder: Path):
        self._encoder, self._settings, self._tokenizer, scale = load_encoder(folder)
        if scale is not None:
            self.scale = scale
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._encoder.to(self._device)

    @torch.inference_mode()
    def embed_images(self, images: list[Image.Image]) -> np.ndarray:
        """RGB pictures to unit rows, float32 [n, D]."""
        return self._encoder.embed_images(self._pixels(images)).cpu().numpy()

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Strings to unit rows, float32 [n, D]."""
        ids, mask = self._tokenizer(texts)
        return self._encoder.embed_texts(self._tensor(ids), self._tensor(mask)).cpu().numpy()

    @torch.inference_mode()
    def image_features(self, images: list[Image.Image]) -> np.ndarray:
        """What the image tower gives and the head takes, float32 [n, F]."""
        assert self._encoder.image_tower is not None
        return self._encoder.image_tower(self._pixels(images)).float().cpu().numpy()

    @cached_property
    def fingerprint(self) -> str:
        # Of locked towers too: their weights are loaded with the others. Whether a tower was trained is no matter here.
        towers = [
            tower.model_dump(mode="json", exclude={"mode", "weights"})
            for tower in (self._settings.image_tower, self._settings.text_tower)
        ]
        heads = [head.model_dump(mode="json") for head in self._settings.heads]
        return fingerprint(self._encoder, [towers, heads, self._tokenizer.identity])

    def _pixels(self, images: list[Image.Image]) -> torch.Tensor:
        size = self._settings.image_tower.image_size
        return self._tensor(np.stack([eval_view(image, size) for image in images]))

    def _tensor(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rows).to(self._device)


def load_embedder(checkpoint: str) -> CheckpointEmbedder:
    """`embedder=training.checkpoint:load_embedder`: from a run's folder, or one of its checkpoints."""
    return CheckpointEmbedder(find_checkpoint(Path(checkpoint)))
