"""What each evaluation says of the held-out embeddings beside their scores: a loss, and whether they collapse.

`held_out_loss` is the symmetric CLIP loss whatever the run's objective, so that it can be compared with other runs' and with
log(pairs), which telling nothing apart scores. Like a score it is of the run's own held-out split alone.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from evaluation.geometry import effective_rank, spread
from evaluation.suite import HeldOut
from training.config import TrainSettings
from training.held_out import HeldOutEmbeddings, pairs_at_a_time
from training.objectives.ops.blocks import Candidates
from training.objectives.ops.losses import log_sums
from training.state import TrainState, unwrap

_TEMPERATURE = 0.07  # CLIP's first one, for objectives that have none or one a sample
_MOST = 5000  # rows of which the rank is computed


def held_out_figures(
    data: HeldOut, rows: HeldOutEmbeddings, state: TrainState, settings: TrainSettings, device: torch.device
) -> dict[str, float]:
    """`held_out_loss`, at the objective's temperature; `spread_...` and `rank_...` of images and texts (`evaluation.geometry`).

    Without captions there is no loss.
    """
    saved: Mapping[str, Any] = unwrap(state.objective).state_dict()
    scale = settings.objective.logit_scale(saved) or 1 / _TEMPERATURE
    figures = {} if not data.texts else {"held_out_loss": held_out_loss(data, rows, scale, settings.global_batch_size, device)}
    for name, of in (("images", rows.images), ("texts", rows.texts)):
        if len(of) > 1:
            figures |= {f"spread_{name}": spread(of), f"rank_{name}": effective_rank(of[:: math.ceil(len(of) / _MOST)])}
    return figures


@torch.no_grad()
def held_out_loss(data: HeldOut, rows: HeldOutEmbeddings, scale: float, batch: int, device: torch.device) -> float:
    """The mean over held-out pairs, an image with its first caption each, in batches that are always the same.

    As in training, pairs with the same image or caption are no negatives of each other. The last batch is filled up with the
    first pairs, as a smaller one would have a lower loss.

    Args:
        scale: 1 / temperature. batch: pairs at a time.
    """
    images, texts = np.unique(data.image_of_text, return_index=True)
    size = pairs_at_a_time(data, batch)
    order = np.random.default_rng(0).permutation(len(images))
    order = np.resize(order, math.ceil(len(images) / size) * size)
    ids = np.stack([data.image_ids[images], data.text_ids[texts]], axis=1)
    level, losses = torch.tensor(scale, device=device), []
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        image, text = (
            torch.from_numpy(of[places[chosen]]).to(device) for of, places in ((rows.images, images), (rows.texts, texts))
        )
        alike = torch.from_numpy(ids[chosen]).to(device)
        candidates = Candidates(torch.arange(size, device=device), alike, alike)
        over_texts, over_images = log_sums(image, text, level, level, candidates)
        losses.append(((over_texts + over_images) / 2 - level * (image * text).sum(1)).mean())
    return float(torch.stack(losses).mean())
