"""RandAugment: a few operations on a view's colours and geometry, drawn at random, all with the same magnitude.

Cubuk et al., arXiv 1909.13719. The ten operations, their strengths and the probability of one half for applying each drawn one
follow the public training code of ALBEF (Li et al., arXiv 2107.07651), as does the starter code of a course
(training/configs/course.yaml). Geometric operations interpolate, and fill the outside with gray.
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from pydantic import Field

from pipelines.program.settings_base import Settings

NAMES = (
    "identity",
    "autocontrast",
    "equalize",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
)
_APPLIED = 0.5  # probability with which a drawn operation is applied
_GRAY = (128, 128, 128)

Operation = tuple[str, float]  # name and strength: a factor, a slope, pixels of the view or degrees


class RandAugment(Settings):
    """Operations on a view after crop and flip."""

    operations: int = Field(2, ge=1, description="operations drawn for each view; half of those drawn are applied")
    magnitude: float = Field(7, ge=0, le=10, description="strength of the operations, from 0 to 10")

    def draw(self, random: np.random.Generator) -> tuple[Operation, ...]:
        """The operations on one view, in order."""
        share, operations = self.magnitude / 10, []
        for _ in range(self.operations):
            # All numbers are drawn, whether used or not.
            name, applied, sign = str(random.choice(NAMES)), random.random() < _APPLIED, 1 if random.random() < 0.5 else -1
            strengths = {"brightness": 0.1 + 1.8 * share, "sharpness": 0.1 + 1.8 * share, "rotate": sign * 30 * share}
            strengths |= dict.fromkeys(("shear_x", "shear_y"), sign * 0.3 * share)
            strengths |= dict.fromkeys(("translate_x", "translate_y"), sign * 10 * share)
            if applied:
                operations.append((name, strengths.get(name, 0.0)))
        return tuple(operations)


def operate(view: Image.Image, operation: Operation) -> Image.Image:
    """A view after one operation, of the same size."""
    name, strength = operation
    if name == "autocontrast":
        return ImageOps.autocontrast(view)
    if name == "equalize":
        return ImageOps.equalize(view)
    if name == "brightness":
        return ImageEnhance.Brightness(view).enhance(strength)
    if name == "sharpness":
        return ImageEnhance.Sharpness(view).enhance(strength)
    if name == "rotate":
        return view.rotate(strength, Image.Resampling.BILINEAR, fillcolor=_GRAY)
    # The position in the input of each output pixel.
    origins = {
        "shear_x": (1, -strength, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, -strength, 1, 0),
        "translate_x": (1, 0, -strength, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, -strength),
    }
    if name in origins:
        return view.transform(view.size, Image.Transform.AFFINE, origins[name], Image.Resampling.BILINEAR, fillcolor=_GRAY)
    return view
