"""Captions are padded as far as their tower needs: the longest of a batch, or the full length where padding is read."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipelines.dataset.batch import Batch
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.tokenizer import TextTokenizer, train_tokenizer
from pipelines.program.settings import validate
from tests.training.one_step import one_step
from tests.training.towers.text_models import POSITIONS, SIZES, save
from training import build, loop
from training.build import masks_to_cut
from training.config import TrainSettings
from training.saved_towers import Frozen
from training.teacher import FrozenEncoders
from training.towers import TextFeatures
from training.towers.open_clip import OpenClipTextSettings, _OpenClipText
from training.towers.padding import Padded, may_cut, shortened
from training.towers.text import BagSettings, HuggingFaceTextSettings, TextTower, TransformerSettings

CAPTIONS = ["a red apple", "pear", "two green apples and a pear on a table of apples"]
FULL = 24


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(CAPTIONS, 100, FULL)


def rows_of(tower: TextTower, given: tuple[Any, Any]) -> Tensor:
    with torch.no_grad():
        return tower.eval()(*(torch.as_tensor(part) for part in given))


@pytest.mark.parametrize(
    "settings",
    [
        BagSettings(name="bag", width=16, max_tokens=FULL),
        TransformerSettings(name="transformer", width=16, layers=2, heads=2, dropout=0.5, max_tokens=FULL),
    ],
    ids=lambda settings: settings.name,
)
def test_our_own_towers_see_the_longest_caption_and_give_the_same_rows(settings: Any, tokenizer: TextTokenizer) -> None:
    torch.manual_seed(0)
    tower = settings.build(tokenizer.vocabulary_size).train()
    padded = Padded(tower, tokenizer)
    assert tower.training, "as it was"
    longest = int(tokenizer(CAPTIONS)[1].sum(1).max())
    ids, mask = padded(CAPTIONS)
    assert 8 < longest < ids.shape[1] == mask.shape[1] == 16 < FULL
    torch.testing.assert_close(rows_of(tower, (ids, mask)), rows_of(tower, tokenizer(CAPTIONS)), atol=1e-5, rtol=1e-5)
    short = padded(["pear"])
    assert short[0].shape == (1, 8)
    torch.testing.assert_close(rows_of(tower, short), rows_of(tower, tokenizer(["pear"])), atol=1e-5, rtol=1e-5)


class Reads(TextTower):
    """Looks at its last place, at neighbours or at one length only."""

    def __init__(self, how: str, size: int):
        super().__init__()
        self.how, self.width, self.states_width = how, 6, 6
        self.embedding, self.mix = nn.Embedding(size, 6), nn.Conv1d(6, 6, 3, padding=1)

    def with_states(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        states = self.embedding(ids)
        if self.how == "one length" and ids.shape[1] != FULL:
            raise RuntimeError("the sizes do not fit")
        if self.how == "neighbours":
            states = self.mix(states.transpose(1, 2)).transpose(1, 2)
        if self.how == "states only":  # a row that sees nothing of it
            return (self.embedding(ids) * mask[..., None]).sum(1), states.cumsum(1).flip(1)
        return states[:, -1] if self.how == "last place" else (states * mask[..., None]).sum(1), states


@pytest.mark.parametrize("how", ["last place", "neighbours", "one length", "states only"])
def test_a_tower_that_looks_at_its_padding_keeps_the_full_length(how: str, tokenizer: TextTokenizer) -> None:
    torch.manual_seed(0)
    tower = Reads(how, tokenizer.vocabulary_size)
    assert not may_cut(tower, tokenizer)
    assert Padded(tower, tokenizer)(["pear"])[0].shape == (1, FULL)
    assert may_cut(Reads("nothing", tokenizer.vocabulary_size), tokenizer)


@pytest.mark.parametrize("kind", ["fnet", "mobilebert"])
def test_models_that_mix_tokens_without_a_mask_keep_it_too(kind: str, tmp_path: Path) -> None:
    import transformers as t

    torch.manual_seed(0)
    if kind == "fnet":
        model: Any = t.FNetModel(t.FNetConfig(**SIZES, max_position_embeddings=POSITIONS, pad_token_id=0))
    else:
        sizes = SIZES | {"embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 1, "pad_token_id": 0}
        model = t.MobileBertModel(t.MobileBertConfig(**sizes, max_position_embeddings=POSITIONS))
        # Trained from another framework, where padding has an embedding like any token.
        nn.init.normal_(model.embeddings.word_embeddings.weight)
    folder = save("bert", lambda: model, tmp_path / kind)
    settings = HuggingFaceTextSettings(name="huggingface", weights=str(folder), max_tokens=POSITIONS)
    words = settings.tokenizer(list)
    assert Padded(settings.build(words.vocabulary_size), words)(["a cat"])[0].shape == (1, POSITIONS)


def test_open_clips_text_half_sees_the_length_that_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code adds all positions at once, so captions that came short are padded again, with the zeros of its own tokenizer."""
    from open_clip.model import CLIP

    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8}
    model = CLIP(12, vision, {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}).eval()
    tower = _OpenClipText(model, 12, 77)
    words = OpenClipTextSettings(name="open_clip", model="ViT-B-32").tokenizer(list)
    right = rows_of(tower, words(CAPTIONS))
    torch.testing.assert_close(right, model.encode_text(torch.from_numpy(words(CAPTIONS)[0])).detach())
    torch.testing.assert_close(rows_of(tower, Padded(tower, words)(CAPTIONS)), right)


