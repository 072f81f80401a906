"""MP-NCE: a contrast with several positives that do not compete with one another.

Lee et al., "UniCLIP", NeurIPS 2022, arXiv 2209.13430; MCD (Kim et al., ICCV 2023, arXiv 2312.12661) takes it from there. The rows
of a sample (views of its image, its caption) are positives of one another and of themselves; the rows of other samples are
negatives. With s_kp = scale_kp (<z_k, z_p> - offset_kp):

    L_k = 1/|P_k| sum_{p in P_k} w_kp softplus( logsumexp_{q in N_k} s_kq - s_kp )

Unlike in SupCon, other positives are not in the denominator. The pair of a row with itself has cosine 1: it only
pushes negatives away.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from training.distributed import all_gather
from training.objectives.ops.blocks import Candidates
from training.objectives.ops.losses import log_sums
from training.precision import exact


def mp_nce(
    rows: Sequence[Tensor], scale: Tensor, offset: Tensor, weight: Tensor, candidates: Candidates, self_pair: bool = True
) -> Tensor:
    """L_k [S, b] of this worker's rows against those of all workers.

    Args:
        rows: S kinds of rows (views, captions), unit [b, D] each; row i of each kind belongs to sample i.
        scale, offset, weight: [S, S], for pairs of kinds.
        candidates: samples that are alike are neither positives nor negatives.
        self_pair: whether a row is a positive of itself.
    """
    rows = [exact(part) for part in rows]
    everywhere = [all_gather(part) for part in rows]
    losses = []
    for i, own in enumerate(rows):
        sums = [log_sums(own, keys, scale[i, j], None, candidates, own=False)[0] for j, keys in enumerate(everywhere)]
        negatives = torch.stack([part - scale[i, j] * offset[i, j] for j, part in enumerate(sums)]).logsumexp(0)
        positives = [p for p in range(len(rows)) if self_pair or p != i]
        terms = [weight[i, p] * F.softplus(negatives - scale[i, p] * ((own * rows[p]).sum(1) - offset[i, p])) for p in positives]
        losses.append(torch.stack(terms).mean(0))
    return torch.stack(losses)
