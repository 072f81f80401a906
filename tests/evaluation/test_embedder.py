"""Embedders by import string: anything that can be imported, and one line for what cannot."""

import numpy as np
import pytest
from PIL import Image

from evaluation.embedder import load_embedder
from tests.refusals import refused

STRANGER = "tests.evaluation.stranger"


def test_a_function_is_called_with_the_arguments() -> None:
    rows = load_embedder(f"{STRANGER}:build", {"scale": 2}).embed_images([Image.new("RGB", (2, 2), (1, 2, 3))])
    assert np.array_equal(rows, [[2, 4, 6]])


@pytest.mark.parametrize(
    ("name", "arguments", "named", "remedy"),
    [
        (f"{STRANGER}.build", {}, [f"'{STRANGER}.build'"], "training.checkpoint:load_embedder"),
        ("nobodys_module:build", {}, ["nobodys_module", "No module"], "install"),
        (f"{STRANGER}:bulid", {"scale": 1}, [STRANGER, "'bulid'"], ""),
        (f"{STRANGER}:build", {}, [f"{STRANGER}:build", "'scale'"], "embedder_arguments"),
        (f"{STRANGER}:build", {"scale": 1, "size": 2}, [f"{STRANGER}:build", "'size'"], "embedder_arguments"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(name: str, arguments: dict, named: list[str], remedy: str) -> None:
    with refused("embedder", *named, remedy=remedy):
        load_embedder(name, arguments)


def test_an_error_inside_the_embedder_is_not_taken_for_another() -> None:
    with pytest.raises(RuntimeError, match="weights are corrupt"):
        load_embedder(f"{STRANGER}:broken", {"scale": 1})
