"""Embedders by import string: anything that can be imported, and one line for what cannot."""

import numpy as np
import pytest
from PIL import Image

from evaluation.embedder import load_embedder
from pipelines.program.errors import UserError

STRANGER = "tests.evaluation.stranger"


def test_a_function_is_called_with_the_arguments() -> None:
    rows = load_embedder(f"{STRANGER}:build", {"scale": 2}).embed_images([Image.new("RGB", (2, 2), (1, 2, 3))])
    assert np.array_equal(rows, [[2, 4, 6]])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (f"{STRANGER}.build", {}, r"embedder: '.*stranger\.build' is not of the form module:function"),
        ("nobodys_module:build", {}, "embedder: nobodys_module cannot be imported: No module named"),
        (f"{STRANGER}:bulid", {"scale": 1}, r"embedder: .*stranger has no 'bulid'"),
        (f"{STRANGER}:build", {}, "embedder: .*:build does not take these arguments: .*scale.*embedder_arguments"),
        (f"{STRANGER}:build", {"scale": 1, "size": 2}, "embedder: .*:build does not take these arguments: .*size"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_embedder(name, arguments)
    assert "\n" not in str(caught.value)


def test_an_error_inside_the_embedder_is_not_taken_for_another() -> None:
    with pytest.raises(RuntimeError, match="weights are corrupt"):
        load_embedder(f"{STRANGER}:broken", {"scale": 1})
