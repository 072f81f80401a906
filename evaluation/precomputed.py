"""Embeddings that were computed elsewhere: read from their folder and scored like any model's.

    FOLDER/NAME.images.npy      images, such as FOLDER/openmoji/test.images.npy
    FOLDER/NAME.texts.npy       captions and prompts, in the joint space too
    FOLDER/NAME.features.npy    for probes; where it is missing, the embeddings of the same images serve

OUTPUT/inputs, which is written first, lists what each file must hold, row by row.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.embeddings import Inputs, Rows, check_finite
from evaluation.model_settings import ModelSettings
from pipelines.features.rows_by_id import digest_of_file
from pipelines.program.errors import UserError
from pipelines.program.settings_base import digest


def precomputed(key: str, settings: ModelSettings, every: Sequence[Inputs], listings: Path) -> Rows:
    """The rows in the folder `settings.embeddings`. `key`: where the config names the model, for errors.

    Raises `UserError` for a file that is missing, has another number of rows, or rows that are NaN or infinite.
    """
    folder = settings.embeddings
    assert folder is not None
    for inputs in every:
        listing = _listing(listings, inputs)
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{line}\n" for line in inputs.descriptions()), encoding="utf-8")
    files = [(inputs, *_file(folder, inputs)) for inputs in every]
    for inputs, path, _ in files:
        _check(key, inputs, path, _listing(listings, inputs))
    rows = Rows(digest([[inputs.fingerprint, digest_of_file(path)] for inputs, path, _ in files]), settings.scale)
    for inputs, path, fallback in files:
        rows.add(inputs, path, fallback)
    return rows


def _file(folder: Path, inputs: Inputs) -> tuple[Path, bool]:
    """The file of the rows, and whether it holds embeddings in place of features."""
    path = folder / f"{inputs.name}.{inputs.kind}.npy"
    fallback = folder / f"{inputs.name}.images.npy"
    return (fallback, True) if inputs.kind == "features" and not path.is_file() and fallback.is_file() else (path, False)


def _listing(listings: Path, inputs: Inputs) -> Path:
    return listings / f"{inputs.name}.{'texts' if inputs.kind == 'texts' else 'images'}.txt"


def _check(key: str, inputs: Inputs, path: Path, listing: Path) -> None:
    count = len(inputs.items)
    expected = f"floats [{count}, width], rows in the order of {listing}"
    if not path.is_file():
        raise UserError(key, f"{path} is missing", f"save there {expected}")
    try:
        rows = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(key, f"{path} cannot be read as an array: {error}", "write it with numpy.save") from None
    if rows.ndim != 2 or len(rows) != count or not np.issubdtype(rows.dtype, np.floating):
        raise UserError(key, f"{path} is {rows.dtype} {list(rows.shape)}", f"save there {expected}")
    check_finite(key, inputs, np.asarray(rows), np.arange(count))
