"""Folders as from the hub with tiny random text models and dual encoders, each with a tokenizer of its kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ["a", "the", "red", "green", "cat", "dog", "house", "on", "of", "photo", "big", "mat", "two"]
POSITIONS, SIZE = 16, 32
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 60}
VISION = SIZES | {"image_size": SIZE, "patch_size": 16}
FRAMES = {  # special tokens in the order of their ids, and what stands before and behind a text
    "bert": (["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"], "[CLS]", "[SEP]"),
    "roberta": (["<s>", "<pad>", "</s>", "<mask>", "<unk>"], "<s>", "</s>"),
    "t5": (["<pad>", "</s>", "<unk>"], None, "</s>"),
    "siglip": (["<pad>", "<eos>", "<unk>"], None, "<eos>"),
    "clip": (["<unk>", "<start>", "<fill>", "<end>"], "<start>", "<end>"),
    "bare": (["<unk>", "<end>"], None, None),
}


def tokenizer_of(kind: str, **more: Any) -> Any:
    """A tokenizer of words. `bare` is GPT-2's kind: nothing around a text, no token to pad with, an end that is never added."""
    if kind == "siglip2":  # letters; transformers has a class for it that lowers their case
        letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
        theirs = {"model_input_names": ["input_ids"], "padding_side": "right", "add_eos_token": True}
        vocabulary = {letter: number for number, letter in enumerate(letters)}
        return t.Siglip2Tokenizer(vocab=vocabulary, merges=[], **theirs | {"model_max_length": POSITIONS} | more)
    special, start, end = FRAMES[kind]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    unknown = next(token for token in special if "unk" in token.lower())
    found = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    if kind != "siglip":
        found.normalizer = normalizers.Lowercase()
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    if end:
        frame = [(token, vocabulary[token]) for token in (start, end) if token]
        found.post_processor = processors.TemplateProcessing(f"{start or ''} $A {end}".strip(), special_tokens=frame)
    pad = {"clip": "<fill>", "bare": None}.get(kind, next((token for token in special if "pad" in token.lower()), None))
    names = {"unk_token": unknown, "pad_token": pad} | ({"eos_token": "<end>"} if kind in ("clip", "bare") else {})
    names |= {"model_input_names": ["input_ids"]} if kind == "siglip" else {}
    return t.PreTrainedTokenizerFast(tokenizer_object=found, **names | {"model_max_length": POSITIONS} | more)


def _roberta(config: Any, model: Any) -> Callable[[], Any]:
    return lambda: model(config(**SIZES, max_position_embeddings=POSITIONS + 2, pad_token_id=1, type_vocab_size=1))


def _plain(config: Any, model: Any, **more: Any) -> Callable[[], Any]:
    return lambda: model(config(**SIZES | {"max_position_embeddings": POSITIONS, "pad_token_id": 0} | more))


_T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
_BART = {"vocab_size": 60, "d_model": 32, "max_position_embeddings": POSITIONS, "pad_token_id": 1, "forced_eos_token_id": 2}
for _side in ("encoder", "decoder"):
    _BART |= {f"{_side}_layers": 1, f"{_side}_attention_heads": 2, f"{_side}_ffn_dim": 48}
_GPT2 = {
    "vocab_size": 60,
    "n_positions": POSITIONS,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
_MODERN = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}

TEXT: dict[str, tuple[str, Callable[[], Any]]] = {
    "bert": ("bert", _plain(t.BertConfig, t.BertModel)),
    "roberta": ("roberta", _roberta(t.RobertaConfig, t.RobertaModel)),
    "xlm-roberta": ("roberta", _roberta(t.XLMRobertaConfig, t.XLMRobertaModel)),
    "camembert": ("roberta", _roberta(t.CamembertConfig, t.CamembertModel)),
    "mpnet": ("roberta", _roberta(t.MPNetConfig, t.MPNetModel)),
    "distilbert": (
        "bert",
        lambda: t.DistilBertModel(
            t.DistilBertConfig(vocab_size=60, max_position_embeddings=POSITIONS, dim=32, hidden_dim=48, n_layers=2, n_heads=2)
        ),
    ),
    "albert": ("bert", _plain(t.AlbertConfig, t.AlbertModel, embedding_size=16)),
    "electra": ("bert", _plain(t.ElectraConfig, t.ElectraModel, embedding_size=16)),
    "deberta": ("bert", _plain(t.DebertaConfig, t.DebertaModel, relative_attention=True, pos_att_type=["c2p", "p2c"])),
    "deberta-v2": ("bert", _plain(t.DebertaV2Config, t.DebertaV2Model, relative_attention=True, position_biased_input=False)),
    "modernbert": ("bert", _plain(t.ModernBertConfig, t.ModernBertModel, **_MODERN)),
    "convbert": ("bert", _plain(t.ConvBertConfig, t.ConvBertModel, embedding_size=32, head_ratio=1, conv_kernel_size=3)),
    "gpt2": ("bare", lambda: t.GPT2Model(t.GPT2Config(**_GPT2))),
    "opt": ("roberta", lambda: t.OPTModel(t.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=16))),
    "t5": ("t5", lambda: t.T5ForConditionalGeneration(t.T5Config(**_T5))),
    "t5-encoder": ("t5", lambda: t.T5EncoderModel(t.T5Config(**_T5))),
    "bart": ("roberta", lambda: t.BartModel(t.BartConfig(**_BART))),
    # Its positions are sines, which its files leave out.
    "marian": ("roberta", lambda: t.MarianMTModel(t.MarianConfig(**_BART, decoder_start_token_id=1))),
    "clip-text": (
        "clip",
        lambda: t.CLIPTextModel(t.CLIPTextConfig(**SIZES, max_position_embeddings=16, eos_token_id=3, bos_token_id=1)),
    ),
}


