"""What `python -m pipelines CONFIG.yaml` is told: a source, and how its pairs are kept."""

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from pipelines.captions import CaptionSettings
from pipelines.images import ImageFormat
from pipelines.settings import Settings
from pipelines.sources import SourceSettings


class ImageSettings(Settings):
    """How pictures are kept."""

    size: int = Field(224, ge=8, description="pixels of the shorter side; smaller pictures stay as they are")
    format: ImageFormat = Field("jpeg", description="png for drawings, jpeg or webp for photographs")
    quality: int = Field(92, ge=1, le=100, description="of jpeg and webp")
    background: str = Field("white", description="CSS colour that transparent pictures are composited on")

    @field_validator("background")
    @classmethod
    def _known_colour(cls, value: str) -> str:
        from PIL import ImageColor

        ImageColor.getrgb(value)
        return value


class PrepareSettings(Settings):
    """Source in, prepared dataset out."""

    source: SourceSettings = Field(description="where the pairs come from")
    output: Path = Field(description="folder of the prepared dataset")
    image: ImageSettings = ImageSettings()
    captions: CaptionSettings = CaptionSettings()
    splits: dict[str, float] = Field({"test": 0.1}, description="share of each held-out split; the rest is train")
    split_seed: int = Field(0, ge=0, description="another seed, other held-out groups")
    max_rejected_rate: float = Field(0.1, ge=0, le=1, description="stop when a larger share of the rows is unusable")
    shard_rows: int = Field(2048, ge=1, description="rows of one Parquet shard")
    overwrite: bool = Field(False, description="replace a dataset prepared by another config")

    @field_validator("splits")
    @classmethod
    def _shares(cls, value: dict[str, float]) -> dict[str, float]:
        if "train" in value:
            raise ValueError("'train' is what the other splits leave; name the held-out splits only")
        if any(share <= 0 for share in value.values()) or sum(value.values()) >= 1:
            raise ValueError(f"shares must be positive and leave something for train, got {value}")
        return value

    @model_validator(mode="after")
    def _output_is_not_the_source(self) -> "PrepareSettings":
        if getattr(self.source, "path", None) == self.output:
            raise ValueError(f"output: {self.output} is the source itself; choose another folder")
        return self

    def recipe(self) -> dict:
        """What decides the content: all but where it goes and how it may be replaced."""
        return self.model_dump(mode="json", exclude={"output", "overwrite", "max_rejected_rate"})
