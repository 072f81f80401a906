"""Text towers: shapes, padding that does not matter, pooling, and pretrained models from a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.dataset.tokenizer import train_tokenizer
from pipelines.program.errors import UserError
from tests.refusals import refused
from training.saved_towers import frozen
from training.towers import TextFeatures
from training.towers.base import mean_over_tokens
from training.towers.text import BagSettings, HuggingFaceTextSettings, TransformerSettings

CORPUS = [f"a {adjective} {noun}" for adjective in ("red", "green") for noun in ("cat", "dog", "house")]
TOKENS = 8
SMALL = {
    "bag": BagSettings(name="bag", width=16, max_tokens=TOKENS),
    "transformer": TransformerSettings(name="transformer", width=16, layers=2, max_tokens=TOKENS),
}


@pytest.mark.parametrize("kind", SMALL)
def test_tokens_in_features_out_and_gradients_back(kind: str) -> None:
    settings = SMALL[kind]
    tokenizer = settings.tokenizer(lambda: CORPUS)
    tower = settings.build(tokenizer.vocabulary_size).train()
    ids, mask = (torch.from_numpy(a) for a in tokenizer(["a red cat", "house", "green green dog"]))
    features = tower(ids, mask)
    assert features.shape == (3, tower.width) == (3, 16) and features.isfinite().all()
    assert len({tuple(row.tolist()) for row in features.detach()}) == 3
    features.square().sum().backward()
    assert [name for name, p in tower.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("kind", SMALL)
def test_what_stands_in_the_padding_does_not_matter(kind: str) -> None:
    tower = SMALL[kind].build(50).eval()
    ids = torch.tensor([[2, 7, 8, 3, 0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]])
    junk = ids.clone()
    junk[mask == 0] = 9
    torch.testing.assert_close(tower(junk, mask), tower(ids, mask))
    assert not torch.allclose(tower(torch.tensor([[2, 7, 9, 3, 0, 0, 0, 0]]), mask), tower(ids, mask))


def test_a_transformer_knows_the_order_of_words_and_a_bag_does_not() -> None:
    forward, backward = torch.tensor([[2, 7, 8, 3, 0, 0, 0, 0]]), torch.tensor([[2, 8, 7, 3, 0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]])
    for kind, same in (("bag", True), ("transformer", False)):
        torch.manual_seed(0)
        tower = SMALL[kind].build(50).eval()
        assert torch.allclose(tower(forward, mask), tower(backward, mask), atol=1e-6) == same


def test_the_mean_is_over_real_tokens_only() -> None:
    hidden = torch.tensor([[[2.0, 4.0], [4.0, 8.0], [100.0, 100.0]], [[1.0, 1.0], [5.0, 5.0], [9.0, 9.0]]])
    found = mean_over_tokens(hidden, torch.tensor([[1, 1, 0], [0, 0, 0]]))
    assert found.tolist() == [[3.0, 6.0], [0.0, 0.0]]


def test_the_vocabulary_is_the_corpus_and_no_larger_than_asked_for() -> None:
    tokenizer = BagSettings(name="bag", vocabulary_size=64, max_tokens=5).tokenizer(lambda: CORPUS * 3)
    assert tokenizer.vocabulary_size <= 64 and tokenizer.max_tokens == 5


def test_heads_must_divide_the_width() -> None:
    with refused("text_tower.heads", 3, 16, remedy="text_tower.width"):
        TransformerSettings(name="transformer", width=16, heads=3).build(50)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a tokenizer of its own, as in a folder from the hub; it knows at most 12 positions."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = train_tokenizer(CORPUS, 100, TOKENS)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(**sizes, vocab_size=tokenizer.vocabulary_size, max_position_embeddings=12)
    BertModel(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer.json, encoding="utf-8")
    return folder


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_a_hugging_face_model_from_a_folder(bert: Path, pooling: str) -> None:
    from transformers import BertModel

    settings = HuggingFaceTextSettings.model_validate(
        {"name": "huggingface", "weights": str(bert), "max_tokens": TOKENS, "pooling": pooling}
    )
    tokenizer = settings.tokenizer(lambda: ["never looked at"])
    tower = settings.build(tokenizer.vocabulary_size).eval()
    ids, mask = (torch.from_numpy(a) for a in tokenizer(["a red cat", "house"]))
    assert np.array_equal(ids, train_tokenizer(CORPUS, 100, TOKENS)(["a red cat", "house"])[0])
    out = BertModel.from_pretrained(bert).eval()(input_ids=ids, attention_mask=mask)
    states = out.last_hidden_state
    direct = out.pooler_output if pooling == "pooler" else states[:, 0]
    if pooling == "mean":
        direct = torch.stack([states[i, : int(mask[i].sum())].mean(0) for i in range(2)])
    torch.testing.assert_close(tower(ids, mask), direct, atol=1e-6, rtol=1e-5)
    # Everything that is left takes part: an unused pooler would stop several workers.
    tower.train()(ids, mask).sum().backward()
    assert [name for name, p in tower.named_parameters() if p.grad is None] == []


def test_more_tokens_than_the_model_has_positions_are_refused_with_the_way_out(bert: Path) -> None:
    settings = HuggingFaceTextSettings(name="huggingface", weights=str(bert), max_tokens=13)
    with refused("text_tower.max_tokens", 13, bert, remedy="text_tower.max_tokens=12"):
        settings.build(20)
    settings.model_copy(update={"max_tokens": 12}).build(20)


def test_a_folder_without_model_is_refused(tmp_path: Path) -> None:
    settings = HuggingFaceTextSettings(name="huggingface", weights=str(tmp_path))
    with pytest.raises(UserError, match=rf"text_tower\.weights: .*{tmp_path}.*tokenizer\.json"):
        settings.tokenizer(list)
    with refused("text_tower.weights", tmp_path, remedy="folder"):
        settings.build(100)


def test_the_demos_tower_finds_words_of_like_meaning_alike() -> None:
    settings = HuggingFaceTextSettings(name="huggingface", weights="package:all_minilm_l6_v2/model.zip", max_tokens=16)
    features = TextFeatures(frozen(settings, "k", None), settings.tokenizer(list))
    rows = features(np.asarray(["a kitten", "a small cat", "a fast car"], dtype=object))
    assert rows.shape == (3, 384) and rows.dtype == np.float32
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert rows[0] @ rows[1] > 0.6 > 0.4 > rows[0] @ rows[2]
    # Padding to another length changes nothing.
    longer = settings.model_copy(update={"max_tokens": 32})
    again = TextFeatures(frozen(longer, "k", None), longer.tokenizer(list))(np.asarray(["a kitten"], dtype=object))
    assert again[0] / np.linalg.norm(again[0]) == pytest.approx(rows[0], abs=1e-4)
