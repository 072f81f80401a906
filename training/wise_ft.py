"""Weights on the line from those that a run started from to its own: WiSE-FT (Wortsman et al., CVPR 2022, arXiv 2109.01903).

    theta(alpha) = (1 - alpha) theta_start + alpha theta_fine-tuned

The start is read again from where the run's config says. Buffers, such as statistics of BatchNorm, go along; counters and the
temperature are the fine-tuned ones.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipelines.program.errors import UserError
from training.encoder import IdentityHead
from training.saved_towers import build
from training.towers.base import TowerSettings

if TYPE_CHECKING:
    from training.checkpoint import Trained  # which imports this module

KEY = "wise_ft"  # of the embedder's arguments, for errors


def check_alpha(alpha: float, key: str = KEY) -> None:
    """Raises `UserError` for what is not between start and end."""
    if not 0 <= alpha <= 1:
        raise UserError(key, f"{alpha:g} is not between 0, the start, and 1, the fine-tuned weights", "pass a number between")


@torch.no_grad()
def mixed(trained: "Trained", alpha: float) -> "Trained":
    """The same run with weights in between; `trained` is changed. Raises `UserError` if it did not start from a dual encoder."""
    check_alpha(alpha)
    own = trained.encoder.state_dict()
    for key, settings in (("image_tower", trained.settings.image_tower), ("text_tower", trained.settings.text_tower)):
        if settings.mode == "locked":
            continue
        start = _start(settings, key, trained)
        for name, value in start.items():
            place = own[f"{key}.{name}"]
            if place.is_floating_point():
                place.copy_((1 - alpha) * value + alpha * place)
    return trained


def _start(settings: TowerSettings, key: str, trained: "Trained") -> dict[str, Tensor]:
    """A tower's weights as the run began, by name."""
    name, head = settings.name, trained.settings.heads[key == "text_tower"]  # type: ignore[attr-defined]
    if not settings.pretrained:
        problem = f"{trained.settings.name} trained its {key} ({name}) from random weights, which had no skill"
        raise UserError(KEY, problem, "give a run that started from a dual encoder")
    if not isinstance(head, IdentityHead):
        problem = f"the {head.name} head after the {key} of {trained.settings.name} began at random, and had no skill"
        raise UserError(KEY, problem, "give a run that started from a dual encoder, with heads of name: identity")
    start = build(settings, trained.tokenizer.vocabulary_size, key).state_dict()
    tower = getattr(trained.encoder, key).state_dict()
    if {n: v.shape for n, v in start.items()} != {n: v.shape for n, v in tower.items()}:
        problem = f"{settings.weights_name()} no longer holds the network that {trained.settings.name} started from"
        raise UserError(f"{key}.weights", problem, "put the former weights back")
    return start
