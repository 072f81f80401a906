"""A key that takes a path either reads and writes object stores, or refuses their URIs: none makes a folder called s3: of one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from evaluation.config import EvaluateSettings
from pipelines.io.artifacts import resolve
from pipelines.prepare.config import PrepareSettings
from pipelines.program.config_keys import classes
from pipelines.program.path_keys import LocalPlace, Place
from pipelines.program.settings import load
from tests.refusals import refused
from training.config import TrainSettings
from training.features import FeatureSettings
from tuning.config import SweepSettings

ROOT = Path(__file__).parent.parent
PROGRAMS: list[type[BaseModel]] = [PrepareSettings, FeatureSettings, TrainSettings, EvaluateSettings, SweepSettings]


def mentions_path(annotation: Any) -> bool:
    return annotation is Path or any(mentions_path(part) for part in get_args(annotation))


def keys_with_paths() -> Iterator[tuple[str, TypeAdapter[Any]]]:
    """Of all settings of all programs."""
    todo, seen = list(PROGRAMS), set(PROGRAMS)
    while todo:
        model = todo.pop()
        for name, field in model.model_fields.items():
            annotation: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation  # type: ignore[valid-type]
            if mentions_path(annotation):
                yield f"{model.__name__}.{name}", TypeAdapter(annotation)
            new = [cls for cls in classes(field.annotation) if cls not in seen]
            seen.update(new)
            todo += new


@pytest.mark.parametrize("uri", ["s3://b/runs", "gs://b/runs", "memory://runs"])
def test_no_key_makes_a_local_path_of_a_uri(uri: str) -> None:
    found = {}
    for key, adapter in keys_with_paths():
        try:
            found[key] = str(adapter.validate_python(uri))
            assert isinstance(adapter.validate_python(uri), str), f"{key} takes {uri} for a local path"
        except ValidationError as error:
            found[key] = f"{error}"
            assert f"'{uri}' is not on a disk" in str(error), key
        with pytest.raises(ValidationError):
            adapter.validate_python(Path(uri))  # from Python; it has lost a slash
    refused = {key for key, value in found.items() if value != uri}
    assert {"SweepSettings.base", "EvaluateSettings.output"} <= refused
    assert found["PrepareSettings.output"] == found["DataSettings.path"] == found["RunImageSettings.path"] == uri
    assert found["SweepSettings.storage"] == uri


@pytest.mark.parametrize(
    ("model", "file", "key"),
    [
        (SweepSettings, "tuning/sweeps/smoke.yaml", "base"),
        (EvaluateSettings, "evaluation/configs/openmoji.yaml", "output"),
    ],
)
def test_the_error_names_the_key(model: type[Any], file: str, key: str) -> None:
    for uri in ("s3://b/runs", "s3:/b/runs"):
        with refused(key, "'s3:/", file, remedy="local path"):
            load(model, ROOT / file, {key: uri})


def test_a_uri_with_one_slash_is_no_folder() -> None:
    with refused("data.path", "'s3:/b/emoji'", remedy="s3://b/emoji"):
        load(TrainSettings, ROOT / "training/configs/openmoji.yaml", {"data.path": "s3:/b/emoji"})


def test_weights_too() -> None:
    with refused("k", "s3://b/w.pt"):
        resolve("s3://b/w.pt", "k")


@pytest.mark.parametrize("name", ["why?", "a#b", "100%20", "a b", "x&y=z;", "[v2]", "\u732b"])
def test_signs_in_a_path_are_part_of_it(name: str) -> None:
    """No place is a URL with a query, a fragment or escapes. The slash at the end of a URI's folder is left out."""
    place, local = TypeAdapter[Any](Place).validate_python, TypeAdapter[Any](LocalPlace).validate_python
    for path in (f"/data/{name}", f"{name}/x"):
        assert place(path) == local(path) == place(f"file://{path}") == local(f"file://{path}") == Path(path)
    for uri in (f"s3://b/{name}", f"gs://b/{name}/x"):
        assert place(uri) == place(f"{uri}/") == uri


def test_a_local_path_may_be_a_file_uri_or_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for given, wanted in {"file:///a/b": "/a/b", "~/runs": "/home/me/runs", "a b/c:d": "a b/c:d", "runs": "runs"}.items():
        assert load(TrainSettings, ROOT / "training/configs/openmoji.yaml", {"storage": given}).storage == Path(wanted)
    assert load(TrainSettings, ROOT / "training/configs/openmoji.yaml", {"data.path": "~/d"}).data.path == Path("/home/me/d")
