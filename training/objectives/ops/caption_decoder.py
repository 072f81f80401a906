"""A decoder that tells an image's caption from the image tower's states. It teaches the tower, and is discarded after training.

A transformer with cross attention (LocCa, Wan et al., arXiv 2403.19596; CapPa, Tschannen et al., arXiv 2306.07915). It predicts
each token from those before it, or all at once from none (`parallel`), when all that is known comes from the image.
Ours: positions are fixed sines, so that captions may have any length, and padding is not attended to.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from pipelines.program.settings_base import Settings
from training.precision import exact


class DecoderSettings(Settings):
    """Sizes of the decoder of captions."""

    width: int = Field(512, ge=2, multiple_of=2, description="of its states; a multiple of `heads`")
    layers: int = Field(6, ge=1, description="transformer blocks, with self and cross attention")
    heads: int = Field(8, ge=1, description="attention heads")


class CaptionDecoder(nn.Module):
    """Captions and the image tower's states to one state a token, of which `words` makes logits of the token itself."""

    def __init__(self, settings: DecoderSettings, states_width: int, vocabulary_size: int):
        super().__init__()
        width, self._heads = settings.width, settings.heads
        self.image = nn.Linear(states_width, width)
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.start, self.blank = (nn.Parameter(torch.randn(width) * 0.02) for _ in range(2))
        block = nn.TransformerDecoderLayer(
            width, settings.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerDecoder(block, settings.layers, nn.LayerNorm(width))
        self.words = nn.Linear(width, vocabulary_size)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, image_states: Tensor, text: Tensor, mask: Tensor, parallel: Tensor) -> Tensor:
        """The state [b, L, W] from which each token is to be told.

        Args:
            image_states: float [b, P, S].
            text, mask: int64 [b, L], tokens and 1 for those that are no padding.
            parallel: bool [b], captions of which no token is shown.
        """
        rows, length = text.shape
        whole = parallel[:, None, None]
        shown = torch.cat([self.start.expand(rows, 1, -1), self.tokens(text[:, :-1])], dim=1)
        inputs = torch.where(whole, self.blank, shown) + _sines(length, self.start)
        place = torch.arange(length, device=text.device)
        attended = (mask[:, None] > 0) & (whole | (place <= place[:, None])) | (place == place[:, None])
        blocked = (~attended).repeat_interleave(self._heads, dim=0)
        return self.blocks(inputs, self.image(exact(image_states)), tgt_mask=blocked)


def _sines(length: int, like: Tensor) -> Tensor:
    """[L, W] of positions (Vaswani et al., arXiv 1706.03762): sines in the first half of the columns, cosines in the second."""
    half = len(like) // 2
    rates = 10000 ** (-torch.arange(half, device=like.device, dtype=like.dtype) / half)
    angles = torch.arange(length, device=like.device, dtype=like.dtype)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
