"""The embeddings and scores of its held-out splits that a run keeps at the end of training, as its workers computed them.

    RUN/held_out.npz    unit rows of the run's own split; held_out-NAME.npz of each further dataset
    RUN/held_out.json   their scores, and examples of retrieval for the page; written last

The result, the page and sweeps read these files, and none of them needs Ray or torch for that.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.metrics import mean_recalls
from evaluation.retrieval import chance
from evaluation.suite import HeldOut, Scores
from evaluation.tasks.retrieval import Retrieval
from pipelines.io import storage
from pipelines.io.patient import outlast
from pipelines.program.errors import UserError

HELD_OUT = "held_out.json"


@dataclass(frozen=True)
class HeldOutEmbeddings:
    """Unit rows: images and captions of the held-out split, and prompts of all classes."""

    images: np.ndarray
    texts: np.ndarray
    prompts: np.ndarray


def keep_held_out(folder: Path | str, step: int, splits: Sequence[tuple[str, HeldOut, HeldOutEmbeddings, Scores]]) -> None:
    """Write both kinds of files. `splits`: of each its file name, data, embeddings and scores; the run's own split first.

    They are written before the last checkpoint is registered, so a run that has that checkpoint has these files. `folder`: may be
    the run's URI in a store.
    """
    for name, _, rows, _ in splits:
        _written(storage.join(folder, name), partial(np.savez, **asdict(rows)))
    _, data, own, _ = splits[0]
    content = {"step": step, **merged_scores([scores for *_, scores in splits]), "gallery": _gallery(data, own)}
    _written(storage.join(folder, HELD_OUT), lambda file: file.write(json.dumps(content).encode()))


def _written(place: Path | str, write: Callable[[Any], object]) -> None:
    def attempt() -> None:
        with storage.written(place) as aside, aside.open("wb") as file:
            write(file)

    outlast(attempt)


def read_held_out(folder: Path) -> dict[str, Any]:
    """step, metrics, baselines, sample_sizes, gallery. Raises `UserError` if the file is missing or not readable."""
    try:
        return json.loads((folder / HELD_OUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            str(folder / HELD_OUT), "missing or not readable", "let the training command finish, or train again"
        ) from None


def merged_scores(scores: Sequence[Scores]) -> dict[str, Any]:
    """Scores of all datasets and their means, in the form of results."""
    metrics = {path: value for part in scores for path, value in part.metrics.items()}
    return {
        "metrics": metrics | mean_recalls(metrics),
        "baselines": {path: baseline for part in scores for path, baseline in part.baselines.items()},
        "sample_sizes": {path: size for part in scores for path, size in part.sample_sizes.items()},
    }


def pairs_at_a_time(data: HeldOut, batch: int) -> int:
    """Of how many pairs `held_out_loss` is at a time: a training batch's, or all if the split has fewer."""
    return min(batch, len(np.unique(data.image_of_text)))


def chances_of(data: HeldOut) -> dict[str, tuple[float, int]]:
    """What guessing scores of each mean of recalls, in percent, and the number of images: known before anything is embedded."""
    if not data.texts:
        return {}
    right, back = ([len(of) for of in lists] for lists in (data.texts_of_image, data.images_of_text))
    images, texts = len(right), len(back)
    return {
        f"retrieval/{data.dataset}/mean_recall@{k}": ((chance(texts, right, k) + chance(images, back, k)) / 2, images)
        for k in data.settings.recall_at
    }


def scores_at_start(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """`start`: what a run that started from a dual encoder scored before its first step, from its lines of metrics."""
    first = next((line for line in lines if line["step"] == 0), {})
    metrics = {path: value for path, value in first.items() if "/" in path}
    return {"start": metrics | mean_recalls(metrics)} if metrics else {}


def retrieval_of(data: HeldOut) -> Retrieval | None:
    """The retrieval task, whose examples the page shows, if there is one."""
    return next((task for task in data.tasks if isinstance(task, Retrieval)), None)


def _gallery(data: HeldOut, rows: HeldOutEmbeddings) -> dict[str, Any] | None:
    """Examples of retrieval, without thumbnails: reading images here could end a run if one has gone since it was embedded."""
    task = retrieval_of(data)
    return None if task is None else task.gallery(data.rows(rows.images, rows.texts, rows.prompts))
