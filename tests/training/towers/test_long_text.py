"""Positions for long captions: short captions read as before, and the stretched table comes back from a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.refusals import refused
from tests.training.towers.test_finetuning import MODEL, open_clip_of
from tests.training.towers.text_models import DUAL, POSITIONS, TEXT, save
from training.towers.long_text import stretched
from training.towers.open_clip import OpenClipTextSettings
from training.towers.text import HuggingFaceTextSettings, TextTowerSettings

END = {"clip": 3, "open_clip": 49407}  # of a text, where their rows are taken from
LONG = 40  # tokens; these weights have 16, open_clip's 77


def test_the_first_positions_stay_and_the_others_are_between_their_neighbours() -> None:
    """As Long-CLIP has it for 77 positions: 20 stay, and 57 become 228 on straight lines between them."""
    table = torch.randn(77, 3, dtype=torch.float64)
    found = stretched(table, 248)
    assert found.shape == (248, 3)
    torch.testing.assert_close(found[:20], table[:20])
    for j in range(20, 248):
        place = 20 + (j - 20) * 56 / 227
        left = min(int(place), 75)
        expected = table[left] + (place - left) * (table[left + 1] - table[left])
        torch.testing.assert_close(found[j], expected)
    torch.testing.assert_close(found[-1], table[-1])


def settings_of(name: str, folder: Path, **changes: Any) -> TextTowerSettings:
    if name == "open_clip":
        open_clip_of(folder)
        return OpenClipTextSettings(name="open_clip", model=MODEL, **changes)
    kinds = TEXT | DUAL
    weights = str(save(*kinds[name][:2], folder))
    return HuggingFaceTextSettings(name="huggingface", weights=weights, projected=name in DUAL, **changes)


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "clip", "open_clip"])
@torch.no_grad()
def test_a_tower_reads_longer_texts_and_short_ones_as_before(name: str, tmp_path: Path) -> None:
    before = 77 if name == "open_clip" else POSITIONS
    torch.manual_seed(0)
    settings = settings_of(name, tmp_path, max_tokens=before)
    long = settings.model_copy(update={"max_tokens": before + LONG, "stretch_positions": True})
    if name == "open_clip":  # random weights, the same for both
        torch.manual_seed(1)
        short_tower = settings.build(60).eval()
        torch.manual_seed(1)
    else:
        short_tower = settings.build(13).eval()
    tower = long.build(13).eval()
    ids = torch.tensor([[1, 7, 8, 9, 7, 3]])
    ones = torch.ones_like(ids)
    torch.testing.assert_close(tower(ids, ones), short_tower(ids, ones), rtol=1e-4, atol=1e-5)
    many = torch.randint(4, 13, (1, before + LONG)).repeat(2, 1)
    many[1, before + 2] = 4 + (many[0, before + 2] - 3) % 9  # another word, where there was no position
    if name in END:
        many[:, -1] = END[name]
    rows = tower(many, torch.ones_like(many))
    assert rows.isfinite().all() and not torch.allclose(rows[0], rows[1])
    again = long.rebuild(tower.about, 13)
    again.load_state_dict(tower.state_dict())
    torch.testing.assert_close(again.eval()(many, torch.ones_like(many)), rows)


def test_what_has_no_table_of_positions_is_named(tmp_path: Path) -> None:
    settings = settings_of("modernbert", tmp_path, max_tokens=LONG, stretch_positions=True)
    with refused("text_tower.stretch_positions", "table"):
        settings.build(13)
    with refused("text_tower.max_tokens", LONG, remedy="stretch_positions"):
        settings_of("bert", tmp_path, max_tokens=LONG).build(13)
