"""A trial step on the driver before any worker starts, and before Ray if possible: what fails here would fail on each worker.

It builds the networks, takes one step (forward and backward) on a few real rows, and runs two forward passes in eval mode.
"""

from typing import Any

import torch
from torch import nn

from pipelines.dataset.stream import Item
from pipelines.program.errors import UserError
from training.encoder import DualEncoder
from training.plan import Plan
from training.state import TrainState
from training.step import gradients
from training.towers.base import batch_statistics
from training.towers.pretrained import first_line
from training.towers.text_reading import tells_apart

_ROWS = 4  # rows of the trial batch


def check_build(plan: Plan) -> None:
    """Build everything once on the driver, and try a step. Raises `UserError` for whatever would fail on every worker too."""
    settings = plan.settings
    encoder, objective, teacher = plan.build()
    if encoder.text_tower is not None:
        tower = encoder.text_tower.eval()
        with torch.no_grad():
            tells_apart(lambda texts: tower(*map(torch.from_numpy, plan.tokenizer(texts))), "text_tower.weights", "this model")
    optimizer = settings.optimizer.build([encoder, objective])
    _check_batch_statistics(plan, encoder.train())
    state = TrainState(encoder, objective, teacher, optimizer, torch.amp.GradScaler("cpu", enabled=False))
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
    if unreached and settings.resources.num_workers > 1:
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
    workers, parts = settings.resources.num_workers, settings.accumulate
    if workers == parts == 1:
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
            if parts > 1:
                remedy = f"pass {freeze}accumulate=1, or choose another {key}"
                raise UserError("accumulate", f"{what} the {parts} parts of a step", remedy)
            if not (batch_norm and settings.resources.use_gpu):
                kind = "" if settings.resources.use_gpu else "CPU "
                remedy = f"pass {freeze}resources.num_workers=1, or choose another {key}"
                raise UserError("resources.num_workers", f"{what} the {workers} {kind}workers' rows", remedy)
