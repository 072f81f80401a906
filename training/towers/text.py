"""Text towers: any text model of Hugging Face, or small ones to train from scratch with a tokenizer trained on the captions."""

import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipelines.dataset.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer
from pipelines.program.errors import UserError
from training.towers.base import Tower, TowerSettings, freeze_unreached, mean_over_tokens
from training.towers.long_text import longer, with_positions
from training.towers.pretrained import first_line, load_pretrained, measure, rebuild_pretrained
from training.towers.text_reading import any_tokens, first_sees_the_rest, positions, reads_padding, text_half


class TextTowerSettings(TowerSettings):
    """Settings of all text towers."""

    max_tokens: int = Field(32, ge=2, description="captions are cut to this many tokens")

    @abstractmethod
    def tokenizer(self, corpus: Callable[[], list[str]], key: str = "text_tower") -> TextTokenizer:
        """The tower's own tokenizer, or one trained on the training captions, which `corpus()` reads."""

    @abstractmethod
    def build(self, vocabulary_size: int, key: str = "text_tower") -> "TextTower":
        """The network with its weights. Raises `UserError`, about a setting of `key`, if there is no such network."""


class TextTower(Tower):
    """Token ids and mask, int64 [b, L] each, to float [b, width]. `states_width`: size of one token's state."""

    states_width: int

    @abstractmethod
    def with_states(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Rows, float [b, width], and from the same forward pass a state for every token, float [b, L, states_width]."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.with_states(ids, mask)[0]


STRETCH: bool = Field(
    False, description="let max_tokens be more than the positions of the weights: those after the 20th are interpolated"
)


class HuggingFaceTextSettings(TextTowerSettings):
    """Any text model of transformers, from the hub, a local folder or a package; of an encoder-decoder, the encoder."""

    name: Literal["huggingface"]
    weights: str = Field(description="hub name, folder with config.json, or package:NAME/FILE.zip")
    stretch_positions: bool = STRETCH
    pooling: Literal["mean", "cls", "pooler"] = Field(
        "mean", description="how token states become one row; pooler: the model's own pooled output, as BERT's"
    )
    projected: bool = Field(
        False, description="for a CLIP-like model: its text half as trained, pooled and projected into the joint space"
    )

    def weights_name(self) -> str | None:
        return self.weights

    def tokenizer(self, corpus: Callable[[], list[str]], key: str = "text_tower") -> TextTokenizer:
        tokenizer = load_tokenizer(self.weights, self.max_tokens, f"{key}.weights")
        if self.pooling == "cls" and not self.projected:
            first = tokenizer(["a", "the"])[0][:, 0]
            if first[0] != first[1]:
                problem = f"cls, but the tokenizer of {self.weights} puts no token before a text that could stand for all of it"
                raise UserError(f"{key}.pooling", problem, f"pass {key}.pooling=mean")
        return tokenizer

    def build(self, vocabulary_size: int, key: str = "text_tower") -> TextTower:
        network = load_pretrained(self.weights, f"{key}.weights", lambda network: self._part(network, key))
        half = text_half(network)
        usable = positions(half)
        if usable is not None and self.max_tokens > usable:
            if not self.stretch_positions:
                problem = f"{self.max_tokens} is more than the {usable} usable positions of {self.weights}"
                raise UserError(f"{key}.max_tokens", problem, f"pass {key}.max_tokens={usable}, or {key}.stretch_positions=true")
            network = self._longer(network, usable, key)
            half, usable = text_half(network), self.max_tokens
        tokens = half.get_input_embeddings().weight.shape[0]
        if vocabulary_size > tokens:
            problem = f"the tokenizer of {self.weights} gives ids up to {vocabulary_size - 1}, but the model has {tokens} tokens"
            raise UserError(f"{key}.weights", problem, "give a folder whose tokenizer and model belong together")
        tower = self._tower(network)
        self._check(tower, usable, tokens, key)
        sizes = {"width": tower.width, "states_width": tower.states_width}
        return tower.describe(source=network.source, **sizes)

    def again(self, about: dict[str, Any], vocabulary_size: int) -> Tower:
        tower = self._tower(rebuild_pretrained(about["source"], self._part))
        tower.width, tower.states_width = about["width"], about["states_width"]
        return tower.eval()

    def _longer(self, network: Any, usable: int, key: str) -> Any:
        """The network with positions for `max_tokens`. Raises `UserError` if it has no table of positions."""
        config = longer(network.source["config"], self.max_tokens - usable)
        try:
            more = rebuild_pretrained(network.source | {"config": config}, self._part)
            tables = with_positions(network, more, usable)
        except (RuntimeError, ValueError, KeyError) as error:
            tables, why = 0, first_line(error)
        else:
            why = "it has no table of them"
        if not tables:
            problem = f"the positions of {self.weights} cannot be stretched ({why})"
            raise UserError(f"{key}.stretch_positions", problem, f"leave it out, and pass {key}.max_tokens={usable}")
        return more

    def _tower(self, network: Any) -> "_HuggingFaceText | _ProjectedText":
        return _ProjectedText(network) if self.projected else _HuggingFaceText(network, self.pooling)

    def _part(self, network: Any, key: str = "text_tower") -> Any:
        """The part of a model that runs."""
        if self.projected:
            if not hasattr(network, "get_text_features"):
                problem = f"{self.weights} is not a CLIP-like model, so it has no projection"
                raise UserError(f"{key}.projected", problem, f"pass {key}.projected=false")
            for name, _ in list(network.named_children()):
                if not name.startswith("text"):
                    setattr(network, name, None)
            return network
        half = text_half(network)
        if getattr(half, "encoder", None) is not None and getattr(half, "decoder", None) is not None:
            return half.get_encoder()
        if self.pooling != "pooler" and getattr(half, "pooler", None) is not None:
            half.pooler = None  # we pool ourselves
        return half

    @torch.no_grad()
    def _check(self, tower: "_HuggingFaceText | _ProjectedText", usable: int | None, tokens: int, key: str) -> None:
        """Measure sizes, and refuse models that would silently give wrong rows."""
        length, ids = self.max_tokens, any_tokens(tokens, self.max_tokens)
        ones = torch.ones_like(ids)
        try:
            rows, states = tower.with_states(ids, ones)
        except (IndexError, RuntimeError) as error:
            problem = f"{self.weights} cannot read {length} tokens: {first_line(error)}"
            raise UserError(f"{key}.max_tokens", problem, f"pass a smaller {key}.max_tokens") from None
        if rows is None:
            problem = f"pooler, but {self.weights} has no pooled output"
            raise UserError(f"{key}.pooling", problem, f"pass {key}.pooling=mean")
        if not isinstance(rows, Tensor) or rows.ndim != 2:
            raise UserError(f"{key}.projected", f"{self.weights} does not give one row a text", f"pass {key}.projected=false")
        tower.width = measure(lambda: tower(ids, ones), f"{key}.weights", self.weights)
        tower.states_width = states.shape[-1]
        if (self.projected or self.pooling == "pooler") and usable is not None and reads_padding(tower, length, usable):
            problem = f"{length}, but {self.weights} reads its padding and was trained with {usable} tokens"
            raise UserError(f"{key}.max_tokens", problem, f"pass {key}.max_tokens={usable}")
        if not self.projected and self.pooling == "cls" and not first_sees_the_rest(tower, ids[:, :2]):
            problem = f"cls, but the first token of {self.weights} sees none after it, and all texts would have the same row"
            raise UserError(f"{key}.pooling", problem, f"pass {key}.pooling=mean")
        freeze_unreached(tower, lambda: tower(ids, ones))


class _HuggingFaceText(TextTower):
    def __init__(self, network: Any, pooling: str):
        super().__init__()
        self.network = network
        self._pooling = pooling
        # FNet, for example, mixes all tokens and takes no mask.
        self._masked = "attention_mask" in inspect.signature(network.forward).parameters

    def with_states(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        masks = {"attention_mask": mask} if self._masked else {}
        out = self.network(input_ids=ids, **masks)
        states = out.last_hidden_state
        if self._pooling == "pooler":
            pooled: Any = getattr(out, "pooler_output", None)  # None is refused when the tower is built
            return pooled, states
        return mean_over_tokens(states, mask) if self._pooling == "mean" else states[:, 0], states


class _ProjectedText(TextTower):
    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def with_states(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        out = self.network.get_text_features(input_ids=ids, attention_mask=mask)
        return out.pooler_output, out.last_hidden_state


class _FromScratch(TextTowerSettings):
    width: int = Field(256, ge=8, description="of the token embeddings")
    vocabulary_size: int = Field(4000, ge=64, description="maximum number of word pieces, trained on the training captions")

    def weights_name(self) -> str | None:
        return None

    def tokenizer(self, corpus: Callable[[], list[str]], key: str = "text_tower") -> TextTokenizer:
        return train_tokenizer(corpus(), self.vocabulary_size, self.max_tokens)

    def again(self, about: dict[str, Any], vocabulary_size: int) -> Tower:
        return self.build(vocabulary_size)


class BagSettings(_FromScratch):
    """Mean of word-piece embeddings and an MLP, for training from scratch on little data."""

    name: Literal["bag"]

    def build(self, vocabulary_size: int, key: str = "text_tower") -> TextTower:
        return _Bag(vocabulary_size, self.width).describe()


class _Bag(TextTower):
    def __init__(self, vocabulary_size: int, width: int):
        super().__init__()
        self.width = self.states_width = width
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def with_states(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        states = self.embedding(ids)
        pooled = mean_over_tokens(states, mask)
        return pooled + self.mlp(pooled), states


class TransformerSettings(_FromScratch):
    """A small transformer, for training from scratch."""

    name: Literal["transformer"]
    layers: int = Field(4, ge=1, description="transformer blocks")
    heads: int = Field(4, ge=1, description="attention heads")
    dropout: float = Field(0.0, ge=0, lt=1, description="inside the blocks")

    def build(self, vocabulary_size: int, key: str = "text_tower") -> TextTower:
        if self.width % self.heads:
            problem = f"{self.heads} does not divide {key}.width={self.width}"
            raise UserError(f"{key}.heads", problem, f"change {key}.heads or {key}.width")
        return _Transformer(vocabulary_size, self).describe()


class _Transformer(TextTower):
    def __init__(self, vocabulary_size: int, settings: TransformerSettings):
        super().__init__()
        self.width = self.states_width = settings.width
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

    def with_states(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        states = self.blocks(self.tokens(ids) + self.positions[: ids.shape[1]], src_key_padding_mask=mask == 0)
        return mean_over_tokens(states, mask), states