def test_stored_features_are_what_they_were(tokenizer: TextTokenizer) -> None:
    """Of a frozen tower: rows of a batch, and each caption's alone, at the full length."""
    settings = TransformerSettings(name="transformer", width=16, layers=2, heads=2, max_tokens=FULL)
    torch.manual_seed(0)
    features = TextFeatures(Frozen(settings, "k", None, {}), tokenizer)
    right = np.concatenate([rows_of(features._tower, tokenizer([text])).numpy() for text in CAPTIONS])
    np.testing.assert_allclose(features(np.asarray(CAPTIONS, dtype=object)), right, atol=1e-5)


def test_columns_of_a_batch_are_cut_with_their_own_mask() -> None:
    mask = torch.zeros(3, 20, dtype=torch.int64)
    mask[0, :9], mask[1, :3], mask[2, :1] = 1, 1, 1
    places = torch.arange(60).reshape(3, 20)
    columns: Any = {"text": places, "text_mask": mask, "masked_text": places, "masked_labels": places, "image": torch.zeros(3, 1)}
    columns |= {"other_text": places, "other_mask": mask.flip(1), "frozen_text": places, "frozen_mask": mask}
    batch = Batch(**columns)
    found: Any = shortened(batch, {"text_mask", "other_mask"})
    for name in ("text", "text_mask", "masked_text", "masked_labels"):
        assert torch.equal(found[name], columns[name][:, :16])
    for name in ("other_text", "other_mask", "frozen_text", "frozen_mask", "image"):  # padded on the left; not asked for
        assert torch.equal(found[name], columns[name])
    assert batch["text"].shape == (3, 20), "the batch is as it was"


def test_a_compiled_encoder_keeps_one_length(tokenizer: TextTokenizer) -> None:
    """For which it is compiled; frozen encoders in the step are not."""
    tower = BagSettings(name="bag", width=16, max_tokens=FULL).build(tokenizer.vocabulary_size)
    frozen = FrozenEncoders(nn.Identity(), tower, (1, 16), 8, "")
    plan: Any = SimpleNamespace(
        tokenizer=tokenizer, stream=SimpleNamespace(frozen_tokenizer=tokenizer), settings=SimpleNamespace()
    )
    encoder, state = SimpleNamespace(text_tower=tower), SimpleNamespace(teacher=frozen)
    masks = {"text_mask", "other_mask", "more_mask", "label_mask"}
    for plan.settings.compile, expected in [(True, {"frozen_mask"}), (False, {*masks, "frozen_mask"})]:
        assert masks_to_cut(plan, encoder, state) == expected  # type: ignore[arg-type]


# All columns with tokens: captions, hidden words, other words, a moving average that reads them, frozen encoders in the step.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "mcd": {"name": "mcd"},
    "declip": {"name": "declip", "hidden": 16, "queue": 64},
    "psd": {"name": "psd", "soft_fraction": 0.5, "schedule": "constant"},
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_learns_the_same(name: str, parts: int, stamps: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients with captions cut to the longest and at the full length, whole and in parts."""
    tree = {
        "name": "run",
        "data": {"path": str(stamps.path)},
        "image_tower": {"name": "conv", "image_size": 16, "channels": [8, 16]},
        "text_tower": {"name": "transformer", "width": 16, "layers": 2, "heads": 2, "max_tokens": 40, "vocabulary_size": 300},
        "embed_dim": 12,
        "objective": OBJECTIVES[name],
        "epochs": 1,
        "global_batch_size": 24,
        "accumulate": parts,
    }
    settings = validate(TrainSettings, tree, "run")
    found, lengths = [], []
    step = loop.train_step

    def seen(state: Any, batch: Any, *rest: Any) -> Any:
        lengths.append({column: batch[column].shape[1] for column in batch if "text" in column and "_id" not in column})
        return step(state, batch, *rest)

    for cut in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "train_step", seen)
            if not cut:
                patch.setattr(build, "may_cut", lambda *_: False)
            (tmp_path / str(cut)).mkdir()
            found.append(one_step(settings, tmp_path / str(cut)))
    assert all(length < 40 for length in lengths[0].values()) and set(lengths[1].values()) == {40}
    (_, one, first), (_, other, second) = found
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    for a, b in zip(first.encoder.parameters(), second.encoder.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)
