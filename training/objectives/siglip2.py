"""SigLIP 2: the pairwise sigmoid loss, and a decoder that writes each image's caption.

Tschannen et al., "SigLIP 2: Multilingual Vision-Language Encoders with Improved Semantic Understanding, Localization, and Dense
Features", arXiv 2502.14786:

    L = L_SigLIP + captioning L_cap,   L_cap = mean over all tokens of CE(decoder(states of the image, caption), token)

The decoder reads the image tower's states before pooling. Of a caption it tells each token from those before it, or, with
probability `parallel`, all tokens at once from none. Its tasks that need boxes (LocCa) are left out, as no boxes are in the data.
"""

from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import Tensor

from pipelines.dataset.batch import Batch, Needs
from pipelines.program.errors import UserError
from training.objectives.base import Embeddings, Loss, Task
from training.objectives.ops.caption_decoder import CaptionDecoder, DecoderSettings
from training.objectives.ops.draws import uniforms
from training.objectives.ops.mlm import masked_loss
from training.objectives.siglip import PairwiseSettings, SigLip


class SigLip2Settings(PairwiseSettings):
    """SigLIP 2: the pairwise sigmoid loss and captioning."""

    name: Literal["siglip2"] = "siglip2"
    captioning: float = Field(1.0, ge=0, description="weight of telling captions from images; 0: no decoder")
    parallel: float = Field(0.5, ge=0, le=1, description="share of captions whose tokens are told all at once, from none")
    decoder: DecoderSettings = Field(DecoderSettings(), description="the decoder of captions")

    @property
    def needs(self) -> Needs:
        told = self.captioning > 0
        return replace(super().needs, image_states=told, tokens=told, draw=told)

    def build(self, task: Task) -> "SigLip2":
        return SigLip2(self, task)


class SigLip2(SigLip):
    """No state except scale, bias and the decoder."""

    def __init__(self, settings: SigLip2Settings, task: Task):
        super().__init__(settings)
        self._settings, sizes = settings, settings.decoder
        if sizes.width % sizes.heads:
            problem = f"{sizes.heads} does not divide objective.decoder.width={sizes.width}"
            raise UserError("objective.decoder.heads", problem, "change one of them")
        if settings.captioning:
            self.decoder = CaptionDecoder(sizes, task.image_states_width, task.vocabulary_size)

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        siglip, settings = super().forward(embeddings, batch), self._settings
        losses = {"siglip": siglip.total}
        if settings.captioning:
            losses["captioning"] = self._captioning(embeddings, batch)
        total = siglip.total + sum(getattr(settings, name) * value for name, value in losses.items() if name != "siglip")
        return Loss(total, siglip.metrics | {name: value.detach() for name, value in losses.items()})

    def _captioning(self, embeddings: Embeddings, batch: Batch) -> Tensor:
        text, mask = batch["text"], batch["text_mask"]
        parallel = uniforms(batch["draw"], 1, purpose=0)[:, 0] < self._settings.parallel
        states = self.decoder(embeddings.image_states, text, mask, parallel)
        return masked_loss(self.decoder.words, states, text.masked_fill(mask == 0, -100))
