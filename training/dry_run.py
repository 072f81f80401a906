"""Checks on the driver before any worker starts, and before Ray if possible: what fails here would fail on each worker.

`check_towers` builds locked towers and frozen encoders, before their features are computed. `check_build` builds all networks,
takes one step (forward and backward) on a few real rows, and runs two forward passes in eval mode.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.dataset.stream import Item
from pipelines.dataset.tokenizer import TextTokenizer
from pipelines.program.errors import UserError
from training.encoder import DualEncoder
from training.plan import Plan
from training.saved_towers import Frozen, has_copy
from training.state import TrainState
from training.step import gradients
from training.tensor_tree import encode
from training.towers.base import batch_statistics
from training.towers.pretrained import first_line
from training.towers.text import TextTowerSettings
from training.towers.text_reading import tells_apart

_ROWS = 4  # rows of the trial batch


def check_towers(towers: Iterable[Frozen], cache: Path | None) -> None:
    """Build towers from their pretrained weights once, before anything is computed. Raises `UserError` if one cannot be built.

    A tower with a copy, in the run's folder or in `cache`, was built before.
    """
    for tower in towers:
        if has_copy(tower, cache):
            continue
        try:
            if isinstance(tower.settings, TextTowerSettings):
                tokenizer = tower.tokenizer(list)
                _check_texts(tower.build(tokenizer.vocabulary_size), tokenizer, tower.key, str(tower.weights_name()))
            else:
                tower.build()
        except UserError:
            raise
        except Exception as error:  # each library raises its own errors
            problem = f"cannot be built from {tower.weights_name()}: {type(error).__name__}: {first_line(error)}"
            raise UserError(tower.key, problem, f"give other {tower.key}.weights; --verbose shows where") from error


def _check_texts(tower: Any, tokenizer: TextTokenizer, key: str, name: str) -> None:
    """Raises `UserError` if a text tower does not tell texts apart."""
    tower.eval()
    with torch.no_grad():
        tells_apart(lambda texts: tower(*map(torch.from_numpy, tokenizer(texts))), f"{key}.weights", name)


def check_build(plan: Plan) -> None:
    """Build everything once on the driver, and try a step. Raises `UserError` for whatever would fail on every worker too."""
    settings = plan.settings
    try:
        encoder, objective, teacher = plan.build()
    except UserError:
        raise
    except Exception as error:  # each library raises its own errors
        problem = f"the networks of {settings.name} cannot be built: {type(error).__name__}: {first_line(error)}"
        raise UserError("", problem, "--verbose shows where") from error
    if encoder.text_tower is not None:
        _check_texts(encoder.text_tower, plan.tokenizer, "text_tower", "this model")
    # To build one imports torch's compiler, which takes over a second.
    optimizer: Any = None if settings.optimizer.usual else settings.optimizer.build([encoder, objective])
    _check_batch_statistics(plan, encoder.train())
    state = TrainState(encoder, objective, teacher, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    encode(state.state_dict())
    try:
        _rehearse(plan, state)
    except UserError:
        raise
    except Exception as error:  # each model raises its own errors
        problem = f"a trial step on {_ROWS} rows fails: {type(error).__name__}: {first_line(error)}"
        raise UserError(str(plan.stream.prepared.path), problem, "--verbose shows where") from error


def _rehearse(plan: Plan, state: TrainState) -> None:
    """A forward and backward pass whose results are discarded, and two forward passes in eval mode. Raises `UserError`."""
    settings = plan.settings
    encoder: Any = state.encoder
    ids = plan.order.batch(0)[: max(_ROWS, settings.objective.least_batch)]
    batch = plan.stream.here(Item(ids, 0, lambda row: plan.order.spares(0, 0, 1, row)))
    # fp16 needs a GPU, and a few rows need no micro-batches.
    precision = "fp32" if settings.precision == "fp16" else settings.precision
    gradients(state, batch, settings.model_copy(update={"accumulate": 1, "precision": precision}))
    unreached = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    if unreached and settings.resources.most_workers > 1:
        raise UserError(
            "resources.num_workers",
            f"{len(unreached)} parameters get no gradient, such as {unreached[0]}, and several workers would wait for it",
            "pass resources.num_workers=1, or mode=frozen for that tower, or choose another tower",
        )
    encoder.eval()
    images = batch["image_features"] if encoder.image_tower is None else batch["image"]
    texts = (batch["text_features"],) if encoder.text_tower is None else (batch["text"], batch["text_mask"])
    with torch.no_grad():
        twice = [(encoder.embed_images(images), encoder.embed_texts(*texts)) for _ in range(2)]
    for key, first, second in zip(("image", "text"), *twice, strict=True):
        if not torch.allclose(first, second, atol=1e-4):
            problem = f"even in eval mode, the same {key} has a different embedding each time"
            raise UserError(f"{key}_tower", problem, f"give a model without random parts, or another {key}_head")


def _check_batch_statistics(plan: Plan, encoder: DualEncoder) -> None:
    """Raises `UserError` if a tower would compute batch statistics on a part of the batch only."""
    settings = plan.settings
    workers, parts = settings.resources.most_workers, settings.accumulate
    recomputes = {key: getattr(settings, key).recompute for key in ("image_tower", "text_tower")}
    if workers == parts == 1 and not any(recomputes.values()):
        return
    size = settings.image_tower.image_size
    pixels, (ids, mask) = torch.randint(256, (2, 3, size, size), dtype=torch.uint8), plan.tokenizer(["a", "b"])
    inputs = {"image_tower": (pixels,), "text_tower": (torch.from_numpy(ids), torch.from_numpy(mask))}
    for key, tower in (("image_tower", encoder.image_tower), ("text_tower", encoder.text_tower)):
        for name, module in ({} if tower is None else batch_statistics(tower, *inputs[key])).items():
            # torch synchronises only BatchNorm, and only between workers on GPUs.
            batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            what = f"{key}'s {name} ({type(module).__name__}) would compute its statistics on one of"
            freeze = "image_tower.batch_norm=frozen, " if batch_norm and key == "image_tower" else ""
            if recomputes[key]:
                problem = f"{key}'s {name} ({type(module).__name__}) would update its statistics twice, also when it runs again"
                raise UserError(f"{key}.recompute", problem, f"pass {freeze}{key}.recompute=false, or choose another {key}")
            if workers == parts == 1:
                continue
            if parts > 1:
                remedy = f"pass {freeze}accumulate=1, or choose another {key}"
                raise UserError("accumulate", f"{what} the {parts} parts of a step", remedy)
            if not (batch_norm and settings.resources.use_gpu):
                kind = "" if settings.resources.use_gpu else "CPU "
                remedy = f"pass {freeze}resources.num_workers=1, or choose another {key}"
                raise UserError("resources.num_workers", f"{what} the {workers} {kind}workers' rows", remedy)
