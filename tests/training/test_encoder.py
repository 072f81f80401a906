"""The dual encoder: unit rows, heads, and what frozen and locked towers leave out."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pipelines.dataset.batch import Batch
from pipelines.dataset.views import UNCHANGED
from tests.refusals import refused
from training.encoder import AugmentedHead, DualEncoder, IdentityHead, LinearHead, MlpHead, build_encoder
from training.precision import unit
from training.towers.image import ConvSettings, ImageTowerSettings, TimmSettings
from training.towers.padding import shortened
from training.towers.text import BagSettings, TextTowerSettings, TransformerSettings

VOCABULARY, TOKENS, ROWS = 70, 6, 5
LINEAR = LinearHead(name="linear")


def encoder_of(
    image: ImageTowerSettings | None = None,
    text: TextTowerSettings | None = None,
    widths: tuple[int | None, int | None] = (None, None),
    heads: tuple = (LINEAR, LINEAR),
) -> DualEncoder:
    torch.manual_seed(0)
    image = image or ConvSettings(name="conv", image_size=16, channels=(8, 16))
    text = text or BagSettings(name="bag", width=16, max_tokens=TOKENS)
    return build_encoder(image, text, heads, 12, widths, VOCABULARY)


def batch_of(rows: int = ROWS) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randint(0, 256, (rows, 3, 16, 16), generator=generator, dtype=torch.uint8),
        "text": torch.randint(0, VOCABULARY, (rows, TOKENS), generator=generator),
        "text_mask": (torch.arange(TOKENS) < torch.arange(rows)[:, None] % TOKENS + 1).long(),
        "image_features": torch.randn(rows, 9, generator=generator),
        "text_features": torch.randn(rows, 7, generator=generator),
    }


@pytest.mark.parametrize("autocast", [False, True])
def test_rows_are_unit_vectors_in_single_precision(autocast: bool) -> None:
    encoder = encoder_of()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = encoder(batch_of())
    for rows, projection in ((found.image, found.image_projection), (found.text, found.text_projection)):
        assert rows.dtype == projection.dtype == torch.float32 and rows.shape == projection.shape == (ROWS, 12)
        norms = projection.norm(dim=1, keepdim=True)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(ROWS), atol=1e-6, rtol=0)
        torch.testing.assert_close(projection, rows * norms, atol=1e-6, rtol=1e-6)
        assert float((norms - 1).abs().min()) > 0.05, "a projection is not normalised"


def test_the_same_rows_whether_a_batch_or_one_side_is_asked_for() -> None:
    encoder, batch = encoder_of().eval(), batch_of()
    found = encoder(batch)
    torch.testing.assert_close(encoder.embed_images(batch["image"]), found.image)
    torch.testing.assert_close(encoder.embed_texts(batch["text"], batch["text_mask"]), found.text)


def test_a_row_of_zeros_stays_finite() -> None:
    assert torch.equal(unit(torch.zeros(2, 3)), torch.zeros(2, 3))
    torch.testing.assert_close(
        unit(torch.tensor([[3e-6, 4e-6]], dtype=torch.float16)).norm(), torch.tensor(1.0), atol=1e-3, rtol=0
    )


def test_locked_towers_are_not_there_and_their_features_are_used() -> None:
    encoder, batch = encoder_of(widths=(9, 7)), batch_of()
    assert encoder.image_tower is None and encoder.text_tower is None
    assert set(encoder.state_dict()) == {"image_head.weight", "text_head.weight"}
    found = encoder(batch)
    torch.testing.assert_close(found.image_projection, batch["image_features"] @ encoder.image_head.weight.T)
    torch.testing.assert_close(found.image, unit(batch["image_features"] @ encoder.image_head.weight.T))
    torch.testing.assert_close(found.text, encoder.embed_texts(batch["text_features"]))
    half = encoder_of(widths=(None, 7))
    assert not any(name.startswith("text_tower") for name in half.state_dict())
    assert any(name.startswith("image_tower") for name in half.state_dict())
    assert half(batch).text.shape == (ROWS, 12)


def test_strong_views_go_through_the_same_tower_and_head() -> None:
    encoder, batch = encoder_of().eval(), batch_of()
    strong = torch.stack([batch["image"].flip(0), batch["image"]], dim=1)
    found = encoder({**batch, "strong": strong})
    assert found.strong_features.shape == (ROWS, 2, 16) and found.strong_projection.shape == (ROWS, 2, 12)
    torch.testing.assert_close(found.strong_projection[:, 0], found.image_projection.flip(0))
    torch.testing.assert_close(found.strong_projection[:, 1], encoder.image_head(found.strong_features[:, 1]))
    assert "strong_features" not in encoder(batch)


def test_states_of_places_come_with_the_row_of_the_same_pass() -> None:
    """What a place tells of its pixels, with gradients to the tower; and nothing where nobody asks."""
    encoder, batch = encoder_of(), batch_of()
    expected = encoder(batch)
    assert "image_states" not in expected
    encoder.image_states = True
    found = encoder(batch)
    assert found.image_states.shape == (ROWS, 16, 16) and torch.equal(found.image, expected.image)
    assert encoder.image_tower is not None
    network = encoder.image_tower.network
    torch.testing.assert_close(
        network[-3:](found.image_states.transpose(1, 2).unflatten(2, (4, 4))), encoder.image_tower(batch["image"])
    )
    found.image_states.sum().backward()
    assert all(p.grad is not None for p in network[:-3].parameters())


@pytest.mark.parametrize("text", [None, TransformerSettings(name="transformer", width=16, layers=1, heads=2, max_tokens=TOKENS)])
def test_captions_with_hidden_words_leave_their_states(text: TextTowerSettings | None) -> None:
    """Beside the caption's own embedding, which does not change."""
    encoder, batch = encoder_of(text=text).eval(), batch_of()
    masked = batch["text"].roll(1, dims=1)
    labels = torch.full_like(masked, -100)
    found = encoder({**batch, "masked_text": masked, "masked_labels": labels})
    assert found.text_states.shape == (ROWS, TOKENS, 16) and "text_states" not in encoder(batch)
    torch.testing.assert_close(found.text, encoder(batch).text)
    shared = encoder({**batch, "text": masked, "masked_labels": labels})
    torch.testing.assert_close(shared.text_states, found.text_states)
    served = encoder.text_tower(masked, batch["text_mask"])
    torch.testing.assert_close(shared.text_projection, encoder.text_head(served))


