"""ONNX: `vision_model.onnx` and `text_model.onnx`, each from pixels or tokens to unit rows, for a batch of any size.

The names of files, inputs and outputs are those that transformers.js and optimum use. Every run can be held.
"""

import contextlib
import io
import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.program.errors import UserError
from training.export import processor
from training.export.model import Model

NAME, LIBRARY = "onnx", "onnxruntime"
OPSET = 18
_LARGEST = 1 << 30  # bytes of weights in the graph's own file; of more, a second file holds them, since a graph ends at 2 GiB


class _Image(nn.Module):
    """Normalised pixels [b, 3, S, S], red first, to unit rows [b, D]."""

    def __init__(self, model: Model):
        super().__init__()
        self.network, self.heads = model.image.tower.network, nn.ModuleList(model.image.heads)
        self.order: list[int] = model.image.tower.pixels.about["order"]

    def forward(self, pixel_values: Tensor) -> Tensor:
        rows = pixel_values if self.order == [0, 1, 2] else pixel_values[:, self.order]
        rows = self.network(rows)
        for head in self.heads:
            rows = head(rows)
        return F.normalize(rows, dim=-1)


class _Text(nn.Module):
    """Ids and mask, int64 [b, L], to unit rows [b, D]. A tower that reads its padding gets no mask."""

    def __init__(self, model: Model):
        super().__init__()
        self.tower, self.heads = model.text.tower, nn.ModuleList(model.text.heads)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        rows = self.tower(input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask)
        for head in self.heads:
            rows = head(rows)
        return F.normalize(rows, dim=-1)


def express(model: Model) -> tuple[nn.Module, nn.Module]:
    """Both halves as modules of unit rows."""
    return _Image(model).eval(), _Text(model).eval()


def write(model: Model, network: tuple[nn.Module, nn.Module], folder: Path) -> None:
    """Both graphs, `config.json` with the temperature, and the files of the processor."""
    size, length = model.settings.image_tower.image_size, model.tokenizer.max_tokens
    ids, mask = (torch.from_numpy(part) for part in model.tokenizer(["a red apple on the table", "two"]))
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    text = {"input_ids": ids} if model.tokenizer.reads_padding else {"input_ids": ids, "attention_mask": mask}
    _save(network[0], {"pixel_values": pixels}, "image_embeds", folder / "vision_model.onnx")
    _save(network[1], text, "text_embeds", folder / "text_model.onnx")
    config = {
        "opset": OPSET,
        "image_size": size,
        "max_tokens": length,
        "projection_dim": model.settings.embed_dim,
        "logit_scale": model.scale,
        "logit_bias": model.bias,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    processor.write_files(model, folder)


def notes(model: Model, network: Any) -> list[str]:
    """What a user of this export has to know."""
    notes = [
        f"Opset {OPSET}. Both graphs take a batch of any size; texts are always padded to {model.tokenizer.max_tokens} tokens.",
        "Rows are already of length one. Logits are logit_scale x cosine + logit_bias, both in config.json.",
    ]
    if model.tokenizer.clean is not None:
        notes.append("Texts that need ftfy or have HTML entities: open_clip cleans them, and this tokenizer does not.")
    return notes


def _save(network: nn.Module, inputs: dict[str, Tensor], output: str, file: Path) -> None:
    said = io.StringIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(said), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            tuple(inputs.values()),
            file,
            input_names=list(inputs),
            output_names=[output],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in inputs),
            external_data=sum(tensor.nbytes for tensor in network.state_dict().values()) > _LARGEST,
            verbose=False,
        )


def check_library() -> None:
    """Raises `UserError` if a package is missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError("--to", f"onnx needs {' and '.join(missing)}, which is not installed", "pip install 'raylign[onnx]'")


def usage() -> ModuleType:
    """As a user would read the folder."""
    from training.export.usage import onnx

    return onnx
