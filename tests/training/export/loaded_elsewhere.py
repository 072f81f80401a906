"""A process of its own that knows exports and no run: what the code in their model cards gives for image files and texts.

Arguments: a folder of exports NAME-TARGET, and a folder of images with texts.json. The rows go into `rows.npz` beside that.
raylign cannot be imported, except by exports that are loaded by it.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

OURS = ("raylign", "training", "evaluation", "pipelines", "tuning")


def code_of(card: str) -> str:
    """The card's Python, without its last lines, which use a photo that is not there."""
    match = re.search(r"```python\n(.*?)\nloaded = load\(", card, flags=re.DOTALL)
    assert match is not None
    return match[1]


if __name__ == "__main__":
    exports, inputs = map(Path, sys.argv[1:])
    files, texts = sorted(inputs.glob("*.png"), key=lambda file: int(file.stem)), json.loads((inputs / "texts.json").read_text())
    rows: dict[str, Any] = {}
    folders = sorted(exports.iterdir(), key=lambda folder: folder.name.endswith("-safetensors"))
    for name in OURS:
        sys.modules[name] = None  # type: ignore[assignment]  an import fails
    for folder in folders:
        if folder.name.endswith("-safetensors"):
            for name in OURS:
                sys.modules.pop(name, None)
        names: dict[str, Any] = {}
        exec(code_of((folder / "README.md").read_text()), names)
        loaded = names["load"](str(folder))
        rows[f"{folder.name} images"] = names["embed_images"](loaded, [str(file) for file in files])
        rows[f"{folder.name} texts"] = names["embed_texts"](loaded, texts)
        network = loaded[0] if isinstance(loaded, tuple) else loaded
        for number in ("logit_scale", "logit_bias"):
            if getattr(network, number, None) is not None:
                rows[f"{folder.name} {number}"] = getattr(network, number).detach().numpy()
    import numpy as np

    np.savez(inputs / "rows.npz", **rows)
