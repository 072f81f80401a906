"""Saving and loading checkpoints, and embedding images and texts with one.

state.safetensors, state.json   TrainState.state_dict() (tensor_tree.py)
checkpoint.json                 resolved config, dataset fingerprint, code version, step
tokenizer.json                  the text tower's
digests.json                    a digest of each of these files (checkpoint_registry.py)
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from pipelines.dataset.prepared import Prepared
from pipelines.dataset.tokenizer import TextTokenizer
from pipelines.dataset.views import eval_view
from pipelines.io.retry import is_remote
from pipelines.program.errors import UserError
from pipelines.program.own_class import as_data
from pipelines.program.settings import validate
from training.checkpoint_registry import ABOUT, DIGESTS, FORMAT, STATE, check, newest_checkpoint, seal
from training.config import TrainSettings
from training.encoder import DualEncoder
from training.fingerprint import fingerprint
from training.objectives.base import ForeignObjective
from training.plan import Plan
from training.run_store import opened_run
from training.saved_towers import locked_tower, tokenizer_of, towers_of, trained_tower
from training.state import TrainState, unwrap
from training.tensor_tree import encode, files_of, load_tree, write_encoded
from training.towers import lora
from training.towers.padding import Padded
from training.wise_ft import mixed

EXPORT = "raylign.json"  # in an export to safetensors, which opens like a checkpoint


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory, which does not change when training goes on."""

    about: dict[str, Any]
    tokenizer: str
    tensors: dict[str, torch.Tensor]
    rest: str  # of the state, as JSON

    @property
    def step(self) -> int:
        """Steps that were done."""
        return self.about["step"]

    def write(self, folder: Path) -> None:
        """Write all files, and their digests, into a folder. The checkpoint is valid once it is registered."""
        write_encoded(self.tensors, self.rest, folder, STATE)
        (folder / "tokenizer.json").write_text(self.tokenizer, encoding="utf-8")
        (folder / ABOUT).write_text(json.dumps(self.about, indent=1), encoding="utf-8")
        seal(folder)


def snapshot(state: TrainState, plan: Plan, metrics: dict[str, Any]) -> Snapshot:
    """The state as it is now, copied."""
    encoder: Any = unwrap(state.encoder)
    about = {
        "format": FORMAT,
        "config": plan.settings.model_dump(mode="json") | {"image_head": plan.settings.heads[0].model_dump(mode="json")},
        "dataset": {"path": str(plan.stream.prepared.path), "fingerprint": plan.stream.prepared.fingerprint},
        "code_version": plan.code_version,
        "tokenizer": plan.tokenizer.reading,
        "towers": [getattr(tower, "about", None) for tower in (encoder.image_tower, encoder.text_tower)],
        "frozen": {tower.key: tower.identity for tower in plan.frozen},
        # Stored because embedding must not import an objective that is not ours.
        "scale": plan.settings.objective.logit_scale(unwrap(state.objective).state_dict()),
        "step": state.step,
        "total_steps": plan.total_steps,
        "metrics": metrics,
    }
    return Snapshot(about, plan.tokenizer.json, *encode(state.state_dict(), copy=True))


def load_checkpoint(folder: Path, state: TrainState, plan: Plan) -> None:
    """Load a checkpoint into the state. Raises `UserError` if it is damaged, or was trained on other data."""
    check(folder)
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    trained_on, data = about["dataset"]["fingerprint"], plan.stream.prepared
    if trained_on != data.fingerprint:
        raise other_data(folder, trained_on, data)
    state.load_state_dict(_state(folder))


def other_data(folder: Path, trained_on: str, data: Prepared) -> UserError:
    """The error for a run or checkpoint that was trained on data with another fingerprint."""
    return UserError(
        "data.path",
        f"{folder} was trained on data with fingerprint {trained_on[:12]}, and {data.path} now has {data.fingerprint[:12]}",
        "give another name=, or pass overwrite=true",
    )


def _state(folder: Path) -> dict[str, Any]:
    """Tensors and values of a checkpoint, on the CPU. Raises `UserError` if its files hold something else."""
    try:
        return load_tree(folder, STATE)
    except (OSError, ValueError) as error:
        problem = f"{folder / files_of(STATE)[0]} and {files_of(STATE)[1]} hold no state ({' '.join(str(error).split())[:150]})"
        raise UserError("checkpoint", problem, "copy the checkpoint again, or give another one") from None


class Trained(NamedTuple):
    """A checkpoint's dual encoder with both towers, locked ones too, on the CPU and in eval mode; and its training config."""

    encoder: DualEncoder
    settings: TrainSettings
    tokenizer: TextTokenizer
    scale: float | None  # 1/temperature, if the objective has one
    bias: float | None  # added to the scaled cosines, if the objective has one that is ours


