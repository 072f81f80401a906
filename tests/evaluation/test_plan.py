"""A task is a file and a line: what it says of itself is what config, plan and the registry of scores know of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from evaluation import metrics
from evaluation.config import EvaluateSettings
from evaluation.data.base import Classification, Content, LabelledImages, Retrieval
from evaluation.plan import plan
from evaluation.tasks import TASKS
from pipelines.program.errors import UserError
from tests.evaluation.lists import Plain
from tests.refusals import refused

LABELLED = LabelledImages(Plain(4), np.array([0, 1, 0, 1]))
PETS = Classification((("cat",), ("dog",)), ("a {}",), "top1", LABELLED, LABELLED)
BARE = Classification((("cat",), ("dog",)), ("a {}",), "top1", LABELLED)
COCO = Retrieval(Plain(2), ["one", "two"], [np.array([0]), np.array([1])])
CONTENTS = {
    "pets": Content({"": PETS}),
    "shifted": Content({"": BARE}),
    "coco": Content({"kind": BARE, "size": BARE}, COCO),
}


def settings(**given: Any) -> EvaluateSettings:
    data = {name: {"name": "prepared", "path": name} for name in CONTENTS}
    return EvaluateSettings.model_validate({"embedder": "a:b", "data": data, "output": Path("out")} | given)


def planned(**given: Any) -> list[tuple[str, str]]:
    return [(task.info.path, task.dataset) for task in plan(settings(**given), CONTENTS)]


def test_each_set_takes_part_in_what_it_can() -> None:
    sets = ["pets", "shifted", "coco_kind", "coco_size"]
    assert planned() == [*(("zero_shot", name) for name in sets), ("retrieval", "coco")]
    assert planned(tasks=["retrieval", "few_shot", "linear_probe"]) == [
        ("retrieval", "coco"),
        ("few_shot", "pets"),
        ("linear_probe", "pets"),
    ]
    assert planned(tasks=["corruption"], robustness={"shifted": {"reference": "pets", "line": "imagenet_v2"}}) == [
        *(("corruption", name) for name in sets),
        ("robustness", "shifted"),
    ]


def test_what_nobody_can_take_part_in_is_told() -> None:
    with refused("tasks", "sugarcrepe", "name: sugarcrepe", remedy="sugarcrepe"):
        planned(tasks=["zero_shot", "sugarcrepe"])
    with pytest.raises(UserError) as caught:
        planned(robustness={"coco": {"reference": "pets", "line": "imagenet_v2"}})
    assert str(caught.value).startswith("robustness.coco") and "2" in str(caught.value)


def test_config_and_registry_know_every_task() -> None:
    assert list(metrics.TASKS.values()) == [kind.info for kind in TASKS] and len({kind.info.path for kind in TASKS}) == len(TASKS)
    every = settings(tasks=[kind.info.path for kind in TASKS if kind.info.needs])
    for kind in TASKS:
        if kind.settings is not None:
            assert getattr(every, kind.info.path) == kind.settings()
    for wrong in ({"tasks": ["robustness"]}, {"linear_probe": {"colour": 1}}):
        with pytest.raises(ValidationError):
            settings(**wrong)
