"""No secret of a URI or of the environment is in a config that a program accepts, in a message, or in what a run stores."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.config import EvaluateSettings
from pipelines.io.retry import shown
from pipelines.prepare.config import PrepareSettings
from pipelines.program.causes import cause_of, first_cause
from pipelines.program.settings import load
from pipelines.program.settings_base import Settings
from tests.refusals import refused
from training.config import TrainSettings
from tuning.config import SweepSettings

ROOT = Path(__file__).parents[1]
SECRET = "wJalrXUtnFEMI+K7MDENG/bPxRfiCY"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", f"hf_{SECRET[::-1]}")
    # None of these is a secret.
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token/of-this-pod")
    monkeypatch.setenv("SOME_TOKENS_AT_ONCE", "false")
    monkeypatch.setenv("PROFILE", "laion400m")


@pytest.mark.parametrize(
    ("model", "file", "key", "remedy"),
    [
        (TrainSettings, "training/configs/openmoji.yaml", "storage", "AWS_SECRET_ACCESS_KEY"),
        (TrainSettings, "training/configs/openmoji.yaml", "data.path", "AWS_SECRET_ACCESS_KEY"),
        (PrepareSettings, "pipelines/configs/coco.yaml", "output", "AWS_SECRET_ACCESS_KEY"),
        (EvaluateSettings, "evaluation/configs/openmoji.yaml", "embedder_arguments.weights", "AWS_SECRET_ACCESS_KEY"),
        (SweepSettings, "tuning/sweeps/smoke.yaml", "overrides", "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_a_uri_with_a_password_is_refused_and_the_error_tells_another_way(
    model: type[Settings], file: str, key: str, remedy: str
) -> None:
    given: Any = "s3://me:hunter2@bucket/folder"
    named = key
    if key == "overrides":  # of the runs of a sweep
        given, named = {"data.path": given}, "overrides.data.path"
    with refused(named, "s3://...@bucket/folder", file, remedy=remedy) as caught:
        load(model, ROOT / file, {key: given})
    assert "hunter2" not in str(caught.value)


def test_a_config_with_a_secret_of_the_environment_is_refused(environment: None) -> None:
    """As a shell makes one of `embedder_arguments.token=$HF_TOKEN`."""
    file = ROOT / "evaluation/configs/openmoji.yaml"
    for value in (SECRET, f"key={SECRET}", [{"a": SECRET}]):
        with refused("embedder_arguments.token" + "[0].a" * isinstance(value, list), "$AWS_SECRET_ACCESS_KEY") as caught:
            load(EvaluateSettings, file, {"embedder_arguments.token": value})
        assert SECRET not in str(caught.value)
    kept = {"a": "/var/run/token/of-this-pod", "b": "false", "c": "laion400m", "d": "s3://user@bucket/x", "e": "host:80/a@b"}
    assert (
        load(EvaluateSettings, file, {"embedder_arguments": kept, "checkpoint": None, "embedder": "a:b"}).embedder_arguments
        == kept
    )


def test_messages_hide_secrets(environment: None) -> None:
    """Everything that is printed goes through `shown`, and every cause that is stored through `cause_of`."""
    text = f"denied: {SECRET} at https://me:hunter2@host/a?X-Amz-Signature=abc"
    for told in (shown(text), cause_of(OSError(text)), first_cause({0: ValueError(text)}), shown(json.dumps({"a": text}))):
        assert "$AWS_SECRET_ACCESS_KEY" in told and "https://...@host/a" in told
        assert not any(word in told for word in (SECRET, "hunter2", "abc"))
