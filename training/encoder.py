"""The dual encoder: two towers and two heads, from images and texts to unit rows in the joint space.

A locked tower is not part of it during training: the batch holds the tower's features.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipelines.dataset.batch import Batch
from pipelines.dataset.views import UNCHANGED
from pipelines.program.errors import UserError
from pipelines.program.settings_base import Settings
from training.objectives.base import Embeddings
from training.precision import unit
from training.towers import ImageTowerSettings, TextTowerSettings
from training.towers.finetuning import prepare
from training.towers.image import ImageTower
from training.towers.text import TextTower
from training.towers.text_reading import any_tokens


class LinearHead(Settings):
    """One linear map."""

    name: Literal["linear"]

    def build(self, width: int, embed_dim: int) -> nn.Module:
        return nn.Linear(width, embed_dim, bias=False)


class IdentityHead(Settings):
    """No head: the features are already in the joint space, as those of half of a dual encoder are. For fine-tuning."""

    name: Literal["identity"]

    def build(self, width: int, embed_dim: int) -> nn.Module:
        if width != embed_dim:
            problem = f"{embed_dim}, but a tower with an identity head has {width} features, which are not projected"
            raise UserError("embed_dim", problem, f"pass embed_dim={width}, or choose another head")
        return nn.Identity()


class MlpHead(Settings):
    """LayerNorm, a hidden layer, and a linear map to the joint space."""

    name: Literal["mlp"]
    hidden: int = Field(512, ge=1, description="width of the hidden layer")
    dropout: float = Field(0.1, ge=0, lt=1, description="after the hidden layer")
    input_dropout: float = Field(0.0, ge=0, lt=1, description="on the tower's features")

    def build(self, width: int, embed_dim: int) -> nn.Module:
        return nn.Sequential(
            nn.LayerNorm(width),
            nn.Dropout(self.input_dropout),
            nn.Linear(width, self.hidden),
            nn.GELU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.hidden, embed_dim),
        )


class AugmentedHead(Settings):
    """A residual MLP that also takes the augmentation code of a view (UniCLIP); at inference, the code of no augmentation."""

    name: Literal["augmented"]
    hidden: int = Field(64, ge=1, description="width of the encoded augmentation, and of the layers that encode it")
    blocks: int = Field(3, ge=0, description="residual blocks before the joint space")

    def build(self, width: int, embed_dim: int) -> nn.Module:
        return CodedHead(width, self.hidden, self.blocks, embed_dim)


HeadSettings = LinearHead | IdentityHead | MlpHead | AugmentedHead
HeadUnion = Annotated[HeadSettings, Field(discriminator="name")]


class CodedHead(nn.Module):
    """From features and an augmentation code to the joint space: UniCLIP's idea, with our own sizes."""

    identity: Tensor

    def __init__(self, width: int, hidden: int, blocks: int, embed_dim: int):
        super().__init__()
        self.register_buffer("identity", torch.tensor(UNCHANGED), persistent=False)
        layers = [nn.Linear(len(UNCHANGED), hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, hidden)]
        self.code = nn.Sequential(*layers)
        self.blocks = nn.ModuleList(_Residual(width + hidden) for _ in range(blocks))
        self.out = nn.Linear(width + hidden, embed_dim, bias=False)

    def forward(self, features: Tensor, codes: Tensor | None = None) -> Tensor:
        """Features [n, F] and codes [n, 13] to [n, D]; without codes, those of no augmentation are used."""
        codes = self.identity.expand(len(features), -1) if codes is None else codes
        rows = torch.cat([features, self.code(codes).to(features.dtype)], dim=1)
        for block in self.blocks:
            rows = rows + block(rows)
        return self.out(rows)


