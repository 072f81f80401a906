"""SugarCrepe as published: seven json files, and the images of COCO 2017 val to which they refer."""

from typing import Literal

import numpy as np
from pydantic import Field

from evaluation.data.base import Content, SugarCrepe
from evaluation.data.files import FileImages, changes, files_in, fingerprint
from evaluation.sugarcrepe import SIZES, read
from pipelines.program.errors import UserError
from pipelines.program.path_keys import LocalPlace, Place
from pipelines.program.settings_base import Settings

_IMAGES = "COCO's val2017.zip (https://cocodataset.org/#download), unpacked"


class SugarCrepeData(Settings):
    """SugarCrepe: captions against captions that do not describe the image."""

    name: Literal["sugarcrepe"]
    path: LocalPlace = Field(description="folder with replace_obj.json and the other six files")
    images: Place | None = Field(None, description="folder with the images of COCO 2017 val; null: val2017 in path")
    subsets: dict[str, int] = Field(
        SIZES, min_length=1, description="files to read, without .json, and how many items each has; all seven by default"
    )

    def read(self, key: str) -> Content:
        """The items, and every image once, in order of first use. Raises `UserError`."""
        try:
            items = read(self.path, self.subsets)
        except UserError as error:
            raise error.under(key) from None
        folder = self.path / "val2017" if self.images is None else self.images
        files = files_in(folder, f"{key}.images", _IMAGES)
        position: dict[str, int] = {}
        for item in (item for subset in items.values() for item in subset):
            position.setdefault(item.filename, len(position))
        missing = [name for name in position if name not in files]
        if missing:
            problem = f"{folder} has no '{missing[0]}' ({len(missing)} of {len(position)} images are missing)"
            raise UserError(f"{key}.images", problem, f"put there: {_IMAGES}")
        images = FileImages(key, folder, tuple(position), fingerprint(changes(position, files)))
        image_of = {
            name: np.asarray([position[item.filename] for item in subset], dtype=np.int64) for name, subset in items.items()
        }
        return Content(sugarcrepe=SugarCrepe(images, items, image_of))
