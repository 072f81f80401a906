"""Images of a prepared dataset's samples, decoded at full size; errors name the sample and its file."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from pipelines.dataset.images import BadImage, Opened, open_image
from pipelines.dataset.prepared import Prepared
from pipelines.io.deadly import deadly
from pipelines.io.storage import Missing
from pipelines.program.errors import UserError


def whole_images(prepared: Prepared, sample_ids: np.ndarray) -> Iterator[Image.Image]:
    """The samples' images in RGB, at their stored size. Raises `UserError` for one that cannot be used."""
    for sample_id, data in zip(sample_ids, prepared.images(sample_ids), strict=True):
        try:
            yield opened(prepared, data).rgb()
        except BadImage as bad:
            raise unusable(prepared, int(sample_id), f"{bad.reason}, {bad.detail}") from None


def deadly_image(prepared: Prepared, sample_ids: np.ndarray) -> UserError | None:
    """An error about the first of these samples whose image crashes the process that reads it; None if none does."""

    def read(sample_id: int) -> Image.Image:
        return next(whole_images(prepared, np.asarray([sample_id])))

    problem = deadly(read, prepared.name_of_image, sample_ids.tolist())
    remedy = "repair or remove the file, or prepare again with verify=all, which leaves it out"
    return UserError("data.path", problem, remedy) if problem else None


def opened(prepared: Prepared, data: bytes | Missing) -> Opened:
    """An image from its encoded bytes, as the dataset was prepared to open it. Raises `BadImage`."""
    if isinstance(data, Missing):
        raise BadImage("missing_image", str(data))
    image = prepared.manifest["image"]
    return open_image(data, image["background"], svg_size=image["size"])


def unusable(prepared: Prepared, sample_id: int, why: str) -> UserError:
    """The error about an unusable image where every image is needed."""
    problem = f"{prepared.name_of_image(sample_id)} cannot be used: {why}"
    return UserError(
        "data.path", problem, "scores and stored features need every image: prepare again with verify=all, or mode=copy"
    )
