"""Where pairs come from: one small file per kind of source, over the interface of `base.py`. The union is the registry.

One of your own needs no place in it: a config names its class, as `mypackage.mymodule:MySource`.
"""

from typing import Annotated

from pydantic import Field

from pipelines.program.own_class import OrOwn
from pipelines.sources.base import Source
from pipelines.sources.mix import MixSource, PlainSource

SourceSettings = Annotated[PlainSource | MixSource, Field(discriminator="name"), OrOwn(Source)]
