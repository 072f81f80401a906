"""Embeddings that somebody computed before, read where they lie, and judged as any model's.

    FOLDER/NAME.images.npy      images: FOLDER/openmoji/test.images.npy
    FOLDER/NAME.texts.npy       captions and prompts, in the joint space too
    FOLDER/NAME.features.npy    for probes; embeddings of the same images stand in

What each is to hold, row by row, is listed in OUTPUT/inputs, which is written first.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.embeddings import Rows, Wanted, refuse_nan
from evaluation.model_settings import ModelSettings
from pipelines.features.rows_by_id import digest_of_file
from pipelines.program.errors import UserError
from pipelines.program.settings_base import digest


def precomputed(key: str, settings: ModelSettings, wanted: Sequence[Wanted], inputs: Path) -> Rows:
    """Rows that lie in a folder. `key`: where the config names the model, for errors.

    Raises `UserError` for a file that is missing, has another number of rows, or NaN or infinite ones.
    """
    folder = settings.embeddings
    assert folder is not None
    for one in wanted:
        listing = _listing(inputs, one)
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{item}\n" for item in one.items()), encoding="utf-8")
    found = [(one, *_find(folder, one)) for one in wanted]
    for one, path, _ in found:
        _check(key, one, path, _listing(inputs, one))
    rows = Rows(digest([[one.fingerprint, digest_of_file(path)] for one, path, _ in found]), settings.scale)
    for one, path, stand_in in found:
        rows.add(one, path, stand_in)
    return rows


def _find(folder: Path, wanted: Wanted) -> tuple[Path, bool]:
    """The file of some rows, and whether it stands in for another."""
    path = folder / f"{wanted.name}.{wanted.kind}.npy"
    instead = folder / f"{wanted.name}.images.npy"
    return (instead, True) if wanted.kind == "features" and not path.is_file() and instead.is_file() else (path, False)


def _listing(inputs: Path, wanted: Wanted) -> Path:
    return inputs / f"{wanted.name}.{'texts' if wanted.kind == 'texts' else 'images'}.txt"


def _check(key: str, wanted: Wanted, path: Path, listing: Path) -> None:
    count = len(wanted.of)
    if not path.is_file():
        raise UserError(f"{key}: {path} is missing; save floats [{count}, width] there, rows in the order of {listing}")
    try:
        rows = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{key}: {path} cannot be read as an array: {error}; write it with numpy.save") from None
    if rows.ndim != 2 or len(rows) != count or not np.issubdtype(rows.dtype, np.floating):
        raise UserError(
            f"{key}: {path} is {rows.dtype} {list(rows.shape)}; expected floats [{count}, width], rows in the order of {listing}"
        )
    refuse_nan(key, wanted, np.asarray(rows), np.arange(count))
