"""The tokenizer trained on captions, and the ones that come with pretrained towers."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from pipelines.dataset.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer
from pipelines.program.randomness import generator
from tests.refusals import refused

CORPUS = [f"a {adjective} {noun}" for adjective in ("red", "green", "Big") for noun in ("cat", "dog", "house", "boat")] * 3
PAD, UNKNOWN, CLS, SEP = 0, 1, 2, 3


def words(tokenizer: TextTokenizer, ids: np.ndarray) -> list[str]:
    from tokenizers import Tokenizer

    vocabulary = {i: token for token, i in Tokenizer.from_str(tokenizer.json).get_vocab().items()}
    return [vocabulary[int(i)] for i in ids]


def test_training_is_a_function_of_the_corpus() -> None:
    """A resumed run trains its tokenizer again: another numbering would scramble its embeddings."""
    one, two = train_tokenizer(CORPUS, 100, 8), train_tokenizer(CORPUS, 100, 8)
    assert one.json == two.json
    assert train_tokenizer([*CORPUS, "zebra crossing"] * 2, 100, 8).json != one.json


def test_training_cuts_a_large_vocabulary_the_same_way_each_time() -> None:
    """Where pieces are equally frequent, which of them still fit must not be left to chance."""
    random = np.random.default_rng(0)
    corpus = ["".join(random.choice(list("abcdefghij"), size=6)) for _ in range(400)]
    assert train_tokenizer(corpus, 150, 8).json == train_tokenizer(corpus, 150, 8).json


def test_captions_are_lower_cased_framed_padded_and_masked() -> None:
    tokenizer = train_tokenizer(CORPUS, 200, 8)
    ids, mask = tokenizer(["A RED cat", "house"])
    assert ids.shape == mask.shape == (2, 8) and ids.dtype == mask.dtype == np.int64
    assert words(tokenizer, ids[0]) == ["[CLS]", "a", "red", "cat", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]
    assert mask.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]
    assert ids.max() < tokenizer.vocabulary_size <= 200


def test_long_captions_are_cut_and_still_end_with_their_mark() -> None:
    tokenizer = train_tokenizer(CORPUS, 200, 5)
    ids, mask = tokenizer(["red green big red green big"])
    assert words(tokenizer, ids[0]) == ["[CLS]", "red", "green", "big", "[SEP]"] and mask.sum() == 5


def test_unknown_signs_become_one_token_and_nothing_breaks() -> None:
    tokenizer = train_tokenizer(CORPUS, 200, 6)
    ids, mask = tokenizer(["\u732b cat", ""])
    assert ids[0, :4].tolist() == [CLS, UNKNOWN, ids[0, 2], SEP] and ids[0, 2] > SEP
    assert ids[1].tolist() == [CLS, SEP, PAD, PAD, PAD, PAD] and mask[1].sum() == 2
    none, empty = tokenizer([])
    assert none.shape == empty.shape == (0, 6)


def test_the_vocabulary_has_the_size_asked_for_at_most() -> None:
    assert train_tokenizer(CORPUS, 40, 8).vocabulary_size <= 40
    assert train_tokenizer(CORPUS, 4000, 8).vocabulary_size < 200


def test_a_used_tokenizer_travels() -> None:
    tokenizer = train_tokenizer(CORPUS, 100, 8)
    before = tokenizer(["a cat"])
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again == tokenizer
    assert all(np.array_equal(a, b) for a, b in zip(again(["a cat"]), before, strict=True))


def test_a_saved_tokenizer_is_loaded_from_its_folder(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(CORPUS, 100, 8)
    (tmp_path / "tokenizer.json").write_text(tokenizer.json, encoding="utf-8")
    captions = ["A red CAT", "", "house " * 20]
    for found, right in zip(load_tokenizer(str(tmp_path), 8, "k")(captions), tokenizer(captions), strict=True):
        assert np.array_equal(found, right)


@pytest.mark.parametrize("damage", ["absent", "a folder", "empty", "cut", "no unknown token", "no words"])
def test_a_tokenizer_that_does_not_work_is_refused(tmp_path: Path, damage: str) -> None:
    """In one line; the library reports some of these when it encodes the first text, and others never."""
    tree = json.loads(train_tokenizer(CORPUS, 100, 8).json)
    file = tmp_path / "tokenizer.json"
    if damage == "a folder":
        file.mkdir()
    elif damage == "no unknown token":
        tree["model"]["unk_token"] = "<unk>"
    elif damage == "no words":
        tree["model"]["vocab"] = {token["content"]: token["id"] for token in tree["added_tokens"]}
    if not file.exists() and damage != "absent":
        text = json.dumps(tree)
        file.write_text({"empty": "", "cut": text[:500]}.get(damage, text), encoding="utf-8")
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | ({} if damage == "no unknown token" else names)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with refused("text_tower.weights", tmp_path):
        load_tokenizer(str(tmp_path), 8, "text_tower.weights")


def test_a_file_is_no_tokenizers_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\xff\xfe")
    with refused("text_tower.weights", file, "tokenizer.json"):
        load_tokenizer(str(file), 8, "text_tower.weights")


def test_the_demos_tokenizer_pads_by_its_own_token() -> None:
    tokenizer = load_tokenizer("package:all_minilm_l6_v2/model.zip", 7, "text_tower.weights")
    ids, mask = tokenizer(["a cat", "a very long caption about a cat on a mat"])
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0, 0], [1] * 7]
    assert ids[0].tolist() == [101, 1037, 4937, 102, 0, 0, 0] and ids[1, -1] == 102


def test_a_tokenizer_without_padding_is_refused() -> None:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with refused("text_tower.tokenizer", remedy="[PAD]"):
        TextTokenizer(tokenizer.to_str(), 4)(["a"])


def test_hidden_words_follow_the_recipe_and_their_generators() -> None:
    """Of 15 % of the words 80 % are masked, 10 % replaced by another word and 10 % left; special tokens never take part."""
    tokenizer = train_tokenizer(CORPUS, 200, 8)
    ids, _ = tokenizer(["red cat green house", "big"] * 2000)
    hidden, labels = tokenizer.mask(ids, [generator("mask", row) for row in range(len(ids))])
    special = np.isin(ids, [0, 1, 2, 3, 4])
    chosen = labels >= 0
    assert not chosen[special].any() and np.array_equal(hidden[~chosen], ids[~chosen])
    assert np.array_equal(labels[chosen], ids[chosen])
    words = int((~special).sum())
    assert abs(chosen.sum() / words - 0.15) < 0.01
    masked, kept = hidden[chosen] == tokenizer.mask_id, hidden[chosen] == ids[chosen]
    assert abs(masked.mean() - 0.8) < 0.03
    # A random word may be the same one.
    assert abs(kept.mean() - 0.1) < 0.03
    replaced = hidden[chosen][~masked & ~kept]
    assert abs(len(replaced) / chosen.sum() - 0.1) < 0.03 and not np.isin(replaced, [0, 1, 2, 3, 4]).any()
    alone, _ = tokenizer.mask(ids[7:8], [generator("mask", 7)])
    assert np.array_equal(alone, hidden[7:8]), "whatever else is in the batch"


def test_a_tokenizer_without_a_mask_is_named_with_the_way_out() -> None:
    tokenizer = train_tokenizer(CORPUS, 200, 8)
    without = TextTokenizer(tokenizer.json.replace("[MASK]", "[HIDE]"), 8)
    with refused("text_tower.tokenizer", "[MASK]", remedy="objective.mlm=0"):
        without.mask(np.zeros((1, 8), dtype=np.int64), [generator("mask", 0)])
