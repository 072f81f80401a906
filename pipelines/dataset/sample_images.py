"""The images of a prepared dataset's samples, opened whole, or refused by the name of the sample and its file."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from pipelines.dataset.images import BadImage, Opened, open_image
from pipelines.dataset.prepared import Prepared
from pipelines.io.deadly import deadly
from pipelines.io.storage import Missing
from pipelines.program.errors import UserError


def whole_images(prepared: Prepared, sample_ids: np.ndarray) -> Iterator[Image.Image]:
    """The samples' images in RGB, as they are kept. Raises `UserError` for one that cannot be used."""
    for sample_id, data in zip(sample_ids, prepared.images(sample_ids), strict=True):
        try:
            yield opened(prepared, data).rgb()
        except BadImage as bad:
            raise unusable(prepared, int(sample_id), f"{bad.reason}, {bad.detail}") from None


def deadly_image(prepared: Prepared, sample_ids: np.ndarray) -> str:
    """A clause about the first of these samples whose image ends the process that reads it; empty where none does."""

    def name(sample_id: int) -> str:
        (place,) = prepared.places(np.asarray([sample_id]))
        return f"data.path: the image of sample {sample_id} ({place.file}) of {prepared.path}"

    return deadly(lambda sample_id: next(whole_images(prepared, np.asarray([sample_id]))), name, sample_ids.tolist())


def opened(prepared: Prepared, data: bytes | Missing) -> Opened:
    """An image from its encoded bytes, as the dataset was prepared to open it. Raises `BadImage`."""
    if isinstance(data, Missing):
        raise BadImage("missing_image", str(data))
    image = prepared.manifest["image"]
    return open_image(data, image["background"], svg_size=image["size"])


def unusable(prepared: Prepared, sample_id: int, why: str) -> UserError:
    """The error of whoever needs the image of each sample."""
    place = prepared.places(np.asarray([sample_id]))[0]
    return UserError(
        f"data.path: the image of sample {sample_id} ({place.file}) of {prepared.path} cannot be used: {why}; "
        "scores and banks need every image: prepare with verify=all, or mode=copy"
    )
