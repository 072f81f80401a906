"""Data of one's own by a function, the digits that come with scikit-learn, and the union that a config picks from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import Field
from sklearn.datasets import load_digits

from evaluation.data.base import Content
from evaluation.data.digits import digits
from evaluation.data.folder import FolderData
from evaluation.data.function import FunctionData
from evaluation.data.union import DataUnion
from evaluation.zero_shot import build_prompts
from pipelines.program.settings import validate
from pipelines.program.settings_base import Settings
from tests.evaluation.images import numbers, read
from tests.refusals import refused

HERE = "tests.evaluation.test_data_function"


def named(note: str = "") -> Content:
    return Content(attribution=note)


def nothing() -> None:
    return None


def test_a_function_is_called_with_its_arguments() -> None:
    assert read(FunctionData, function=f"{HERE}:named", arguments={"note": "mine"}).attribution == "mine"


@pytest.mark.parametrize(
    ("function", "arguments", "named", "remedy"),
    [
        ("digits", {}, ["'digits'"], "evaluation.data.digits:digits"),
        ("evaluation.data.letters:letters", {}, ["evaluation.data.letters", "No module"], "install"),
        ("evaluation.data.digits:letters", {}, ["evaluation.data.digits", "'letters'"], ""),
        (f"{HERE}:named", {"notes": "mine"}, [f"{HERE}:named", "'notes'"], "data.toy.arguments"),
        (f"{HERE}:nothing", {}, [f"{HERE}:nothing", "NoneType"], "Content"),
    ],
)
def test_what_is_no_such_function_is_told(function: str, arguments: dict[str, Any], named: list[str], remedy: str) -> None:
    with refused("data.toy.function", *named, remedy=remedy):
        read(FunctionData, function=function, arguments=arguments)


def test_digits_are_scikit_learns() -> None:
    content = read(FunctionData, function="evaluation.data.digits:digits")
    data, theirs = content.classifications[""], load_digits()
    assert data.train is not None and data.validation is not None
    parts = (data.train, data.validation, data.test)
    assert [len(part.images) for part in parts] == [len(part.labels) for part in parts]
    seen = []
    for part in parts:
        for index, (label, image) in enumerate(zip(part.labels, part.images.read(np.arange(len(part.labels))), strict=True)):
            number = int(part.images.name(index).removeprefix("digit "))
            assert label == theirs.target[number] and (image.mode, image.size) == ("RGB", (8, 8))
            assert np.abs(np.asarray(image)[:, :, 1] - theirs.images[number] * 255 / 16).max() <= 0.5
            seen.append(number)
    assert sorted(seen) == list(range(1797))  # each on one side only
    assert "UCI" in content.attribution and "CC BY 4.0" in content.attribution and "scikit-learn" in content.attribution


def test_digits_are_as_frequent_on_each_side() -> None:
    data = digits().classifications[""]
    assert data.train is not None and data.validation is not None
    for digit in range(10):
        counts = [int((part.labels == digit).sum()) for part in (data.train, data.validation, data.test)]
        total = sum(counts)
        assert abs(counts[0] - 0.6 * total) <= 4 and abs(counts[1] - 0.2 * total) <= 2 and abs(counts[2] - 0.2 * total) <= 2


def test_digits_have_words_and_numerals() -> None:
    data = digits().classifications[""]
    texts = build_prompts(data.classes, data.templates).texts
    assert texts[4:6] == ['a photo of the number: "two".', 'a photo of the number: "2".'] and len(texts) == 20


def test_digits_are_read_at_random() -> None:
    test = digits().classifications[""].test.images
    assert numbers(test, [5, 1, 5]) == [numbers(test)[n] for n in (5, 1, 5)]
    prints = {part.images.fingerprint for part in vars(digits().classifications[""]).values() if hasattr(part, "images")}
    assert len(prints) == 3 and test.fingerprint == digits().classifications[""].test.images.fingerprint


class _Config(Settings):
    data: dict[str, DataUnion] = Field(default_factory=dict)


def test_a_name_picks_a_reader(tmp_path: Path) -> None:
    tree = {"data": {"toy": {"name": "folder", "path": "x"}, "digits": {"name": "function", "function": "a:b"}}}
    found = validate(_Config, tree, "toy.yaml").data
    assert [type(entry) for entry in found.values()] == [FolderData, FunctionData]
    readers = "captions", "folder", "function", "prepared", "sugarcrepe", "torchvision", "webdataset"
    with refused("data.toy.name", "'folders'", *readers, remedy="did you mean 'folder'"):
        validate(_Config, {"data": {"toy": {"name": "folders"}}}, "toy.yaml")
    with refused("data.toy.paths", "'x'", remedy="'path'"):
        validate(_Config, {"data": {"toy": {"name": "folder", "path": "x", "paths": "x"}}}, "toy.yaml")


@pytest.mark.parametrize("reader", DataUnion.__args__[0].__args__, ids=lambda reader: reader.__name__)
def test_every_key_says_what_it_is(reader: type[Settings]) -> None:
    assert {name for name, field in reader.model_fields.items() if name != "name" and not field.description} == set()
