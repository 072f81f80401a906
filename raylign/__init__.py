"""raylign from Python: the four programs as functions, and embedders of runs and of pretrained models.

Importing it is fast: torch, Ray and the rest are imported by the first call that needs them. docs/python.md has examples.
"""

from pipelines.program.errors import UserError
from raylign.embedding import embed_images, embed_texts, load_huggingface, load_open_clip, load_run, rank
from raylign.programs import evaluate, open_dataset, prepare, sweep, train

__all__ = [
    "UserError",
    "embed_images",
    "embed_texts",
    "evaluate",
    "load_huggingface",
    "load_open_clip",
    "load_run",
    "open_dataset",
    "prepare",
    "rank",
    "sweep",
    "train",
]