def test_a_caption_in_other_words_goes_through_the_same_tower_and_head() -> None:
    encoder, batch = encoder_of().eval(), batch_of()
    found = encoder({**batch, "other_text": batch["text"].flip(0), "other_mask": batch["text_mask"].flip(0)})
    torch.testing.assert_close(found.other_projection, found.text_projection.flip(0))
    assert "other_projection" not in encoder(batch)


def test_several_texts_of_a_row_go_through_the_same_tower_and_head() -> None:
    """Also where padding is cut to the longest; a locked tower's features go through the head."""
    encoder, batch = encoder_of().eval(), batch_of()
    ids = torch.stack([batch["text"].flip(0), batch["text"]], dim=1)
    mask = torch.stack([batch["text_mask"].flip(0), batch["text_mask"]], dim=1)
    found = encoder({**batch, "more_text": ids, "more_mask": mask, "label_text": ids.flip(1), "label_mask": mask.flip(1)})
    torch.testing.assert_close(found.more_projection[:, 0], found.text_projection.flip(0))
    torch.testing.assert_close(found.more_projection[:, 1], found.text_projection)
    torch.testing.assert_close(found.label_projection, found.more_projection.flip(1))
    padded = {"more_text": F.pad(ids, (0, 40), value=3), "more_mask": F.pad(mask, (0, 40))}
    cut: Any = shortened({**batch, **padded}, {"more_mask"})
    assert cut["more_text"].shape == cut["more_mask"].shape and cut["more_text"].shape[2] < 40
    torch.testing.assert_close(encoder(cut).more_projection, found.more_projection)
    locked = encoder_of(widths=(9, 7))
    features = torch.stack([batch["text_features"]] * 3, dim=1)
    found = locked({**batch, "more_features": features})
    torch.testing.assert_close(found.more_projection[:, 2], found.text_projection)


