"""A process of its own: rows of towers and of runs' checkpoints, for CAPTIONS. Arguments: a JSON file, where the rows go."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

from training.checkpoint import load_embedder
from training.towers.text import HuggingFaceTextSettings

CAPTIONS = ["a red cat", "The BIG house, on a mat!", "two", "zebra cat", "cat dog " * 40]


def tower_rows(weights: str, **settings: object) -> np.ndarray:
    """Of our tower, all captions at once."""
    found = HuggingFaceTextSettings.model_validate({"name": "huggingface", "weights": weights, "max_tokens": 16} | settings)
    tokenizer = found.tokenizer(list)
    tower = found.build(tokenizer.vocabulary_size).eval()
    with torch.no_grad():
        return tower(*map(torch.from_numpy, tokenizer(CAPTIONS))).numpy()


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    wanted = json.loads(Path(sys.argv[1]).read_text())
    rows = {name: tower_rows(**settings) for name, settings in wanted["towers"].items()}
    rows |= {name: load_embedder(folder).embed_texts(CAPTIONS) for name, folder in wanted["checkpoints"].items()}
    np.savez(sys.argv[2], **rows)