class _Residual(nn.Sequential):
    def __init__(self, width: int):
        super().__init__(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


class DualEncoder(nn.Module):
    """A tower that is None is locked: in training its features are in the batch. `image_states`: whether that column is given."""

    def __init__(
        self,
        image_tower: ImageTower | None,
        text_tower: TextTower | None,
        image_head: nn.Module,
        text_head: nn.Module,
        image_states: bool = False,
    ):
        super().__init__()
        self.image_states = image_states
        self.image_tower, self.text_tower = image_tower, text_tower
        self.image_head, self.text_head = image_head, text_head

    def forward(self, batch: Batch) -> Embeddings:
        """Both embeddings of a batch, and the outputs for its other inputs: strong views, reworded and masked captions."""
        columns = self.images(batch) | self.texts(batch)
        return Embeddings(image=unit(columns["image_projection"]), text=unit(columns["text_projection"]), **columns)

    def texts(self, batch: Batch) -> dict[str, Tensor]:
        """The columns of captions: `text_projection`; `text_states` if words are masked; `other_projection` of reworded ones;
        `more_projection` of other captions, and `label_projection` of label columns."""
        if self.text_tower is None:
            given = {"text_projection": batch["text_features"]}
            if "more_features" in batch:
                given["more_projection"] = batch["more_features"]
            return {name: self.text_head(features).float() for name, features in given.items()}
        text, mask, states = batch["text"], batch["text_mask"], None
        if "masked_labels" in batch and "masked_text" not in batch:
            features, states = self.text_tower.with_states(text, mask)
        else:
            features = self.text_tower(text, mask)
        if "masked_text" in batch:
            states = self.text_tower.with_states(batch["masked_text"], mask)[1]
        columns = {"text_projection": self.text_head(features).float()}
        if states is not None:
            columns["text_states"] = states.float()
        if "other_text" in batch:
            columns["other_projection"] = self.text_head(self.text_tower(batch["other_text"], batch["other_mask"])).float()
        if "more_text" in batch:
            columns["more_projection"] = self._several(batch["more_text"], batch["more_mask"])
        if "label_text" in batch:
            columns["label_projection"] = self._several(batch["label_text"], batch["label_mask"])
        return columns

    def _several(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Projections [b, K, D] of K texts of each row: ids and mask [b, K, L]."""
        assert self.text_tower is not None
        rows = self.text_head(self.text_tower(ids.flatten(0, 1), mask.flatten(0, 1))).float()
        return rows.unflatten(0, ids.shape[:2])

    def images(self, batch: Batch) -> dict[str, Tensor]:
        """The columns of images: `image_projection`; `image_states` if they are asked for; `strong_features` and
        `strong_projection` if there are strong views; `masked_states` if places of a view are hidden."""
        codes, states = batch.get("codes"), None
        if self.image_tower is None:
            image = batch["image_features"]
        elif self.image_states:
            image, states = self.image_tower.with_states(batch["image"])
        else:
            image = self.image_tower(batch["image"])
        columns = {"image_projection": self._project(image, None if codes is None else codes[:, 0])}
        if states is not None:
            columns["image_states"] = states.float()
        if "strong" in batch:
            assert self.image_tower is not None
            views = batch["strong"]
            features = self.image_tower(views.flatten(0, 1))
            projection = self._project(features, None if codes is None else codes[:, 1:].flatten(0, 1))
            columns["strong_features"] = features.float().unflatten(0, views.shape[:2])
            columns["strong_projection"] = projection.unflatten(0, views.shape[:2])
        if "hidden" in batch:
            assert self.image_tower is not None
            columns["masked_states"] = self.image_tower.with_states(batch["whole"], batch["hidden"])[1].float()
        return columns

    def _project(self, features: Tensor, codes: Tensor | None) -> Tensor:
        return (self.image_head(features) if codes is None else self.image_head(features, codes)).float()

    def embed_images(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, H, W], or features [n, F] of a locked tower, to unit rows."""
        return unit(self.image_head(images if self.image_tower is None else self.image_tower(images)))

    def embed_texts(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Token ids and mask, or features [n, F] of a locked tower, to unit rows."""
        return unit(self.text_head(ids if self.text_tower is None else self.text_tower(ids, mask)))

    def train(self, mode: bool = True) -> "DualEncoder":
        """Frozen parts of towers stay in eval mode: no dropout, and BatchNorm with its trained statistics."""
        super().train(mode)
        for tower in (self.image_tower, self.text_tower):
            for module in () if tower is None else tower.modules():
                trains = [parameter.requires_grad for parameter in module.parameters()]
                if trains and not any(trains):
                    module.eval()
        return self


def build_encoder(
    image: ImageTowerSettings,
    text: TextTowerSettings,
    heads: tuple[HeadSettings, HeadSettings],
    embed_dim: int,
    widths: tuple[int | None, int | None],
    vocabulary_size: int,
    abouts: tuple[dict[str, Any] | None, dict[str, Any] | None] = (None, None),
    image_states: bool = False,
) -> DualEncoder:
    """A dual encoder with initial or pretrained weights.

    Args:
        widths: features per row of locked towers, image and text; None for a tower that is part of the encoder.
        abouts: to load a checkpoint's weights, the architectures of its towers (`Tower.about`).
        image_states: whether it gives the image tower's states of places.
    """
    image_tower: Any = None
    text_tower: Any = None
    if widths[0] is None:
        image_tower = image.build() if abouts[0] is None else image.rebuild(abouts[0], vocabulary_size)
    if widths[1] is None:
        text_tower = text.build(vocabulary_size) if abouts[1] is None else text.rebuild(abouts[1], vocabulary_size)
    if image_tower is not None:
        pixels = torch.zeros(1, 3, image.image_size, image.image_size, dtype=torch.uint8)
        prepare(image_tower, image, (pixels,), "image_tower")
    if text_tower is not None:
        ids = any_tokens(vocabulary_size, text.max_tokens)
        prepare(text_tower, text, (ids, torch.ones_like(ids)), "text_tower")
    image_width = widths[0] if image_tower is None else image_tower.width
    text_width = widths[1] if text_tower is None else text_tower.width
    assert image_width is not None and text_width is not None
    built = heads[0].build(image_width, embed_dim), heads[1].build(text_width, embed_dim)
    return DualEncoder(image_tower, text_tower, *built, image_states)