def test_an_augmented_head_reads_what_was_done_and_infers_as_if_nothing_was() -> None:
    encoder = encoder_of(heads=(AugmentedHead(name="augmented", hidden=8), LINEAR)).eval()
    batch = batch_of()
    codes = torch.tensor(UNCHANGED).repeat(ROWS, 3, 1)
    codes[:, 1, 4] = 1.0  # mirrored
    strong = torch.stack([batch["image"]] * 2, dim=1)
    found = encoder({**batch, "strong": strong, "codes": codes})
    torch.testing.assert_close(encoder.embed_images(batch["image"]), found.image)
    torch.testing.assert_close(found.strong_projection[:, 1], found.image_projection)
    assert not torch.allclose(found.strong_projection[:, 0], found.image_projection, atol=1e-3)
    found.strong_projection.sum().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in encoder.image_head.parameters())


def test_frozen_towers_get_no_gradient_and_never_change() -> None:
    """BatchNorm would follow the data and dropout would be random, were they in training mode."""
    image = TimmSettings(name="timm", model="test_efficientnet", image_size=32, mode="frozen")
    text = TransformerSettings(name="transformer", width=16, layers=1, max_tokens=TOKENS, dropout=0.5, mode="frozen")
    encoder, batch = encoder_of(image, text).train(), batch_of()
    batch["image"] = torch.nn.functional.interpolate(batch["image"], size=32)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    assert any("running_mean" in name for name in before)
    first, second = encoder(batch), encoder(batch)
    assert torch.equal(first.image, second.image) and torch.equal(first.text, second.text)
    (first.image.sum() + first.text.sum()).backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is None) == ("_tower." in name), name
    after = encoder.state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert encoder.training and encoder.image_head.training


def test_trainable_towers_get_gradients_everywhere() -> None:
    encoder = encoder_of(text=TransformerSettings(name="transformer", width=16, layers=1, max_tokens=TOKENS))
    found = encoder(batch_of())
    (found.image[:, 0].sum() + found.text[:, 0].sum()).backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_heads() -> None:
    linear = LINEAR.build(6, 4)
    assert [tuple(p.shape) for p in linear.parameters()] == [(4, 6)]  # no bias: it would move every row alike
    torch.manual_seed(0)
    head = MlpHead(name="mlp", hidden=10, dropout=0.5, input_dropout=0.5).build(6, 4)
    rows = torch.randn(3, 6)
    head.train()
    assert not torch.equal(head(rows), head(rows))
    head.eval()
    assert torch.equal(head(rows), head(rows)) and head(rows).shape == (3, 4)
    # LayerNorm comes first: neither the scale nor the offset of features matters.
    torch.testing.assert_close(head(rows), head(5 * rows + 3), atol=1e-4, rtol=1e-4)


def test_each_side_has_a_head_of_its_own() -> None:
    encoder = encoder_of(heads=(LINEAR, MlpHead(name="mlp", hidden=8)))
    assert isinstance(encoder.image_head, torch.nn.Linear) and isinstance(encoder.text_head, torch.nn.Sequential)
    assert encoder.image_head.weight.shape == (12, 16)


def test_without_heads_features_are_the_embeddings_and_must_be_as_wide() -> None:
    """Fine-tuning starts at the very embeddings of the dual encoder that it starts from."""
    head = IdentityHead(name="identity")
    rows = torch.randn(3, 12)
    assert torch.equal(head.build(12, 12)(rows), rows)
    with refused("embed_dim", 10, remedy="embed_dim=12"):
        head.build(12, 10)
