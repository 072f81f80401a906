"""The strong views of images that an objective asks for. `pipelines.dataset.views` draws and applies them."""

from dataclasses import dataclass

from pydantic import Field

from pipelines.program.settings_base import Settings


class StrongAugment(Settings):
    """A strong view, as in SimCLR (Chen et al., arXiv 2002.05709) and MoCo v2: heavily cropped, recoloured and blurred."""

    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="area of the random crop, as a share of the image")
    crop_ratio: tuple[float, float] = Field((0.75, 1.3333), description="width / height of the random crop")
    jitter: float = Field(0.8, ge=0, le=1, description="share of views with other colours")
    brightness: float = Field(0.4, ge=0, le=1, description="brightness, contrast and saturation: factors within 1 +- this")
    contrast: float = Field(0.4, ge=0, le=1, description="the same")
    saturation: float = Field(0.4, ge=0, le=1, description="the same")
    hue: float = Field(0.1, ge=0, le=0.5, description="hue: turns of the colour circle within +- this")
    gray: float = Field(0.2, ge=0, le=1, description="share of views without colour")
    blur: float = Field(0.5, ge=0, le=1, description="share of blurred views")
    blur_sigma: tuple[float, float] = Field((0.1, 2.0), description="standard deviation of the blur, in pixels of the view")
    flip: bool = Field(True, description="mirror every second view")


@dataclass(frozen=True)
class StrongViews:
    """How many strong views of each image, and of what kind."""

    augment: StrongAugment
    count: int
    all_strong: bool = False  # the plain view is also a strong one
    whole: StrongAugment | None = None  # of one more view, in a column of its own
    begin: float = 0.0  # share of the run before which there are none, and batches lack their columns

    @property
    def number(self) -> int:
        """Views of an image in all."""
        return self.count + (self.whole is not None)

    def first_step(self, total_steps: int) -> int:
        """The first step of a run that has them."""
        return round(self.begin * total_steps)
