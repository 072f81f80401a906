"""The page that helps to choose an objective: its table has all of them, and what it says of each is what the code does."""

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from pipelines.dataset.batch import Batch, columns
from pipelines.program.errors import UserError
from pipelines.program.settings import validate
from training.config import TrainSettings
from training.encoder import build_encoder
from training.objectives import ObjectiveUnion
from training.objectives.base import ObjectiveSettings, Task
from training.teacher import FrozenEncoders
from training.towers.image import ConvSettings
from training.towers.text import BagSettings

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
MEMBERS: dict[str, type[ObjectiveSettings]] = {
    member.model_fields["name"].default: member for member in get_args(get_args(ObjectiveUnion)[0])
}
COSTS = PAGE.split("## What a step costs")[1].split("\n## ")[0]
ROWS = {name: cells.split(" | ") for name, cells in re.findall(r"^\| ([a-z0-9-]+) \| (\d.*) \|$", COSTS, flags=re.MULTILINE)}
PAIRS, WORDS, SIZE = 4, 6, 16
every_objective = pytest.mark.parametrize("name", MEMBERS)


def test_the_table_has_every_objective_once() -> None:
    assert set(ROWS) == set(MEMBERS) and len(re.findall(r"^\| [a-z0-9-]+ \| \d", COSTS, flags=re.MULTILINE)) == len(ROWS)


def batch_of(settings: ObjectiveSettings) -> Batch:
    """What training would hand to this objective's step."""
    needs, counted = settings.needs, torch.arange(PAIRS)
    views = needs.strong.count if needs.strong else 0
    words = torch.randint(5, 50, (PAIRS, WORDS))
    every: dict[str, Any] = {
        "image": torch.randint(0, 256, (PAIRS, 3, SIZE, SIZE), dtype=torch.uint8),
        "strong": torch.randint(0, 256, (PAIRS, views, 3, SIZE, SIZE), dtype=torch.uint8),
        "whole": torch.randint(0, 256, (PAIRS, 3, SIZE, SIZE), dtype=torch.uint8),
        "codes": torch.rand(PAIRS, 1 + views, 13),
        **dict.fromkeys(("text", "other_text", "masked_text", "masked_labels"), words),
        **dict.fromkeys(("text_mask", "other_mask"), torch.ones_like(words)),
        **dict.fromkeys(("sample_id", "image_id", "text_id", "draw"), counted),
        **dict.fromkeys(("frozen_text", "frozen_mask"), torch.ones_like(words)),
        **dict.fromkeys(("more_text", "label_text"), words[:, None]),
        **dict.fromkeys(("more_mask", "label_mask"), torch.ones_like(words)[:, None]),
        **{"more_id": counted[:, None], "label_there": counted[:, None] > 1, "numbers": torch.rand(PAIRS, 1)},
        "neighbour_ids": counted[:, None].expand(-1, 3),
        **dict.fromkeys(("frozen_image_features", "frozen_text_features"), torch.rand(PAIRS, 3, 8)),
    }
    return {name: every[name] for name in columns(needs, False, False)}  # type: ignore[return-value]


def built(settings: ObjectiveSettings) -> tuple[Any, Any, Any]:
    """Encoder, objective and teacher, as of a run with small towers."""
    run = _run(settings.name)
    towers = ConvSettings(name="conv", image_size=SIZE, channels=(8,)), BagSettings(name="bag", width=8, max_tokens=WORDS)
    encoder = build_encoder(*towers, run.heads, 8, (None, None), 64, image_states=settings.needs.image_states)
    widths: Any = {"embed_dim": 8, "image_width": 8, "states_width": 8, "image_states_width": 8, "frozen_widths": (8, 8)}
    task = Task(num_images=10, num_texts=10, steps_per_epoch=10, total_steps=100, seed=0, vocabulary_size=64, **widths)
    if settings.needs.frozen_encoders == "live":
        image, text = towers[0].build(), towers[1].build(64)
        return encoder, settings.build(task), FrozenEncoders(image, text, (8, 8), SIZE, "small")
    return encoder, settings.build(task), settings.build_teacher(encoder, task)


def _run(name: str, **modes: str) -> TrainSettings:
    towers = {
        key: {"name": kind, "mode": modes.get(key, "trainable")} for key, kind in (("image_tower", "conv"), ("text_tower", "bag"))
    }
    run: dict[str, Any] = {"name": "t", "data": {"path": "d"}, "objective": {"name": name}, "epochs": 1, "global_batch_size": 8}
    if name == "distill":
        run["frozen_encoders"] = {"image_encoder": {"name": "conv"}, "text_encoder": {"name": "bag"}}
    return validate(TrainSettings, run | towers, "c.yaml")


@every_objective
def test_forwards_are_as_many_as_the_table_says(name: str) -> None:
    """Rows that pass the towers in a step, by pair: the teacher's without gradient, the encoder's with it."""
    settings = MEMBERS[name]()
    encoder, objective, teacher = built(settings)
    counts: Counter[tuple[str, bool]] = Counter()

    def count(kind: str) -> Any:
        return lambda module, arguments, out: counts.update({(kind, torch.is_grad_enabled()): len(out)})

    pairs = [(encoder.image_tower, encoder.text_tower), getattr(teacher, "_networks", ())]
    if hasattr(teacher, "encoder"):  # a moving average has towers of its own, which run without gradient
        pairs.append((teacher.encoder.image_tower, teacher.encoder.text_tower))
    for image_tower, text_tower in filter(None, pairs):
        image_tower.network[0].register_forward_hook(count("image"))
        text_tower.embedding.register_forward_hook(count("text"))
    batch = batch_of(settings)
    with torch.no_grad():
        batch = teacher(batch)
    loss = objective(encoder(batch), batch)
    assert math.isfinite(float(loss.total.detach()))
    per_pair = {key: found / PAIRS for key, found in counts.items()}
    image, text, free = ROWS[name][:3]
    assert (per_pair["image", True], per_pair["text", True]) == (int(image), int(text))
    assert [per_pair.get((kind, False), 0) for kind in ("image", "text")] == [int(n) for n in free.split(" + ")]


@every_objective
def test_towers_that_an_objective_refuses_are_those_that_the_table_names(name: str) -> None:
    for place, tower in ((3, "image_tower"), (4, "text_tower")):
        accepted = []
        for mode in ("trainable", "frozen", "locked"):
            try:
                _run(name, **{tower: mode})
            except UserError as error:
                assert f"{tower}.mode={mode}" in str(error) or f"a {mode} tower" in str(error)
            else:
                accepted.append(mode)
        assert accepted == (["trainable", "frozen", "locked"] if ROWS[name][place] == "any" else ROWS[name][place].split(" or "))


@every_objective
def test_what_keeps_nothing_has_no_state(name: str) -> None:
    """But for the count of steps, and for what is learned."""
    _, objective, teacher = built(MEMBERS[name]())
    kept = {key for key, _ in objective.named_buffers()} - {"step"} | set(teacher.state_dict())
    assert ROWS[name][5].startswith("nothing") == (not kept), kept


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
    for page in ("README.md", "docs/objectives.md"):
        assert "choosing.md" in (ROOT / page).read_text(encoding="utf-8")
