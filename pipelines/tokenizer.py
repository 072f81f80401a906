"""Captions to token ids: a tokenizer that comes with a text tower, or a small one trained on the corpus.

Either way it is a `tokenizer.json` of the `tokenizers` library, carried as text: it fits into a config, a task, a
checkpoint, and needs no transformers where captions are tokenized.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pipelines.artifacts import resolve
from pipelines.settings import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MASKS = ("[MASK]", "<mask>")
_PADS = ("[PAD]", "<pad>", "<|endoftext|>")


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and the length it pads and cuts to."""

    json: str
    max_tokens: int

    @cached_property
    def _tokenizer(self) -> "Tokenizer":
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.json)
        pad = next((token for token in _PADS if tokenizer.token_to_id(token) is not None), None)
        if pad is None:
            raise UserError(f"text_tower.tokenizer: it has no padding token; expected one of {', '.join(_PADS)}")
        tokenizer.enable_truncation(self.max_tokens)
        tokenizer.enable_padding(length=self.max_tokens, pad_token=pad, pad_id=tokenizer.token_to_id(pad))
        return tokenizer

    def __getstate__(self) -> dict:
        return {"json": self.json, "max_tokens": self.max_tokens}

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""
        return self._tokenizer.get_vocab_size()

    def __call__(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask, both int64 [len(texts), max_tokens]."""
        encoded = self._tokenizer.encode_batch(texts)
        ids = np.asarray([e.ids for e in encoded], dtype=np.int64).reshape(len(texts), self.max_tokens)
        mask = np.asarray([e.attention_mask for e in encoded], dtype=np.int64).reshape(len(texts), self.max_tokens)
        return ids, mask

    def mask(self, ids: np.ndarray, randoms: Sequence[np.random.Generator]) -> tuple[np.ndarray, np.ndarray]:
        """Hide some words, each row by its own generator, as BERT does (Devlin et al., arXiv 1810.04805).

        Each token but special ones is chosen with probability 0.15; of those, 80 % become the mask token, 10 % another token of
        the vocabulary, 10 % stay.

        Returns: the ids, and what they were where they were chosen, -100 elsewhere; int64 [n, L] each.
        """
        special, hidden, labels = self._special, ids.copy(), np.full_like(ids, -100)
        words = np.setdiff1d(np.arange(self.vocabulary_size), special)
        for row, random in enumerate(randoms):
            chosen = (random.random(ids.shape[1]) < 0.15) & ~np.isin(ids[row], special)
            fate, others = random.random(ids.shape[1]), random.choice(words, ids.shape[1])
            labels[row, chosen] = ids[row, chosen]
            hidden[row, chosen & (fate < 0.8)] = self.mask_id
            replaced = chosen & (fate >= 0.8) & (fate < 0.9)
            hidden[row, replaced] = others[replaced]
        return hidden, labels

    @property
    def mask_id(self) -> int:
        """The token that stands for a hidden word. Raises `UserError` where there is none."""
        found = next((i for token in _MASKS if (i := self._tokenizer.token_to_id(token)) is not None), None)
        if found is None:
            raise UserError(
                f"text_tower.tokenizer: it has no mask token ({', '.join(_MASKS)}), which masked words need; pass objective.mlm=0"
            )
        return found

    @cached_property
    def _special(self) -> np.ndarray:
        """Ids that are never hidden, and never stand for a word."""
        added = self._tokenizer.get_added_tokens_decoder()
        return np.asarray(sorted(i for i, token in added.items() if token.special))


def load_tokenizer(name: str, max_tokens: int, key: str) -> TextTokenizer:
    """The `tokenizer.json` of a local folder, an installed package or a hub name."""
    path = resolve(name, key)
    if path is None:
        from transformers import AutoTokenizer

        try:
            return TextTokenizer(AutoTokenizer.from_pretrained(name, use_fast=True).backend_tokenizer.to_str(), max_tokens)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{key}: {name} cannot be loaded from the hub ({str(error).splitlines()[0]}); give a local path"
            ) from None
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.exists():
        raise UserError(f"{key}: {path} holds no tokenizer.json")
    return TextTokenizer(file.read_text(encoding="utf-8"), max_tokens)


def train_tokenizer(texts: list[str], vocabulary_size: int, max_tokens: int) -> TextTokenizer:
    """A lower-casing WordPiece vocabulary of at most the given size, from the training captions."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    def blank(vocabulary: dict[str, int]) -> Tokenizer:
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer

    tokenizer = blank({})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # The trainer numbers "##" pieces as a hash table yields them, anew in every process, and breaks ties by number. Naming
    # them up front, as if they were special, makes the vocabulary a function of the corpus.
    normalize, split = tokenizer.normalizer.normalize_str, tokenizer.pre_tokenizer.pre_tokenize_str
    longest = tokenizer.model.max_input_chars_per_word
    # A longer word is unknown to the tokenizer, whatever its vocabulary; the trainer's time grows with the square of it.
    found = [[word for word, _ in split(normalize(text))] for text in texts]
    texts = [
        text if all(len(word) <= longest for word in words) else " ".join(word for word in words if len(word) <= longest)
        for text, words in zip(texts, found, strict=True)
    ]
    words = {word for some in found for word in some if len(word) <= longest}
    inner = sorted({f"##{sign}" for word in words for sign in word[1:]})
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary_size, special_tokens=special + inner, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer = blank(tokenizer.get_vocab())
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return TextTokenizer(tokenizer.to_str(), max_tokens)
