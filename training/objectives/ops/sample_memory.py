"""One number for every image and every caption of the training data: the per-sample state of objectives.

Replicated: a sample may be on another worker in every epoch, so every worker writes the values of all workers, and any number
of workers can resume from a checkpoint. A value does not change until its image or caption is seen again.
"""

import torch
from torch import Tensor, nn

from pipelines.dataset.batch import Batch
from training.distributed import all_gather
from training.objectives.base import Task


class Memory(nn.Module):
    """Float32 arrays [num_images] and [num_texts]."""

    image: Tensor
    text: Tensor

    def __init__(self, task: Task, start: float):
        super().__init__()
        self.register_buffer("image", torch.full((task.num_images,), start))
        self.register_buffer("text", torch.full((task.num_texts,), start))

    def read(self, batch: Batch) -> Tensor:
        """[2, b]: values of the batch's images and captions. Raises `IndexError` for an id that is out of range."""
        return torch.stack([_at(self.image, batch["image_id"], "image_id"), _at(self.text, batch["text_id"], "text_id")])

    def write(self, batch: Batch, values: Tensor, valid: Tensor, log: bool = False) -> None:
        """Write [2, b] of every worker where `valid` [b]. An id that occurs twice gets the mean; with `log`, log of mean exp."""
        valid = all_gather(valid)
        for array, ids, new in zip((self.image, self.text), (batch["image_id"], batch["text_id"]), values, strict=True):
            unique, where = all_gather(ids)[valid].unique(return_inverse=True)
            array[unique] = _mean(all_gather(new)[valid].to(array.dtype), where, len(unique), log)


def _at(array: Tensor, ids: Tensor, name: str) -> Tensor:
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= len(array):
        raise IndexError(f"{name}: {lowest if lowest < 0 else highest} is outside [0, {len(array)})")
    return array[ids]


def _mean(values: Tensor, where: Tensor, size: int, log: bool) -> Tensor:
    """[size]: mean of the values that share a place."""
    counts = torch.bincount(where, minlength=size).to(values.dtype)
    if not log:
        return values.new_zeros(size).index_add_(0, where, values) / counts
    top = values.new_full((size,), -torch.inf).scatter_reduce_(0, where, values, "amax")
    base = top.masked_fill(top.isinf(), 0.0)
    return (values.new_zeros(size).index_add_(0, where, (values - base[where]).exp()) / counts).log() + base