def find_checkpoint(path: Path | str) -> Path:
    """The folder itself if it is a checkpoint, else the newest checkpoint of a run's folder; of a URI, this node's copy.

    Raises `UserError` if there is neither.
    """
    if isinstance(path, str):
        return opened_run(path)
    if not path.is_dir():
        raise UserError("checkpoint", f"{path} is not a folder", "give a run such as runs/demo, or one of its checkpoints")
    return path if any((path / name).exists() for name in (ABOUT, DIGESTS, EXPORT)) else newest_checkpoint(path)


def load_encoder(folder: Path) -> Trained:
    """The encoder of a checkpoint, or of an export to safetensors.

    Raises `UserError` if it is damaged, or its weights do not fit its config.
    """
    if (folder / EXPORT).exists():
        from training.export.safetensors import read  # which imports this module

        return read(folder)
    check(folder)
    file = folder / ABOUT
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        tree, frozen = about["config"], about.get("frozen", {})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        problem = f"{file} has no config of a run ({type(error).__name__})"
        raise UserError("checkpoint", problem, "copy the checkpoint again, or give another one") from None
    with as_data():
        settings = validate(TrainSettings, tree, str(file))
    sides = {"image_tower": settings.image_tower, "text_tower": settings.text_tower}
    tokenizer = tokenizer_of(folder, settings.text_tower.max_tokens)
    towers = [
        locked_tower(tower, key, folder, frozen.get(key), tokenizer.vocabulary_size)
        if tower.mode == "locked"
        else trained_tower(tower, key, described, tokenizer.vocabulary_size)
        for (key, tower), described in zip(sides.items(), towers_of(folder), strict=True)
    ]
    heads = [head.build(tower.width, settings.embed_dim) for head, tower in zip(settings.heads, towers, strict=True)]
    encoder = DualEncoder(*towers, *heads).eval()
    saved = _state(folder)
    locked = tuple(f"{key}." for key, tower in sides.items() if tower.mode == "locked")
    missing, unexpected = encoder.load_state_dict(lora.merged(saved.get("average", saved["encoder"])), strict=False)
    wrong = [name for name in missing if not name.startswith(locked)] + list(unexpected)
    if wrong:
        problem = f"the weights in {folder} do not fit its config: {', '.join(wrong[:4])}"
        raise UserError("checkpoint", problem, "load it with the version of raylign that trained it, or give another one")
    foreign = isinstance(settings.objective, ForeignObjective)
    scale = about.get("scale") if foreign else settings.objective.logit_scale(saved["objective"])
    return Trained(encoder, settings, tokenizer, scale, settings.objective.logit_bias(saved["objective"]))


class CheckpointEmbedder:
    """A trained dual encoder as an embedder; evaluation/embedder.py explains its optional attributes."""

    def __init__(self, folder: Path, wise_ft: float | None = None):
        """`wise_ft`: alpha of weights between those that the run started from and its own (wise_ft.py)."""
        trained = load_encoder(folder) if wise_ft is None else mixed(load_encoder(folder), wise_ft)
        self._encoder, self._settings, self._tokenizer = trained.encoder, trained.settings, trained.tokenizer
        if trained.scale is not None:
            self.scale = trained.scale
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._encoder.to(self._device)
        assert self._encoder.text_tower is not None
        self._padded = Padded(self._encoder.text_tower, self._tokenizer)

    @torch.inference_mode()
    def embed_images(self, images: list[Image.Image]) -> np.ndarray:
        """RGB images to unit rows, float32 [n, D]."""
        return self._encoder.embed_images(self._pixels(images)).cpu().numpy()

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Strings to unit rows, float32 [n, D]."""
        ids, mask = self._padded(texts)
        return self._encoder.embed_texts(ids.to(self._device), mask.to(self._device)).cpu().numpy()

    @torch.inference_mode()
    def image_features(self, images: list[Image.Image]) -> np.ndarray:
        """The image tower's features, which the head projects, float32 [n, F]."""
        assert self._encoder.image_tower is not None
        return self._encoder.image_tower(self._pixels(images)).float().cpu().numpy()

    @cached_property
    def fingerprint(self) -> str:
        # Covers locked towers too: their weights are loaded like the others, so the mode makes no difference.
        towers = [
            {name: value for name, value in tower.of_features().items() if name != "weights"}
            for tower in (self._settings.image_tower, self._settings.text_tower)
        ]
        heads = [head.model_dump(mode="json") for head in self._settings.heads]
        return fingerprint(self._encoder, [towers, heads, self._tokenizer.identity])

    def _pixels(self, images: list[Image.Image]) -> torch.Tensor:
        size = self._settings.image_tower.image_size
        return torch.from_numpy(np.stack([eval_view(image, size) for image in images])).to(self._device)


def load_embedder(checkpoint: str, wise_ft: float | None = None) -> CheckpointEmbedder:
    """The embedder of a run's folder or URI, or of one of its checkpoints; it is `embedder=training.checkpoint:load_embedder`."""
    return CheckpointEmbedder(find_checkpoint(checkpoint if is_remote(checkpoint) else Path(checkpoint)), wise_ft)