def _clip(config: Any, model: Any, text: dict[str, Any], vision: dict[str, Any] = VISION, **more: Any) -> Callable[[], Any]:
    return lambda: model(config(text_config=text, vision_config=vision, **more))


_EOS = SIZES | {"max_position_embeddings": POSITIONS, "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 2}
_SIGLIP = SIZES | {"max_position_embeddings": POSITIONS, "eos_token_id": 1, "pad_token_id": 0, "projection_size": 32}
_BERT = SIZES | {"max_position_embeddings": POSITIONS, "pad_token_id": 0}
_ALIGN = {"image_size": SIZE, "hidden_dim": 32, "depth_coefficient": 0.1, "width_coefficient": 0.1}


def _vision_text(text: Any) -> Callable[[], Any]:
    config = t.VisionTextDualEncoderConfig.from_vision_text_configs(t.ViTConfig(**VISION), text, projection_dim=20)
    return lambda: t.VisionTextDualEncoderModel(config)


_ROBERTA = t.RobertaConfig(**SIZES, max_position_embeddings=POSITIONS + 2, pad_token_id=1, type_vocab_size=1)
DUAL: dict[str, tuple[str, Callable[[], Any]]] = {
    "clip": ("clip", _clip(t.CLIPConfig, t.CLIPModel, _EOS, projection_dim=20)),
    # Early CLIPs say 2 whatever their end of text is, which transformers takes for "the largest id".
    "clip-early": ("clip", _clip(t.CLIPConfig, t.CLIPModel, _EOS | {"eos_token_id": 2}, projection_dim=20)),
    "siglip": ("siglip", _clip(t.SiglipConfig, t.SiglipModel, _SIGLIP)),
    "siglip2": ("siglip2", _clip(t.Siglip2Config, t.Siglip2Model, _SIGLIP, SIZES | {"patch_size": 16, "num_patches": 4})),
    "align": ("bert", _clip(t.AlignConfig, t.AlignModel, _BERT, _ALIGN, projection_dim=32)),
    "altclip": (
        "roberta",
        _clip(
            t.AltCLIPConfig,
            t.AltCLIPModel,
            SIZES | {"max_position_embeddings": POSITIONS + 2, "pad_token_id": 1, "project_dim": 24},
            projection_dim=20,
        ),
    ),
    "chinese-clip": ("bert", _clip(t.ChineseCLIPConfig, t.ChineseCLIPModel, _BERT, projection_dim=20)),
    "blip": ("bert", _clip(t.BlipConfig, t.BlipModel, _BERT | {"bos_token_id": 1}, projection_dim=20)),
    "clipseg": ("clip", _clip(t.CLIPSegConfig, t.CLIPSegModel, _EOS, projection_dim=20)),
    "metaclip2": ("clip", _clip(t.MetaClip2Config, t.MetaClip2Model, _EOS, projection_dim=20)),
    "vision-text-bert": ("bert", _vision_text(t.BertConfig(**_BERT))),
    "vision-text-roberta": ("roberta", _vision_text(_ROBERTA)),
}


def save(kind: str, model: Callable[[], Any], folder: Path, **tokenizer: Any) -> Path:
    """Weights, tokenizer and, of a dual encoder, preprocessing."""
    torch.manual_seed(0)
    network = model().eval()
    with torch.no_grad():  # fresh biases and norms are zeros and ones, behind which mistakes hide
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    network.save_pretrained(folder)
    words = tokenizer_of(kind, **tokenizer)
    words.save_pretrained(folder)
    if hasattr(network, "get_image_features"):
        images: Any = t.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
        t.CLIPProcessor(images, words).save_pretrained(folder)
    return folder
