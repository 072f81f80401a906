"""Embedders by import string: anything that can be imported, and one line for what cannot."""

import numpy as np
import pytest
from PIL import Image

from evaluation.config import EvaluateSettings
from evaluation.embed import embed
from evaluation.embedder import load_embedder
from evaluation.suite import SuiteSettings, held_out
from pipelines.display import Display
from pipelines.prepared import Prepared
from pipelines.settings import UserError
from pipelines.stream import whole_pictures

STRANGER = "tests.evaluation.stranger"
QUIET = Display(quiet=True)


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


def settings_of(stamps: Prepared, name: str) -> EvaluateSettings:
    tree = {"embedder": f"{STRANGER}:{name}", "embedder_arguments": {"scale": 0.5}, "data": stamps.path}
    return EvaluateSettings.model_validate(tree | {"output": "unused", "batch_size": 3})


def test_a_split_is_embedded_in_order_through_ray(stamps: Prepared) -> None:
    """Pieces of three go to an actor and come back in the order of pictures, captions and prompts."""
    data = held_out(stamps, SuiteSettings())
    images, texts, prompts = embed(settings_of(stamps, "build"), stamps, data, QUIET)
    assert images.dtype == texts.dtype == prompts.dtype == np.float32
    assert texts[:, 0].tolist() == [len(text) for text in data.texts]
    assert prompts[:, 0].tolist() == [len(text) for text in data.prompts]
    pictures = list(whole_pictures(stamps, data.sample_ids))
    assert images == pytest.approx(np.stack([np.asarray(p).mean(axis=(0, 1)) / 2 for p in pictures]), rel=1e-6)


def test_an_embedder_with_wrong_shapes_is_found_out(stamps: Prepared) -> None:
    with pytest.raises(Exception, match=r"embedder: \d images gave an array of shape \[3\]"):
        embed(settings_of(stamps, "flat"), stamps, held_out(stamps, SuiteSettings()), QUIET)
