"""Captions to token ids: a pretrained text tower's tokenizer, or a small one trained on the captions.

Either way it is a `tokenizer.json` of the `tokenizers` library, kept as text: it fits into a config, a task or a checkpoint, and
tokenizing does not need transformers. Its padding and truncation settings give the padding token and the sides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.io.artifacts import resolve
from pipelines.program.errors import UserError
from pipelines.program.settings_base import digest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MASKS = ("[MASK]", "<mask>")
_PADS = ("[PAD]", "<pad>", "<|endoftext|>")  # for a tokenizer.json that names none
# Texts on which tokenizers differ: case, punctuation, accents, entities, spaces, other scripts, empty and overlong text.
_PROBES = [
    "a photo of a cat.",
    "  A  PHOTO of   two DOGS,  playing -- in 1985?! ",
    "it's the dog's_ball; they're off (again) & it\u2019s \u201cours\u201d &amp; #1 @ 50%\n",
    "Caf\u00e9 cafe\u0301 \u2615 na\u00efve \uff21\uff22",
    "\u043f\u0440\u0438\u0432\u0435\u0442 \u4f60\u597d",
    "",
    "word " * 300,
]


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and the length to which it pads and truncates."""

    json: str
    max_tokens: int
    reads_padding: bool = False  # its model was trained without a mask (SigLIP), so the mask is 1 for padding too
    clean: str | None = None  # open_clip's name for the preprocessing of texts

    @cached_property
    def _tokenizer(self) -> "Tokenizer":
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.json)
        padding, cut = tokenizer.padding, tokenizer.truncation or {}
        if padding is None:
            pad = next((token for token in _PADS if tokenizer.token_to_id(token) is not None), None)
            if pad is None:
                remedy = f"add one of {', '.join(_PADS)} to its tokenizer.json"
                raise UserError("text_tower.tokenizer", "has no padding token", remedy)
            padding = {"pad_token": pad, "pad_id": tokenizer.token_to_id(pad)}
        tokenizer.enable_truncation(self.max_tokens, direction=cut.get("direction", "right"))
        tokenizer.enable_padding(**padding | {"length": self.max_tokens, "pad_to_multiple_of": None})
        return tokenizer

    def __getstate__(self) -> dict:
        return {"json": self.json, "max_tokens": self.max_tokens} | self.reading

    @property
    def reading(self) -> dict[str, Any]:
        """What else determines ids and mask, besides the tokenizer.json and the length, as JSON values."""
        return {"reads_padding": self.reads_padding, "clean": self.clean}

    @property
    def identity(self) -> str:
        """A digest of everything that determines ids and mask."""
        return digest([self.json, self.max_tokens, self.reading])

    @property
    def vocabulary_size(self) -> int:
        """The largest token id plus 1."""
        return max(self._tokenizer.get_vocab().values()) + 1

    def __call__(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids, and a mask that is 1 for those that the model reads, both int64 [len(texts), max_tokens]."""
        encoded = self._tokenizer.encode_batch([self._cleaned(text) for text in texts])
        ids = np.asarray([e.ids for e in encoded], dtype=np.int64).reshape(len(texts), self.max_tokens)
        if self.reads_padding:
            return ids, np.ones_like(ids)
        mask = np.asarray([e.attention_mask for e in encoded], dtype=np.int64).reshape(len(texts), self.max_tokens)
        return ids, mask

    def _cleaned(self, text: str) -> str:
        if self.clean is None:
            return text
        from open_clip.tokenizer import get_clean_fn

        return get_clean_fn(self.clean)(text)

    def mask(self, ids: np.ndarray, randoms: Sequence[np.random.Generator]) -> tuple[np.ndarray, np.ndarray]:
        """Mask some words, each row with its own generator, as BERT does (Devlin et al., arXiv 1810.04805).

        Each token but special ones is chosen with probability 0.15; of those, 80 % become the mask token, 10 % another token of
        the vocabulary, 10 % stay.

        Returns: the ids, and the original ids of the chosen tokens, -100 elsewhere; int64 [n, L] each.
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
        """The token for a masked word. Raises `UserError` if there is none."""
        mask_id = next((i for token in _MASKS if (i := self._tokenizer.token_to_id(token)) is not None), None)
        if mask_id is None:
            problem = f"has no mask token ({' or '.join(_MASKS)}), which masked words need"
            raise UserError("text_tower.tokenizer", problem, "pass objective.mlm=0")
        return mask_id

    @cached_property
    def _special(self) -> np.ndarray:
        """Ids that are never masked and never replace a word."""
        added = self._tokenizer.get_added_tokens_decoder()
        padding = (self._tokenizer.padding or {})["pad_id"]  # some models pad with a token that is not marked as special
        return np.asarray(sorted({i for i, token in added.items() if token.special} | {padding}))


def load_tokenizer(name: str, max_tokens: int, key: str, trained: int | None = None) -> TextTokenizer:
    """The tokenizer in a local folder or an installed package, or of a hub name, with the same ids as in transformers.

    `trained`: how many tokens a model that reads its padding was trained with; None: as the tokenizer or its config says.
    Raises `UserError` about `key` if there is no tokenizer that works, or its ids differ from those of transformers.
    """
    from transformers import AutoTokenizer

    path = resolve(name, key)
    if path is not None and not (path / "tokenizer.json").is_file():
        raise UserError(key, f"{path} has no tokenizer.json", "give a folder with one, as transformers saves it")
    try:
        reference: Any = AutoTokenizer.from_pretrained(path or name, trust_remote_code=False)
        expected = reference(_PROBES, truncation=True, max_length=max_tokens)
        unmasked = "attention_mask" not in reference.model_input_names
        full = trained or (full_length(reference, path or name) if unmasked else max_tokens)
    except Exception as error:  # the hub, tokenizers and each class have their own exceptions
        where = "its tokenizer cannot be loaded" if path else "cannot be loaded from the hub"
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(key, f"{name} {where} ({why})", "give a folder that transformers' AutoTokenizer reads") from None
    if set(chain.from_iterable(expected["input_ids"])) <= set(reference.all_special_ids):
        # transformers makes a tokenizer without words for a model that has none.
        problem = f"the tokenizer of {name} knows no word, not even of {_PROBES[0]!r}: its files may be missing"
        raise UserError(key, problem, "give a folder with the model's tokenizer.json")
    if full not in (max_tokens, None):
        length_key = key.replace("weights", "max_tokens")
        problem = f"{max_tokens}, but {name} reads its padding and was trained with its full length"
        raise UserError(length_key, problem, f"pass {length_key}={full}")
    own = TextTokenizer(_as_json(reference, path, max_tokens, key, name), max_tokens, unmasked)
    _compare(own, expected, type(reference).__name__, key, name)
    return own


def full_length(reference: Any, weights: Any) -> int | None:
    """The maximum length of a transformers tokenizer, or else of its text model; None if neither has one."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(weights, trust_remote_code=False).get_text_config()
    length = min(reference.model_max_length, getattr(config, "max_position_embeddings", None) or math.inf)
    return int(length) if length < 1e9 else None  # a tokenizer without a maximum has 1e30


def _as_json(reference: Any, path: Path | None, max_tokens: int, key: str, name: str) -> str:
    """A transformers tokenizer as a `tokenizer.json` with the same padding and truncation."""
    from tokenizers import Tokenizer

    if getattr(reference, "backend_tokenizer", None) is not None:
        tokenizer = Tokenizer.from_str(reference.backend_tokenizer.to_str())
    elif path is not None:
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    else:
        problem = f"the tokenizer of {name}, a {type(reference).__name__}, has no tokenizer.json"
        raise UserError(key, problem, "give a folder with one")
    pad, read = reference.pad_token, "attention_mask" not in reference.model_input_names
    if pad is None and read:
        problem = f"{name} reads its padding, but its tokenizer_config.json names no pad_token"
        raise UserError(key, problem, "name it in tokenizer_config.json")
    if pad is None:
        # If padding is masked, any token will do.
        candidates = [token for token in (reference.eos_token, *_PADS) if token is not None]
        pad = next((token for token in candidates if tokenizer.token_to_id(token) is not None), None)
    tokenizer.enable_truncation(max_tokens, direction=reference.truncation_side)
    tokenizer.no_padding()
    if pad is not None:
        # Masked padding goes to the right, whatever the tokenizer says: models count positions from the first token.
        side = reference.padding_side if read else "right"
        tokenizer.enable_padding(direction=side, pad_id=tokenizer.token_to_id(pad), pad_token=pad, length=max_tokens)
    return tokenizer.to_str()


def _compare(own: TextTokenizer, expected: Any, kind: str, key: str, name: str) -> None:
    """Raises `UserError` if ids differ from `expected` ones, which a tokenizer of class `kind` gives for the probes: what a class
    like SigLIP's does in Python is not in `tokenizer.json`."""
    bare = own._tokenizer.from_str(own._tokenizer.to_str())
    bare.no_padding()
    for text, ids, encoded in zip(_PROBES, expected["input_ids"], bare.encode_batch(_PROBES), strict=True):
        if list(ids) != encoded.ids:
            problem = f"the tokenizer.json of {name} gives other tokens for {text[:30]!r} than its {kind}"
            raise UserError(key, problem, "save the tokenizer again with transformers")
    if any(any(kinds) for kinds in expected.get("token_type_ids", [])):
        problem = f"the tokenizer of {name} gives token types, which a text tower does not pass on"
        raise UserError(key, problem, "choose a model without them")


def train_tokenizer(texts: list[str], vocabulary_size: int, max_tokens: int) -> TextTokenizer:
    """A lower-casing WordPiece tokenizer with at most the given vocabulary, trained on the training captions."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    def blank(vocabulary: dict[str, int]) -> Tokenizer:
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer

    tokenizer = blank({})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # The trainer numbers "##" pieces in the order of a hash table, which differs in every process, and breaks ties by number.
    # Listing them first, like special tokens, makes the vocabulary a function of the captions.
    normalize, split = tokenizer.normalizer.normalize_str, tokenizer.pre_tokenizer.pre_tokenize_str
    longest = tokenizer.model.max_input_chars_per_word
    # A longer word is unknown to the tokenizer, whatever its vocabulary, and the trainer's time is quadratic in its length.
    short_texts: list[str] = []
    words: set[str] = set()
    for text in texts:
        all_words = [word for word, _ in split(normalize(text))]
        short = [word for word in all_words if len(word) <= longest]
        words.update(short)
        short_texts.append(text if len(short) == len(all_words) else " ".join(short))
    inner = sorted({f"##{character}" for word in words for character in word[1:]})
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary_size, special_tokens=special + inner, show_progress=False)
    tokenizer.train_from_iterator(short_texts, trainer)
    tokenizer = blank(tokenizer.get_vocab())
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return TextTokenizer(tokenizer.to_str(), max_tokens)
