"""The config of `python -m pipelines CONFIG.yaml`: a source, and how its pairs are filtered and stored."""

import difflib
import re
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, field_validator, model_validator

from pipelines.dataset.images import ImageFormat
from pipelines.prepare.captions import CaptionSettings
from pipelines.program.nodes import Selector
from pipelines.program.path_keys import Place
from pipelines.program.settings_base import Settings
from pipelines.sources import SourceSettings

_USUAL = ("train", "test", "val", "validation", "dev")  # names of splits
_SHARES = TypeAdapter(dict[str, float])


class ImageSettings(Settings):
    """How images are stored."""

    size: int = Field(224, ge=8, description="pixels of the shorter side; smaller images stay as they are")
    format: ImageFormat = Field("jpeg", description="png for drawings, jpeg or webp for photographs")
    quality: int = Field(92, ge=1, le=100, description="of jpeg and webp")
    background: str = Field("white", description="CSS colour that transparent images are composited on")

    @field_validator("background")
    @classmethod
    def _known_colour(cls, value: str) -> str:
        from PIL import ImageColor

        ImageColor.getrgb(value)
        return value


class FilterSettings(Settings):
    """Pairs to leave out; they are counted and listed, but do not count towards max_rejected_rate."""

    min_side: int | None = Field(None, ge=1, description="minimum number of pixels of the shorter side")
    max_aspect: float | None = Field(None, ge=1, description="maximum ratio of the longer to the shorter side")
    min_words: int | None = Field(None, ge=1, description="minimum number of words of every caption")
    languages: tuple[str, ...] | None = Field(
        None, description="ISO 639-1 codes of the languages that captions may be in, such as [en]; needs raylign[curation]"
    )

    @field_validator("languages")
    @classmethod
    def _languages_can_be_detected(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for code in value or ():
            if not re.fullmatch("[a-z]{2}", code):
                raise ValueError(f"'{code}' is not a code of two letters; write, for example, [en]")
        if value is not None and find_spec("py3langid") is None:
            raise ValueError("py3langid is not installed; pip install 'raylign[curation]', or leave filters.languages null")
        return value


class DeduplicateSettings(Settings):
    """Pairs to leave out because an earlier one is the same; counted as those of the filters."""

    exact: Literal["none", "pair", "image"] = Field(
        "none",
        description="pair: the same image with the same captions; image: the same image, whatever the captions; images are the"
        " same if their bytes are, SVGs if they are rendered the same",
    )
    near: int | None = Field(
        None,
        ge=0,
        le=16,
        description="number of the 64 bits in which perceptual hashes of equal images may differ; needs raylign[curation]",
    )
    near_scope: Literal["all", "held_out"] = Field(
        "all",
        description="of near: all: leave out every later row; held_out: only training rows that are nearly the same as a row of"
        " another split",
    )

    @field_validator("near")
    @classmethod
    def _hashes_can_be_computed(cls, value: int | None) -> int | None:
        if value is not None and find_spec("imagehash") is None:
            raise ValueError("imagehash is not installed; pip install 'raylign[curation]', or leave deduplicate.near null")
        return value


class PrepareSettings(Settings):
    """Source in, prepared dataset out."""

    renamed: ClassVar[dict[str, str]] = {"way": "mode"}
    source: SourceSettings = Field(description="where the pairs come from: one of these, or your own module:Class")
    output: Place = Field(description="folder of the prepared dataset; s3:// and gs:// too")
    mode: Literal["copy", "index"] = Field(
        "copy",
        description="copy: decode, resize and write every image once; index: leave them where they are, read each once to detect"
        " duplicates, and record their locations",
    )
    verify: Literal["held_out", "all"] = Field(
        "held_out",
        description="of mode index: decode the held-out splits' images now, or all; what fails later is replaced while training",
    )
    image: ImageSettings = ImageSettings()
    captions: CaptionSettings = CaptionSettings()
    filters: FilterSettings = FilterSettings()
    deduplicate: DeduplicateSettings = DeduplicateSettings()
    splits: dict[str, float] | Literal["source"] = Field(
        {"test": 0.1},
        description="share of each held-out split, the rest is train; {test: 1.0}: all rows are for evaluation; source: the"
        " source's own splits",
    )
    split_seed: int = Field(0, ge=0, description="seed of the draw of held-out groups")
    max_rejected_rate: float = Field(0.1, ge=0, le=1, description="stop when a larger share of the rows is unusable")
    shard_rows: int = Field(2048, ge=1, description="rows per shard, unless a single file of the source has more")
    overwrite: bool = Field(False, description="replace a dataset prepared by another config")
    node_labels: Selector = Field({}, description="Ray labels of the cluster's nodes on which tasks run, such as {role: data}")

    @field_validator("splits", mode="plain")  # a union's errors would name its members
    @classmethod
    def _shares(cls, value: Any) -> dict[str, float] | Literal["source"]:
        if value == "source":
            return "source"
        if isinstance(value, str):
            raise ValueError(f"'{value}' is neither 'source' nor shares such as {{test: 0.1}}")
        shares = _SHARES.validate_python(value)
        for name in shares:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"'{name}' cannot be part of a file name; use letters, digits, dots, hyphens and underscores")
            near = difflib.get_close_matches(name.lower(), _USUAL, n=1, cutoff=0.75)
            if near and name not in _USUAL and near[0] not in name.lower():
                raise ValueError(f"'{name}' is spelled almost like '{near[0]}'; write '{near[0]}', or choose another name")
        if "train" in shares:
            raise ValueError("'train' is what the other splits leave; list only the held-out splits")
        if any(share <= 0 for share in shares.values()) or sum(shares.values()) > 1 + 1e-9:
            raise ValueError(f"shares must be positive and sum to at most 1, got {shares}")
        return shares

    @model_validator(mode="after")
    def _output_is_not_the_source(self) -> "PrepareSettings":
        if getattr(self.source, "path", None) == self.output:
            raise ValueError(f"output: {self.output} is the source itself; choose another folder")
        return self

    def recipe(self) -> dict:
        """The settings that decide the content: all except the output, whether it may be replaced, and where tasks run."""
        return self.model_dump(mode="json", exclude={"output", "overwrite", "max_rejected_rate", "node_labels"})
