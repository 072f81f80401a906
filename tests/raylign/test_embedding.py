"""`import raylign`: it is light; embedding and ranking by any embedder, here one that knows colours."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import raylign
from tests.refusals import refused

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}


class Colours:
    """Unit rows of mean colours, and of the colours that a text names; `given` has the size of each batch of images."""

    def __init__(self) -> None:
        self.given: list[int] = []

    def embed_images(self, images: list[Image.Image]) -> np.ndarray:
        self.given.append(len(images))
        assert all(image.mode == "RGB" for image in images)
        return unit(np.stack([np.asarray(image, np.float32).mean((0, 1)) for image in images]))

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return unit(np.stack([sum(np.float32(c) for name, c in COLOURS.items() if name in text) for text in texts]))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, (name, colour) in enumerate(COLOURS.items()):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4), colour).save(tmp_path / name / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    return tmp_path


def test_importing_it_is_light() -> None:
    code = "import sys, raylign; print({'torch', 'ray', 'transformers', 'pandas', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_all_names_are_there() -> None:
    assert all(callable(getattr(raylign, name)) for name in raylign.__all__)


@pytest.mark.parametrize("name", COLOURS)
def test_a_folder_is_ranked_by_a_sentence_and_by_an_image(folder: Path, name: str) -> None:
    for query in (f"a {name} square", Image.new("RGBA", (2, 2), COLOURS[name])):
        ranked = raylign.rank(Colours(), query, folder)
        assert ranked[0][0] == next((folder / name).iterdir()) and ranked[0][1] == pytest.approx(1)
        assert len(ranked) == 3 and ranked[1][1] == pytest.approx(0, abs=1e-6)


def test_rows_are_those_of_one_batch_whatever_the_batches(folder: Path) -> None:
    files, embedder = sorted(folder.rglob("[0-9].png")), Colours()
    rows = raylign.embed_images(embedder, files, batch_size=2)
    assert embedder.given == [2, 1]
    np.testing.assert_array_equal(rows, raylign.embed_images(embedder, [Image.open(file) for file in files]))
    texts = [f"{name}" for name in COLOURS]
    np.testing.assert_array_equal(raylign.embed_texts(embedder, texts, 2), raylign.embed_texts(embedder, texts))


def test_mistakes_are_one_line(folder: Path) -> None:
    broken = folder / "broken.png"
    broken.write_bytes(b"no image")
    for call, key, named in (
        (lambda: raylign.embed_images(Colours(), [broken]), "images", [broken, "undecodable"]),
        (lambda: raylign.embed_images(Colours(), [folder / "gone.png"]), "images", [folder / "gone.png"]),
        (lambda: raylign.embed_images(Colours(), []), "images", []),
        (lambda: raylign.embed_texts(Colours(), "red"), "texts", ["'red'"]),
        (lambda: raylign.rank(Colours(), "red", folder / "nowhere"), "images", [folder / "nowhere"]),
        (lambda: raylign.open_dataset(folder), "data.path", [folder, "source.path="]),
        (lambda: raylign.train({"name": "x"}, {"data.path": "nowhere"}), "image_tower", ["image_tower=VALUE", "config"]),
    ):
        with refused(key, *named):
            call()
