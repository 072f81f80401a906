"""Pixel normalisation of a network: values scaled and shifted, with the channel order that it was trained with.

Cropping and resizing an image to the tower's size is not part of a tower: pipelines/dataset/views.py does that for all towers.
"""

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.io.artifacts import resolve
from pipelines.program.errors import UserError
from training.towers.pretrained import first_line


class Pixels(nn.Module):
    """uint8 [b, 3, H, W] to float32: (x / 255 - mean) / std, after putting the channels into `order`, in which red is 0."""

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
    """The colour transform of these weights' image processor, found by running it on squares of one colour: the names of its
    settings differ from model to model.

    Args:
        size: side of the squares, in pixels.
        key: the setting that names the weights, for errors.

    Raises: `UserError` if there is no processor, or if it does more than scale, shift and reorder channels.
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(resolve(weights, key) or weights, trust_remote_code=False)
    except Exception as error:  # the hub, json and each processor raise their own errors
        problem = f"{weights} has no image processor, so it is unknown how its model normalises pixels ({first_line(error)})"
        raise UserError(key, problem, "save the processor beside the weights") from None
    # Black and the pure hues determine order, scale and shift; the other colours verify that there is nothing else.
    colours = np.concatenate([np.zeros((1, 3)), 255 * np.eye(3), np.random.default_rng(0).integers(0, 256, (6, 3))])
    colours = colours.astype(np.uint8)
    squares = [np.broadcast_to(colour, (size, size, 3)).copy() for colour in colours]
    name = f"the image processor of {weights}, {type(processor).__name__},"
    try:
        pixels = processor(images=squares, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
    except Exception as error:
        problem = f"{name} does not take a square of {size} pixels ({first_line(error)})"
        raise UserError(key, problem, "choose another model") from None
    if pixels.ndim != 4 or pixels.shape[:2] != (len(colours), 3):
        problem = f"{name} gives {list(pixels.shape)} instead of one image of 3 channels for each square"
        raise UserError(key, problem, "choose another model")
    spread = (pixels.amax((2, 3)) - pixels.amin((2, 3))).amax()
    outputs = pixels[:, :, 0, 0].double()
    slopes = (outputs[1:4] - outputs[0]) / 255  # [channel in, channel out]
    order = slopes.abs().argmax(0)
    scale = slopes.gather(0, order[None])[0]
    predicted = torch.from_numpy(colours)[:, order].double() * scale + outputs[0]
    if sorted(order.tolist()) != [0, 1, 2] or spread > 1e-4 or not torch.allclose(predicted, outputs, atol=1e-4):
        problem = f"{name} does more to a square of one colour than scale, shift and reorder its channels, as an image tower does"
        raise UserError(key, problem, "choose another model")
    scale = scale * 255
    return Pixels(tuple((-outputs[0] / scale).tolist()), tuple((1 / scale).tolist()), tuple(order.tolist()))
