"""Where pairs come from: one small file per kind of source, over the interface of `base.py`. The union is the registry."""

from typing import Annotated

from pydantic import Field

from pipelines.sources.folder import FolderSource
from pipelines.sources.openmoji import OpenMojiSource

SourceSettings = Annotated[OpenMojiSource | FolderSource, Field(discriminator="name")]
