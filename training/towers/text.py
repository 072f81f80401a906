"""Text towers: any Hugging Face text model, or small ones to train from scratch with a tokenizer trained on the corpus."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipelines.artifacts import resolve
from pipelines.settings import UserError
from pipelines.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer
from training.towers.base import Tower, TowerSettings, freeze_all_but, mean_over_tokens


class TextTowerSettings(TowerSettings):
    """Settings of all text towers."""

    max_tokens: int = Field(32, ge=2, description="captions are cut and padded to this many tokens")

    @abstractmethod
    def tokenizer(self, corpus: Callable[[], list[str]]) -> TextTokenizer:
        """The tower's own, or one trained on the training captions, which `corpus()` reads."""

    @abstractmethod
    def build(self, vocabulary_size: int) -> "TextTower":
        """The network with its weights."""


class TextTower(Tower):
    """Token ids and mask, int64 [b, L] each, to float [b, width]."""

    @abstractmethod
    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """A state for every token, float [b, L, width]."""

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """States to one row, float [b, width]: their mean."""
        return mean_over_tokens(states, mask)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.pool(self.states(ids, mask), mask)


class HuggingFaceTextSettings(TextTowerSettings):
    """Any text model of transformers, from the hub, a local folder or an installed package."""

    name: Literal["huggingface"]
    weights: str = Field(description="hub name, folder with config.json, or package:NAME/FILE.zip")
    pooling: Literal["mean", "cls"] = Field("mean", description="how token states become one row")
    projected: bool = Field(
        False, description="of a CLIP-like model: its text half as it was trained, pooled and projected into the joint space"
    )

    def weights_name(self) -> str | None:
        return self.weights

    def tokenizer(self, corpus: Callable[[], list[str]]) -> TextTokenizer:
        return load_tokenizer(self.weights, self.max_tokens, "text_tower.weights")

    def build(self, vocabulary_size: int) -> TextTower:
        from transformers import AutoModel

        path = resolve(self.weights, "text_tower.weights")
        try:
            network = AutoModel.from_pretrained(path or self.weights)
        except (OSError, ValueError) as error:
            raise UserError(
                f"text_tower.weights: {self.weights}: {str(error).splitlines()[0]}; give a folder or a hub name"
            ) from None
        if self.projected and not hasattr(network, "get_text_features"):
            raise UserError(f"text_tower.projected: {self.weights} is no CLIP-like model; pass projected=false")
        inner = getattr(network, "text_model", network)
        positions = getattr(inner.config, "max_position_embeddings", None)
        if positions is not None and self.max_tokens > positions:
            raise UserError(f"text_tower.max_tokens: {self.max_tokens} is more than this model's {positions} positions")
        if self.projected:
            network.vision_model = None
            freeze_all_but(network, "text_model", "text_projection")
            return _ProjectedText(network)
        if getattr(inner, "pooler", None) is not None:
            inner.pooler = None  # we pool ourselves; left in, its weights would never get a gradient
        return _HuggingFaceText(inner, self.pooling)


class _HuggingFaceText(TextTower):
    def __init__(self, network: Any, pooling: str):
        super().__init__()
        self.network = network
        self.width = network.config.hidden_size
        self._pooling = pooling

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.network(input_ids=ids, attention_mask=mask).last_hidden_state

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        return super().pool(states, mask) if self._pooling == "mean" else states[:, 0]


class _ProjectedText(TextTower):
    def __init__(self, network: Any):
        super().__init__()
        self.network = network
        with torch.no_grad():
            self.width = self(*torch.ones(2, 1, 2, dtype=torch.int64)).shape[-1]

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.network.text_model(input_ids=ids, attention_mask=mask).last_hidden_state

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.network.get_text_features(input_ids=ids, attention_mask=mask).pooler_output


class _FromScratch(TextTowerSettings):
    width: int = Field(256, ge=8, description="of the token embeddings")
    vocabulary_size: int = Field(4000, ge=64, description="at most so many word pieces, trained on the training captions")

    def weights_name(self) -> str | None:
        return None

    def tokenizer(self, corpus: Callable[[], list[str]]) -> TextTokenizer:
        return train_tokenizer(corpus(), self.vocabulary_size, self.max_tokens)


class BagSettings(_FromScratch):
    """Mean of word-piece embeddings and an MLP, for training from scratch on little data."""

    name: Literal["bag"]

    def build(self, vocabulary_size: int) -> TextTower:
        return _Bag(vocabulary_size, self.width)


class _Bag(TextTower):
    def __init__(self, vocabulary_size: int, width: int):
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.embedding(ids)

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        pooled = super().pool(states, mask)
        return pooled + self.mlp(pooled)


class TransformerSettings(_FromScratch):
    """A small transformer, for training from scratch."""

    name: Literal["transformer"]
    layers: int = Field(4, ge=1, description="transformer blocks")
    heads: int = Field(4, ge=1, description="attention heads")
    dropout: float = Field(0.0, ge=0, lt=1, description="inside the blocks")

    def build(self, vocabulary_size: int) -> TextTower:
        if self.width % self.heads:
            raise UserError(f"text_tower.heads: {self.heads} does not divide text_tower.width {self.width}")
        return _Transformer(vocabulary_size, self)


class _Transformer(TextTower):
    def __init__(self, vocabulary_size: int, settings: TransformerSettings):
        super().__init__()
        self.width = settings.width
        self.tokens = nn.Embedding(vocabulary_size, settings.width)
        self.positions = nn.Parameter(torch.randn(settings.max_tokens, settings.width) * 0.02)
        block = nn.TransformerEncoderLayer(
            settings.width,
            settings.heads,
            4 * settings.width,
            settings.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(block, settings.layers, nn.LayerNorm(settings.width), enable_nested_tensor=False)

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.blocks(self.tokens(ids) + self.positions, src_key_padding_mask=mask == 0)
