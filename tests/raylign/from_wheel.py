"""What test_wheel.py runs in an empty folder with the installed wheel alone: commands and API, in one process with one Ray."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import raylign
from raylign.__main__ import main

assert "torch" not in sys.modules and "ray" not in sys.modules, "importing raylign is light"
assert not Path(raylign.__file__).is_relative_to(sys.argv[1]), "the checkout is not what is tested"

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (240, 240, 240)}


def do(*arguments: str) -> None:
    assert main([*arguments, "--quiet"]) == 0, arguments


# The embedded data.
do("prepare", "openmoji.yaml", "source.limit=40", "image.size=16")
assert raylign.open_dataset("data/openmoji").num_samples == 40

# A folder of images with captions, and the configs of `raylign init`.
Path("images").mkdir()
for i, (name, colour) in enumerate([*COLOURS.items()] * 8):
    Image.new("RGB", (24, 24), colour).save(f"images/{i}.png")
    Path(f"images/{i}.txt").write_text(f"{name} square {i}")
Path("ownloss.py").write_text(Path(sys.argv[1], "tests/raylign/own_objective.py").read_text())
small = ["epochs=2", "global_batch_size=8", "image_tower.image_size=16", "text_tower.width=16", "text_tower.vocabulary_size=300"]
do("prepare", "mine/prepare.yaml", "image.size=16", "splits.test=0.25")
do("train", "mine/train.yaml", *small, "objective.name=ownloss:Plain")
do("train", "mine/train.yaml", *small, "objective.name=ownloss:Plain")  # it is done: its config is read again
do("evaluate", "mine/evaluate.yaml")
assert list(Path("runs/mine/evaluation").rglob("result.json"))
keys = [f"overrides.{text}" for text in small[1:]]  # epochs are the budget's
do("sweep", "mine/sweep.yaml", *keys, "trials=1", "seeds=[0]", "grid.objective.name=['ownloss:Plain']", "budget.epochs=1")
assert "finished" in Path("runs/mine-sweep/trials.csv").read_text()

# Ten lines.
model = raylign.load_run("runs/mine")
image = raylign.embed_images(model, ["images/0.png"])
text = raylign.embed_texts(model, ["red square"])
print("cosine", (image @ text.T).item())
ranked = raylign.rank(model, "red square", "images")
for file, cosine in ranked[:3]:
    print(file, round(cosine, 3))

assert image.shape == text.shape and len(ranked) == 32
assert np.isclose(dict(ranked)[Path("images/0.png")], (image @ text.T).item(), atol=1e-5)
assert [cosine for _, cosine in ranked] == sorted((cosine for _, cosine in ranked), reverse=True)
