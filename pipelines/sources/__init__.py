"""Where pairs come from: one small file per kind of source, over the interface of `base.py`. The union is the registry."""

from typing import Annotated

from pydantic import Field

from pipelines.sources.mix import MixSource, PlainSource

SourceSettings = Annotated[PlainSource | MixSource, Field(discriminator="name")]
