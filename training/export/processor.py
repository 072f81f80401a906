"""The files from which other libraries make an image's pixels and a text's tokens, as the run's evaluation makes them."""

import string
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, normalizers

from pipelines.dataset.tokenizer import TextTokenizer
from training.export.model import CannotHoldError, Model

# Texts that show what a tokenizer does: case, punctuation, accents, spaces, other scripts, empty and overlong text.
_PROBES = ["a photo of a cat.", "  A  PHOTO of   two DOGS,  playing -- in 1985?! ", "it's off (again)", "", "word " * 300]
_PROBES += ["caf\u00e9 na\u00efve", "\u043f\u0440\u0438\u0432\u0435\u0442 \u4f60\u597d"]


def image_processor(model: Model, reordered: bool = False) -> Any:
    """transformers' image processor that does the run's evaluation view: the centre square, resized by Pillow's bicubic filter,
    scaled and shifted.

    Perceiver's is the one that crops before it resizes. Raises `CannotHoldError` if the tower reorders channels and the
    exported network does not (`reordered`).
    """
    from transformers import PerceiverImageProcessorPil

    mean, std = model.image.pixels(reordered)
    side = model.settings.image_tower.image_size
    square = {"height": side, "width": side}
    return PerceiverImageProcessorPil(size=square, crop_size=square, image_mean=mean, image_std=std, do_convert_rgb=True)


def tokenizer(model: Model) -> Any:
    """The run's tokenizer as one of transformers. Raises `CannotHoldError` if it would give other ids."""
    from transformers import PreTrainedTokenizerFast

    own = model.tokenizer
    words = tokenizer_json(own)
    padding, cut = words.padding, words.truncation
    assert padding is not None and cut is not None
    pad, side, length = padding["pad_token"], padding["direction"], own.max_tokens
    end = words.token_to_id("<end_of_text>")
    if own.clean is not None and end is not None:
        pad = "<end_of_text>"  # open_clip pads with the id of an exclamation mark, which is a word elsewhere
    words.no_padding()
    words.no_truncation()
    unknown = next((token for token in ("[UNK]", "<unk>", "<end_of_text>") if words.token_to_id(token) is not None), None)
    made = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=pad,
        unk_token=unknown,
        model_max_length=length,
        padding_side=side,
        truncation_side=cut["direction"],
        model_input_names=["input_ids"] if own.reads_padding else ["input_ids", "attention_mask"],
    )
    ids, _ = own(_PROBES)
    other = made(_PROBES, padding="max_length", truncation=True, return_attention_mask=True)
    for text, row, new, used in zip(_PROBES, ids, other["input_ids"], other["attention_mask"], strict=True):
        # Padding that nobody reads may be another token.
        if new != row.tolist() if own.reads_padding else np.compress(used, new).tolist() != np.compress(used, row).tolist():
            raise CannotHoldError(f"its tokenizer gives other tokens for {text[:30]!r} in transformers")
    return made


def tokenizer_json(own: TextTokenizer) -> Tokenizer:
    """The tokenizer with its length and padding, and with the cleaning of texts that open_clip does beforehand.

    Of that cleaning, what ftfy and HTML entities need is left out: no `tokenizer.json` can say it.
    """
    words = Tokenizer.from_str(own._tokenizer.to_str())
    if own.clean is not None:
        steps: list[Any] = [normalizers.NFC()]
        if own.clean == "canonicalize":
            punctuation = string.punctuation.replace("_", "")
            steps += [normalizers.Replace("_", " "), normalizers.Replace(Regex("[" + _escaped(punctuation) + "]"), "")]
        steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        if own.clean != "whitespace":
            steps.append(normalizers.Lowercase())
        own_steps = [words.normalizer] if words.normalizer is not None else []
        words.normalizer = normalizers.Sequence([*steps, *own_steps])
    return words


def _escaped(characters: str) -> str:
    return "".join(f"\\{character}" for character in characters)


def write_files(model: Model, folder: Path) -> None:
    """`preprocessor_config.json`, `tokenizer_config.json`, and a `tokenizer.json` that pads and cuts by itself.

    For a network that reorders channels itself.
    """
    image_processor(model, reordered=True).save_pretrained(folder)
    tokenizer(model).save_pretrained(folder)
    tokenizer_json(model.tokenizer).save(str(folder / "tokenizer.json"))
