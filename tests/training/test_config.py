"""Rules between the keys of a training config, and which of them identify a run."""

import pytest
from pydantic import ValidationError

from pipelines.program.errors import UserError
from pipelines.program.settings import validate
from tests.refusals import refused
from training.config import TrainSettings

TREE = {
    "name": "t",
    "data": {"path": "data/x"},
    "image_tower": {"name": "conv"},
    "text_tower": {"name": "bag"},
    "epochs": 2,
    "global_batch_size": 12,
}


def settings(**changes: object) -> TrainSettings:
    return validate(TrainSettings, TREE | changes, "c.yaml")


def test_no_key_of_another_objective_is_suggested() -> None:
    """`swap_directions` is one of PSD's; a key that is spelled alike elsewhere in the config may be meant."""
    with refused("objective.warmup_epochs", remedy="temperature") as caught:
        settings(objective={"name": "siglip", "warmup_epochs": 1})
    assert "swap_directions" not in caught.value.remedy


def test_a_list_of_wrong_values_is_not_called_too_short() -> None:
    with refused("evaluation.recall_at.0", "(value 0)") as caught:
        settings(evaluation={"recall_at": [0]})
    assert str(caught.value).count("recall_at") == 1


@pytest.mark.parametrize(
    ("changes", "key", "named"),
    [
        (
            {"global_batch_size": 5, "accumulate": 2, "resources": {"num_workers": 3}},
            "global_batch_size",
            ["5", "resources.num_workers", "accumulate", "3 x 2", "6"],
        ),
        (
            {"global_batch_size": 5, "accumulate": 2, "resources": {"num_workers": [1, 3]}},
            "global_batch_size",
            ["5", "resources.num_workers", "accumulate", "3 x 2", "6"],
        ),
        *(
            ({"resources": {"num_workers": value}}, "resources.num_workers", [shown, "[least, most]"])
            for value, shown in [(0, "0"), ([0, 2], "[0, 2]"), ([2], "[2]"), ([1, 2, 3], "[1, 2, 3]"), ("many", "'many'")]
        ),
        *(
            ({"resources": {"num_workers": value}}, "resources.num_workers", [shown, "[least, most]"])
            for value, shown in [([1, 2.5], "[1, 2.5]"), (True, "true"), ({"least": 1}, "{'least': 1}"), (None, "null")]
        ),
        ({"resources": {"num_workers": [3, 1]}}, "resources.num_workers", ["[3, 1]", "pass [1, 3]"]),
        ({"precision": "fp16"}, "precision", ["fp16", "resources.use_gpu=true"]),
        ({"precision": "fp8"}, "precision", ["'fp8'", "fp32", "bf16", "fp16"]),
        ({"name": "a/b"}, "name", ["'a/b'"]),
        ({"epochs": 0}, "epochs", ["1", "(value 0)"]),
        ({"global_batch_size": 1}, "global_batch_size", ["2", "(value 1)"]),
        ({"optimizer": {"name": "adamx"}}, "optimizer.name", ["'adamx'"]),
        ({"objective": {"name": "clip", "temprature": 1}}, "objective.temprature", ["value 1", "'temperature'"]),
        ({"objective": {"name": "slip"}, "global_batch_size": 4}, "global_batch_size", ["4", "objective.name=slip"]),
        (
            {"objective": {"name": "slip"}, "image_tower": {"name": "conv", "mode": "frozen"}},
            "objective.name",
            ["slip", "image_tower.mode=frozen", "trainable"],
        ),
        (
            {"objective": {"name": "mcd"}, "text_tower": {"name": "bag", "mode": "frozen"}},
            "objective.mlm",
            ["text_tower.mode=frozen", "objective.mlm=0", "text_tower.mode=trainable"],
        ),
        (
            {"objective": {"name": "uniclip"}, "image_head": {"name": "linear"}},
            "image_head.name",
            ["objective.name=uniclip", "linear", "augmented"],
        ),
        ({"image_tower": {"name": "timm", "model": "resnet_50"}}, "image_tower.model", ["'resnet_50'", "resnet50"]),
        ({"image_tower": {"name": "cnn"}}, "image_tower.name", ["'cnn'", "conv, huggingface, "]),
        ({"image_head": {"name": "mlp", "hiden": 3}}, "image_head.hiden", ["value 3", "'hidden'"]),
        ({"evaluation": {"templates": ["a photo"]}}, "evaluation.templates", ["'a photo'", "{}"]),
    ],
)
def test_what_cannot_work_names_its_key_and_the_way_out(changes: dict, key: str, named: list[str]) -> None:
    with refused(key, "c.yaml", *named):
        settings(**changes)


@pytest.mark.parametrize(("workers", "parts", "size"), [(3, 2, 10), (4, 1, 7), (2, 4, 9), (3, 2, 6)])
def test_no_number_of_workers_or_parts_needs_to_divide_the_batch(workers: int, parts: int, size: int) -> None:
    settings(global_batch_size=size, accumulate=parts, resources={"num_workers": workers})


def test_a_range_of_workers_is_read_again_as_it_was_written() -> None:
    chosen = settings(resources={"num_workers": [1, 8]})
    assert (chosen.resources.least_workers, chosen.resources.most_workers) == (1, 8)
    assert chosen.model_dump(mode="json")["resources"]["num_workers"] == [1, 8]
    assert validate(TrainSettings, chosen.model_dump(mode="json"), "again") == chosen
    fixed = settings(resources={"num_workers": 3}).resources
    assert (fixed.num_workers, fixed.least_workers, fixed.most_workers) == (3, 3, 3)


def test_the_suggested_batch_size_works() -> None:
    for workers, parts, size in [(3, 2, 5), (4, 1, 3), (2, 4, 3)]:
        with pytest.raises(UserError) as caught:
            settings(global_batch_size=size, accumulate=parts, resources={"num_workers": workers})
        suggested = int(caught.value.remedy.rpartition("global_batch_size=")[2])
        assert suggested >= size
        settings(global_batch_size=suggested, accumulate=parts, resources={"num_workers": workers})


def test_resources_and_logging_are_no_part_of_a_runs_identity() -> None:
    base = settings()
    same = settings(
        name="other",
        storage="elsewhere",
        resources={"num_workers": 2},
        log_every=1,
        checkpoint={"keep": 5},
        overwrite=True,
        tensorboard=False,
    )
    assert same.identity() == base.identity()
    for change in (
        {"seed": 1},
        {"epochs": 3},
        {"data": {"path": "data/x", "split_seed": 1}},
        {"optimizer": {"lr": 0.5}},
        {"accumulate": 2},
        {"objective": {"name": "clip", "temperature": 0.1}},
        {"objective": {"name": "siglip"}},
        {"schedule": {"name": "epoch_cosine"}},
        {"image_head": {"name": "mlp"}},
    ):
        assert settings(**change).identity() != base.identity(), change


def test_views_can_be_switched_off_and_settings_cannot_be_changed() -> None:
    assert settings(data={"path": "x", "augment": None}).data.augment is None
    with pytest.raises(ValidationError):
        settings().seed = 3  # type: ignore[misc]


def test_the_image_head_is_the_one_that_the_objective_asks_for() -> None:
    assert [head.name for head in settings().heads] == ["linear", "linear"]
    assert [head.name for head in settings(objective={"name": "uniclip"}).heads] == ["augmented", "linear"]
    assert settings(image_head={"name": "mlp"}).heads[0].name == "mlp"
