"""What a run keeps of its held-out splits when training ends: embedded and scored once, by its workers.

    RUN/held_out.npz    unit rows of the run's own split; held_out-NAME.npz of each further dataset
    RUN/held_out.json   what they scored, and examples of what was found; written last

Result, page and sweeps read it, and none of them needs Ray or torch for that.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.metrics import mean_recalls
from evaluation.suite import HeldOut, Scores
from evaluation.tasks.retrieval import Retrieval
from pipelines.program.errors import UserError
from training.checkpoint_registry import put

_FILE = "held_out.json"


@dataclass(frozen=True)
class HeldOutEmbeddings:
    """Unit rows: images and captions of the held-out split, and prompts of all classes."""

    images: np.ndarray
    texts: np.ndarray
    prompts: np.ndarray


def keep_held_out(folder: Path, step: int, splits: Sequence[tuple[str, HeldOut, HeldOutEmbeddings, Scores]]) -> None:
    """Write both kinds of files. `splits`: for each the name of its file, the run's own first.

    It is done before the last checkpoint counts, so that whoever finds that one finds this.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, _, rows, _ in splits:
        aside = folder / f"{name}.partial-{os.getpid()}"
        with aside.open("wb") as file:
            np.savez(file, **asdict(rows))
        aside.rename(folder / name)
    _, data, own, _ = splits[0]
    kept = {"step": step, **merged([scores for *_, scores in splits]), "gallery": _gallery(data, own)}
    put(folder / _FILE, json.dumps(kept))


def read_held_out(folder: Path) -> dict[str, Any]:
    """step, metrics, baselines, sample_sizes, gallery. Raises `UserError` where the file is missing or not readable."""
    try:
        return json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{folder / _FILE}: missing or not readable; let the training command finish, or train again") from None


def merged(scores: Sequence[Scores]) -> dict[str, Any]:
    """Scores of all datasets, and means of them, as results have them."""
    metrics = {path: value for found in scores for path, value in found.metrics.items()}
    return {
        "metrics": metrics | mean_recalls(metrics),
        "baselines": {path: base for found in scores for path, base in found.baselines.items()},
        "sample_sizes": {path: size for found in scores for path, size in found.sample_sizes.items()},
    }


def retrieval_of(data: HeldOut) -> Retrieval | None:
    """The task whose gallery is shown."""
    return next((task for task in data.tasks if isinstance(task, Retrieval)), None)


def _gallery(data: HeldOut, rows: HeldOutEmbeddings) -> dict[str, Any] | None:
    """Without its thumbnails: no image is read, so none that has gone since it was embedded ends a run."""
    task = retrieval_of(data)
    return None if task is None else task.gallery(data.rows(rows.images, rows.texts, rows.prompts))
