"""safetensors: a run's weights without pickle, with a JSON config, the tokenizer and the settings of image processing.

    FOLDER/model.safetensors   both towers, locked ones too, and the heads
    FOLDER/raylign.json        the run's config, architectures of the towers, temperature and bias
    FOLDER/tokenizer.json, tokenizer_config.json, preprocessor_config.json

raylign opens the folder as it opens a run: as an embedder, and as a tower of another run. Every run can be held.
"""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from pipelines.dataset.tokenizer import TextTokenizer
from pipelines.program.errors import UserError
from pipelines.program.own_class import as_data
from pipelines.program.settings import validate
from training.checkpoint import EXPORT, Trained
from training.config import TrainSettings
from training.encoder import DualEncoder
from training.export import processor
from training.export.model import Model

NAME, LIBRARY = "safetensors", "raylign"
_FORMAT = 1


def express(model: Model) -> DualEncoder:
    """The encoder as it is."""
    return model.trained.encoder


def write(model: Model, network: DualEncoder, folder: Path) -> None:
    """All files."""
    from safetensors.torch import save_file

    about = {
        "format": _FORMAT,
        "config": model.about["config"],
        "towers": [tower.about for tower in (network.image_tower, network.text_tower) if tower is not None],
        "tokenizer": model.tokenizer.reading,
        "scale": model.trained.scale,
        "bias": model.trained.bias,
    }
    (folder / EXPORT).write_text(json.dumps(about, indent=1), encoding="utf-8")
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    processor.write_files(model, folder)
    # As the run has it: cleaning and padding are in raylign.json.
    (folder / "tokenizer.json").write_text(model.tokenizer.json, encoding="utf-8")


def read(folder: Path) -> Trained:
    """What `write` wrote. Raises `UserError` if it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        about: dict[str, Any] = json.loads((folder / EXPORT).read_text(encoding="utf-8"))
        weights, words = load_file(folder / "model.safetensors"), (folder / "tokenizer.json").read_text(encoding="utf-8")
        version = about["format"]
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        problem = f"{folder} is a damaged export ({' '.join(str(error).split())[:150]})"
        raise UserError("checkpoint", problem, "copy it again, or export the run again") from None
    if version != _FORMAT:
        problem = f"{folder} is an export of format {version}, and this version reads {_FORMAT}"
        raise UserError("checkpoint", problem, "export the run again")
    with as_data():
        settings = validate(TrainSettings, about["config"], str(folder / EXPORT))
    tokenizer = TextTokenizer(words, settings.text_tower.max_tokens, **about["tokenizer"])
    towers: list[Any] = [
        tower.rebuild(described, tokenizer.vocabulary_size)
        for tower, described in zip((settings.image_tower, settings.text_tower), about["towers"], strict=True)
    ]
    heads = [head.build(tower.width, settings.embed_dim) for head, tower in zip(settings.heads, towers, strict=True)]
    encoder = DualEncoder(*towers, *heads).eval()
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        problem = f"the weights in {folder} do not fit its config ({' '.join(str(error).split())[:150]})"
        raise UserError("checkpoint", problem, "copy it again, or export the run again") from None
    return Trained(encoder, settings, tokenizer, about["scale"], about["bias"])


def notes(model: Model, network: Any) -> list[str]:
    """What a user of this export has to know."""
    return [
        "raylign opens this folder as it opens a run, and a run can start from it (`image_tower: {name: run, path: FOLDER}`).",
        "Pixels are the centre square, resized by Pillow's bicubic filter, scaled and shifted as in preprocessor_config.json.",
    ]


def check_library() -> None:
    """Nothing beyond raylign's own requirements."""


def usage() -> ModuleType:
    """As a user would read the folder."""
    from training.export.usage import safetensors

    return safetensors
