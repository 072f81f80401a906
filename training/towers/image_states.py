"""What an image network tells of each place of an image: the states of a square grid, from the pass that gives its row.

For a transformer they are the last states of its patches, without class tokens and registers; for a convolutional or hierarchical
network, its last feature map. Libraries return them in several layouts, so the layout is read from the shape.
"""

from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.program.errors import UserError

_LEAST = 2  # places along a side


def rows_and_states(network: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [b, F] and states [b, P, S] of normalised images [b, 3, H, W], place by place along each line of the grid.

    Raises: anything, for a network that has no such states.
    """
    if hasattr(network, "with_states"):
        rows, states = network.with_states(pixels)
    elif hasattr(network, "trunk"):  # open_clip's wrapper of a timm model
        states = network.trunk.forward_features(pixels)
        rows = network.head(network.trunk.forward_head(states))
    elif hasattr(network, "forward_head"):  # timm
        states = network.forward_features(pixels)
        rows = network.forward_head(states)
    else:  # open_clip's own networks
        found = network.forward_intermediates(pixels, indices=1, normalize_intermediates=True)
        rows, states = found["image_features"], found["image_intermediates"][-1]
    return rows, _grid(states)


def _grid(states: Tensor) -> Tensor:
    """[b, P, S] from a map, [b, S, side, side] or [b, side, side, S], or from tokens [b, P or a few more, S].

    The grid is square, as images are: what is more than a square number of tokens are others, and come first.
    """
    if states.ndim == 4:
        last = states.shape[1] == states.shape[2] != states.shape[3]
        return states.flatten(1, 2) if last else states.flatten(2).transpose(1, 2)
    return states[:, states.shape[1] - isqrt(states.shape[1]) ** 2 :]


def without(pixels: Tensor, hidden: Tensor) -> Tensor:
    """Normalised images with the mean colour, 0, in the hidden places: bool [b, P], of the grid of states."""
    side = isqrt(hidden.shape[1])
    grid = hidden.view(len(hidden), 1, side, side).to(pixels.dtype)
    return pixels.masked_fill(F.interpolate(grid, pixels.shape[2:]) > 0, 0.0)


@torch.no_grad()
def states_width(tower: Any, size: int, key: str = "image_tower") -> int:
    """S of an image tower.

    Args:
        size: side of its images, in pixels.
        key: the tower's place in the config, for errors.

    Raises: `UserError` if it has no states of places, or if its row would be another with them.
    """
    device, training = next(tower.parameters()).device, tower.training
    image = torch.randint(0, 256, (1, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).to(device)
    tower.eval()
    try:
        rows, states = tower.with_states(image)
        shape = tuple(states.shape)
        fits = states.ndim == 3 and isqrt(shape[1]) ** 2 == shape[1] >= _LEAST**2
        fits = fits and torch.allclose(rows, tower(image), rtol=1e-4, atol=1e-5)
    except Exception:  # each network raises its own errors
        fits, shape = False, ()
    finally:
        tower.train(training)
    if not fits:
        problem = f"this network gives no states of a grid of at least {_LEAST} x {_LEAST} places of a {size}-pixel image"
        remedy = "choose one that does, such as conv, a vision transformer (ViT, SigLIP, DINOv2), ResNet, ConvNeXt or Swin"
        raise UserError(key, problem, f"{remedy}, or a larger {key}.image_size")
    return shape[2]
