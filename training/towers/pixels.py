"""Pixel preprocessing of a network: levels scaled, normalised and with channels in the order that it was trained with.

Cropping and resizing an image to the tower's size is not part of a tower: pipelines/dataset/views.py does that for all towers.
"""

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.io.artifacts import resolve
from pipelines.program.errors import UserError
from training.towers.pretrained import first_line


class Pixels(nn.Module):
    """uint8 [b, 3, H, W] to float32: channels in this order, red being 0, less `mean`, over `std`, both of levels from 0 to 1."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], order: tuple[int, ...] = (0, 1, 2)):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)
        self._order = list(order)
        self.about = {"mean": list(mean), "std": list(std), "order": list(order)}  # arguments that rebuild it

    def forward(self, images: Tensor) -> Tensor:
        if self._order != [0, 1, 2]:
            images = images[:, self._order]
        return (images.float() - self.mean) / self.std


def pixels_of_processor(weights: str, size: int, key: str) -> Pixels:
    """The colour transform of these weights' image processor, found by running it, whatever its settings are called.

    `size`: of the test squares, in pixels. Raises `UserError` if there is no processor, or if it does more to a colour than
    scale, shift and reorder its channels.
    """
    from transformers import AutoImageProcessor

    found = resolve(weights, key) or weights
    try:
        processor = AutoImageProcessor.from_pretrained(found, trust_remote_code=False)
    except Exception as error:  # the hub, json and each processor raise their own errors
        raise UserError(
            f"{key}: {weights} has no image processor, which says what pixels its model takes ({first_line(error)}); "
            "save it beside the weights"
        ) from None
    # Single hues determine order, scale and shift; the others verify that there is nothing else.
    asked = np.concatenate([np.zeros((1, 3)), 255 * np.eye(3), np.random.default_rng(0).integers(0, 256, (6, 3))]).astype(
        np.uint8
    )
    squares = [np.broadcast_to(colour, (size, size, 3)).copy() for colour in asked]
    refused = f"{key}: the image processor of {weights}, {type(processor).__name__},"
    try:
        given = processor(images=squares, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
    except Exception as error:
        raise UserError(f"{refused} does not take a square of {size} pixels ({first_line(error)}); give another model") from None
    if given.ndim != 4 or given.shape[:2] != (len(asked), 3):
        raise UserError(f"{refused} gives {list(given.shape)} in place of one image of 3 channels each; give another model")
    spread = (given.amax((2, 3)) - given.amin((2, 3))).amax()
    colours = given[:, :, 0, 0].double()
    slopes = (colours[1:4] - colours[0]) / 255  # of levels, [channel in, channel out]
    order = slopes.abs().argmax(0)
    scale = slopes.gather(0, order[None])[0]
    told = torch.from_numpy(asked)[:, order].double() * scale + colours[0]
    if sorted(order.tolist()) != [0, 1, 2] or spread > 1e-4 or not torch.allclose(told, colours, atol=1e-4):
        raise UserError(
            f"{refused} does more to a square of one colour than to scale, shift and reorder its channels, which is all that "
            "an image tower does; give another model"
        )
    scale = scale * 255
    return Pixels(tuple((-colours[0] / scale).tolist()), tuple((1 / scale).tolist()), tuple(order.tolist()))
