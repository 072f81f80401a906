"""Rules between the keys of a training config, and what makes a run this run."""

import pytest
from pydantic import ValidationError

from pipelines.program.errors import UserError
from pipelines.program.settings import validate
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"global_batch_size": 10, "accumulate": 2, "resources": {"num_workers": 3}},
            "global_batch_size: 10 is not divisible by resources.num_workers x accumulate = 3 x 2; 12 would be",
        ),
        ({"precision": "fp16"}, "precision: fp16 needs resources.use_gpu=true"),
        ({"precision": "fp8"}, "precision: input should be 'fp32', 'bf16' or 'fp16'"),
        ({"name": "a/b"}, "name: string should match pattern"),
        ({"epochs": 0}, "epochs: input should be greater than or equal to 1"),
        ({"global_batch_size": 1}, "global_batch_size: input should be greater than or equal to 2"),
        ({"optimizer": {"name": "adamx"}}, "optimizer.name: unknown optimizer 'adamx'"),
        (
            {"objective": {"name": "clip", "temprature": 1}},
            "objective.temprature: unknown key (value 1); did you mean 'temperature'?",
        ),
        (
            {"objective": {"name": "slip"}, "global_batch_size": 4},
            "global_batch_size: 4 is too small for objective.name=slip, whose head normalises over the batch",
        ),
        (
            {"objective": {"name": "slip"}, "image_tower": {"name": "conv", "mode": "frozen"}},
            "objective.name: slip teaches the image tower by strong views of images, and "
            "image_tower.mode=frozen does not train it; "
            "choose trainable, or another objective",
        ),
        (
            {"objective": {"name": "mcd"}, "text_tower": {"name": "bag", "mode": "frozen"}},
            "objective.mlm: mcd hides words from the text tower, and text_tower.mode=frozen does not train it; "
            "pass objective.mlm=0, or text_tower.mode=trainable",
        ),
        (
            {"objective": {"name": "uniclip"}, "image_head": {"name": "linear"}},
            "image_head.name: objective.name=uniclip tells the head what was done to a view, "
            "which linear does not read; "
            "leave image_head out, or choose augmented",
        ),
        ({"image_tower": {"name": "timm", "model": "resnet_50"}}, "image_tower.model: timm has no 'resnet_50'; did you mean"),
        ({"image_tower": {"name": "cnn"}}, "image_tower.name: 'cnn' is unknown; choose one of: conv, huggingface, "),
        ({"image_head": {"name": "mlp", "hiden": 3}}, "image_head.hiden: unknown key (value 3); did you mean 'hidden'?"),
        ({"evaluation": {"templates": ["a photo"]}}, "evaluation.templates: 'a photo' has no {}"),
    ],
)
def test_what_cannot_work_names_its_key_and_the_way_out(changes: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        settings(**changes)
    assert str(caught.value).startswith(f"c.yaml: {message}"), caught.value


def test_the_number_that_it_suggests_works() -> None:
    for workers, parts, size in [(3, 2, 10), (4, 1, 5), (2, 4, 3)]:
        with pytest.raises(UserError) as caught:
            settings(global_batch_size=size, accumulate=parts, resources={"num_workers": workers})
        near = int(str(caught.value).split("; ")[1].split()[0])
        settings(global_batch_size=near, accumulate=parts, resources={"num_workers": workers})


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
